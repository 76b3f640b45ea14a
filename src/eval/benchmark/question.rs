//! A question of a benchmark.

use std::path::PathBuf;

use super::Metric;

/// A question of a benchmark, with what is right.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Question {
    /// Id, unique in the test set.
    pub id: String,
    /// The id in its file, if questions about one image share it there; `id` has a number behind it. Predictions are written
    /// with it.
    pub shared_id: Option<String>,
    /// Whether its file has the id as a text though it may be a number; predictions then have, too.
    pub has_text_id: bool,
    /// Name of the image; questions of the same name have the same images. Empty for no image.
    pub image: String,
    /// The question, a hint before it included.
    pub text: String,
    /// Whether `text` is the whole prompt, with options and instruction, as in LLaVA's question files.
    pub is_prompt: bool,
    /// Whether the file says that it is an open question, without options to choose from.
    pub is_open: bool,
    /// Texts of the options A, B and so on; a letter without an option has an empty text.
    pub options: Vec<String>,
    /// All right answers, or the captions of the image; of a question with options the right letter. Empty if it is not
    /// known, as in test splits.
    pub answers: Vec<String>,
    /// Categories that the question belongs to, such as a split of POPE.
    pub categories: Vec<String>,
    /// What it is scored with: the questions of a pair, the rotations of a question, or itself.
    pub group: String,
    /// Where its images are.
    pub(super) place: ImagePlace,
}

/// Where the images of a question are.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) enum ImagePlace {
    #[default]
    Nowhere,
    Files(Vec<PathBuf>),
    /// In fields of a row of a file.
    Row {
        file: usize,
        row: usize,
        fields: Vec<String>,
    },
    /// A scene of shapes world.
    Scene(u64),
}

impl Question {
    /// Categories that the question is counted in: names with a comma, as of VLMEvalKit's POPE, are several.
    pub fn category_names(&self) -> impl Iterator<Item = &str> {
        self.categories.iter().flat_map(|names| names.split(',')).map(str::trim)
    }

    /// Name of the image without folders and extension.
    pub(super) fn image_stem(&self) -> &str {
        let name = self.image.rsplit_once('/').map_or(self.image.as_str(), |(_, name)| name);
        name.rsplit_once('.').map_or(name, |(stem, _)| stem)
    }

    /// Whether the right answer is a letter though there are no options: these are in the question, as in MMStar of the Hub.
    pub(super) fn has_letter_for_answer(&self) -> bool {
        let is_letter = |right: &String| right.len() == 1 && right.bytes().all(|byte| byte.is_ascii_uppercase());
        !self.is_open && !self.answers.is_empty() && self.answers.iter().all(is_letter)
    }

    /// The prompt: the question, its options, and an instruction, each on lines of its own.
    pub fn prompt(&self, metric: Metric, instruction: Option<&str>) -> String {
        let mut lines = vec![self.text.clone()];
        if !self.is_prompt {
            let options = self.options.iter().zip('A'..='Z').filter(|(option, _)| !option.is_empty());
            lines.extend(options.map(|(option, letter)| format!("{letter}. {option}")));
            let is_open = metric.is_choice() && self.options.is_empty() && !self.has_letter_for_answer();
            let usual = if is_open { Metric::ExactMatch.instruction() } else { metric.instruction() };
            lines.push(instruction.unwrap_or(usual).to_owned());
        }
        lines.retain(|line| !line.is_empty());
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_has_options_and_an_instruction() {
        let question =
            Question { text: "Which?".into(), options: vec!["red".into(), "blue".into()], ..Default::default() };
        let instruction = Metric::Choice.instruction();
        assert_eq!(question.prompt(Metric::Choice, None), format!("Which?\nA. red\nB. blue\n{instruction}"));
        assert_eq!(question.prompt(Metric::Choice, Some("Now.")), "Which?\nA. red\nB. blue\nNow.");
        let gap = Question { options: vec!["red".into(), String::new(), "blue".into()], ..question.clone() };
        assert!(gap.prompt(Metric::Choice, None).starts_with("Which?\nA. red\nC. blue\n"));
        let open = Question { text: "Which?".into(), ..Question::default() };
        assert_eq!(open.prompt(Metric::AnswersMatch, None), "Which?");
        assert!(open.prompt(Metric::Choice, None).ends_with("word or phrase."));
        let inside = Question { answers: vec!["B".into()], ..open.clone() };
        assert!(inside.prompt(Metric::Choice, None).ends_with("from the given choices directly."));
        assert_eq!(Question { is_prompt: true, ..question }.prompt(Metric::Choice, Some("x")), "Which?");
    }
}

//! Which question a prediction answers: by its id, or by the ids that LLaVA's lists of questions have.

use std::collections::HashMap;

use super::predictions::Prediction;
use super::question::Question;
use super::question_set::{QuestionSet, coco_number};
use super::{Benchmark, Metric};
use crate::error::one_line;
use crate::{Error, Result};

/// Splits of POPE in LLaVA's list of questions, and what is added to the ids of each.
const SPLITS_OF_LLAVA: [(&str, u64); 3] = [("popular", 20_000_000), ("random", 10_000_000), ("adversarial", 0)];
/// The first id behind all of these.
const END_OF_LLAVA: u64 = 30_000_000;

impl QuestionSet {
    /// The prediction of each question; `None` where there is none. See [`Self::positions`].
    ///
    /// # Errors
    /// [`Error::Data`] for two predictions of one question that differ, if there is none of any question, or if prompts are
    /// of other questions for the most part, in all or in a category.
    pub fn matched<'p>(&self, predictions: &'p [Prediction]) -> Result<Vec<Option<&'p Prediction>>> {
        let mut found: Vec<Option<&Prediction>> = vec![None; self.questions().len()];
        for (prediction, at) in predictions.iter().zip(self.positions(predictions)) {
            let Some(slot) = at.and_then(|at| found.get_mut(at)) else { continue };
            match slot {
                // A resumed run asks questions again that failed.
                Some(earlier) if earlier.answer.is_some() => {
                    if prediction.answer.is_some() && !earlier.says_the_same(prediction) {
                        let message =
                            format!("the predictions have question {} twice, with other answers", prediction.id);
                        return Err(Error::data(message + ": remove one"));
                    }
                }
                _ => *slot = Some(prediction),
            }
        }
        if found.iter().all(Option::is_none) {
            let (theirs, ours) =
                (predictions.first().map(|p| p.id.as_str()), self.questions().first().map(|q| q.id.as_str()));
            return Err(Error::data(format!(
                "no prediction is of a question of {}: ids are like {}, expected like {}",
                self.benchmark().title,
                theirs.unwrap_or_default(),
                ours.unwrap_or_default()
            )));
        }
        self.check_prompts(&found)?;
        Ok(found)
    }

    /// The place among [`Self::questions`] of what each prediction answers; `None` for another question. Ids that are none
    /// of the questions' own are those of LLaVA's lists: names of images, where the prompt says which question about the
    /// image it is (TextVQA), and numbers of all splits (POPE: 10,000,000 more in the random one, 20,000,000 in the popular).
    /// The id of a caption may be the name of COCO's image.
    pub fn positions(&self, predictions: &[Prediction]) -> Vec<Option<usize>> {
        let by_id = HashMap::from_iter(self.questions().iter().enumerate().map(|(at, asked)| (asked.id.as_str(), at)));
        let lookup = Lookup { benchmark: self.benchmark(), questions: self.questions(), by_id };
        if lookup.are_llavas(predictions) {
            return predictions.iter().map(|prediction| lookup.of_llavas_pope(&prediction.id)).collect();
        }
        let mut found = Vec::from_iter(predictions.iter().map(|prediction| lookup.of_id(&prediction.id)));
        if found.iter().any(Option::is_none) {
            lookup.add_by_image(predictions, &mut found);
        }
        found
    }

    /// Number of predictions that are of none of the questions.
    pub fn count_others(&self, predictions: &[Prediction]) -> usize {
        self.positions(predictions).iter().filter(|at| at.is_none()).count()
    }

    /// Refuses predictions whose prompts are of other questions for the most part: numbers from 1 are ids in many files.
    fn check_prompts(&self, predictions: &[Option<&Prediction>]) -> Result<()> {
        // What is asked for captions is no part of their files.
        if self.benchmark().metric == Metric::Captions {
            return Ok(());
        }
        let mut counts: HashMap<&str, Prompts<'_>> = HashMap::new();
        for (question, found) in self.questions().iter().zip(predictions) {
            let Some(prompt) = found.and_then(|found| found.prompt.as_deref()) else { continue };
            let same = asks(question, prompt);
            // The splits of POPE may be of different versions.
            let split = question.categories.first().filter(|_| self.benchmark().metric == Metric::YesNo);
            for category in std::iter::once("").chain(split.map(String::as_str)) {
                let count = counts.entry(category).or_default();
                count.same += usize::from(same);
                count.others += usize::from(!same);
                count.first_other = count.first_other.or((!same).then_some((question, prompt)));
            }
        }
        let mut wrong = Vec::from_iter(counts.iter().filter(|(_, count)| count.others > count.same));
        wrong.sort_by_key(|(category, _)| **category);
        let Some((category, Prompts { others, first_other: Some((question, prompt)), .. })) = wrong.first() else {
            return Ok(());
        };
        let within = if category.is_empty() { String::new() } else { format!(" in category {category}") };
        Err(Error::data(format!(
            "the predictions are of other questions{within}: `prompt` of {} is `{}`, expected `{}` in it ({others} such): choose \
             those of this file, or remove `prompt`",
            question.id,
            short(prompt),
            short(&question.text),
        )))
    }
}

/// How many prompts of a category have the questions in them.
#[derive(Default)]
struct Prompts<'q> {
    same: usize,
    others: usize,
    first_other: Option<(&'q Question, &'q str)>,
}

/// The questions by what predictions name them with.
struct Lookup<'q> {
    benchmark: &'static Benchmark,
    questions: &'q [Question],
    by_id: HashMap<&'q str, usize>,
}

impl Lookup<'_> {
    fn of_id(&self, id: &str) -> Option<usize> {
        let number = if self.benchmark.metric == Metric::Captions { coco_number(id) } else { None };
        self.by_id.get(number.unwrap_or(id)).copied()
    }

    /// Whether predictions have the ids of LLaVA's list of POPE, and the questions those of POPE.
    fn are_llavas(&self, predictions: &[Prediction]) -> bool {
        let is_of_a_split = |id: &str| id.parse().is_ok_and(|id: u64| (10_000_001..END_OF_LLAVA).contains(&id));
        let is_foreign =
            |prediction: &Prediction| is_of_a_split(&prediction.id) && self.of_id(&prediction.id).is_none();
        self.benchmark.name == "pope" && predictions.iter().any(is_foreign)
    }

    /// The question of an id of LLaVA's list of POPE.
    fn of_llavas_pope(&self, id: &str) -> Option<usize> {
        let id = id.parse::<u64>().ok().filter(|id| *id < END_OF_LLAVA)?;
        let (split, first) = SPLITS_OF_LLAVA.into_iter().find(|(_, first)| id >= *first)?;
        let number = (id - first).to_string();
        // Numbers alone are ids where one split is all there is.
        let of_split = |at: &usize| {
            self.questions.get(*at).is_some_and(|question| question.categories.iter().any(|name| name == split))
        };
        self.of_id(&format!("{split}/{number}")).or_else(|| self.of_id(&number).filter(of_split))
    }

    /// Adds the questions of predictions whose ids are names of images.
    fn add_by_image(&self, predictions: &[Prediction], found: &mut [Option<usize>]) {
        let mut by_words: HashMap<(&str, String), Vec<usize>> = HashMap::new();
        for (at, question) in self.questions.iter().enumerate() {
            by_words.entry((question.image_stem(), plain_words(&question.text))).or_default().push(at);
        }
        let mut answered = vec![false; self.questions.len()];
        for (prediction, slot) in predictions.iter().zip(found).filter(|(_, slot)| slot.is_none()) {
            let Some(prompt) = &prediction.prompt else { continue };
            let parts = std::iter::once(prompt.as_str()).chain(prompt.lines()).map(plain_words);
            let mut asked = parts.filter_map(|words| by_words.get(&(prediction.id.as_str(), words)));
            let Some(same) = asked.next() else { continue };
            // The same question about an image twice is answered in the order of the file.
            let next = same.iter().find(|at| answered.get(**at) == Some(&false)).or(same.last()).copied();
            if let (Some(answered), true) = (next.and_then(|at| answered.get_mut(at)), prediction.answer.is_some()) {
                *answered = true;
            }
            *slot = next;
        }
    }
}

/// Whether a prompt has a line of the question in it. Hints, options and instructions may be others in the prompt of another
/// tool, also behind the question.
fn asks(question: &Question, prompt: &str) -> bool {
    let prompt = plain_words(prompt);
    let lines = question.text.lines().take(if question.is_prompt { 1 } else { usize::MAX });
    let asked = lines.filter_map(|line| line.split_inclusive('?').next()).map(plain_words);
    Vec::from_iter(asked.filter(|line| !line.is_empty())).iter().any(|line| prompt.contains(line))
}

/// The words of a text in lower case, without tags such as `<image 1>`.
fn plain_words(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for (at, part) in text.split("<image").enumerate() {
        let part = part.split_once('>').filter(|_| at > 0).map_or(part, |(_, rest)| rest);
        plain.extend([" ", part]);
    }
    Vec::from_iter(plain.split_whitespace()).join(" ").to_lowercase()
}

/// The beginning of a text, in one line.
fn short(text: &str) -> String {
    one_line(text).chars().take(60).collect()
}

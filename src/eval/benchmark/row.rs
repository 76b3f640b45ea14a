//! Questions from rows, whatever file they come from.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::python_list::python_list;
use super::question::Question;
use crate::data::is_embedded;
use crate::eval::metrics::MAX_OPTIONS;

const ID: [&str; 6] = ["index", "question_id", "questionid", "qid", "data_id", "id"];
const TEXT: [&str; 4] = ["question", "query", "text", "prompt"];
const HINT: [&str; 1] = ["hint"];
const OPTIONS: [&str; 2] = ["options", "choices"];
const ANSWERS: [&str; 8] =
    ["answers", "answer", "label", "gt_answer", "correct answer", "caption", "captions", "sentences"];
const CATEGORY: [&str; 5] = ["category", "answer_type", "question_type", "human_or_machine", "subfield"];
const SUPER_CATEGORY: [&str; 1] = ["l2-category"];
/// Fields that hold or name images, the first that is set counts.
const IMAGE: [&str; 9] =
    ["image", "images", "image_path", "imgname", "image_file", "file_name", "image_id", "imageid", "data_id"];
/// Most images of a question, in fields `image_1` and so on.
const MAX_IMAGES: usize = 16;
/// Longest name of an image or row; what is longer is the image itself, in base64.
const MAX_NAME: usize = 256;

/// A row of a file of questions.
pub(super) struct FieldsOf<'f>(HashMap<String, &'f Value>);

impl<'f> FieldsOf<'f> {
    /// The fields of a row that are set; names count in lower case, with `_` for `-`.
    pub(super) fn new(fields: &'f Map<String, Value>) -> Self {
        let set = fields.iter().filter(|(_, value)| is_set(value));
        Self(set.map(|(name, value)| (plain(name), value)).collect())
    }

    fn first(&self, names: &[&str]) -> Option<&'f Value> {
        names.iter().find_map(|name| self.0.get(&plain(name)).copied())
    }

    /// Text of the first of these fields that is set.
    pub(super) fn text(&self, names: &[&str]) -> Option<String> {
        self.first(names).and_then(text_of)
    }

    /// The question of a row, without its images, and with `id` if it has none of its own.
    ///
    /// # Errors
    /// What is missing.
    pub(super) fn question(&self, id: &str) -> Result<Question, String> {
        let options = self.options();
        if options.len() > MAX_OPTIONS {
            return Err(format!("has {} options, expected at most {MAX_OPTIONS}", options.len()));
        }
        let id = self.text(&ID).unwrap_or_else(|| id.to_owned());
        let text = self.text(&TEXT).unwrap_or_default();
        // LLaVA's files have the whole prompt as `text`.
        let is_prompt = self.first(&TEXT[..2]).is_none() && !text.is_empty();
        let text = Vec::from_iter(self.text(&HINT).into_iter().chain([text])).join("\n");
        let types = self.first(&["types"]).and_then(|types| text_of(types.get("structural")?));
        let categories = [self.text(&CATEGORY), self.text(&SUPER_CATEGORY), types].into_iter().flatten().collect();
        let answers = self.answers(&options);
        Ok(Question { group: id.clone(), id, text, is_prompt, options, answers, categories, ..Question::default() })
    }

    /// Options in columns A, B and so on, in a list, or in `choice_a`, `choice_b` and so on.
    fn options(&self) -> Vec<String> {
        let columns = |prefix: &str| {
            let names = ('a'..='z').map(|letter| format!("{prefix}{letter}"));
            Vec::from_iter(names.map_while(|name| self.0.get(&name).copied().and_then(text_of)))
        };
        let list = || match self.first(&OPTIONS) {
            Some(Value::String(text)) => python_list(text).unwrap_or_else(|| lettered(text)),
            Some(value) => texts_of(value),
            None => Vec::new(),
        };
        let of_columns = [columns(""), columns("choice_")].into_iter().find(|options| options.len() > 1);
        of_columns.unwrap_or_else(list)
    }

    /// The right answers; of a question with options the letter of the right one.
    fn answers(&self, options: &[String]) -> Vec<String> {
        let texts = match self.first(&ANSWERS) {
            Some(Value::String(text)) => python_list(text).unwrap_or_else(|| vec![text.trim().to_owned()]),
            Some(value) => texts_of(value),
            None => Vec::new(),
        };
        if options.is_empty() { texts } else { texts.iter().map(|text| letter_of(text, options)).collect() }
    }

    /// Names of the fields that hold or name images.
    pub(super) fn image_fields(&self) -> Vec<String> {
        let numbered = || (1..=MAX_IMAGES).map(|n| format!("image_{n}")).filter(|name| self.0.contains_key(name));
        let one = IMAGE.iter().map(|name| (*name).to_owned()).find(|name| self.0.contains_key(name));
        one.map_or_else(|| numbered().collect(), |name| vec![name])
    }

    /// The name of an image or of another row in a field; `None` if the field holds the image itself.
    pub(super) fn image_name(&self, field: &str) -> Option<String> {
        let name = self.0.get(field).copied().and_then(text_of)?;
        (name.len() < MAX_NAME && !is_embedded(&name)).then_some(name)
    }
}

/// Name of a field as it is compared: `l2_category` is `L2-category`.
pub(super) fn plain(name: &str) -> String {
    name.trim().to_lowercase().replace('-', "_")
}

/// Whether a field has a value; pandas writes `nan` where there is none.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.trim().is_empty() && text != "nan",
        Value::Array(values) => values.iter().any(is_set),
        _ => true,
    }
}

/// Text of a value that is one.
pub(super) fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.trim().to_owned()),
        // A column with empty cells has its whole numbers as 3.0.
        Value::Number(number) => Some(number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 1e15))
            .map(|whole| whole.map_or_else(|| number.to_string(), |whole| (whole as i64).to_string())),
        Value::Bool(value) => Some(if *value { "yes".into() } else { "no".into() }),
        _ => None,
    }
}

/// Texts of a list of texts, or of objects with an `answer`.
fn texts_of(value: &Value) -> Vec<String> {
    match value {
        Value::Array(values) => values.iter().flat_map(texts_of).collect(),
        Value::Object(fields) => ["answer", "raw"].iter().find_map(|name| fields.get(*name)).map_or(vec![], texts_of),
        other => text_of(other).into_iter().collect(),
    }
}

/// Options of a text such as `(a) Open (b) Closed`.
fn lettered(text: &str) -> Vec<String> {
    let mut rest = text;
    let mut options = Vec::new();
    for letter in 'a'..='z' {
        let Some((before, behind)) = rest.split_once(&format!("({letter})")) else { break };
        options.push(before.trim().to_owned());
        rest = behind;
    }
    options.push(rest.trim().to_owned());
    options.split_off(1)
}

/// The letter of the option that an answer means: by letter, by text, or by number from 0.
fn letter_of(answer: &str, options: &[String]) -> String {
    let inside = answer.trim_matches(['(', ')', '.', ' ']);
    let letters = ('A'..='Z').take(options.len());
    let by_letter =
        letters.clone().find(|letter| inside.chars().eq([*letter]) || inside.chars().eq(letter.to_lowercase()));
    let at = || options.iter().position(|option| option == answer).or_else(|| answer.parse().ok());
    let letter = by_letter.or_else(|| at().and_then(|at| letters.clone().nth(at)));
    letter.map_or_else(|| answer.to_owned(), String::from)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn question(row: Value) -> Question {
        FieldsOf::new(row.as_object().unwrap()).question("7").unwrap()
    }

    #[test]
    fn options_come_in_columns_lists_and_texts() {
        let columns = question(json!({"index": 3.0, "question": "which?", "hint": "look", "A": "red", "B": "blue",
            "C": null, "answer": "B", "category": "colour", "l2-category": "perception"}));
        assert_eq!((columns.id.as_str(), columns.text.as_str()), ("3", "look\nwhich?"));
        assert_eq!((columns.options, columns.answers), (vec!["red".into(), "blue".into()], vec!["B".to_owned()]));
        assert_eq!(columns.categories, ["colour", "perception"]);
        let list = question(json!({"question": "?", "choices": ["x", "y", "z"], "answer": 2}));
        assert_eq!((list.id.as_str(), list.answers), ("7", vec!["C".to_owned()]));
        let python = question(json!({"question": "?", "options": "['x', 'y']", "answer": "y"}));
        assert_eq!(python.answers, ["B"]);
        let mmvp = question(json!({"Question": "?", "Options": "(a) Open (b) Closed", "Correct Answer": "(b)"}));
        assert_eq!((mmvp.options, mmvp.answers), (vec!["Open".into(), "Closed".into()], vec!["B".to_owned()]));
        let seed = question(json!({"question": "?", "choice_a": "1", "choice_b": "0", "answer": "A"}));
        assert_eq!((seed.options, seed.answers), (vec!["1".into(), "0".into()], vec!["A".to_owned()]));
    }

    #[test]
    fn answers_come_as_texts_lists_and_objects() {
        for (answers, expected) in [
            (json!("blue"), vec!["blue"]),
            (json!("['a', 'b']"), vec!["a", "b"]),
            (json!(["14"]), vec!["14"]),
            (json!([{"answer": "x", "answer_id": 1}, {"answer": "y"}]), vec!["x", "y"]),
            (json!(5), vec!["5"]),
            (json!(2.5), vec!["2.5"]),
            (json!(null), vec![]),
        ] {
            assert_eq!(question(json!({"question": "?", "answers": answers})).answers, expected, "{answers}");
        }
    }

    #[test]
    fn a_text_alone_is_a_prompt() {
        let llava = question(json!({"question_id": 1, "image": "a.jpg", "text": "Is it?\nAnswer yes or no."}));
        assert!(llava.is_prompt && !question(json!({"question": "?", "text": "no"})).is_prompt);
    }

    #[test]
    fn images_are_named_or_held() {
        let row = json!({"image_1": "a.png", "image_2": "b.png", "image_id": null});
        let fields = FieldsOf::new(row.as_object().unwrap());
        assert_eq!(fields.image_fields(), ["image_1", "image_2"]);
        let row = json!({"image": "x".repeat(300), "image_path": "a.jpg"});
        let fields = FieldsOf::new(row.as_object().unwrap());
        assert_eq!((fields.image_fields(), fields.image_name("image")), (vec!["image".to_owned()], None));
        assert_eq!(fields.image_name("image_path").as_deref(), Some("a.jpg"));
    }

    #[test]
    fn too_many_options_are_an_error() {
        let row = json!({"question": "?", "choices": vec!["x"; 27]});
        let message = FieldsOf::new(row.as_object().unwrap()).question("").unwrap_err();
        assert!(message.contains("27 options"), "{message}");
    }
}

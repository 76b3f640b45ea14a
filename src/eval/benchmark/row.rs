//! Questions from rows, whatever file they come from.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::Benchmark;
use super::categories::categories;
use super::python_list::python_list;
use super::question::Question;
use crate::data::is_embedded;
use crate::eval::metrics::MAX_OPTIONS;

const ID: [&str; 7] = ["index", "question_id", "questionid", "qid", "data_id", "cocoid", "id"];
const TEXT: [&str; 4] = ["question", "query", "text", "prompt"];
const HINT: [&str; 1] = ["hint"];
const OPTIONS: [&str; 2] = ["options", "choices"];
const ANSWERS: [&str; 8] =
    ["answers", "answer", "label", "gt_answer", "correct answer", "caption", "captions", "sentences"];
/// Fields that hold or name images, the first that is set counts.
const IMAGE: [&str; 10] = [
    "image",
    "images",
    "image_path",
    "imgname",
    "image_file",
    "file_name",
    "filename",
    "image_id",
    "imageid",
    "data_id",
];
/// Most images of a question, in fields `image_1` and so on.
const MAX_IMAGES: usize = 16;
/// Longest name of an image or row; what is longer is the image itself, in base64.
const MAX_NAME: usize = 256;

/// A row of a file of questions.
pub(super) struct FieldsOf<'f> {
    fields: HashMap<String, &'f Value>,
    are_texts: bool,
}

impl<'f> FieldsOf<'f> {
    /// The fields of a row that are set; names count in lower case, with `_` for `-`. If all are texts, as in CSV and TSV,
    /// `nan` is what pandas writes where nothing is, and a list is one in Python's notation.
    pub(super) fn new(fields: &'f Map<String, Value>, are_texts: bool) -> Self {
        let is_nan = |value: &Value| are_texts && value.as_str() == Some("nan");
        let set = fields.iter().filter(|(_, value)| is_set(value) && !is_nan(value));
        Self { fields: set.map(|(name, value)| (plain(name), value)).collect(), are_texts }
    }

    fn first(&self, names: &[&str]) -> Option<&'f Value> {
        names.iter().find_map(|name| self.fields.get(&plain(name)).copied())
    }

    /// Text of the first of these fields that is set.
    pub(super) fn text(&self, names: &[&str]) -> Option<String> {
        self.first(names).and_then(text_of)
    }

    /// Id in the first of these fields that is set. Tables that pandas wrote may have whole numbers as `3.0`.
    pub(super) fn id(&self, names: &[&str]) -> Option<String> {
        let id = self.text(names)?;
        let whole =
            id.strip_suffix(".0").filter(|whole| !whole.is_empty() && whole.bytes().all(|b| b.is_ascii_digit()));
        Some(whole.map_or_else(|| id.clone(), str::to_owned))
    }

    /// Whether the id of the question is a text; `None` if there is none, or all fields are texts.
    pub(super) fn has_text_id(&self) -> Option<bool> {
        self.first(&ID).filter(|_| !self.are_texts).map(Value::is_string)
    }

    /// Texts of the first of these fields that is set.
    pub(super) fn texts(&self, names: &[&str]) -> Vec<String> {
        match self.first(names) {
            Some(Value::String(text)) => self.listed(text).unwrap_or_else(|| vec![text.trim().to_owned()]),
            value => value.map(texts_of).unwrap_or_default(),
        }
    }

    /// Text of a field of an object.
    pub(super) fn inner(&self, object: &str, name: &str) -> Option<String> {
        self.first(&[object])?.get(name).and_then(text_of)
    }

    /// The question of a row, without its images, and with `id` if it has none of its own.
    ///
    /// # Errors
    /// What is missing.
    pub(super) fn question(&self, benchmark: &Benchmark, id: &str) -> Result<Question, String> {
        let options = self.options();
        if options.len() > MAX_OPTIONS {
            return Err(format!("has {} options, expected at most {MAX_OPTIONS}", options.len()));
        }
        let id = self.id(&ID).unwrap_or_else(|| id.to_owned());
        let written = self.text(&TEXT);
        let turns = if written.is_none() { self.conversation()? } else { None };
        let text = written.or_else(|| turns.as_ref().map(|turns| turns.0.clone())).unwrap_or_default();
        // LLaVA's files have the whole prompt as `text`, POPE's the question alone, with its label.
        let is_pope = self.first(&["label"]).is_some() && !text.contains('\n');
        let is_prompt = self.first(&TEXT[..2]).is_none() && !text.is_empty() && !is_pope && turns.is_none();
        // The Hub's MMBench has `nan` as a text.
        let hint = self.text(&HINT).filter(|hint| hint != "nan");
        let text = Vec::from_iter(hint.into_iter().chain([text])).join("\n");
        let categories = categories(benchmark, self, &id);
        // AI2D of the Hub has indices as texts, beside options that are numbers.
        let are_indices = benchmark.name == "ai2d" && !self.are_texts;
        let answers = self.answers(&options, are_indices);
        let answers = if answers.is_empty() { turns.map(|turns| turns.1).into_iter().collect() } else { answers };
        // MMMU's open questions may have a single letter for their answer.
        let is_open = self.text(&["question_type"]).is_some_and(|kind| kind.eq_ignore_ascii_case("open"));
        let group = id.clone();
        Ok(Question { group, id, text, is_prompt, is_open, options, answers, categories, ..Question::default() })
    }

    /// Question and right answer of a conversation in LLaVA's form, as of its ScienceQA; `None` without one.
    ///
    /// # Errors
    /// What is wrong in it.
    fn conversation(&self) -> Result<Option<(String, String)>, String> {
        let Some(Value::Array(turns)) = self.first(&["conversations"]) else { return Ok(None) };
        let [question, answer] = turns.as_slice() else {
            return Err(format!("has {} turns in `conversations`, expected a question and its answer", turns.len()));
        };
        let said = |turn: &Value| {
            let text = turn.get("value").and_then(Value::as_str).map(str::trim);
            text.map(str::to_owned).ok_or("has a turn in `conversations` without a text as `value`")
        };
        let (question, answer) = (said(question)?.replace("<image>", ""), said(answer)?);
        // LLaVA's own conversion may write a sentence.
        let letter = answer.strip_prefix("The answer is ").map(|rest| rest.trim_end_matches('.'));
        let letter = letter.filter(|letter| letter.len() == 1).map(str::to_owned);
        Ok(Some((question.trim().to_owned(), letter.unwrap_or(answer))))
    }

    /// Options in columns A, B and so on, in a list, or in `choice_a`, `choice_b` and so on. A single column without an
    /// option between two that have one is an empty text, so that the others keep their letters; columns such as `x` and `y`
    /// are no options.
    fn options(&self) -> Vec<String> {
        let columns = |prefix: &str| {
            let names = ('a'..='z').map(|letter| format!("{prefix}{letter}"));
            let option = |name: String| self.fields.get(&name).copied().and_then(text_of).filter(|text| text != "nan");
            let options = Vec::from_iter(names.map(option));
            let gap = options.windows(2).position(|pair| pair.iter().all(Option::is_none));
            let count = if options.first().is_some_and(Option::is_some) { gap.unwrap_or(options.len()) } else { 0 };
            Vec::from_iter(options.into_iter().take(count).map(Option::unwrap_or_default))
        };
        let list = || match self.first(&OPTIONS) {
            Some(Value::String(text)) => python_list(text).unwrap_or_else(|| lettered(text)),
            Some(Value::Array(values)) => values.iter().map(|value| text_of(value).unwrap_or_default()).collect(),
            Some(value) => texts_of(value),
            None => Vec::new(),
        };
        let is_several = |options: &Vec<String>| options.iter().filter(|option| !option.is_empty()).count() > 1;
        let of_columns = [columns(""), columns("choice_")].into_iter().find(is_several);
        let mut options = of_columns.unwrap_or_else(list);
        // Behind the last option there is none to choose, nor a rotation.
        options.truncate(options.iter().rposition(|option| !option.is_empty()).map_or(0, |last| last + 1));
        options
    }

    /// Whether there are options.
    pub(super) fn has_options(&self) -> bool {
        !self.options().is_empty()
    }

    /// The right answers; of a question with options the letter of the right one, none if it is no option.
    fn answers(&self, options: &[String], are_indices: bool) -> Vec<String> {
        // A number is an index, though an option may be the text of a number.
        if let (Some(Value::Number(number)), false) = (self.first(&ANSWERS), options.is_empty()) {
            let letter = number.as_f64().and_then(|at| letter_at(at, options));
            return letter.map(String::from).into_iter().collect();
        }
        let texts = self.texts(&ANSWERS);
        let letter = |text: &String| letter_of(text, options, are_indices);
        if options.is_empty() { texts } else { texts.iter().filter_map(letter).map(String::from).collect() }
    }

    /// A list in a text: also of numbers where every field is a text, of quoted texts elsewhere.
    fn listed(&self, text: &str) -> Option<Vec<String>> {
        let is_list = self.are_texts || text.trim_start_matches(['[', ' ']).starts_with(['\'', '"']);
        is_list.then(|| python_list(text)).flatten()
    }

    /// Names of the fields that hold or name images.
    pub(super) fn image_fields(&self) -> Vec<String> {
        let numbered = || (1..=MAX_IMAGES).map(|n| format!("image_{n}")).filter(|name| self.fields.contains_key(name));
        let one = IMAGE.iter().map(|name| (*name).to_owned()).find(|name| self.fields.contains_key(name));
        one.map_or_else(|| numbered().collect(), |name| vec![name])
    }

    /// The name of an image or of another row in a field; `None` if the field holds the image itself.
    pub(super) fn image_name(&self, field: &str) -> Option<String> {
        let name = self.fields.get(field).copied().and_then(text_of)?;
        (name.len() < MAX_NAME && !is_embedded(&name)).then_some(name)
    }
}

/// Name of a field as it is compared: `l2_category` is `L2-category`.
pub(super) fn plain(name: &str) -> String {
    name.trim().to_lowercase().replace('-', "_")
}

/// Whether a field has a value.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.trim().is_empty(),
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

/// Texts of a list of texts, which keep the white space around them, or of objects with an `answer`.
fn texts_of(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
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

/// The letter of the option with a number from 0.
fn letter_at(at: f64, options: &[String]) -> Option<char> {
    let is_index = at.fract() == 0.0 && (0.0..options.len() as f64).contains(&at);
    ('A'..='Z').nth(if is_index { at as usize } else { MAX_OPTIONS })
}

/// The letter of the option that an answer means: by letter, by text, or by number from 0, which come first if the answers
/// are indices.
fn letter_of(answer: &str, options: &[String], are_indices: bool) -> Option<char> {
    let answer = answer.trim();
    let inside = answer.trim_matches(['(', ')', '.', ' ']);
    let letters = ('A'..='Z').take(options.len());
    let by_letter =
        letters.clone().find(|letter| inside.chars().eq([*letter]) || inside.chars().eq(letter.to_lowercase()));
    let by_text = || options.iter().position(|option| option.trim() == answer).and_then(|at| letters.clone().nth(at));
    let by_number = || answer.parse().ok().and_then(|at: usize| letter_at(at as f64, options));
    let of_index = by_number().filter(|_| are_indices);
    of_index.or(by_letter).or_else(by_text).or_else(by_number)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn question(row: Value) -> Question {
        of("mmstar", row, false).unwrap()
    }

    fn table_question(row: Value) -> Question {
        of("mmstar", row, true).unwrap()
    }

    fn of(benchmark: &str, row: Value, are_texts: bool) -> Result<Question, String> {
        let fields = FieldsOf::new(row.as_object().unwrap(), are_texts);
        fields.question(Benchmark::named(benchmark).unwrap(), "7")
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
    fn a_number_is_an_index_though_options_are_numbers() {
        let answer = |options: [&str; 3], answer: Value| {
            question(json!({"question": "?", "choices": options, "answer": answer})).answers.concat()
        };
        assert_eq!(answer(["2", "1", "0"], json!(0)), "A");
        assert_eq!(answer(["1", "2", "3"], json!(1.0)), "B");
        assert_eq!(answer(["1", "2", "3"], json!("1")), "A");
        assert_eq!(answer(["x", "y", "z"], json!("1")), "B");
        let hub = json!({"question": "?", "options": ["1", "2", "3", "4"], "answer": "2"});
        assert_eq!((of("ai2d", hub.clone(), false).unwrap().answers, of("ai2d", hub, true).unwrap().answers), {
            (vec!["C".to_owned()], vec!["B".to_owned()])
        });
    }

    #[test]
    fn an_answer_that_is_no_option_is_not_known() {
        for answer in [json!(3), json!(-1), json!("?"), json!("nan"), json!("E"), json!("Berlin")] {
            let row = json!({"question": "?", "choices": ["x", "y", "z"], "answer": answer});
            assert_eq!(question(row).answers, Vec::<String>::new(), "{answer}");
        }
    }

    #[test]
    fn nan_of_the_hubs_mmbench_is_nothing() {
        let row =
            json!({"question": "Is it?", "hint": "nan", "A": "Yes", "B": "No", "C": "nan", "D": "nan", "answer": "B"});
        let question = question(row);
        assert_eq!((question.text.as_str(), question.options), ("Is it?", vec!["Yes".to_owned(), "No".into()]));
    }

    #[test]
    fn options_behind_an_empty_column_keep_their_letters() {
        let gap = json!({"question": "?", "A": "red", "B": "blue", "C": "nan", "D": "green", "E": "", "answer": "D"});
        let question = table_question(gap);
        assert_eq!(question.options, ["red", "blue", "", "green"]);
        assert_eq!(question.answers, ["D"]);
    }

    #[test]
    fn other_columns_of_one_letter_are_no_options() {
        for row in [
            json!({"question": "?", "x": 3, "y": 5, "answer": "M"}),
            json!({"question": "?", "choices": ["red", "blue"], "x": 1, "y": 2, "answer": "blue"}),
            json!({"question": "?", "A": "red", "B": "blue", "x": 1, "y": 2, "answer": "B"}),
        ] {
            assert!(question(row.clone()).options.len() < 3, "{row}");
        }
        let list = question(json!({"question": "?", "choices": ["x", null, " z "], "answer": "C"}));
        assert_eq!((list.options, list.answers), (vec!["x".into(), String::new(), "z".into()], vec!["C".to_owned()]));
        let padded = question(json!({"question": "?", "choices": ["x", "y", null, " "], "answer": "D"}));
        assert_eq!((padded.options, padded.answers), (vec!["x".into(), "y".into()], vec![]));
    }

    #[test]
    fn texts_of_tables_may_be_lists_or_missing() {
        let row = |answer: &str| json!({"question": "nan", "query": "?", "answer": answer});
        for (answer, in_table, in_json) in [
            ("['a', 'b']", vec!["a", "b"], vec!["a", "b"]),
            ("[2008, 2010]", vec!["2008", "2010"], vec!["[2008, 2010]"]),
            ("[Yes, No]", vec!["Yes", "No"], vec!["[Yes, No]"]),
            ("nan", vec![], vec!["nan"]),
        ] {
            let table = table_question(row(answer));
            assert_eq!((table.text.as_str(), table.answers), ("?", in_table.into_iter().map(String::from).collect()));
            let typed = question(row(answer));
            assert_eq!((typed.text.as_str(), typed.answers), ("nan", in_json.into_iter().map(String::from).collect()));
        }
    }

    #[test]
    fn a_text_alone_is_a_prompt() {
        let llava = question(json!({"question_id": 1, "image": "a.jpg", "text": "Is it?\nAnswer yes or no."}));
        assert!(llava.is_prompt && !question(json!({"question": "?", "text": "no"})).is_prompt);
        assert!(!question(json!({"question_id": 1, "image": "a.jpg", "text": "Is it?", "label": "yes"})).is_prompt);
    }

    #[test]
    fn images_are_named_or_held() {
        let row = json!({"image_1": "a.png", "image_2": "b.png", "image_id": null});
        let fields = FieldsOf::new(row.as_object().unwrap(), false);
        assert_eq!(fields.image_fields(), ["image_1", "image_2"]);
        let row = json!({"image": "x".repeat(300), "image_path": "a.jpg"});
        let fields = FieldsOf::new(row.as_object().unwrap(), false);
        assert_eq!((fields.image_fields(), fields.image_name("image")), (vec!["image".to_owned()], None));
        assert_eq!(fields.image_name("image_path").as_deref(), Some("a.jpg"));
    }

    #[test]
    fn too_many_options_are_an_error() {
        let row = json!({"question": "?", "choices": vec!["x"; 27]});
        let message = of("mmstar", row, false).unwrap_err();
        assert!(message.contains("27 options"), "{message}");
    }
}

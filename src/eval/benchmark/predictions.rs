//! Predictions: the answers of a model, also of another tool's.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::question::Question;
use super::row::{FieldsOf, text_of};
use crate::data::JsonObjects;
use crate::error::one_line;
use crate::{Error, Result};

const ID: [&str; 5] = ["question_id", "questionid", "index", "id", "image_id"];
/// Names of answers; tables of VLMEvalKit have the right one as `answer`.
const ANSWER: [&str; 8] = ["prediction", "text", "caption", "response", "output", "pred", "model_answer", "answer"];

/// What VLMEvalKit's result sheets have in place of an answer that could not be had.
pub(super) const FAILED: &str = "Failed to obtain answer via API.";

/// The answer of a model to a question.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Prediction {
    /// Id of the question.
    pub id: String,
    /// The answer as it was written, white space included; `None` if the question could not be answered.
    pub answer: Option<String>,
    /// The prompt that was answered, where the file has it.
    pub prompt: Option<String>,
    /// Why the question could not be answered, where the file says it.
    pub error: Option<String>,
}

impl Prediction {
    /// Whether two predictions answer the same, apart from white space around it.
    pub(super) fn says_the_same(&self, other: &Self) -> bool {
        self.answer.as_deref().map(str::trim) == other.answer.as_deref().map(str::trim)
    }
}

impl Prediction {
    /// The answer to a question.
    pub fn new(id: impl Into<String>, answer: impl Into<Option<String>>) -> Self {
        Self { id: id.into(), answer: answer.into(), prompt: None, error: None }
    }
}

/// Reads predictions: LLaVA's answer files (`question_id`, `text`), result sheets of VLMEvalKit as TSV (`index`,
/// `prediction`), results of VQA (`question_id`, `answer`), GQA (`questionId`, `prediction`) and COCO (`image_id`,
/// `caption`), as JSON, JSON lines, CSV or TSV.
///
/// # Errors
/// [`Error::Format`] that names the record that is broken, has no id, no answer or one that is no text, or is a question
/// without a prediction, and the errors of reading.
pub fn read_predictions(path: &Path) -> Result<Vec<Prediction>> {
    let table = JsonObjects::open_table(path)?;
    if let Some(answers) = answers_by_id(&table) {
        return Ok(answers);
    }
    let read = |row: usize| match table.read(row) {
        Ok(record) => prediction(path, row, &record),
        Err(error) => {
            let message = format!("record {}: {}", row + 1, one_line(&error.to_string()));
            Err(Error::format(path, message).caused_by(error))
        }
    };
    (0..table.len()).map(read).collect()
}

/// The answers of one object that has them by the ids of their questions, as those of MMMU.
fn answers_by_id(table: &JsonObjects) -> Option<Vec<Prediction>> {
    let record = if table.len() == 1 { table.read(0).ok()? } else { return None };
    let is_known = |name: &String| ID.iter().chain(&ANSWER).any(|known| name.eq_ignore_ascii_case(known));
    if table.has_texts_only() || record.is_empty() || record.keys().any(is_known) {
        return None;
    }
    let answer = |(id, answer): (String, Value)| Some(Prediction::new(id, answer.as_str()?.to_owned()));
    record.into_iter().map(answer).collect()
}

fn prediction(path: &Path, row: usize, record: &Map<String, Value>) -> Result<Prediction> {
    let fields = FieldsOf::new(record, false);
    let lacks = |what: &str, names: &[&str]| {
        let names = names.join("`, `");
        Error::format(path, format!("record {} has no {what}: expected one of `{names}`", row + 1))
    };
    let id = fields.id(&ID).ok_or_else(|| lacks("id", &ID))?;
    if let Some(error) = fields.text(&["error"]) {
        return Ok(Prediction { prompt: fields.text(&["prompt"]), error: Some(error), ..Prediction::new(id, None) });
    }
    // An answer may be empty, which is not the same as none.
    let field = ANSWER.iter().find_map(|name| record.iter().find(|(field, _)| field.eq_ignore_ascii_case(name)));
    let (name, value) = field.ok_or_else(|| lacks("answer", &ANSWER))?;
    let has = |name: &str| fields.text(&[name]).is_some();
    // Files of questions have the right answer beside options as `answer`, and those of LLaVA the prompt as `text`.
    let is_question = match name.to_ascii_lowercase().as_str() {
        "answer" => fields.has_options(),
        "text" => has("image") && !["prompt", "answer_id", "model_id"].into_iter().any(has),
        _ => false,
    };
    if is_question {
        let message = format!(
            "record {} is a question, and `{name}` no answer of a model: if it is one, call the field `prediction`",
            row + 1
        );
        return Err(Error::format(path, message));
    }
    let answer = match value {
        Value::String(text) if text == FAILED => None,
        Value::String(text) => Some(text.clone()),
        Value::Null => None,
        other => Some(text_of(other).ok_or_else(|| {
            let message = format!("`{name}` of record {} is a list or an object, expected a text", row + 1);
            Error::format(path, message)
        })?),
    };
    Ok(Prediction { prompt: fields.text(&["prompt"]), ..Prediction::new(id, answer) })
}

/// A line of LLaVA's answer file, with the id that the question has in its own file.
pub fn llava_answer(question: &Question, prompt: &str, text: &str, model: &str, metadata: Value) -> Map<String, Value> {
    let id = question.shared_id.as_ref().unwrap_or(&question.id);
    let number = id.parse::<u64>().ok().filter(|number| !question.has_text_id && number.to_string() == *id);
    let line = [
        ("question_id", number.map_or_else(|| json!(id), |number| json!(number))),
        ("prompt", json!(prompt)),
        ("text", json!(text)),
        ("answer_id", json!(format!("{model}-{}", question.id))),
        ("model_id", json!(model)),
        ("metadata", metadata),
    ];
    line.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, content: &str) -> Result<Vec<Prediction>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        read_predictions(&path)
    }

    #[test]
    fn answers_of_every_tool_are_read() {
        let question = Question { id: "5".into(), ..Question::default() };
        let ours = Value::from(llava_answer(&question, "Is it?", "yes", "m", json!({})));
        assert_eq!(ours["question_id"], json!(5));
        let text = Question { has_text_id: true, ..question };
        assert_eq!(llava_answer(&text, "Is it?", "yes", "m", json!({}))["question_id"], json!("5"));
        let ours = ours.to_string();
        for (name, content, id) in [
            ("a.jsonl", ours.as_str(), "5"),
            ("a.tsv", "index\tquestion\tanswer\tprediction\n5\tIs it?\tno\tyes\n", "5"),
            ("a.json", r#"[{"question_id": 5, "answer": "yes"}]"#, "5"),
            ("a.json", r#"[{"questionId": "x5", "prediction": "yes"}]"#, "x5"),
            ("a.json", r#"[{"image_id": 5, "caption": "yes"}]"#, "5"),
            ("a.json", r#"[{"validation_Art_1": "yes"}]"#, "validation_Art_1"),
            ("a.jsonl", r#"{"validation_Art_1": "yes"}"#, "validation_Art_1"),
            ("a.json", r#"[{"question": "Is it?", "question_id": 5, "answer": "yes"}]"#, "5"),
            ("a.jsonl", r#"{"question_id": 5, "image": "a.jpg", "text": "yes", "model_id": "m"}"#, "5"),
        ] {
            let read = read(name, content).unwrap();
            let found = Vec::from_iter(read.iter().map(|found| (found.id.as_str(), found.answer.as_deref())));
            assert_eq!(found, [(id, Some("yes"))], "{content}");
        }
    }

    #[test]
    fn answers_keep_their_white_space() {
        let spaced = read("a.json", r#"[{"question_id": 5, "text": " no\n"}]"#).unwrap();
        assert_eq!(spaced, [Prediction::new("5", " no\n".to_owned())]);
    }

    #[test]
    fn files_of_questions_are_no_predictions() {
        for (name, content) in [
            ("a.tsv", "index\tquestion\tA\tB\tanswer\n5\tIs it?\tyes\tno\tA\n"),
            ("a.jsonl", r#"{"question_id": 5, "image": "a.jpg", "text": "Is it?", "category": "default"}"#),
        ] {
            let message = read(name, content).unwrap_err().to_string();
            assert!(message.contains("record 1 is a question"), "{message}");
        }
    }

    #[test]
    fn what_is_no_answer_is_named() {
        let null = read("a.json", r#"[{"question_id": 5, "text": null}]"#).unwrap();
        assert_eq!(null, [Prediction::new("5", None)]);
        for value in ["[\"b\"]", "{\"a\": 1}"] {
            let message =
                read("a.jsonl", &format!("{{\"question_id\": 5, \"text\": {value}}}")).unwrap_err().to_string();
            assert!(message.contains("`text` of record 1 is a list or an object"), "{message}");
        }
        let message =
            read("a.jsonl", "{\"question_id\": 1, \"text\": \"a\"}\n{\"question_id\": ").unwrap_err().to_string();
        assert!(message.contains("a.jsonl: record 2: ") && !message.contains('\n'), "{message}");
    }

    #[test]
    fn failed_and_empty_answers_differ() {
        let lines = "{\"question_id\": 1, \"text\": \"\"}\n\
                     {\"question_id\": 2, \"prompt\": \"Is it?\", \"error\": \"no image\"}\n";
        let (prompt, error) = (Some("Is it?".into()), Some("no image".into()));
        let failed = Prediction { prompt, error, ..Prediction::new("2", None) };
        assert_eq!(read("a.jsonl", lines).unwrap(), [Prediction::new("1", String::new()), failed]);
        let sheet = format!("index\tquestion\tprediction\n5.0\tIs it?\t{FAILED}\n");
        assert_eq!(read("a.tsv", &sheet).unwrap(), [Prediction::new("5", None)]);
        let message = read("a.jsonl", "{\"question_id\": 1}").unwrap_err().to_string();
        assert!(message.contains("record 1 has no answer"), "{message}");
        assert!(read("a.jsonl", "{\"text\": \"a\"}").unwrap_err().to_string().contains("has no id"));
    }
}

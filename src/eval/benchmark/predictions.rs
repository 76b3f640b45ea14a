//! Predictions: the answers of a model, also of another tool's.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::row::{FieldsOf, text_of};
use crate::data::JsonObjects;
use crate::{Error, Result};

const ID: [&str; 5] = ["question_id", "questionid", "index", "id", "image_id"];
/// Names of answers; tables of VLMEvalKit have the right one as `answer`.
const ANSWER: [&str; 8] = ["prediction", "text", "caption", "response", "output", "pred", "model_answer", "answer"];

/// The answer of a model to a question.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Prediction {
    /// Id of the question.
    pub id: String,
    /// The answer; `None` if the question could not be answered.
    pub answer: Option<String>,
}

impl Prediction {
    /// The answer to a question.
    pub fn new(id: impl Into<String>, answer: impl Into<Option<String>>) -> Self {
        Self { id: id.into(), answer: answer.into() }
    }
}

/// Reads predictions: LLaVA's answer files (`question_id`, `text`), result sheets of VLMEvalKit as TSV (`index`,
/// `prediction`), results of VQA (`question_id`, `answer`), GQA (`questionId`, `prediction`) and COCO (`image_id`,
/// `caption`), as JSON, JSON lines, CSV or TSV.
///
/// # Errors
/// [`Error::Format`] that names the record without an id or an answer, and the errors of reading.
pub fn read_predictions(path: &Path) -> Result<Vec<Prediction>> {
    let table = JsonObjects::open_table(path)?;
    (0..table.len()).map(|row| prediction(path, row, &table.read(row)?)).collect()
}

fn prediction(path: &Path, row: usize, record: &Map<String, Value>) -> Result<Prediction> {
    let fields = FieldsOf::new(record);
    let lacks = |what: &str, names: &[&str]| {
        let names = names.join("`, `");
        Error::format(path, format!("record {} has no {what}: expected one of `{names}`", row + 1))
    };
    let id = fields.text(&ID).ok_or_else(|| lacks("id", &ID))?;
    if fields.text(&["error"]).is_some() {
        return Ok(Prediction::new(id, None));
    }
    // An answer may be empty, which is not the same as none.
    let field = ANSWER.iter().find_map(|name| record.iter().find(|(field, _)| field.eq_ignore_ascii_case(name)));
    let (_, answer) = field.ok_or_else(|| lacks("answer", &ANSWER))?;
    Ok(Prediction::new(id, text_of(answer).unwrap_or_default()))
}

/// A line of LLaVA's answer file.
pub fn llava_answer(id: &str, prompt: &str, text: &str, model: &str, metadata: Value) -> Map<String, Value> {
    // Ids that are numbers were numbers.
    let number = id.parse::<u64>().ok().filter(|number| number.to_string() == id);
    let line = [
        ("question_id", number.map_or_else(|| json!(id), |number| json!(number))),
        ("prompt", json!(prompt)),
        ("text", json!(text)),
        ("answer_id", json!(format!("{model}-{id}"))),
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
        let ours = Value::from(llava_answer("5", "Is it?", "yes", "m", json!({}))).to_string();
        for (name, content, id) in [
            ("a.jsonl", ours.as_str(), "5"),
            ("a.tsv", "index\tquestion\tanswer\tprediction\n5\tIs it?\tno\tyes\n", "5"),
            ("a.json", r#"[{"question_id": 5, "answer": "yes"}]"#, "5"),
            ("a.json", r#"[{"questionId": "x5", "prediction": "yes"}]"#, "x5"),
            ("a.json", r#"[{"image_id": 5, "caption": "yes"}]"#, "5"),
        ] {
            assert_eq!(read(name, content).unwrap(), [Prediction::new(id, "yes".to_owned())], "{content}");
        }
    }

    #[test]
    fn failed_and_empty_answers_differ() {
        let lines = "{\"question_id\": 1, \"text\": \"\"}\n{\"question_id\": 2, \"error\": \"no image\"}\n";
        assert_eq!(read("a.jsonl", lines).unwrap(), [Prediction::new("1", String::new()), Prediction::new("2", None)]);
        let message = read("a.jsonl", "{\"question_id\": 1}").unwrap_err().to_string();
        assert!(message.contains("record 1 has no answer"), "{message}");
        assert!(read("a.jsonl", "{\"text\": \"a\"}").unwrap_err().to_string().contains("has no id"));
    }
}

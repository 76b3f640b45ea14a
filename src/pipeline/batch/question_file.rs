//! Test sets: questions with right answers, from files of training data.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::Request;
use super::input::{about, first_set, name_question, remove, turns};
use crate::data::{self, IMAGE_MARKER, JsonObjects, Record, RecordFile, Records, VIDEO_MARKER, field_names as names};
use crate::eval::commonest_answer;
use crate::processor::Role;
use crate::{Error, Result};

/// Fields that hold the kind of a question, the first that is set counts.
const KIND_FIELDS: [&str; 4] = ["kind", "question_type", "category", "type"];
/// Field of the most common answer in VQA, beside the list of all answers.
const VQA_ANSWER: &str = "multiple_choice_answer";

/// A test set: a file of records in any format of training data, each with one or several questions.
///
/// Every turn of the assistant is a right answer, and what stands before it is the question. Records of JSON and CSV
/// files may instead have `question` with `answer`, or with `answers`: a list of texts, or of objects with `answer`, as in
/// VQA; or `text` with `question_id` and `label`, as in LLaVA's question files and POPE; and their kind as `kind`,
/// `question_type`, `category` or `type`.
pub struct QuestionFile {
    form: Form,
    images: PathBuf,
}

enum Form {
    Objects(JsonObjects),
    Other(Records),
}

/// A question of a test set.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TestQuestion {
    /// The id of the record, if it has one.
    pub id: Value,
    /// The images as the record names them; long data is cut.
    pub image: Value,
    /// Kind of the question, if the record says it.
    pub kind: Option<String>,
    /// Text of the question.
    pub question: String,
    /// All answers that are right; the first is the most common one.
    pub answers: Vec<String>,
    /// The conversation up to the question.
    asked: Record,
}

/// A record with its fields, and its right answers if it has them apart from its turns.
struct Graded {
    fields: Map<String, Value>,
    record: Record,
    answers: Option<Vec<String>>,
}

impl TestQuestion {
    /// The request for the model's answer.
    pub fn request(&self) -> Request {
        let asked = self.asked.clone();
        Request::new(move |processor| Ok(asked.conversation(processor)?))
    }
}

impl QuestionFile {
    /// Opens a file or folder of records; image names are relative to the folder `images`, by default that of the file.
    ///
    /// # Errors
    /// The errors of [`data::open`].
    pub fn open(path: impl AsRef<Path>, images: Option<&Path>) -> Result<Self> {
        let path = path.as_ref();
        let folder = images.or(path.parent()).unwrap_or(Path::new("")).to_path_buf();
        let objects = if path.is_file() { JsonObjects::open(path)? } else { None };
        let form = match objects {
            Some(objects) => Form::Objects(objects),
            None => Form::Other(data::open(path, images)?),
        };
        Ok(Self { form, images: folder })
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        match &self.form {
            Form::Objects(objects) => objects.len(),
            Form::Other(records) => records.len(),
        }
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Name of a record for messages.
    pub fn describe(&self, index: usize) -> String {
        match &self.form {
            Form::Objects(objects) => objects.describe(index),
            Form::Other(records) => records.describe(index),
        }
    }

    /// The questions of a record.
    ///
    /// # Errors
    /// What is wrong with the record.
    pub fn questions(&self, index: usize) -> Result<Vec<TestQuestion>> {
        let Graded { fields, record, answers } = match &self.form {
            Form::Objects(objects) => self.graded(objects.read(index)?)?,
            Form::Other(records) => {
                let fields = Map::from_iter([("image".to_owned(), self.describe(index).into())]);
                Graded { fields, record: records.get(index)?, answers: None }
            }
        };
        let questions = questions(&fields, &record, answers);
        if questions.is_empty() {
            return Err(Error::data("the record has no answer of the assistant after a turn of the user"));
        }
        Ok(questions)
    }

    /// A record of a JSON or CSV file.
    fn graded(&self, mut fields: Map<String, Value>) -> Result<Graded> {
        name_question(&mut fields);
        let mut with_answer = fields.clone();
        let answers = keep_one_answer(&mut with_answer)?;
        let record = RecordFile::parse(Value::from(with_answer).to_string().as_bytes(), &self.images)?;
        Ok(Graded { fields, record, answers })
    }
}

/// The questions of a record: one for each turn of the assistant that follows a turn of the user.
fn questions(fields: &Map<String, Value>, record: &Record, answers: Option<Vec<String>>) -> Vec<TestQuestion> {
    let about = about(fields);
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let question = |(at, right): (usize, &data::Turn)| {
        let asked = record.turns.get(..at)?;
        let question = asked.iter().rev().find(|turn| turn.role == Role::User)?;
        let mut asked = record.clone();
        asked.turns.truncate(at);
        Some(TestQuestion {
            id: first_set(fields, names::ID).cloned().unwrap_or_default(),
            image: about.get("image").cloned().unwrap_or_default(),
            kind: first_set(fields, &KIND_FIELDS).map(text),
            question: question.text.replace(IMAGE_MARKER, "").replace(VIDEO_MARKER, "").trim().to_owned(),
            answers: answers.clone().unwrap_or_else(|| vec![right.text.trim().to_owned()]),
            asked,
        })
    };
    let turns = record.turns.iter().enumerate().filter(|(_, turn)| turn.role == Role::Assistant);
    turns.filter_map(question).collect()
}

/// Leaves one right answer in the fields, and returns all of them. A record that has a conversation keeps it, and has no
/// answers beside.
fn keep_one_answer(fields: &mut Map<String, Value>) -> Result<Option<Vec<String>>> {
    if turns(fields).is_some() {
        remove(fields, &[names::QUESTION, names::ANSWER, &[VQA_ANSWER]]);
        return Ok(None);
    }
    let fields_of_answers = ["answers", VQA_ANSWER];
    let right = [&fields_of_answers, names::ANSWER, names::TEXT].iter().find_map(|names| first_set(fields, names));
    let right = right.or(first_set(fields, names::LABEL).filter(|label| label.is_string()));
    let mut right = right.map(right_answers).unwrap_or_default();
    let Some(commonest) = commonest_answer(&right).map(str::to_owned) else {
        return Err(Error::data("the record has no `answer`, `answers` or `conversations`, expected one of them"));
    };
    remove(fields, &[names::CONVERSATION, names::ANSWER, names::TEXT, names::LABEL, &[VQA_ANSWER]]);
    fields.insert("answer".into(), commonest.as_str().into());
    if let Some(first) = right.iter().position(|answer| *answer == commonest) {
        right.swap(0, first);
    }
    Ok(Some(right))
}

/// The right answers of a field: a text, a number, or a list of these or of objects with `answer`.
fn right_answers(value: &Value) -> Vec<String> {
    match value {
        Value::Array(values) => values.iter().flat_map(right_answers).collect(),
        Value::Object(fields) => fields.get("answer").map(right_answers).unwrap_or_default(),
        Value::String(text) => Some(text.trim().to_owned()).filter(|text| !text.is_empty()).into_iter().collect(),
        Value::Number(number) => vec![number.to_string()],
        Value::Null | Value::Bool(_) => vec![],
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(lines: &str) -> (tempfile::TempDir, QuestionFile) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.jsonl");
        std::fs::write(&path, lines).unwrap();
        std::fs::write(folder.path().join("a.png"), "").unwrap();
        (folder, QuestionFile::open(path, None).unwrap())
    }

    #[test]
    fn each_turn_of_the_assistant_is_a_question_with_what_stands_before_it() {
        let line = json!({"id": "x", "image": "a.png", "category": "c", "conversations": [
            {"from": "human", "value": "<image>\nfirst?"}, {"from": "gpt", "value": "one"},
            {"from": "human", "value": "second?"}, {"from": "gpt", "value": " two "}]});
        let (_folder, file) = read(&line.to_string());
        let found = file.questions(0).unwrap();
        let shown =
            Vec::from_iter(found.iter().map(|q| (q.question.as_str(), q.answers.as_slice(), q.asked.turns.len())));
        assert_eq!(shown, [("first?", &["one".to_owned()][..], 1), ("second?", &["two".to_owned()], 3)]);
        assert_eq!(
            (&found[1].id, &found[1].image, found[1].kind.as_deref()),
            (&json!("x"), &json!("a.png"), Some("c"))
        );
    }

    #[test]
    fn answers_may_be_one_or_a_list() {
        let (_folder, file) = read(
            r#"{"question_id": 5, "image": "a.png", "question": "how many?", "answer": 2}
               {"question": "how many?", "answers": ["three", "Two", "2", {"answer": "two "}]}
               {"question": "how many?"}
               {"image": "a.png", "caption": "a cat"}
               {"text": "no question"}
               nonsense
               {"question_id": 1, "image": "a.png", "text": "a cat?", "label": "yes", "category": "random"}
               {"image": "a.png", "text": "a cat?", "Answer": "no"}
               {"question_id": 1, "image": "a.png", "text": "a cat?"}"#,
        );
        let one = |index| file.questions(index).map(|mut found| found.remove(0));
        let first = one(0).unwrap();
        assert_eq!((first.answers, first.id), (vec!["2".to_owned()], json!(5)));
        assert_eq!(one(1).unwrap().answers, ["Two", "three", "2", "two"]);
        assert!(one(2).unwrap_err().to_string().contains("no `answer`, `answers`"));
        assert_eq!(one(3).unwrap().answers, ["a cat"]);
        assert!(one(4).unwrap_err().to_string().contains("no answer of the assistant"));
        assert!(one(5).unwrap_err().to_string().contains("broken record"));
        for (index, answer) in [(6, "yes"), (7, "no")] {
            let found = one(index).unwrap();
            assert_eq!((found.question.as_str(), found.answers), ("a cat?", vec![answer.to_owned()]));
            assert_eq!(found.asked.turns[0].text, "<image>\na cat?");
        }
        assert!(one(8).unwrap_err().to_string().contains("no `answer`, `answers`"));
        assert_eq!((file.len(), file.is_empty()), (9, false));
    }
}

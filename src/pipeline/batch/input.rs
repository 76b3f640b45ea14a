//! Input of batch inference: an image, or a record with images and a question.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::RgbImage;
use serde_json::{Map, Value, json};

use super::Request;
use crate::data::RecordFile;
use crate::processor::{Content, Conversation, Message, Processor, Role};
use crate::{Error, Result};

/// Fields that hold the images of a record.
const IMAGE_FIELDS: [&str; 9] =
    ["image", "images", "image_path", "image_file", "file_name", "filename", "img", "path", "video"];
/// Fields that hold a question, the first that is set counts.
pub(super) const QUESTION_FIELDS: [&str; 2] = ["question", "prompt"];
/// Fields of texts that inference does not read: answers and captions.
pub(super) const ANSWER_FIELDS: [&str; 9] =
    ["answer", "answers", "caption", "captions", "text", "response", "output", "instruction", "input"];
/// Fields that hold a conversation.
pub(super) const CONVERSATION_FIELDS: [&str; 2] = ["conversations", "messages"];
/// Longest text that is repeated in a result, in characters; a longer one is a data URL or a mistake.
const MAX_REPEATED_CHARS: usize = 1000;

/// Input of batch inference: images, and a question if the input has one.
#[derive(Debug, Clone)]
pub struct Input {
    about: Map<String, Value>,
    source: Source,
}

#[derive(Debug, Clone)]
enum Source {
    File(PathBuf),
    Pixels(Arc<RgbImage>),
    Record { fields: Map<String, Value>, images: PathBuf },
    Bad(String),
}

impl Input {
    /// An image file.
    pub fn image(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let name = path.to_string_lossy().into_owned();
        Self { about: image_fields(name), source: Source::File(path) }
    }

    /// Pixels that are in memory; `name` stands for them in results.
    pub fn pixels(name: impl Into<String>, image: RgbImage) -> Self {
        Self { about: image_fields(name.into()), source: Source::Pixels(Arc::new(image)) }
    }

    /// A JSON record in any format of training data, whose image names are relative to the folder `images`. Its
    /// conversation is read up to the first turn of the user; without a conversation, the question is `question` or
    /// `prompt`. Answers and captions are not read.
    ///
    /// A record that is no JSON object, and later an image that cannot be read, are errors of its request.
    pub fn record(json: &[u8], images: &Path) -> Self {
        match serde_json::from_slice(json) {
            Ok(fields) => {
                Self { about: about(&fields), source: Source::Record { fields, images: images.to_path_buf() } }
            }
            Err(e) => Self::bad(format!("the record is not a JSON object ({e})")),
        }
    }

    /// An input that cannot be read, for this reason.
    pub(super) fn bad(reason: String) -> Self {
        Self { about: image_fields(Value::Null), source: Source::Bad(reason) }
    }

    /// The same input with a name, if it has none, by its place in a file.
    pub(super) fn numbered(mut self, index: usize) -> Self {
        let named = ["image", "id"].iter().any(|name| self.about.get(*name).is_some_and(|value| !value.is_null()));
        if !named {
            self.about.insert("record".into(), (index + 1).into());
        }
        self
    }

    /// What a result repeats of its input: `image`, `id` and `question` if the record has them, and
    /// `record`, its number in the file, if it has neither image nor id.
    pub fn about(&self) -> &Map<String, Value> {
        &self.about
    }

    /// Name for messages: the image, else the id.
    pub fn name(&self) -> String {
        let field = |name| self.about.get(name).filter(|value| !value.is_null());
        match field("image").or(field("id")) {
            Some(Value::String(name)) => name.clone(),
            Some(other) => other.to_string(),
            None => field("record").map_or_else(|| "a record".into(), |number| format!("record {number}")),
        }
    }

    /// The question of the record, if it has one outside of a conversation.
    pub fn question(&self) -> Option<&str> {
        self.about.get("question").and_then(Value::as_str)
    }

    /// The request for an answer; `question` is asked where the input has no question; where neither has
    /// one, the request fails.
    pub fn request(self, question: impl Into<String>) -> Request {
        let question = question.into();
        Request::new(move |processor| match self.source {
            Source::File(path) => {
                check_not_address(&path)?;
                Ok(asked(processor.decoder().open(path)?.into(), question))
            }
            Source::Pixels(image) => Ok(asked(Content::Image(image), question)),
            Source::Record { fields, images } => conversation(fields, &images, question, processor),
            Source::Bad(reason) => Err(Error::data(reason)),
        })
    }
}

fn asked(image: Content, question: String) -> Conversation {
    Message::user([image, question.into()]).into()
}

/// An address in the place of a file name is refused as such: nothing is downloaded.
fn check_not_address(path: &Path) -> Result<()> {
    let name = path.to_string_lossy();
    if name.starts_with("http://") || name.starts_with("https://") {
        return Err(Error::image(name, "is an address, which is not fetched: download it, and name the file"));
    }
    Ok(())
}

/// The conversation of a record up to its first turn of the user, with the images of these turns.
fn conversation(
    fields: Map<String, Value>,
    images: &Path,
    question: String,
    processor: &Processor,
) -> Result<Conversation> {
    let json = Value::from(awaiting_answer(fields, question)?).to_string();
    let mut record = RecordFile::parse(json.as_bytes(), images)?;
    if let Some(first) = record.turns.iter().position(|turn| turn.role == Role::User) {
        record.turns.truncate(first + 1);
    }
    Ok(record.conversation(processor)?)
}

/// The record as one to train on, which needs an answer: with a conversation that ends in some text of the assistant, and
/// without other texts.
fn awaiting_answer(mut fields: Map<String, Value>, question: String) -> Result<Map<String, Value>> {
    let mut turns = CONVERSATION_FIELDS.iter().find_map(|name| fields.remove(*name)).filter(|turns| !turns.is_null());
    let own = QUESTION_FIELDS.iter().filter_map(|name| fields.remove(*name)).find(Value::is_string);
    for name in CONVERSATION_FIELDS.iter().chain(&ANSWER_FIELDS) {
        fields.remove(*name);
    }
    if turns.is_none() && own.is_none() && question.is_empty() {
        return Err(Error::prompt("the record has no `question`, `prompt` or `conversations`, expected one of them"));
    }
    let question = own.unwrap_or_else(|| question.into());
    let turns = turns.get_or_insert_with(|| json!([{ "from": "human", "value": question }]));
    if let Value::Array(turns) = turns {
        turns.push(json!({ "from": "gpt", "value": "-" }));
    }
    fields.insert("conversations".into(), turns.take());
    Ok(fields)
}

fn image_fields(image: impl Into<Value>) -> Map<String, Value> {
    Map::from_iter([("image".to_owned(), image.into())])
}

/// What a result repeats of a record.
pub(super) fn about(fields: &Map<String, Value>) -> Map<String, Value> {
    let id = first_set(fields, &["id"]).map(|id| ("id".to_owned(), repeated(id)));
    let image = first_set(fields, &IMAGE_FIELDS).map_or(Value::Null, repeated);
    let question = first_set(fields, &QUESTION_FIELDS).map(|question| ("question".to_owned(), repeated(question)));
    id.into_iter().chain([("image".to_owned(), image)]).chain(question).collect()
}

/// The first of some fields that is set and not `null`.
pub(super) fn first_set<'a>(fields: &'a Map<String, Value>, names: &[&str]) -> Option<&'a Value> {
    names.iter().filter_map(|name| fields.get(*name)).find(|value| !value.is_null())
}

/// A value as a result repeats it: long texts, such as an image in a data URL, are cut and say so.
fn repeated(value: &Value) -> Value {
    match value {
        Value::String(text) if text.starts_with("data:") || text.chars().nth(MAX_REPEATED_CHARS).is_some() => {
            let start: String = text.chars().take(40).collect();
            format!("{start}.. ({} bytes)", text.len()).into()
        }
        Value::Array(values) => values.iter().map(repeated).collect(),
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| (name.clone(), repeated(value))).collect::<Map<_, _>>().into()
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: Value) -> Map<String, Value> {
        match json {
            Value::Object(fields) => fields,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn questions_come_from_the_record_or_else_from_the_caller() {
        let turns = |record| awaiting_answer(fields(record), "default?".into()).unwrap()["conversations"].clone();
        let asked = |text: &str| json!([{ "from": "human", "value": text }, { "from": "gpt", "value": "-" }]);
        assert_eq!(turns(json!({ "image": "a.png" })), asked("default?"));
        assert_eq!(turns(json!({ "image": "a.png", "question": "own?", "answer": "yes" })), asked("own?"));
        assert_eq!(turns(json!({ "image": "a.png", "prompt": "own?", "conversations": null })), asked("own?"));
        let messages = json!([{ "role": "user", "content": "first?" }, { "role": "assistant", "content": "no" }]);
        let found = turns(json!({ "messages": messages, "caption": "x" }));
        assert_eq!((found.as_array().unwrap().len(), &found[0]), (3, &messages[0]));
        let message = awaiting_answer(fields(json!({ "image": "a.png" })), String::new()).unwrap_err().to_string();
        assert!(message.contains("has no `question`"), "{message}");
    }

    #[test]
    fn results_repeat_the_id_and_the_image_but_no_data_url() {
        let url = format!("data:image/png;base64,{}", "A".repeat(5000));
        let found = about(&fields(json!({ "images": [url, "b.png"], "id": 7, "text": "x" })));
        assert_eq!(found["id"], 7);
        assert_eq!(found["image"][0], "data:image/png;base64,AAAAAAAAAAAAAAAAAA.. (5022 bytes)");
        assert_eq!(found["image"][1], "b.png");
        assert_eq!(Input::image("a.png").about(), &fields(json!({ "image": "a.png" })));
        assert_eq!(Input::record(br#"{"id": "x"}"#, Path::new("")).name(), "x");
    }

    #[test]
    fn addresses_are_said_not_to_be_fetched() {
        assert!(check_not_address(Path::new("https.png")).is_ok());
        let message = check_not_address(Path::new("https://example.org/a.png")).unwrap_err().to_string();
        assert!(message.contains("not fetched"), "{message}");
    }
}

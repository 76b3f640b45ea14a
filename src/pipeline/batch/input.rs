//! Input of batch inference: an image, or a record with images and a question.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::RgbImage;
use serde_json::{Map, Value, json};

use super::Request;
use crate::data::{RecordFile, field_names as names, lenient_json};
use crate::processor::{Content, Conversation, Message, Processor, Role};
use crate::{Error, Result};

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
    Video(PathBuf),
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

    /// A video: an animated GIF, WebP or PNG file, or a folder of frames.
    pub fn video(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let about = Map::from_iter([("video".to_owned(), path.to_string_lossy().into())]);
        Self { about, source: Source::Video(path) }
    }

    /// Pixels that are in memory; `name` stands for them in results.
    pub fn pixels(name: impl Into<String>, image: RgbImage) -> Self {
        Self { about: image_fields(name.into()), source: Source::Pixels(Arc::new(image)) }
    }

    /// A JSON record in any format of training data, whose image names are relative to the folder `images`. Its
    /// conversation is read up to the first turn of the user. Answers and captions are not read. In LLaVA's question
    /// files, whose records have a `question_id`, `text` is the question.
    ///
    /// A record that is no JSON object, and later an image that cannot be read, are errors of its request.
    pub fn record(json: &[u8], images: &Path) -> Self {
        match lenient_json(json) {
            Ok(fields) => Self::fields(fields, images),
            Err(e) => Self::bad(format!("the record is not a JSON object ({e})")),
        }
    }

    /// A record as its fields, see [`Self::record`].
    pub(super) fn fields(mut fields: Map<String, Value>, images: &Path) -> Self {
        name_question(&mut fields);
        Self { about: about(&fields), source: Source::Record { fields, images: images.to_path_buf() } }
    }

    /// An input that cannot be read, for this reason.
    pub(super) fn bad(reason: String) -> Self {
        Self { about: image_fields(Value::Null), source: Source::Bad(reason) }
    }

    /// The same input with a name, if it has none, by its place in a file.
    pub(super) fn numbered(mut self, index: usize) -> Self {
        let named =
            ["image", "video", "id"].iter().any(|name| self.about.get(*name).is_some_and(|value| !value.is_null()));
        if !named {
            self.about.insert("record".into(), (index + 1).into());
        }
        self
    }

    /// What a result repeats of its input: `image` or `video`, `id` and `question` if the record has them, and
    /// `record`, its number in the file, if it has neither image nor id.
    pub fn about(&self) -> &Map<String, Value> {
        &self.about
    }

    /// Name for messages: the image, else the id.
    pub fn name(&self) -> String {
        let field = |name| self.about.get(name).filter(|value| !value.is_null());
        match field("image").or(field("video")).or(field("id")) {
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
            Source::File(path) => Ok(asked(processor.decoder().open(path)?.into(), question)),
            Source::Video(path) => {
                let frames = processor.videos().load(path, processor.decoder())?;
                Ok(asked(frames.into(), question))
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

/// The conversation of a record up to its first turn of the user, with the images of these turns.
fn conversation(
    fields: Map<String, Value>,
    images: &Path,
    question: String,
    processor: &Processor,
) -> Result<Conversation> {
    let own = first_set(&fields, names::QUESTION).is_some() || turns(&fields).is_some();
    let json = Value::from(awaiting_answer(fields, question)?).to_string();
    let mut record = RecordFile::parse(json.as_bytes(), images)?;
    if !own && record.images.is_empty() && record.videos.is_empty() {
        return Err(Error::data("the record has neither an image nor a question of its own: name its image `image`"));
    }
    if let Some(first) = record.turns.iter().position(|turn| turn.role == Role::User) {
        record.turns.truncate(first + 1);
    }
    Ok(record.conversation(processor)?)
}

/// The record as one to train on, which needs an answer: some text of the assistant stands in the place of its answers
/// and captions.
fn awaiting_answer(mut fields: Map<String, Value>, question: String) -> Result<Map<String, Value>> {
    let turns = turns(&fields);
    remove(&mut fields, &[names::ANSWER, names::TEXT, names::LABEL, names::CONVERSATION]);
    if let Some(mut turns) = turns {
        turns.push(json!({ "from": "gpt", "value": "-" }));
        fields.insert("conversations".into(), turns.into());
        return Ok(fields);
    }
    if first_set(&fields, names::QUESTION).is_none() {
        if question.is_empty() {
            return Err(Error::prompt(
                "the record has no `question`, `prompt` or `conversations`, expected one of them",
            ));
        }
        fields.insert("question".into(), question.into());
    }
    fields.insert("answer".into(), "-".into());
    Ok(fields)
}

/// Renames `text` to `question` where it is one: beside an answer or a `question_id`, as in LLaVA's question files and
/// POPE, or with a question mark at its end.
pub(super) fn name_question(fields: &mut Map<String, Value>) {
    let text = first_set(fields, &["text"]).and_then(Value::as_str);
    let Some(text) = text.map(str::to_owned) else { return };
    let has = |names| first_set(fields, names).is_some();
    let is_question = has(names::ANSWER) || has(&["question_id"]) || text.trim_end().ends_with('?');
    if is_question && !has(names::QUESTION) && turns(fields).is_none() {
        remove(fields, &[&["text"]]);
        fields.insert("question".into(), text.into());
    }
}

/// The turns of a record's conversation, which a table holds as the text of its JSON.
pub(super) fn turns(fields: &Map<String, Value>) -> Option<Vec<Value>> {
    match first_set(fields, names::CONVERSATION)? {
        Value::Array(turns) if turns.iter().any(Value::is_object) => Some(turns.clone()),
        Value::String(text) if text.trim_start().starts_with('[') => serde_json::from_str(text).ok(),
        _ => None,
    }
}

/// Removes the fields of these names, in any case.
pub(super) fn remove(fields: &mut Map<String, Value>, names: &[&[&str]]) {
    fields.retain(|field, _| !names.iter().copied().flatten().any(|name| name.eq_ignore_ascii_case(field)));
}

fn image_fields(image: impl Into<Value>) -> Map<String, Value> {
    Map::from_iter([("image".to_owned(), image.into())])
}

/// What a result repeats of a record.
pub(super) fn about(fields: &Map<String, Value>) -> Map<String, Value> {
    let id = first_set(fields, names::ID).map(|id| ("id".to_owned(), repeated(id)));
    let video = first_set(fields, names::VIDEO).map(|video| ("video".to_owned(), repeated(video)));
    let image = first_set(fields, names::IMAGE).map(repeated);
    // A record without either says so.
    let image = if video.is_some() { image } else { Some(image.unwrap_or_default()) };
    let image = image.map(|image| ("image".to_owned(), image));
    let question = first_set(fields, names::QUESTION).map(|question| ("question".to_owned(), repeated(question)));
    id.into_iter().chain(image).chain(video).chain(question).collect()
}

/// The first of some fields, named in any case, that is set: not `null`, a blank text or an empty list.
pub(super) fn first_set<'a>(fields: &'a Map<String, Value>, names: &[&str]) -> Option<&'a Value> {
    let is_set = |value: &&Value| match value {
        Value::Null => false,
        Value::String(text) => !text.trim().is_empty(),
        Value::Array(values) => !values.is_empty(),
        _ => true,
    };
    let named = |name: &&str| fields.iter().find(|(field, value)| field.eq_ignore_ascii_case(name) && is_set(value));
    names.iter().find_map(named).map(|(_, value)| value)
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
        let awaiting = |record| Value::from(awaiting_answer(fields(record), "default?".into()).unwrap());
        let asked = |text: &str| json!({ "image": "a.png", "question": text, "answer": "-" });
        assert_eq!(awaiting(json!({ "image": "a.png", "text": "x" })), asked("default?"));
        assert_eq!(awaiting(json!({ "image": "a.png", "question": "own?", "Answer": "yes" })), asked("own?"));
        let prompt = json!({ "image": "a.png", "prompt": "own?", "conversations": null });
        assert_eq!(awaiting(prompt), json!({ "image": "a.png", "prompt": "own?", "answer": "-" }));
        let messages = json!([{ "role": "user", "content": "first?" }, { "role": "assistant", "content": "no" }]);
        for messages in [messages.clone(), messages.to_string().into()] {
            let found = awaiting(json!({ "messages": messages, "caption": "x" }));
            let turns = found["conversations"].as_array().unwrap();
            assert_eq!((turns.len(), &turns[0]["content"]), (3, &json!("first?")));
            assert!(found.get("caption").is_none());
        }
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
}

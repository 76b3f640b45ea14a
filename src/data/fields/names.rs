//! Common names of fields, and choice of the one that is set.

use super::super::{BadSample, SampleResult};
use super::value::{Row, Value};

pub(crate) const ID: &[&str] = &["id", "key", "__key__", "question_id", "sample_id", "uid", "uuid"];
pub(crate) const IMAGE: &[&str] = &[
    "image",
    "images",
    "img",
    "imgs",
    "image_path",
    "image_paths",
    "image_file",
    "image_files",
    "file_name",
    "file_names",
    "filename",
    "filenames",
    "filepath",
    "file_path",
    "image_filename",
    "image_name",
    "path",
    "picture",
    "image_url",
    "image_urls",
    "image_bytes",
    "image_base64",
    "image_b64",
    "img_base64",
    "img_path",
    "img_name",
    "img_file",
    "img_url",
    "image_file_name",
    "image_filepath",
    "jpg",
    "jpeg",
    "png",
    "webp",
];
pub(crate) const VIDEO: &[&str] =
    &["video", "videos", "video_path", "video_paths", "video_file", "video_name", "video_url", "clip", "frames"];
pub(crate) const CONVERSATION: &[&str] =
    &["conversations", "conversation", "messages", "dialog", "dialogue", "dialogs", "chat", "turns", "texts"];
pub(crate) const TEXT: &[&str] =
    &["text", "caption", "captions", "texts", "txt", "description", "sentences", "alt_text"];
/// A class name, read as text if there is no other.
pub(crate) const LABEL: &[&str] = &["label", "class_name"];
pub(crate) const QUESTION: &[&str] = &["question", "prompt", "query", "instruction", "user", "human"];
/// What an instruction is about, or the question if there is none.
pub(super) const CONTEXT: &[&str] = &["input"];
pub(crate) const ANSWER: &[&str] =
    &["answer", "answers", "response", "output", "completion", "reply", "assistant", "gpt"];
pub(super) const SYSTEM: &[&str] = &["system", "system_prompt"];
pub(super) const ROLE: &[&str] = &["from", "role", "speaker", "author"];
pub(super) const CONTENT: &[&str] = &["value", "content", "text", "message"];
/// Earlier exchanges of an `instruction`, as pairs.
pub(super) const HISTORY: &[&str] = &["history"];
/// Names of the two sides of an exchange that is one object.
pub(super) const ASKED: &[&str] = &["user", "human", "question", "prompt", "query", "instruction"];
pub(super) const REPLIED: &[&str] = &["assistant", "gpt", "answer", "response", "output", "completion"];

/// Whether any of the common names is `key`, in any case.
pub(super) fn is_known(key: &str) -> bool {
    let lists = [ID, IMAGE, VIDEO, CONVERSATION, TEXT, LABEL, QUESTION, CONTEXT, HISTORY, ANSWER, SYSTEM];
    lists.iter().any(|names| is_among(names, key))
}

/// Whether a field of this name holds or names images.
pub(in crate::data) fn is_image_field(key: &str) -> bool {
    is_among(IMAGE, key)
}

/// Whether a field of this name holds text to train on.
pub(in crate::data) fn is_text_name(key: &str) -> bool {
    [CONVERSATION, TEXT, QUESTION, ANSWER].iter().any(|names| is_among(names, key))
}

/// Whether a field refers to an image or video by a number or key, as `image_id` of COCO does.
pub(super) fn is_reference(key: &str) -> bool {
    let key: String = letters(key).collect();
    let stem = key.strip_suffix("ids").or_else(|| key.strip_suffix("id")).unwrap_or(&key);
    ["image", "img", "photo", "picture", "video"].contains(&stem)
}

/// Number of an image that has a field of its own, such as `image_1`.
pub(super) fn image_number(key: &str) -> Option<u32> {
    let stem = key.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = key[stem.len()..].parse().ok()?;
    is_among(&["image", "img", "picture"], stem).then_some(number)
}

/// Whether a key is one of these names, in any case and with any of `_`, `-` and spaces between words, or none.
fn is_among(names: &[&str], key: &str) -> bool {
    names.iter().any(|name| letters(name).eq(letters(key)))
}

/// Letters of a name in lower case, without what separates its words.
fn letters(name: &str) -> impl Iterator<Item = char> {
    name.chars().filter(|c| !(matches!(c, '_' | '-') || c.is_whitespace())).map(|c| c.to_ascii_lowercase())
}

/// A field that is set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field<'r> {
    pub name: &'r str,
    pub value: &'r Value,
}

/// The fields among `names` that are set.
pub(super) fn set<'r>(row: &'r Row, names: &[&str]) -> Vec<Field<'r>> {
    let fields = row.iter().filter(|(name, value)| is_among(names, name) && value.is_set());
    fields.map(|(name, value)| Field { name, value }).collect()
}

/// The field under a column's exact name.
pub(super) fn column<'r>(row: &'r Row, column: &str) -> Option<Field<'r>> {
    let found = row.iter().find(|(name, value)| name == column && value.is_set());
    found.map(|(name, value)| Field { name, value })
}

/// The one of these fields that counts; they may be several of the same value.
pub(super) fn one<'r>(fields: &[Field<'r>], column: &str) -> SampleResult<Option<Field<'r>>> {
    let Some((first, others)) = fields.split_first() else { return Ok(None) };
    match others.iter().find(|other| !same(first.value, other.value)) {
        None => Ok(Some(*first)),
        Some(other) => Err(BadSample::BrokenRecord(format!(
            "`{}` and `{}` are both set and differ: remove one, or name the one to read as `columns.{column}`",
            super::brief(first.name),
            super::brief(other.name)
        ))),
    }
}

/// Whether two fields say the same; a list of one value says that value.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::List(one), other) | (other, Value::List(one)) if one.len() == 1 && !matches!(other, Value::List(_)) => {
            same(&one[0], other)
        }
        (Value::Text(a), Value::Text(b)) => a.trim() == b.trim(),
        _ => a == b,
    }
}

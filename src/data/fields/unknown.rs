//! Fields of unknown names that hold the names of images or videos, which must not be left out silently.

use std::path::PathBuf;

use super::super::{BadSample, ImageSource, Record, SampleResult, VideoSource};
use super::embedded::{is_embedded, is_image_content};
use super::paths::{is_sound, names_media, within};
use super::value::{Row, Value};
use super::{RecordReader, brief, names};

/// Most values of a field that are looked at.
const MAX_VALUES: usize = 64;

impl RecordReader {
    /// Rejects a record with a field that names an image or video but is not read: of a record with neither, a field of
    /// an unknown name that may name any, or of a known name that names an existing file; of another record, a field of
    /// an unknown name that names a file beside those that are read.
    pub(super) fn reject_unread_media(&self, row: &Row, record: &Record) -> SampleResult<()> {
        if self.columns.names_media() {
            return Ok(());
        }
        let is_text_only = record.images.is_empty() && record.videos.is_empty();
        for (key, value) in row.iter().filter(|(key, _)| !self.is_column(key)) {
            let is_known = names::is_known(key);
            let mut values = Vec::new();
            collect(value, &mut values);
            let unread = |found: &Found<'_>| match found {
                Found::Text(text) if is_known => is_text_only && names_media(text) && self.file(text).is_some(),
                Found::Text(text) => names_media(text) && (is_text_only || self.is_another_file(text, record)),
                Found::Content(_) => is_text_only && !is_known,
            };
            if let Some(found) = values.into_iter().find(unread) {
                return Err(found.unread(key));
            }
            let is_name = value.is_set() && matches!(value, Value::Number(_) | Value::Text(_));
            if is_text_only && !is_known && is_name && names::is_reference(key) {
                return Err(reference(key, value));
            }
        }
        Ok(())
    }

    fn is_column(&self, key: &str) -> bool {
        self.columns.named().any(|(_, column)| column == key)
    }

    /// The file of this name.
    fn file(&self, name: &str) -> Option<PathBuf> {
        within(self.folder(), name.trim()).ok().filter(|path| path.is_file())
    }

    fn is_another_file(&self, text: &str, record: &Record) -> bool {
        let Some(path) = self.file(text) else { return false };
        let is_image = record.images.iter().any(|image| matches!(image, ImageSource::File(read) if *read == path));
        let is_video = record.videos.iter().any(|video| matches!(video, VideoSource::Path(read) if *read == path));
        !is_image && !is_video && record.images.iter().all(|image| matches!(image, ImageSource::File(_)))
    }
}

/// The error for a record without image that refers to one.
fn reference(key: &str, value: &Value) -> BadSample {
    BadSample::BrokenRecord(format!(
        "field `{}` is {}, which is no file: add `image` with the file name of the image it refers to",
        brief(key),
        value.shown()
    ))
}

/// What may be an image in a field.
enum Found<'v> {
    Text(&'v str),
    /// Content of an image file, of this many bytes.
    Content(usize),
}

impl Found<'_> {
    /// The error for this in a field that is not read.
    fn unread(&self, key: &str) -> BadSample {
        let name = match self {
            Self::Text(text) => brief(text),
            Self::Content(bytes) => format!("{bytes} bytes of an image"),
        };
        match self {
            Self::Text(text) if is_sound(text) => BadSample::BrokenRecord(format!(
                "field `{}` names \"{name}\", but sound is not read: remove the record, or this field",
                brief(key)
            )),
            _ => BadSample::UnreadMedia { field: brief(key), name },
        }
    }
}

/// Collects the texts and the image files in a value.
fn collect<'v>(value: &'v Value, found: &mut Vec<Found<'v>>) {
    if found.len() >= MAX_VALUES {
        return;
    }
    match value {
        Value::Text(text) if is_embedded(text) => found.push(Found::Content(text.len())),
        Value::Text(text) => found.push(Found::Text(text)),
        Value::Bytes(bytes) if is_image_content(bytes) => found.push(Found::Content(bytes.len())),
        Value::List(values) => values.iter().for_each(|value| collect(value, found)),
        Value::Object(fields) => fields.iter().for_each(|(_, value)| collect(value, found)),
        _ => {}
    }
}

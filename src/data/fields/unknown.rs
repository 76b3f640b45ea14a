//! Fields of unknown names that hold the names of images or videos, which must not be left out silently.

use super::super::{BadSample, ImageSource, Record, SampleResult, VideoSource};
use super::embedded::is_image_content;
use super::paths::{names_media, within};
use super::value::{Row, Value};
use super::{RecordReader, brief, names};

/// Most values of a field that are looked at.
const MAX_VALUES: usize = 64;

impl RecordReader {
    /// Rejects a record with a field of an unknown name that names an image or video: any, if the record has neither;
    /// else one that exists beside those that are read.
    pub(super) fn reject_unread_media(&self, row: &Row, record: &Record) -> SampleResult<()> {
        if self.columns.names_media() {
            return Ok(());
        }
        let is_text_only = record.images.is_empty() && record.videos.is_empty();
        for (key, value) in row.iter().filter(|(key, _)| !names::is_known(key) && !self.is_column(key)) {
            let mut values = Vec::new();
            collect(value, &mut values);
            let unread = |found: &Found<'_>| match found {
                Found::Text(text) => names_media(text) && (is_text_only || self.is_another_file(text, record)),
                Found::Content(_) => is_text_only,
            };
            if let Some(found) = values.into_iter().find(unread) {
                return Err(BadSample::UnreadMedia { field: brief(key), name: found.shown() });
            }
        }
        Ok(())
    }

    fn is_column(&self, key: &str) -> bool {
        self.columns.named().any(|(_, column)| column == key)
    }

    fn is_another_file(&self, text: &str, record: &Record) -> bool {
        let Ok(path) = within(self.folder(), text.trim()) else { return false };
        let is_image = record.images.iter().any(|image| matches!(image, ImageSource::File(read) if *read == path));
        let is_video = record.videos.iter().any(|video| matches!(video, VideoSource::Path(read) if *read == path));
        !is_image
            && !is_video
            && record.images.iter().all(|image| matches!(image, ImageSource::File(_)))
            && path.is_file()
    }
}

/// What may be an image in a field.
enum Found<'v> {
    Text(&'v str),
    /// Content of an image file, of this many bytes.
    Content(usize),
}

impl Found<'_> {
    fn shown(&self) -> String {
        match self {
            Self::Text(text) => brief(text),
            Self::Content(bytes) => format!("{bytes} bytes of an image"),
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

fn is_embedded(text: &str) -> bool {
    ["data:image/", "data:video/"].iter().any(|start| text.starts_with(start))
}

//! Fields of unknown names that hold the names of images or videos, which must not be left out silently.

use super::super::{BadSample, ImageSource, Record, SampleResult, VideoSource};
use super::paths::{names_media, within};
use super::value::{Row, Value};
use super::{RecordReader, brief, names};

/// Most texts of a record that are looked at.
const MAX_TEXTS: usize = 64;

impl RecordReader {
    /// Rejects a record with a field of an unknown name that names an image or video: any, if the record has neither;
    /// else one that exists beside those that are read.
    pub(super) fn reject_unread_media(&self, row: &Row, record: &Record) -> SampleResult<()> {
        if self.columns.names_media() {
            return Ok(());
        }
        let is_text_only = record.images.is_empty() && record.videos.is_empty();
        for (key, value) in row.iter().filter(|(key, _)| !names::is_known(key) && !self.is_column(key)) {
            let mut texts = Vec::new();
            collect(value, &mut texts);
            let unread = |text: &&str| names_media(text) && (is_text_only || self.is_another_file(text, record));
            if let Some(text) = texts.into_iter().find(unread) {
                return Err(BadSample::UnreadMedia { field: brief(key), name: brief(text) });
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

/// Collects the texts in a value.
fn collect<'v>(value: &'v Value, texts: &mut Vec<&'v str>) {
    if texts.len() >= MAX_TEXTS {
        return;
    }
    match value {
        Value::Text(text) => texts.push(text),
        Value::List(values) => values.iter().for_each(|value| collect(value, texts)),
        Value::Object(fields) => fields.iter().for_each(|(_, value)| collect(value, texts)),
        _ => {}
    }
}

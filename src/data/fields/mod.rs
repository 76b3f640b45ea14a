//! Fields of a record: their common names, and the images, videos and turns that they hold.

mod columns;
mod content;
mod embedded;
mod media;
pub(crate) mod names;
mod paths;
mod texts;
mod turns;
mod unknown;
mod value;

use std::path::{Path, PathBuf};

pub use columns::Columns;
pub(crate) use embedded::is_embedded;
pub(super) use embedded::{from_text as embedded_file, is_image_content};
pub(super) use names::{is_image_field, is_text_name};
pub(super) use paths::{extension, is_unreadable_image, video_problem};
pub(crate) use paths::{has_image_name, is_address, within};
pub(crate) use value::lenient_json;
pub(super) use value::{Row, Value, parse_object};

use super::{ImageSource, Record, SampleResult};
use crate::error::one_line;
use media::MediaReader;
use turns::Dialogue;

/// Images that the value of a field holds or names, relative to a folder.
pub(super) fn images_in(value: &Value, field: &str, folder: &Path) -> SampleResult<Vec<ImageSource>> {
    MediaReader::new(folder.to_path_buf()).images(value, field)
}

/// Most characters of somebody's data in a message.
const SHOWN_CHARS: usize = 60;

/// The start of a text for messages, which must not be filled with somebody's data.
fn brief(text: &str) -> String {
    let mut start: String = text.chars().take(SHOWN_CHARS).collect();
    if start.len() < text.len() {
        start.push('…');
    }
    one_line(&start)
}

/// Reader of records from fields.
#[derive(Debug, Clone)]
pub(super) struct RecordReader {
    media: MediaReader,
    columns: Columns,
}

impl RecordReader {
    /// A reader of records whose images are named relative to the folder `images`.
    pub fn new(images: impl Into<PathBuf>, columns: Columns) -> Self {
        Self { media: MediaReader::new(images.into()), columns }
    }

    pub fn columns(&self) -> &Columns {
        &self.columns
    }

    pub fn folder(&self) -> &Path {
        self.media.folder()
    }

    /// Whether a field of this name is read, if no other takes its place.
    pub fn reads(&self, name: &str) -> bool {
        names::is_known(name)
            || names::image_number(name).is_some()
            || self.columns.named().any(|(_, named)| named == name)
    }

    /// The record of these fields.
    pub fn read(&self, row: &Row) -> SampleResult<Record> {
        let images = self.media.images_of(row, &self.columns)?;
        let videos = self.media.videos_of(row, &self.columns)?;
        let mut dialogue = Dialogue::new(&self.media);
        self.read_texts(row, &mut dialogue, (images.len(), videos.len()))?;
        let record = dialogue.into_record(self.id(row), images, videos)?;
        self.reject_unread_media(row, &record)?;
        Ok(record)
    }

    fn id(&self, row: &Row) -> String {
        let field = match &self.columns.id {
            Some(column) => names::column(row, column),
            None => names::set(row, names::ID).first().copied(),
        };
        field.and_then(|field| field.value.to_text()).unwrap_or_default()
    }
}

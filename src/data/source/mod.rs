//! Sources of records: files and folders in the formats that data sets come in.

mod csv;
mod files_source;
mod folder;
mod glob;
mod gzip;
mod image_folder;
mod json;
mod kind;
mod listing;
#[cfg(feature = "parquet")]
mod parquet;
mod record_index;
mod rows;
mod shared_file;
mod tar;

use std::path::Path;

pub use files_source::{FilesSource, SourcePaths};
pub(crate) use glob::expand as expand_pattern;
pub use image_folder::ImageFolder;
pub use json::RecordFile;
pub use record_index::RecordIndex;

use super::Records;
use crate::Result;

/// Opens a file, a folder, or all that a pattern such as `data/*.jsonl` matches. `images` is the folder that image names
/// in a file are relative to; by default the folder of the file.
///
/// # Files
/// - JSON: an array, or one object per line (`.json`, `.jsonl`, `.ndjson`).
/// - CSV and TSV with commas, semicolons, tabs or vertical bars; the first line names the columns.
/// - All of these compressed with gzip (`.gz`), which are decompressed into a temporary file.
/// - WebDataset shards (`.tar`): files of the same name up to the first dot are one record, with images, and text in
///   `.txt` or fields in `.json`. Beside `0001.png`, `0001.1.png` is a second image, but `0001.seg.png` is left out.
/// - Parquet, with images as files' names or their content (feature `parquet`). Each row group is decoded once, when
///   the first of its records is needed, into a temporary file of about the size of the data; set `TMPDIR` to choose its
///   folder. Row groups of some 100 images start fastest.
///
/// # Folders
/// - The Hub's imagefolder: `metadata.jsonl` or `metadata.csv` beside the images.
/// - Images, each with a text of the same name (`cat.jpg`, `cat.txt` or `cat.caption`), or with fields in `cat.json`.
/// - Data files of one format. Those with a word such as `test`, `val` or `dev` in their names are other splits, and left
///   out if there are any without. The same holds for subfolders.
///
/// Names with a leading dot are passed over. Other files that could be meant are counted and named, see
/// [`Dataset::left_out`](super::Dataset::left_out).
///
/// # Fields of a record
/// Names are taken in any case; of several names for the same, the one that is set counts. [`FilesSource::columns`]
/// gives other names. Further fields are not read, see [`Dataset::unread_fields`](super::Dataset::unread_fields); a
/// record is bad if one of them names an image, video or sound.
/// - Images: `image`, `images`, `img`, `image_path`, `file_name`, `path` and others: a file name, an object with `path` or
///   `bytes`, a data URL, or a list of these. Null, `""` and `[]` mean none. Addresses are not fetched.
///   Also `image_1`, `image_2` and so on, and tags `<img>cat.png</img>` in the user's text.
/// - Videos: `video`, `videos`, `frames`: an animated GIF, WebP or PNG, a folder of frames, or a list of frames. In a
///   record without images, `<image>` may stand for a video.
/// - Conversations: `conversations`, `messages` and others: turns with `from` or `role` (`system`, `human` or `user`,
///   `gpt` or `assistant`, in any case) and `value` or `content`: text, or parts of `type` `text`, `image` or `video`. The
///   user's and system's texts have one `<image>` for each image, or none: then the images come first. In answers,
///   `<image>` is an ordinary word.
/// - A question and its answer: `question`, `prompt` or `instruction` (with `input` and `history`), and `answer`, `response` or
///   `output`. Of a list of answers, the most frequent is taken.
/// - Captions and plain text: `caption`, `captions`, `text` and others. The text is the assistant's turn, after a user
///   turn with the image only.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io) for a file that cannot be read, [`Error::Format`](crate::Error::Format) for a file of
/// another format or without records, and [`Error::Data`](crate::Error::Data) for a folder or pattern without files.
pub fn open(path: impl AsRef<Path>, images: Option<&Path>) -> Result<Records> {
    let source = FilesSource { images: images.map(Path::to_path_buf), ..FilesSource::new(path.as_ref()) };
    source.open()
}

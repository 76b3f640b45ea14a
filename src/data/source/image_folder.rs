//! Folders of images with one text file each.

use std::path::{Path, PathBuf};

use super::super::dataset::out_of_range;
use super::super::fields::{Columns, RecordReader, Value, is_image_field, parse_object};
use super::super::{BadSample, Dataset, IMAGE_MARKER, ImageSource, LeftOut, Record, SampleResult, Turn};
use super::listing::Listing;
use crate::{Error, Result, files};

/// Largest caption file in bytes, more text than the context of any model.
const MAX_CAPTION_BYTES: u64 = 1 << 20;
/// Extensions of text files beside images.
pub(super) const TEXT_EXTENSIONS: [&str; 2] = ["txt", "caption"];

/// A folder of images, each with a caption in a text file of the same name (`cat.jpg`, `cat.txt` or `cat.caption`), or
/// with the fields of its record in a JSON file (`cat.json`).
#[derive(Debug)]
pub struct ImageFolder {
    images: Vec<PathBuf>,
    left_out: LeftOut,
    reader: RecordReader,
}

impl ImageFolder {
    /// Lists the images, sorted by name. Subfolders and files with a leading dot are not read.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Data`] if the folder contains no image.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let reader = RecordReader::new(folder.as_ref(), Columns::default());
        Self::of(Listing::read(folder.as_ref())?, reader)
    }

    /// The images of a folder; `reader` reads JSON files beside them.
    pub(super) fn of(listing: Listing, reader: RecordReader) -> Result<Self> {
        if listing.images.is_empty() {
            let folder = listing.folder.display();
            let message = match listing.unreadable.first() {
                None => format!("the folder {folder} contains no image: expected files such as .jpg, .png or .webp"),
                Some((file, reason)) => {
                    format!("the folder {folder} contains no image that can be decoded: {} {reason}", name(file))
                }
            };
            return Err(Error::data(message));
        }
        let mut left_out = listing.left_out();
        let beside = "is a folder beside images, and not read: name it as a source of its own";
        listing.folders.iter().for_each(|folder| left_out.add(&folder.display().to_string(), beside));
        let orphans = listing.texts.iter().filter(|text| !listing.has_image_of(text));
        orphans.for_each(|text| left_out.add(&text.display().to_string(), "is a text without an image of its name"));
        let others = listing.data.iter().map(|(path, _)| path).filter(|path| !listing.has_image_of(path));
        let beside = "is a data file beside images with texts, and not read: name it as a source of its own";
        others.for_each(|file| left_out.add(&file.display().to_string(), beside));
        Ok(Self { images: listing.images, left_out, reader })
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl Dataset for ImageFolder {
    type Item = Record;

    fn len(&self) -> usize {
        self.images.len()
    }

    fn get(&self, index: usize) -> SampleResult<Record> {
        let image = self.images.get(index).ok_or_else(|| out_of_range(index, self.len()))?;
        let Some(caption) = caption_of(image)? else { return self.record_beside(image) };
        let id = image.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let turns = vec![Turn::user(IMAGE_MARKER), Turn::assistant(caption)];
        Record::new(id, vec![ImageSource::File(image.clone())], turns)
    }

    fn describe(&self, index: usize) -> String {
        self.images.get(index).map_or_else(|| format!("sample {index}"), |path| path.display().to_string())
    }

    fn left_out(&self) -> LeftOut {
        self.left_out.clone()
    }
}

impl ImageFolder {
    /// The record of the JSON file beside an image, about this image whatever the file names.
    fn record_beside(&self, image: &Path) -> SampleResult<Record> {
        let json = image.with_extension("json");
        if !json.is_file() {
            return Err(BadSample::MissingText(image.with_extension("txt")));
        }
        let mut row = parse_object(&files::read(&json, MAX_CAPTION_BYTES)?)?;
        row.retain(|(name, _)| !is_image_field(name));
        row.push(("image".into(), Value::Text(name(image))));
        self.reader.read(&row)
    }
}

/// Text of the text file beside an image, if there is one.
fn caption_of(image: &Path) -> SampleResult<Option<String>> {
    let upper = TEXT_EXTENSIONS.map(str::to_uppercase);
    let extensions = TEXT_EXTENSIONS.into_iter().chain(upper.iter().map(String::as_str));
    let texts: Vec<_> =
        extensions.map(|extension| image.with_extension(extension)).filter(|path| path.is_file()).collect();
    match texts.as_slice() {
        [] => Ok(None),
        [path] => {
            let caption = files::read_text(path, MAX_CAPTION_BYTES)?;
            Ok(Some(caption.trim_start_matches('\u{feff}').trim().to_owned()))
        }
        [first, second, ..] => {
            let message = format!("both {} and {} are there: remove one", name(first), name(second));
            Err(BadSample::BrokenRecord(message))
        }
    }
}

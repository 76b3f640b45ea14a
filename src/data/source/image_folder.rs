//! Folders of images with one text file each.

use std::path::{Path, PathBuf};

use super::super::dataset::out_of_range;
use super::super::{BadSample, Dataset, IMAGE_MARKER, ImageSource, LeftOut, Record, SampleResult, Turn};
use super::listing::Listing;
use crate::{Error, Result, files};

/// Largest caption file in bytes, more text than the context of any model.
const MAX_CAPTION_BYTES: u64 = 1 << 20;
/// Extensions of text files beside images.
pub(super) const TEXT_EXTENSIONS: [&str; 2] = ["txt", "caption"];

/// A folder of images, each with a caption in a text file of the same name (`cat.jpg`, `cat.txt` or `cat.caption`).
#[derive(Debug)]
pub struct ImageFolder {
    images: Vec<PathBuf>,
    left_out: LeftOut,
}

impl ImageFolder {
    /// Lists the images, sorted by name. Subfolders and files with a leading dot are not read.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Data`] if the folder contains no image.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        Self::of(Listing::read(folder.as_ref())?)
    }

    pub(super) fn of(listing: Listing) -> Result<Self> {
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
        let mut left_out = LeftOut::default();
        listing.unreadable.iter().for_each(|(file, reason)| left_out.add(&file.display().to_string(), reason));
        let beside = "is a folder beside images, and not read: name it as a source of its own";
        listing.folders.iter().for_each(|folder| left_out.add(&folder.display().to_string(), beside));
        let has_image = |text: &PathBuf| {
            let stem = text.with_extension("");
            let after = listing.images.partition_point(|image| *image < stem);
            // Names that begin with the stem are neighbours.
            let near = listing.images.iter().skip(after).take_while(|image| starts_with(image, &stem));
            near.take(64).any(|image| image.with_extension("") == stem)
        };
        let orphans = listing.texts.iter().filter(|text| !has_image(text));
        orphans.for_each(|text| left_out.add(&text.display().to_string(), "is a text without an image of its name"));
        Ok(Self { images: listing.images, left_out })
    }
}

fn starts_with(path: &Path, start: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().starts_with(start.as_os_str().as_encoded_bytes())
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
        let caption = caption_of(image)?;
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

/// Text of the file beside an image.
fn caption_of(image: &Path) -> SampleResult<String> {
    let beside: Vec<_> = TEXT_EXTENSIONS.iter().map(|extension| image.with_extension(extension)).collect();
    let texts: Vec<_> = beside.iter().filter(|path| path.is_file()).collect();
    let Some(path) = texts.first() else { return Err(BadSample::MissingText(image.with_extension("txt"))) };
    if texts.len() > 1 {
        let message = format!("both {} and {} are there: remove one", name(&beside[0]), name(&beside[1]));
        return Err(BadSample::BrokenRecord(message));
    }
    let caption = files::read_text(path, MAX_CAPTION_BYTES)?;
    Ok(caption.trim_start_matches('\u{feff}').trim().to_owned())
}

//! Folders: the Hub's imagefolder, shards, and images with texts.

use std::path::{Path, PathBuf};

use super::super::{Concat, Dataset, LeftOut, Record, Records, SampleResult};
use super::files_source::Opening;
use super::image_folder::ImageFolder;
use super::kind::{ACCEPTED, Kind};
use super::listing::Listing;
use crate::{Error, Result};

/// Most levels of folders within folders.
const MAX_DEPTH: usize = 8;
/// First words of the names of splits that are not trained on.
const OTHER_SPLITS: [&str; 5] = ["test", "val", "valid", "dev", "eval"];

/// Opens a folder, by the first of these that it has: the Hub's `metadata.jsonl` or `metadata.csv`; images with texts
/// of their own; shards or other data files; subfolders, of which `train` alone is read if there are other splits.
pub(super) fn open_folder(opening: &Opening<'_>, folder: &Path, depth: usize) -> Result<Records> {
    let listing = Listing::read(folder)?;
    if !listing.metadata.is_empty() {
        return open_metadata(opening, listing);
    }
    // Without texts, the images belong to the data file beside them.
    if !listing.images.is_empty() && (listing.data.is_empty() || !listing.texts.is_empty()) {
        return Ok(Box::new(ImageFolder::of(listing)?));
    }
    if !listing.data.is_empty() {
        return open_shards(opening, listing);
    }
    if !listing.folders.is_empty() && depth < MAX_DEPTH {
        return open_subfolders(opening, listing, depth);
    }
    if !listing.unreadable.is_empty() {
        return Ok(Box::new(ImageFolder::of(listing)?));
    }
    Err(nothing(folder))
}

fn open_metadata(opening: &Opening<'_>, listing: Listing) -> Result<Records> {
    let mut left_out = LeftOut::default();
    listing.unreadable.iter().for_each(|(file, reason)| left_out.add(&file.display().to_string(), reason));
    let parts = listing.metadata.iter().map(|path| opening.file(path, None)).collect::<Result<Vec<_>>>()?;
    let parts = Concat::new(parts);
    let (records, images) = (parts.len(), listing.images.len());
    if images > records {
        let folder = listing.folder.display().to_string();
        left_out.add(&folder, &format!("has {images} images, but its metadata has {records} records"));
    }
    Ok(with_left_out(parts, left_out))
}

/// Opens the data files of one kind; those of other kinds and of other splits are left out.
fn open_shards(opening: &Opening<'_>, listing: Listing) -> Result<Records> {
    let order = [Kind::Parquet, Kind::Tar, Kind::Json, Kind::Csv, Kind::Tsv];
    let has = |kind: &Kind| listing.data.iter().any(|(_, other)| other == kind);
    let Some(kind) = order.into_iter().find(has) else { return Err(nothing(&listing.folder)) };
    let is_training = |path: &Path| split_of(path).is_some_and(|split| split == "train");
    let has_training = listing.data.iter().any(|(path, _)| is_training(path));
    let mut left_out = LeftOut::default();
    let mut parts = Vec::new();
    for (path, other) in &listing.data {
        let name = path.display().to_string();
        if *other != kind {
            left_out.add(&name, "is of another format than the files that are read: name it as a source of its own");
        } else if has_training && is_other_split(path) {
            left_out.add(&name, "is another split than `train`: name it as a source of its own");
        } else {
            parts.push(opening.file(path, None)?);
        }
    }
    Ok(with_left_out(Concat::new(parts), left_out))
}

fn open_subfolders(opening: &Opening<'_>, listing: Listing, depth: usize) -> Result<Records> {
    let is_training = |path: &PathBuf| split_of(path).is_some_and(|split| split == "train");
    let has_training = listing.folders.iter().any(is_training);
    let (mut left_out, mut parts) = (LeftOut::default(), Vec::new());
    for folder in &listing.folders {
        if has_training && is_other_split(folder) {
            let reason = "is another split than `train`: name it as a source of its own";
            left_out.add(&folder.display().to_string(), reason);
        } else if has_records(folder, depth + 1)? {
            parts.push(open_folder(opening, folder, depth + 1)?);
        }
    }
    if parts.is_empty() {
        return Err(nothing(&listing.folder));
    }
    Ok(with_left_out(Concat::new(parts), left_out))
}

/// Whether there is anything to read in a folder or below it.
fn has_records(folder: &Path, depth: usize) -> Result<bool> {
    let listing = Listing::read(folder)?;
    let here = !(listing.metadata.is_empty() && listing.images.is_empty() && listing.data.is_empty());
    if here || !listing.unreadable.is_empty() || depth >= MAX_DEPTH {
        return Ok(here || !listing.unreadable.is_empty());
    }
    for folder in &listing.folders {
        if has_records(folder, depth + 1)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// First word of a file's or folder's name, such as `train` of `train-00000-of-00008.parquet`.
fn split_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_string_lossy().to_lowercase();
    name.split(|c: char| !c.is_ascii_alphabetic()).next().map(str::to_string)
}

fn is_other_split(path: &Path) -> bool {
    let split = split_of(path).unwrap_or_default();
    OTHER_SPLITS.contains(&split.as_str()) || split == "validation"
}

fn nothing(folder: &Path) -> Error {
    Error::data(format!("the folder {} contains no image and no data file; {ACCEPTED}", folder.display()))
}

fn with_left_out(records: Concat<Records>, left_out: LeftOut) -> Records {
    Box::new(Partial { records, left_out })
}

/// Records of a folder whose other files are left out.
struct Partial {
    records: Concat<Records>,
    left_out: LeftOut,
}

impl Dataset for Partial {
    type Item = Record;

    fn len(&self) -> usize {
        self.records.len()
    }

    fn get(&self, index: usize) -> SampleResult<Record> {
        self.records.get(index)
    }

    fn describe(&self, index: usize) -> String {
        self.records.describe(index)
    }

    fn left_out(&self) -> LeftOut {
        let mut all = self.left_out.clone();
        all.merge(&self.records.left_out());
        all
    }

    fn cheapest(&self, indices: Vec<usize>) -> Vec<usize> {
        self.records.cheapest(indices)
    }
}

//! Folders: the Hub's imagefolder, shards, and images with texts.

use std::path::Path;

use super::super::fields::RecordReader;
use super::super::{Concat, Dataset, LeftOut, Record, Records, SampleResult};
use super::files_source::Opening;
use super::image_folder::ImageFolder;
use super::kind::{ACCEPTED, Kind};
use super::listing::Listing;
use crate::{Error, Result};

/// Most levels of folders within folders.
const MAX_DEPTH: usize = 8;
/// Words in the names of splits that are not trained on.
const OTHER_SPLITS: [&str; 8] = ["test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation"];
/// Reason why a split is left out.
const OTHER_SPLIT: &str = "is another split than `train`: name it as a source of its own";

/// Opens a folder, by the first of these that it has: the Hub's `metadata.jsonl` or `metadata.csv`; images with texts
/// of their own; shards or other data files; subfolders. Files and folders of other splits
/// than `train` are left out, unless there are no others.
pub(super) fn open_folder(opening: &Opening<'_>, folder: &Path, depth: usize) -> Result<Records> {
    let listing = Listing::read(folder)?;
    if !listing.metadata.is_empty() {
        return open_metadata(opening, listing);
    }
    // Without texts, the images belong to the data file beside them.
    if !listing.images.is_empty() && (listing.data.is_empty() || listing.has_texts_of_images()) {
        return image_folder(opening, listing);
    }
    if !listing.data.is_empty() {
        return open_shards(opening, listing);
    }
    if !listing.folders.is_empty() && depth < MAX_DEPTH {
        return open_subfolders(opening, listing, depth);
    }
    Err(nothing(&listing))
}

fn image_folder(opening: &Opening<'_>, listing: Listing) -> Result<Records> {
    let reader = RecordReader::new(&listing.folder, opening.columns.clone());
    Ok(Box::new(ImageFolder::of(listing, reader)?))
}

fn open_metadata(opening: &Opening<'_>, listing: Listing) -> Result<Records> {
    let mut left_out = listing.left_out();
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
    let Some(kind) = order.into_iter().find(has) else { return Err(nothing(&listing)) };
    let has_training = listing.data.iter().any(|(path, other)| *other == kind && !is_other_split(path));
    let mut left_out = listing.left_out();
    let mut parts = Vec::new();
    for (path, other) in &listing.data {
        let name = path.display().to_string();
        if *other != kind {
            left_out.add(&name, "is of another format than the files that are read: name it as a source of its own");
        } else if has_training && is_other_split(path) {
            left_out.add(&name, OTHER_SPLIT);
        } else {
            parts.push(opening.file(path, None)?);
        }
    }
    Ok(with_left_out(Concat::new(parts), left_out))
}

fn open_subfolders(opening: &Opening<'_>, listing: Listing, depth: usize) -> Result<Records> {
    let has_training = listing.folders.iter().any(|folder| !is_other_split(folder));
    let (mut left_out, mut parts) = (listing.left_out(), Vec::new());
    for folder in &listing.folders {
        if has_training && is_other_split(folder) {
            left_out.add(&folder.display().to_string(), OTHER_SPLIT);
        } else if has_records(folder, depth + 1)? {
            parts.push(open_folder(opening, folder, depth + 1)?);
        } else {
            left_out.merge(&Listing::read(folder)?.left_out());
        }
    }
    if parts.is_empty() {
        return Err(nothing(&listing));
    }
    Ok(with_left_out(Concat::new(parts), left_out))
}

/// Whether there is anything to read in a folder or below it.
fn has_records(folder: &Path, depth: usize) -> Result<bool> {
    let listing = Listing::read(folder)?;
    let here = !(listing.metadata.is_empty() && listing.images.is_empty() && listing.data.is_empty());
    if here || depth >= MAX_DEPTH {
        return Ok(here);
    }
    for folder in &listing.folders {
        if has_records(folder, depth + 1)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a file or folder is a split that is not trained on, by a word of its name, as in `captions_val2017.json`. A
/// name with `train` is not.
fn is_other_split(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let has = |splits: &[&str]| name.split(|c: char| !c.is_ascii_alphabetic()).any(|word| splits.contains(&word));
    has(&OTHER_SPLITS) && !has(&["train", "training"])
}

/// The error for a folder of which nothing can be read.
fn nothing(listing: &Listing) -> Error {
    let folder = listing.folder.display();
    Error::data(match listing.unreadable.first() {
        None => format!("the folder {folder} contains no image and no data file; {ACCEPTED}"),
        Some((file, reason)) => {
            let file = file.file_name().unwrap_or_default().to_string_lossy();
            format!("the folder {folder} contains nothing that can be read: {file} {reason}")
        }
    })
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

    fn unread_fields(&self) -> Vec<String> {
        self.records.unread_fields()
    }

    fn cheapest(&self, indices: Vec<usize>) -> Vec<usize> {
        self.records.cheapest(indices)
    }
}

//! Content of a folder, by what it may be to a data set.

use std::fs;
use std::path::{Path, PathBuf};

use super::super::LeftOut;
use super::super::fields::{extension, has_image_name, is_unreadable_image, video_problem};
use super::image_folder::TEXT_EXTENSIONS;
use super::kind::{Kind, kind_of_name, unreadable_data};
use crate::{Error, Result};

/// Files that describe a data set and hold no records.
const DESCRIPTIONS: [&str; 5] =
    ["dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "package.json"];

/// Files and subfolders of a folder, each sorted by name. Names with a leading dot are passed over: macOS creates
/// hidden files like `._cat.jpg`.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub folder: PathBuf,
    /// The Hub's `metadata.jsonl` or `metadata.csv`.
    pub metadata: Vec<PathBuf>,
    pub images: Vec<PathBuf>,
    pub texts: Vec<PathBuf>,
    /// Images, videos and data files that cannot be read, and the reason.
    pub unreadable: Vec<(PathBuf, String)>,
    pub data: Vec<(PathBuf, Kind)>,
    pub folders: Vec<PathBuf>,
}

impl Listing {
    pub fn read(folder: &Path) -> Result<Self> {
        let io = |e| Error::io(folder, e);
        let mut listing = Self { folder: folder.to_path_buf(), ..Self::default() };
        for entry in fs::read_dir(folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !name.starts_with('.') {
                listing.add(path, &name);
            }
        }
        listing.sort();
        Ok(listing)
    }

    fn add(&mut self, path: PathBuf, name: &str) {
        let lower = name.to_lowercase();
        if path.is_dir() {
            if !is_loop(&path, &self.folder) {
                self.folders.push(path);
            }
        } else if has_image_name(name) {
            self.images.push(path);
        } else if is_unreadable_image(name) {
            let reason =
                format!("is {}, which cannot be decoded: convert it to PNG or JPEG", extension(name).to_uppercase());
            self.unreadable.push((path, reason));
        } else if let Some(problem) = video_problem(name) {
            self.unreadable.push((path, problem));
        } else if let Some(problem) = unreadable_data(name) {
            self.unreadable.push((path, problem.to_string()));
        } else if TEXT_EXTENSIONS.contains(&extension(name).as_str()) {
            self.texts.push(path);
        } else if let Some(kind) = kind_of_name(name).filter(|_| !DESCRIPTIONS.contains(&lower.as_str())) {
            let stem = lower.split('.').next();
            match stem == Some("metadata") {
                true => self.metadata.push(path),
                false => self.data.push((path, kind)),
            }
        }
    }

    /// The files that cannot be read.
    pub fn left_out(&self) -> LeftOut {
        let mut left_out = LeftOut::default();
        self.unreadable.iter().for_each(|(file, reason)| left_out.add(&file.display().to_string(), reason));
        left_out
    }

    /// Whether an image has the name of this file, but for the extension.
    pub fn has_image_of(&self, text: &Path) -> bool {
        let stem = text.with_extension("");
        let after = self.images.partition_point(|image| *image < stem);
        // Names that begin with the stem are neighbours.
        let near = self.images.iter().skip(after).take_while(|image| starts_with(image, &stem));
        near.take(64).any(|image| image.with_extension("") == stem)
    }

    /// Whether images of the folder have texts of their own.
    pub fn has_texts_of_images(&self) -> bool {
        let is_sidecar = |(path, kind): &(PathBuf, Kind)| *kind == Kind::Json && self.has_image_of(path);
        self.texts.iter().any(|text| self.has_image_of(text)) || self.data.iter().any(is_sidecar)
    }

    fn sort(&mut self) {
        for paths in [&mut self.metadata, &mut self.images, &mut self.texts, &mut self.folders] {
            paths.sort();
        }
        self.unreadable.sort();
        self.data.sort_by(|(a, _), (b, _)| a.cmp(b));
    }
}

fn starts_with(path: &Path, start: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().starts_with(start.as_os_str().as_encoded_bytes())
}

/// Whether a folder in `folder` is a link to that folder or to one above it.
fn is_loop(path: &Path, folder: &Path) -> bool {
    path.is_symlink()
        && match (fs::canonicalize(path), fs::canonicalize(folder)) {
            (Ok(target), Ok(folder)) => folder.starts_with(target),
            _ => true,
        }
}

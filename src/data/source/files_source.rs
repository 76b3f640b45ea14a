//! Source of records in files: paths, image folder and columns.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::super::fields::{Columns, RecordReader};
use super::super::{Concat, Records};
use super::csv::CsvRows;
use super::folder::open_folder;
use super::json::RecordFile;
use super::kind::{Kind, head, kind};
use super::rows::{RowDataset, Rows};
use super::tar::TarRows;
use super::{glob, gzip};
use crate::{Error, Result, files};

/// Files, folders or patterns that a source consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum SourcePaths {
    /// One path or pattern.
    One(PathBuf),
    /// Several, read in this order.
    Many(Vec<PathBuf>),
}

/// Records in files. See [`open`](super::open) for the formats and the names of fields. In a recipe:
///
/// ```toml
/// [[data.train]]
/// kind = "files"
/// path = ["llava.json", "shards/*.tar"]
/// images = "images"
/// columns = { image = "img", text = "alt" }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct FilesSource {
    /// The file or folder, a pattern such as `data/*.parquet`, or a list of these.
    pub path: SourcePaths,
    /// Folder that image names in the records are relative to; the file's own folder if absent.
    #[serde(default)]
    pub images: Option<PathBuf>,
    /// Names of columns that differ from the common ones.
    #[serde(default, skip_serializing_if = "Columns::is_empty")]
    pub columns: Columns,
}

impl FilesSource {
    /// A source of this file, folder or pattern.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: SourcePaths::One(path.into()), images: None, columns: Columns::default() }
    }

    /// All paths and patterns.
    pub fn paths(&self) -> &[PathBuf] {
        match &self.path {
            SourcePaths::One(path) => std::slice::from_ref(path),
            SourcePaths::Many(paths) => paths,
        }
    }

    /// The same source with each path replaced by that which `resolve` returns.
    #[must_use]
    pub fn resolved(&self, resolve: impl Fn(&Path) -> PathBuf) -> Self {
        let path = match &self.path {
            SourcePaths::One(path) => SourcePaths::One(resolve(path)),
            SourcePaths::Many(paths) => SourcePaths::Many(paths.iter().map(|path| resolve(path)).collect()),
        };
        Self { path, images: self.images.as_deref().map(resolve), columns: self.columns.clone() }
    }

    /// Opens all files, which are indexed, not read.
    ///
    /// # Errors
    /// As [`open`](super::open), and [`Error::Data`] for a pattern without a match and for a file that is matched twice.
    pub fn open(&self) -> Result<Records> {
        let opening = Opening { images: self.images.as_deref(), columns: &self.columns };
        let (mut paths, mut seen) = (Vec::new(), HashSet::new());
        for path in self.paths() {
            for found in glob::expand(path)? {
                if !seen.insert(found.canonicalize().unwrap_or_else(|_| found.clone())) {
                    let message = format!("the source names {} twice: remove one", found.display());
                    return Err(Error::data(message));
                }
                paths.push(found);
            }
        }
        let mut parts = paths.iter().map(|path| opening.path(path)).collect::<Result<Vec<_>>>()?;
        match (parts.pop(), parts.is_empty()) {
            (None, _) => Err(Error::data("the source names no file: set its `path`")),
            (Some(only), true) => Ok(only),
            (Some(last), false) => {
                parts.push(last);
                Ok(Box::new(Concat::new(parts)))
            }
        }
    }
}

/// Settings for each file of a source.
pub(super) struct Opening<'a> {
    pub images: Option<&'a Path>,
    pub columns: &'a Columns,
}

impl Opening<'_> {
    fn path(&self, path: &Path) -> Result<Records> {
        if path.is_dir() { open_folder(self, path, 0) } else { self.file(path, None) }
    }

    /// Opens a file whose images are in `folder` or, by default, beside it.
    pub fn file(&self, path: &Path, folder: Option<&Path>) -> Result<Records> {
        let (file, kind) = plain_file(path)?;
        let beside = path.parent().unwrap_or(Path::new(""));
        let reader = RecordReader::new(self.images.or(folder).unwrap_or(beside), self.columns.clone());
        match kind {
            Kind::Json => Ok(Box::new(RecordFile::of(path, file, reader)?)),
            Kind::Csv | Kind::Tsv => Ok(Box::new(RowDataset::new(CsvRows::new(path, file)?, reader)?)),
            Kind::Tar => Ok(Box::new(RowDataset::new(TarRows::new(path, file)?, reader)?)),
            Kind::Parquet => Ok(Box::new(RowDataset::new(parquet_rows(path, file)?, reader)?)),
        }
    }
}

/// Opens a file of data, decompressed if it is compressed, and tells its kind.
pub(super) fn plain_file(path: &Path) -> Result<(File, Kind)> {
    let file = files::open(path)?;
    let head_bytes = head(path, &file)?;
    let name = path.to_string_lossy().to_lowercase();
    if !head_bytes.starts_with(gzip::MAGIC) {
        let kind = kind(path, &name, &head_bytes)?;
        return Ok((file, kind));
    }
    if name.ends_with(".tar.gz") || name.ends_with(".tgz") {
        let message = "is a compressed archive, which cannot be read at any place: unpack it with `gunzip` to .tar";
        return Err(Error::format(path, message));
    }
    let file = gzip::decompress(path, &file)?;
    let kind = kind(path, name.strip_suffix(".gz").unwrap_or(&name), &head(path, &file)?)?;
    Ok((file, kind))
}

/// Rows of an open Parquet file.
#[cfg(feature = "parquet")]
pub(super) fn parquet_rows(path: &Path, file: File) -> Result<Box<dyn Rows>> {
    Ok(Box::new(super::parquet::ParquetRows::new(path, file)?))
}

#[cfg(not(feature = "parquet"))]
pub(super) fn parquet_rows(path: &Path, _: File) -> Result<Box<dyn Rows>> {
    Err(Error::format(path, "is a Parquet file: build with --features parquet to read it"))
}

impl<'de> Deserialize<'de> for SourcePaths {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(PathsVisitor)
    }
}

struct PathsVisitor;

impl<'de> Visitor<'de> for PathsVisitor {
    type Value = SourcePaths;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a path, a pattern, or a list of these")
    }

    fn visit_str<E: de::Error>(self, path: &str) -> std::result::Result<SourcePaths, E> {
        Ok(SourcePaths::One(path.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> std::result::Result<SourcePaths, A::Error> {
        let mut paths = Vec::new();
        while let Some(path) = values.next_element()? {
            paths.push(path);
        }
        Ok(SourcePaths::Many(paths))
    }
}

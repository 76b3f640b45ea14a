//! Kinds of data files, by name and first bytes.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::super::fields::{extension, has_image_name, is_image_content, video_problem};
use crate::{Error, Result};

/// What is read, for messages.
pub(super) const ACCEPTED: &str =
    "expected JSON, JSON lines, CSV or TSV (also .gz), WebDataset .tar, Parquet, or a folder of images";
/// Bytes at the start of a file that tell its kind.
pub(super) const HEAD_BYTES: u64 = 512;

/// Kind of a data file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// An array or lines.
    Json,
    /// With any separator.
    Csv,
    /// As CSV, by its name.
    Tsv,
    Tar,
    Parquet,
}

/// First bytes of other formats, and what to say of them.
const OTHERS: [(&[u8], &str); 16] = [
    (b"\xff\xfe", "is UTF-16 text: save it as UTF-8"),
    (b"\xfe\xff", "is UTF-16 text: save it as UTF-8"),
    (b"PK\x03\x04", "is a zip archive or an Excel workbook: unpack it, or save the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0", "is an old Excel workbook: save the sheet as CSV"),
    (b"<", "is XML or HTML: convert it to JSON lines, or download it again if it should be data"),
    (b"ARROW1", "is an Arrow file: save the data set as Parquet (`to_parquet`)"),
    (b"\xff\xff\xff\xff", "is an Arrow stream: save the data set as Parquet (`to_parquet`)"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd: decompress it with `unzstd`"),
    (b"BZh", "is compressed with bzip2: decompress it with `bunzip2`"),
    (b"\xfd7zXZ", "is compressed with xz: decompress it with `unxz`"),
    (b"\x04\x22\x4d\x18", "is compressed with lz4: decompress it with `unlz4`"),
    (b"\x1f\x8b", "is compressed twice: decompress it with `gunzip`"),
    (b"7z\xbc\xaf", "is a 7-Zip archive: unpack it"),
    (b"Rar!", "is a RAR archive: unpack it"),
    (b"SQLite format 3", "is an SQLite database: export the table as CSV"),
    (b"\x89HDF", "is an HDF5 file: write its records as JSON lines"),
];

/// The first bytes of an open file, which is read from its start again afterwards.
pub(super) fn head(path: &Path, mut file: &File) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    let read = file.take(HEAD_BYTES).read_to_end(&mut head).and_then(|_| std::io::Seek::rewind(&mut file));
    read.map_err(|e| Error::io(path, e))?;
    Ok(head)
}

/// Kind of a file that is not compressed.
///
/// # Errors
/// [`Error::Format`] for a file of another format, saying what to do.
pub(super) fn kind(path: &Path, name: &str, head: &[u8]) -> Result<Kind> {
    let not = |problem: &str| Err(Error::format(path, format!("{problem}; {ACCEPTED}")));
    if head.starts_with(b"PAR1") {
        return Ok(Kind::Parquet);
    }
    if head.get(257..262) == Some(b"ustar") {
        return Ok(Kind::Tar);
    }
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    if let Some((_, problem)) = OTHERS.iter().find(|(magic, _)| head.starts_with(magic) || text.starts_with(magic)) {
        return not(problem);
    }
    if has_image_name(name) || is_image_content(head) {
        return not("is an image: name its folder, with a text of the same name beside it");
    }
    if let Some(problem) = video_problem(name) {
        return not(&problem);
    }
    match extension(name).as_str() {
        "tar" => Ok(Kind::Tar),
        _ if is_binary(head) => not("is binary data, or UTF-16 text, which must be saved as UTF-8"),
        "csv" => Ok(Kind::Csv),
        "tsv" => Ok(Kind::Tsv),
        "parquet" => not("is no Parquet file: it is damaged or incomplete"),
        "txt" | "md" | "lst" if !text.starts_with(b"{") && !text.starts_with(b"[") => {
            not("is plain text, of which no record is known (a table with a line of column names may be called .csv)")
        }
        "yaml" | "yml" | "pkl" | "pickle" | "pt" | "npz" | "npy" | "xml" | "xls" | "xlsx" | "zip" => {
            not("is of a format that is not read")
        }
        _ => Ok(Kind::Json),
    }
}

/// Whether a quarter of these bytes are zero: of UTF-16 in Western languages it is half, of UTF-8 none.
fn is_binary(head: &[u8]) -> bool {
    head.iter().filter(|byte| **byte == 0).count() * 4 > head.len()
}

/// What to say of a file whose name alone says that it may hold data, but in a format that is not read.
pub(super) fn unreadable_data(name: &str) -> Option<&'static str> {
    let lower = name.to_lowercase();
    Some(match extension(&lower).as_str() {
        "arrow" | "feather" => "is an Arrow file: save the data set as Parquet (`to_parquet`)",
        "tgz" => "is a compressed archive: unpack it to .tar",
        "gz" if lower.ends_with(".tar.gz") => "is a compressed archive: unpack it to .tar",
        "zip" | "7z" | "rar" => "is an archive: unpack it",
        "zst" | "xz" | "bz2" | "lz4" => "is compressed in a format that is not read: decompress it",
        "xls" | "xlsx" => "is an Excel workbook: save the sheet as CSV",
        "tfrecord" | "mds" | "lance" | "h5" | "hdf5" | "npz" | "npy" | "pkl" => {
            "is of a format that is not read: write its records as JSON lines or Parquet"
        }
        _ => return None,
    })
}

/// Kind that a file's name alone says, also behind `.gz`; `None` for other files.
pub(super) fn kind_of_name(name: &str) -> Option<Kind> {
    let lower = name.to_lowercase();
    let name = lower.strip_suffix(".gz").unwrap_or(&lower);
    match extension(name).as_str() {
        "json" | "jsonl" | "ndjson" => Some(Kind::Json),
        "csv" => Some(Kind::Csv),
        "tsv" => Some(Kind::Tsv),
        "tar" if !lower.ends_with(".gz") => Some(Kind::Tar),
        "parquet" => Some(Kind::Parquet),
        _ => None,
    }
}

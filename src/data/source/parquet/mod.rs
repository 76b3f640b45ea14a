//! Parquet files. Each row group is decoded once, into a temporary file from which its rows are then read in any order:
//! a row inside a row group cannot be decoded alone, and a shuffled epoch would decode every row group for each of its
//! rows.

mod class_names;
mod fields;
mod footer;
mod spill;

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;

use super::super::dataset::out_of_range;
use super::super::fields::Row;
use super::super::{BadSample, SampleResult};
use super::rows::Rows;
use crate::panics::catch;
use crate::{Error, Result, files};
use class_names::ClassNames;
use spill::Spill;

/// Most rows of a file, since the order of samples is held in memory.
const MAX_ROWS: usize = 1 << 28;
/// Rows that are decoded at a time: images are large.
const BATCH: usize = 16;
/// Row groups from which a summary takes its samples.
const SUMMARISED_GROUPS: usize = 4;
/// Bytes that any row group may have decoded, and how many more for each of its own bytes.
const FREE_BYTES: u64 = 1 << 30;
const MAX_RATIO: u64 = 100;

/// Rows of a Parquet file.
#[derive(Debug)]
pub(super) struct ParquetRows {
    path: PathBuf,
    groups: Vec<Group>,
    classes: ClassNames,
    spill: Spill,
}

#[derive(Debug)]
struct Group {
    /// Rows of this group in the file.
    rows: Range<usize>,
    /// Most bytes that the rows may have when decoded.
    limit: u64,
    decoded: Mutex<Option<Decoded>>,
}

/// Rows of a row group in the temporary file.
#[derive(Debug, Default)]
struct Decoded {
    rows: Vec<Range<u64>>,
    /// Reason why there are no more rows.
    failure: Option<String>,
}

impl ParquetRows {
    /// Reads the footer of an open file that is called `path` in messages.
    pub fn new(path: &Path, file: File) -> Result<Self> {
        footer::check(path, &file)?;
        let reader = quietly(|| SerializedFileReader::new(file)).map_err(|problem| damaged(path, &problem))?;
        let (mut groups, mut first) = (Vec::new(), 0);
        for group in reader.metadata().row_groups() {
            check_compression(path, group)?;
            let count = usize::try_from(group.num_rows()).unwrap_or(usize::MAX);
            let end = usize::saturating_add(first, count);
            if end > MAX_ROWS {
                return Err(Error::format(
                    path,
                    format!("has more than {MAX_ROWS} rows, or a negative number of rows"),
                ));
            }
            let stored = u64::try_from(group.compressed_size()).unwrap_or_default();
            let limit = FREE_BYTES.saturating_add(stored.saturating_mul(MAX_RATIO));
            groups.push(Group { rows: first..end, limit, decoded: Mutex::new(None) });
            first = end;
        }
        if first == 0 {
            return Err(Error::format(path, "contains no record"));
        }
        let classes = ClassNames::new(reader.metadata().file_metadata().key_value_metadata());
        Ok(Self { path: path.to_path_buf(), groups, classes, spill: Spill::new()? })
    }

    fn group_of(&self, index: usize) -> SampleResult<(usize, &Group)> {
        let number = self.groups.partition_point(|group| group.rows.end <= index);
        let group = self.groups.get(number).ok_or_else(|| out_of_range(index, self.len()))?;
        Ok((number, group))
    }

    /// Decodes a row group into the temporary file.
    fn decode(&self, number: usize, limit: u64) -> Decoded {
        let mut decoded = Decoded::default();
        let result = quietly(|| self.decode_rows(number, limit, &mut decoded.rows));
        decoded.failure = result.err();
        decoded
    }

    fn decode_rows(
        &self,
        number: usize,
        limit: u64,
        rows: &mut Vec<Range<u64>>,
    ) -> std::result::Result<(), ParquetError> {
        let external = |e: Error| ParquetError::External(Box::new(e));
        // Row groups are decoded at the same time, and clones of a file have one position.
        let reader = SerializedFileReader::new(files::open(&self.path).map_err(external)?)?;
        if number >= reader.num_row_groups() {
            return Err(ParquetError::General("the file was changed".into()));
        }
        let group = reader.get_row_group(number)?;
        let mut writer = self.spill.writer(limit);
        for row in RowIter::from_row_group(None, &*group)?.with_batch_size(BATCH) {
            writer.add(self.classes.named(fields::row_of(row?))).map_err(external)?;
        }
        rows.extend(writer.finish().map_err(external)?);
        Ok(())
    }
}

impl Rows for ParquetRows {
    fn len(&self) -> usize {
        self.groups.last().map_or(0, |group| group.rows.end)
    }

    fn row(&self, index: usize) -> SampleResult<Row> {
        let (number, group) = self.group_of(index)?;
        let range = {
            // Other rows of the group wait until it is decoded.
            let mut state = group.decoded.lock().unwrap_or_else(PoisonError::into_inner);
            let decoded = state.get_or_insert_with(|| self.decode(number, group.limit));
            decoded.rows.get(index - group.rows.start).cloned().ok_or_else(|| {
                let failure = decoded.failure.as_deref().unwrap_or("it ends before this row");
                BadSample::BrokenRecord(format!("row group {number} cannot be decoded: {failure}"))
            })?
        };
        self.spill.read(range)
    }

    fn describe(&self, index: usize) -> String {
        format!("{} record {}", self.path.display(), index + 1)
    }

    /// Neighbouring rows of a few row groups.
    fn cheapest(&self, indices: Vec<usize>) -> Vec<usize> {
        let step = indices.len().div_ceil(SUMMARISED_GROUPS).max(1);
        let mut chosen: Vec<usize> = Vec::with_capacity(indices.len());
        for block in indices.chunks(step) {
            let Some(&first) = block.first() else { continue };
            let start = self.group_of(first).map_or(first, |(_, group)| group.rows.start);
            let start = start.max(chosen.last().map_or(0, |last| last + 1)).min(self.len() - block.len());
            chosen.extend(start..start + block.len());
        }
        chosen.sort_unstable();
        chosen.dedup();
        chosen
    }
}

/// Rejects a row group with a column whose compression is not read.
fn check_compression(path: &Path, group: &RowGroupMetaData) -> Result<()> {
    let found = group.columns().iter().map(ColumnChunkMetaData::compression);
    let read = |found: &Compression| {
        matches!(found, Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::GZIP(_) | Compression::ZSTD(_))
    };
    match found.into_iter().find(|found| !read(found)) {
        None => Ok(()),
        Some(found) => {
            let name = found.to_string();
            let name = name.split('(').next().unwrap_or_default();
            let message = format!("is compressed with {name}, which is not read: write it again with ZSTD or SNAPPY");
            Err(Error::format(path, message))
        }
    }
}

/// Runs the Parquet library, which panics on some damaged files.
fn quietly<T>(call: impl FnOnce() -> std::result::Result<T, ParquetError>) -> std::result::Result<T, String> {
    match catch(call) {
        Some(result) => result.map_err(|e| e.to_string()),
        None => Err("the Parquet library panicked".into()),
    }
}

fn damaged(path: &Path, problem: &str) -> Error {
    Error::format(path, format!("is a damaged or truncated Parquet file ({problem}): copy or download it again"))
}

/// Reads exactly this range of an open file.
fn read_range(mut file: &File, range: Range<u64>) -> std::io::Result<Vec<u8>> {
    use std::io::{Seek, SeekFrom};
    file.seek(SeekFrom::Start(range.start))?;
    let mut bytes = vec![0; (range.end - range.start) as usize];
    file.read_exact(&mut bytes)?;
    file.rewind()?;
    Ok(bytes)
}

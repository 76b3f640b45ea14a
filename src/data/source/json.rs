//! JSON arrays and JSON lines of records.

use std::fs::File;
use std::path::Path;

use super::super::fields::{Columns, RecordReader, Row, Value, is_text_name, parse_object};
use super::super::{Dataset, Record, SampleResult};
use super::RecordIndex;
use super::rows::{RowDataset, Rows};
use crate::{Error, Result, files};

/// A JSON array or JSONL file of records, see [`open`](crate::data::open) for their fields. Images must be inside the
/// image folder: a path out of it is a bad sample ([`BadSample::OutsideImage`](super::super::BadSample::OutsideImage));
/// symbolic links in the folder are followed.
#[derive(Debug)]
pub struct RecordFile(RowDataset<JsonRows>);

impl RecordFile {
    /// Opens the file; image names are relative to the folder `images`.
    ///
    /// # Errors
    /// As [`RecordIndex::open`], and [`Error::Format`] for a file whose records are in a list within an object.
    pub fn open(path: impl AsRef<Path>, images: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let reader = RecordReader::new(images.as_ref(), Columns::default());
        Self::of(path, files::open(path)?, reader)
    }

    /// Parses one record, as in a file; image names are relative to the folder `images`.
    pub(crate) fn parse(json: &[u8], images: &Path) -> SampleResult<Record> {
        RecordReader::new(images, Columns::default()).read(&parse_object(json)?)
    }

    /// As [`Self::open`], for an open file that is called `path` in messages.
    pub(super) fn of(path: &Path, file: File, reader: RecordReader) -> Result<Self> {
        let rows = JsonRows(RecordIndex::of(path, file)?);
        if reader.columns().is_empty() {
            rows.reject_one_object()?;
        }
        Ok(Self(RowDataset::new(rows, reader)?))
    }
}

impl Dataset for RecordFile {
    type Item = Record;

    fn len(&self) -> usize {
        self.0.len()
    }

    fn get(&self, index: usize) -> SampleResult<Record> {
        self.0.get(index)
    }

    fn describe(&self, index: usize) -> String {
        self.0.describe(index)
    }

    fn unread_fields(&self) -> Vec<String> {
        self.0.unread_fields()
    }
}

#[derive(Debug)]
struct JsonRows(RecordIndex);

impl Rows for JsonRows {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn row(&self, index: usize) -> SampleResult<Row> {
        parse_object(&self.0.read(index)?)
    }

    fn describe(&self, index: usize) -> String {
        format!("{} record {}", self.0.path().display(), index + 1)
    }
}

impl JsonRows {
    /// Rejects a file of one object over several lines, and one whose only object holds the records in a list, such as
    /// `{"data": [..]}`.
    fn reject_one_object(&self) -> Result<()> {
        if let Some(bytes) = self.0.huge_object() {
            return Err(Error::format(
                self.0.path(),
                format!("is one object of {bytes} bytes, not a record: {AS_RECORDS}"),
            ));
        }
        let over_lines = self.0.one_object().and_then(|object| parse_object(&object).ok());
        let is_over_lines = over_lines.is_some();
        let alone = || (self.len() == 1 && !self.0.is_array()).then(|| self.row(0).ok()).flatten();
        let row = over_lines.or_else(alone);
        let message = match row.as_ref().and_then(list_of_records) {
            Some(key) => {
                let key: String = key.chars().take(60).collect();
                format!("is one object with its records in the list `{key}`: {AS_RECORDS}")
            }
            None if row.as_ref().is_some_and(holds_records_by_key) => {
                format!("is one object with a record under each of its keys: {AS_RECORDS}")
            }
            None if is_over_lines => {
                "has JSON objects over several lines: expected one JSON array, or one object per line".to_string()
            }
            None => return Ok(()),
        };
        Err(Error::format(self.0.path(), message))
    }
}

/// Remedy for a file that is one object with all records.
const AS_RECORDS: &str = "write the records alone as a JSON array or one per line, each with its text and, as `image`, \
                          the file name of its image (COCO has it under `images`)";

/// Whether every value of an object is an object, as in GQA's files.
fn holds_records_by_key(row: &Row) -> bool {
    !row.is_empty() && row.iter().all(|(name, value)| matches!(value, Value::Object(_)) && !is_text_name(name))
}

/// Name of the list that holds the records, if the object is not a record itself.
fn list_of_records(row: &Row) -> Option<&str> {
    if row.iter().any(|(name, value)| is_text_name(name) && value.is_set()) {
        return None;
    }
    let holds = |value: &Value| matches!(value, Value::List(v) if v.iter().any(|v| matches!(v, Value::Object(_))));
    let lists = || row.iter().filter(|(_, value)| holds(value)).map(|(name, _)| name);
    // COCO has a list of images beside.
    lists().find(|name| *name != "images").or_else(|| lists().next()).map(String::as_str)
}

//! Temporary file of decoded rows.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::super::super::fields::{Row, Value};
use super::super::super::{BadSample, SampleResult};
use super::super::gzip::unwritable;
use super::super::shared_file::SharedFile;
use crate::{Error, Result};

/// Bytes that are collected before they are written.
const BUFFER_BYTES: usize = 4 << 20;
/// Most bytes of a row.
const MAX_ROW_BYTES: u64 = 1 << 30;

/// Rows that are written once and read in any order. The file is deleted when it is closed.
#[derive(Debug)]
pub(super) struct Spill {
    file: SharedFile,
    /// The same file for writing.
    writer: Mutex<u64>,
}

impl Spill {
    pub fn new() -> Result<Self> {
        let file = tempfile::tempfile().map_err(unwritable)?;
        Ok(Self { file: SharedFile::new(Path::new("the temporary file of decoded rows"), file), writer: Mutex::new(0) })
    }

    /// A writer of the rows of a row group, which together may have `limit` bytes.
    pub fn writer(&self, limit: u64) -> Writer<'_> {
        Writer { spill: self, limit, buffer: Vec::new(), pending: Vec::new(), rows: Vec::new() }
    }

    pub fn read(&self, range: Range<u64>) -> SampleResult<Row> {
        let bytes = self.file.read(range, MAX_ROW_BYTES)?;
        match decode(&mut bytes.as_slice()) {
            Some(Value::Object(row)) => Ok(row),
            _ => Err(BadSample::BrokenRecord("the temporary file of decoded rows was changed".into())),
        }
    }

    fn append(&self, bytes: &[u8]) -> Result<u64> {
        let mut end = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let start = *end;
        let write = |mut file: &File| file.seek(SeekFrom::Start(start)).and_then(|_| file.write_all(bytes));
        self.file.with(write).map_err(unwritable)?;
        *end += bytes.len() as u64;
        Ok(start)
    }
}

/// Writer of rows, several at a time.
pub(super) struct Writer<'a> {
    spill: &'a Spill,
    limit: u64,
    buffer: Vec<u8>,
    /// Rows in the buffer.
    pending: Vec<Range<usize>>,
    rows: Vec<Range<u64>>,
}

impl Writer<'_> {
    pub fn add(&mut self, row: Row) -> Result<()> {
        let start = self.buffer.len();
        encode(&Value::Object(row), &mut self.buffer);
        self.pending.push(start..self.buffer.len());
        self.limit = self.limit.checked_sub((self.buffer.len() - start) as u64).ok_or_else(|| {
            Error::data("it expands to a hundred times its size: write the file again without compression")
        })?;
        if self.buffer.len() >= BUFFER_BYTES { self.flush() } else { Ok(()) }
    }

    /// Places of all rows in the file.
    pub fn finish(mut self) -> Result<Vec<Range<u64>>> {
        self.flush()?;
        Ok(self.rows)
    }

    fn flush(&mut self) -> Result<()> {
        let base = self.spill.append(&self.buffer)?;
        let placed = self.pending.drain(..).map(|row| base + row.start as u64..base + row.end as u64);
        self.rows.extend(placed);
        self.buffer.clear();
        Ok(())
    }
}

// Tags of values.
const NULL: u8 = 0;
const FALSE: u8 = 1;
const TRUE: u8 = 2;
const NUMBER: u8 = 3;
const TEXT: u8 = 4;
const BYTES: u8 = 5;
const LIST: u8 = 6;
const OBJECT: u8 = 7;

/// Appends a tag, and the length and content of what has one.
fn encode(value: &Value, out: &mut Vec<u8>) {
    let sized = |tag: u8, length: usize, out: &mut Vec<u8>| {
        out.push(tag);
        out.extend((length as u64).to_le_bytes());
    };
    match value {
        Value::Null => out.push(NULL),
        Value::Bool(value) => out.push(if *value { TRUE } else { FALSE }),
        Value::Number(text) | Value::Text(text) => {
            sized(if matches!(value, Value::Text(_)) { TEXT } else { NUMBER }, text.len(), out);
            out.extend(text.as_bytes());
        }
        Value::Bytes(bytes) => {
            sized(BYTES, bytes.len(), out);
            out.extend(bytes);
        }
        Value::List(values) => {
            sized(LIST, values.len(), out);
            values.iter().for_each(|value| encode(value, out));
        }
        Value::Object(fields) => {
            sized(OBJECT, fields.len(), out);
            for (name, value) in fields {
                sized(TEXT, name.len(), out);
                out.extend(name.as_bytes());
                encode(value, out);
            }
        }
    }
}

/// The value at the start of `rest`, which is advanced behind it.
fn decode(rest: &mut &[u8]) -> Option<Value> {
    let tag = *rest.split_off_first()?;
    if tag <= TRUE {
        return Some(if tag == NULL { Value::Null } else { Value::Bool(tag == TRUE) });
    }
    let length = usize::try_from(u64::from_le_bytes(rest.split_off(..8)?.try_into().ok()?)).ok()?;
    let text = |rest: &mut &[u8]| String::from_utf8(rest.split_off(..length)?.to_vec()).ok();
    match tag {
        NUMBER => Some(Value::Number(text(rest)?)),
        TEXT => Some(Value::Text(text(rest)?)),
        BYTES => Some(Value::Bytes(rest.split_off(..length)?.to_vec())),
        LIST => (0..length).map(|_| decode(rest)).collect::<Option<_>>().map(Value::List),
        OBJECT => (0..length).map(|_| field(rest)).collect::<Option<_>>().map(Value::Object),
        _ => None,
    }
}

fn field(rest: &mut &[u8]) -> Option<(String, Value)> {
    match decode(rest)? {
        Value::Text(name) => Some((name, decode(rest)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_as_they_were_written() {
        let text = |text: &str| Value::Text(text.into());
        let row: Row = vec![
            ("a".into(), Value::List(vec![Value::Null, Value::Bool(true), Value::Number("-1".into())])),
            ("é".into(), Value::Object(vec![("bytes".into(), Value::Bytes(vec![0, 255])), ("".into(), text(""))])),
        ];
        let spill = Spill::new().unwrap();
        let mut writer = spill.writer(1 << 20);
        (0..3).for_each(|_| writer.add(row.clone()).unwrap());
        let places = writer.finish().unwrap();
        assert_eq!(places.len(), 3);
        places.into_iter().for_each(|place| assert_eq!(spill.read(place).unwrap(), row));
        assert!(spill.writer(10).add(row).is_err());
    }
}

//! CSV and TSV files with a header.

use std::cell::Cell;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use csv::{ByteRecord, Reader, ReaderBuilder};

use super::super::dataset::out_of_range;
use super::super::fields::{Row, Value, has_image_name};
use super::super::{BadSample, SampleResult};
use super::rows::Rows;
use super::shared_file::{MAX_RECORD_BYTES, SharedFile};
use crate::error::one_line;
use crate::{Error, Result};

/// Rows of a CSV file; only the offsets of the rows are in memory.
#[derive(Debug)]
pub(super) struct CsvRows {
    file: SharedFile,
    delimiter: u8,
    header: Vec<String>,
    /// Start offset of each row, and the end of the last row.
    offsets: Vec<u64>,
}

impl CsvRows {
    /// Indexes an open file that is called `path` in messages. Its fields are separated by the character that is most
    /// frequent in the header: comma, semicolon, tab or vertical bar.
    pub fn new(path: &Path, file: File) -> Result<Self> {
        let delimiter = delimiter_of(path, &file)?;
        let unread = Cell::new(0);
        let bounded = Bounded { inner: &file, since_record: &unread };
        let mut reader = reader_of(bounded, delimiter, true);
        let header = header_of(path, reader.byte_headers().map_err(|e| unreadable(path, e))?)?;
        let (mut offsets, mut record) = (Vec::new(), ByteRecord::new());
        loop {
            unread.set(0);
            // The position is that of the record that follows, behind blank lines.
            let start = reader.position().byte();
            match reader.read_byte_record(&mut record) {
                Ok(true) => offsets.push(record.position().map_or(start, csv::Position::byte)),
                Ok(false) => break,
                Err(e) => return Err(unreadable(path, e)),
            }
        }
        if offsets.is_empty() {
            return Err(Error::format(path, "contains no record: expected a header and one record per line"));
        }
        offsets.push(reader.position().byte());
        offsets.shrink_to_fit();
        drop(reader);
        Ok(Self { file: SharedFile::new(path, file), delimiter, header, offsets })
    }
}

impl Rows for CsvRows {
    fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    fn row(&self, index: usize) -> SampleResult<Row> {
        let (Some(&start), Some(&end)) = (self.offsets.get(index), self.offsets.get(index.saturating_add(1))) else {
            return Err(out_of_range(index, self.len()));
        };
        let bytes = self.file.record(start..end)?;
        let mut record = ByteRecord::new();
        let read = reader_of(bytes.as_slice(), self.delimiter, false).read_byte_record(&mut record);
        read.map_err(|e| BadSample::BrokenRecord(e.to_string()))?;
        if record.len() != self.header.len() {
            let (fields, expected) = (record.len(), self.header.len());
            let message = format!(
                "{fields} fields, expected {expected} as in the header: is a text with the separator not in quotes?"
            );
            return Err(BadSample::BrokenRecord(message));
        }
        if self.swallows_records(&bytes, &record) {
            let message = "a field goes on over what look like other records: is a quote not closed? Write a text with \
                           quotes as \"a \"\"b\"\" c\"";
            return Err(BadSample::BrokenRecord(message.into()));
        }
        self.header.iter().zip(&record).map(|(name, field)| Ok((name.clone(), value(name, field)?))).collect()
    }

    fn describe(&self, index: usize) -> String {
        format!("{} record {}", self.file.path().display(), index + 1)
    }
}

impl CsvRows {
    /// Whether a field of a record goes on over other records, because a quote is not closed before them: its quotes are
    /// odd in number, or a line in it has as many fields as the header, one of which names an image.
    fn swallows_records(&self, bytes: &[u8], record: &ByteRecord) -> bool {
        let is_several_lines = bytes.trim_ascii_end().contains(&b'\n');
        let is_odd = || bytes.iter().filter(|byte| **byte == b'"').count() % 2 == 1;
        let names_image = |part: &[u8]| std::str::from_utf8(part).is_ok_and(has_image_name);
        let is_record = |line: &[u8]| {
            let parts = || line.split(|byte| *byte == self.delimiter);
            parts().count() >= self.header.len() && parts().any(names_image)
        };
        let lines = || record.iter().flat_map(|field| field.split(|byte| *byte == b'\n').skip(1));
        is_several_lines && (is_odd() || lines().any(is_record))
    }
}

fn value(name: &str, field: &[u8]) -> SampleResult<Value> {
    let text = std::str::from_utf8(field);
    let text =
        text.map_err(|_| BadSample::BrokenRecord(format!("column `{name}` is not UTF-8: save the file as UTF-8")))?;
    Ok(Value::Text(text.to_string()))
}

fn reader_of<R: Read>(source: R, delimiter: u8, header: bool) -> Reader<R> {
    ReaderBuilder::new().delimiter(delimiter).has_headers(header).flexible(true).from_reader(source)
}

/// The separator that is most frequent in the header, the first of those that are equally frequent.
fn delimiter_of(path: &Path, mut file: &File) -> Result<u8> {
    let io = |e| Error::io(path, e);
    let mut line = Vec::new();
    BufReader::new(file).take(1 << 16).read_until(b'\n', &mut line).map_err(io)?;
    std::io::Seek::rewind(&mut file).map_err(io)?;
    let count = |separator: &u8| line.iter().filter(|byte| *byte == separator).count();
    // The last of equal maxima is taken.
    Ok([b'|', b'\t', b';', b','].into_iter().max_by_key(count).unwrap_or(b','))
}

/// Names of the columns.
fn header_of(path: &Path, header: &ByteRecord) -> Result<Vec<String>> {
    let names: Vec<_> = header.iter().map(|name| String::from_utf8_lossy(name).trim().to_string()).collect();
    let broken = |message: String| Err(Error::format(path, message));
    if let Some(name) = names.iter().find(|name| has_image_name(name)) {
        return broken(format!(
            "has no header: its first line names the image {}; add a line of column names",
            shown(name)
        ));
    }
    let twice = names.iter().enumerate().find(|(n, name)| names.iter().take(*n).any(|other| other == *name));
    match twice {
        Some((_, name)) => broken(format!("has two columns {}: rename one", shown(name))),
        None => Ok(names),
    }
}

fn shown(name: &str) -> String {
    format!("\"{}\"", one_line(&name.chars().take(60).collect::<String>()))
}

fn unreadable(path: &Path, error: csv::Error) -> Error {
    Error::format(path, format!("cannot be read as CSV ({error})")).caused_by(error)
}

/// Reader that fails when a record is too long, most likely because a quote is not closed.
struct Bounded<'a, R> {
    inner: R,
    /// Bytes read since the last record began.
    since_record: &'a Cell<u64>,
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.since_record.set(self.since_record.get() + count as u64);
        if self.since_record.get() > MAX_RECORD_BYTES + buffer.len() as u64 {
            let message = format!("a record is longer than {MAX_RECORD_BYTES} bytes: is a quote not closed?");
            return Err(std::io::Error::other(message));
        }
        Ok(count)
    }
}

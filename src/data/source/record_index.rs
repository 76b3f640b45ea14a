//! Index of the records in a JSON array or JSONL file, built in one pass with bounded memory.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use super::super::SampleResult;
use super::super::dataset::out_of_range;
use super::shared_file::{MAX_RECORD_BYTES, SharedFile};
use crate::{Error, Result, files};

const BUFFER_BYTES: usize = 1 << 20;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Index of a file of JSON records: only the offsets are in memory, 8 bytes per record.
#[derive(Debug)]
pub struct RecordIndex {
    file: SharedFile,
    /// Start offset of each record, and an upper bound for the end of the last record.
    offsets: Vec<u64>,
}

impl RecordIndex {
    /// Opens a JSON array, or a JSONL file with one record per line (blank lines are skipped), distinguished by the
    /// first character. The file is scanned, not parsed: an invalid record is detected when it is read.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Format`] for a file without records and for a truncated array.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::of(path, files::open(path)?)
    }

    /// As [`Self::open`], for an open file that is called `path` in messages.
    pub(super) fn of(path: &Path, file: File) -> Result<Self> {
        let offsets = scan(BufReader::with_capacity(BUFFER_BYTES, &file), path)?;
        if offsets.len() < 2 {
            return Err(Error::format(path, "contains no record: expected a JSON array, or one JSON object per line"));
        }
        Ok(Self { file: SharedFile::new(path, file), offsets })
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether there are no records; always false after [`Self::open`].
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The bytes of one record, without the separator to the next record.
    ///
    /// # Errors
    /// [`BadSample::HugeRecord`], and [`BadSample::Failed`] if the file cannot be read.
    pub fn read(&self, index: usize) -> SampleResult<Vec<u8>> {
        let (Some(&start), Some(&end)) = (self.offsets.get(index), self.offsets.get(index.saturating_add(1))) else {
            return Err(out_of_range(index, self.len()));
        };
        let mut bytes = self.file.record(start..end)?;
        let record = bytes.trim_ascii_end();
        let record = record.strip_suffix(b",").unwrap_or(record);
        bytes.truncate(record.len());
        Ok(bytes)
    }
}

impl RecordIndex {
    /// Whether the records are in an array.
    pub(super) fn is_array(&self) -> bool {
        let before = self.offsets.first().map(|first| self.file.record(0..*first));
        before.and_then(std::result::Result::ok).is_some_and(|bytes| bytes.contains(&b'['))
    }

    /// Length of the only object of the file, if it is longer than a record may be.
    pub(super) fn huge_object(&self) -> Option<u64> {
        let (start, end) = (*self.offsets.first()?, *self.offsets.last()?);
        let begins = self.file.record(start..start + 1).is_ok_and(|byte| byte == b"{") && !self.is_array();
        let is_alone = || self.len() == 1 || self.read(0).is_ok_and(|first| is_open(&first));
        let is_huge = end - start > MAX_RECORD_BYTES && begins && is_alone() && self.one_object().is_none();
        is_huge.then_some(end - start)
    }

    /// First object of a file whose first line does not end it, but a later line does.
    pub(super) fn one_object(&self) -> Option<Vec<u8>> {
        let first = self.read(0).ok()?;
        if self.len() == 1 || !first.starts_with(b"{") || object_length(&first).is_some() {
            return None;
        }
        let (start, end) = (*self.offsets.first()?, *self.offsets.last()?);
        let head = self.file.record(start..end.min(start + MAX_RECORD_BYTES)).ok()?;
        let length = object_length(&head)?;
        head.get(..length).map(<[u8]>::to_vec)
    }
}

/// Whether a bracket is open at the end of `json`, outside of strings.
fn is_open(json: &[u8]) -> bool {
    let start = Scanner::Record { depth: 0, string: Text::Outside };
    let end = json.iter().zip(0..).fold(start, |scanner, (byte, at)| scanner.within(*byte, at));
    matches!(end, Scanner::Record { depth: 1.., string: Text::Outside })
}

/// Length of the object at the start of `json`, if its closing bracket is there.
fn object_length(json: &[u8]) -> Option<usize> {
    let mut scanner = Scanner::Record { depth: 0, string: Text::Outside };
    let closes = |(at, &byte): (usize, &u8)| {
        scanner = scanner.within(byte, at as u64);
        matches!(scanner, Scanner::Record { depth: 0, string: Text::Outside }) && byte == b'}'
    };
    json.iter().enumerate().position(closes).map(|end| end + 1)
}

/// Start offset of each record, and an upper bound for the end of the last record.
fn scan(mut reader: impl BufRead, path: &Path) -> Result<Vec<u64>> {
    let broken = |message| Error::format(path, message);
    let mark = if peek(&mut reader, path)?.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
    reader.consume(mark);
    let mut at = mark as u64;
    let mut scanner = Scanner::Start;
    let mut offsets = Vec::new();
    loop {
        let bytes = peek(&mut reader, path)?;
        if bytes.is_empty() {
            break;
        }
        let mut done = scanner.idle(bytes);
        while let Some(&byte) = bytes.get(done) {
            scanner = scanner.step(byte, at + done as u64, &mut offsets).map_err(broken)?;
            done += 1;
            done += scanner.idle(bytes.get(done..).unwrap_or_default());
        }
        at += done as u64;
        reader.consume(done);
    }
    offsets.push(scanner.end(at, offsets.len()).map_err(broken)?);
    offsets.shrink_to_fit();
    Ok(offsets)
}

fn peek<'a>(reader: &'a mut impl BufRead, path: &Path) -> Result<&'a [u8]> {
    reader.fill_buf().map_err(|e| Error::io(path, e))
}

/// State of the scan.
#[derive(Debug, Clone, Copy)]
enum Scanner {
    /// Before the first character.
    Start,
    /// At the start of a line of a JSONL file, or in a line that is blank so far.
    BlankLine,
    /// Within a record of a JSONL file.
    Line,
    /// Between records of an array.
    Between,
    /// Within a record of an array, at this bracket depth.
    Record { depth: u32, string: Text },
    /// After the array; the offset of its closing bracket.
    End(u64),
}

/// Whether the scan is within a JSON string, where brackets are ignored.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Text {
    Outside,
    Inside,
    Escaped,
}

impl Scanner {
    /// Number of following bytes that cannot change the state. Most of a file is text, so skipping them makes the scan
    /// fast.
    fn idle(self, bytes: &[u8]) -> usize {
        let changes = match self {
            Self::Line => |byte: &u8| *byte == b'\n',
            Self::Record { string: Text::Inside, .. } => |byte: &u8| matches!(byte, b'"' | b'\\'),
            _ => return 0,
        };
        bytes.iter().position(changes).unwrap_or(bytes.len())
    }

    fn step(self, byte: u8, at: u64, offsets: &mut Vec<u64>) -> std::result::Result<Self, String> {
        let blank = byte.is_ascii_whitespace();
        Ok(match self {
            Self::Start if byte == b'[' => Self::Between,
            Self::Start | Self::BlankLine if !blank => {
                offsets.push(at);
                Self::Line
            }
            Self::Line if byte == b'\n' => Self::BlankLine,
            Self::Between if byte == b']' => Self::End(at),
            Self::Between if !blank && byte != b',' => {
                offsets.push(at);
                Self::Record { depth: 0, string: Text::Outside }.within(byte, at)
            }
            Self::Record { .. } => self.within(byte, at),
            Self::End(_) if !blank => {
                return Err(format!(
                    "continues at byte {at}, after the closing bracket of its array: expected one JSON array, or one \
                     JSON object per line"
                ));
            }
            unchanged => unchanged,
        })
    }

    /// Next state within a record of an array.
    fn within(self, byte: u8, at: u64) -> Self {
        let Self::Record { depth, string } = self else { return self };
        match (string, byte) {
            (Text::Inside, b'\\') => Self::Record { depth, string: Text::Escaped },
            (Text::Inside, b'"') => Self::Record { depth, string: Text::Outside },
            (Text::Inside | Text::Escaped, _) => Self::Record { depth, string: Text::Inside },
            (Text::Outside, b'"') => Self::Record { depth, string: Text::Inside },
            (Text::Outside, b'{' | b'[') => Self::Record { depth: depth.saturating_add(1), string },
            (Text::Outside, b']') if depth == 0 => Self::End(at),
            (Text::Outside, b'}' | b']') => Self::Record { depth: depth.saturating_sub(1), string },
            (Text::Outside, b',') if depth == 0 => Self::Between,
            _ => self,
        }
    }

    /// Upper bound for the end of the last record.
    fn end(self, at: u64, records: usize) -> std::result::Result<u64, String> {
        match self {
            Self::Start | Self::BlankLine | Self::Line => Ok(at),
            Self::End(bracket) => Ok(bracket),
            Self::Between | Self::Record { .. } => Err(format!(
                "ends at byte {at}, in or after record {records} of an array without its closing bracket: the file is \
                 truncated; download it again"
            )),
        }
    }
}

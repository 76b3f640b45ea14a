//! TensorBoard event files with scalars, written without a protobuf library.
//!
//! Format: TFRecords (length, masked CRC-32C of the length, payload, masked CRC-32C of the payload), where each payload
//! is an `Event` message of TensorFlow's `event.proto`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::metrics::Record;
use crate::{Error, Result};

/// Writer of one event file of a run; a resumed run adds another file, and TensorBoard reads all of them as one run.
#[derive(Debug)]
pub struct TensorBoardWriter {
    path: PathBuf,
    file: File,
}

impl TensorBoardWriter {
    /// Creates `folder` and a new event file in it. On a resume, `resumed` is the last valid step: TensorBoard discards
    /// later steps of earlier files.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(folder: impl AsRef<Path>, resumed: Option<u64>) -> Result<Self> {
        let now = since_epoch();
        // The name determines the order of the files: nanoseconds preserve it even if a run restarts within a second.
        let name = format!("events.out.tfevents.{:010}.{:09}", now.as_secs(), now.subsec_nanos());
        let folder = folder.as_ref();
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let path = folder.join(name);
        let file = OpenOptions::new().create_new(true).write(true).open(&path).map_err(|e| Error::io(&path, e))?;
        let mut writer = Self { path, file };
        writer.write_event(0, Message::default().bytes(EVENT_FILE_VERSION, b"brain.Event:2"))?;
        if let Some(step) = resumed {
            let start = Message::default().varint(SESSION_LOG_STATUS, SESSION_START);
            writer.write_event(step.saturating_add(1), Message::default().bytes(EVENT_SESSION_LOG, &start.0))?;
        }
        Ok(writer)
    }

    /// Path of the event file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes every value of a record as a scalar under its name.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&mut self, record: &Record) -> Result<()> {
        let summary = record.values.iter().fold(Message::default(), |summary, (tag, value)| {
            let scalar = Message::default().bytes(VALUE_TAG, tag.as_bytes()).float(VALUE_SIMPLE, *value as f32);
            summary.bytes(SUMMARY_VALUE, &scalar.0)
        });
        self.write_event(record.step, Message::default().bytes(EVENT_SUMMARY, &summary.0))
    }

    fn write_event(&mut self, step: u64, what: Message) -> Result<()> {
        let mut event =
            Message::default().double(EVENT_WALL_TIME, since_epoch().as_secs_f64()).varint(EVENT_STEP, step);
        event.0.extend(what.0);
        self.file.write_all(&tf_record(&event.0)).map_err(|e| Error::io(&self.path, e))
    }
}

fn since_epoch() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

// Field numbers of `Event`, `Summary`, `Summary.Value` and `SessionLog`.
const EVENT_WALL_TIME: u8 = 1;
const EVENT_STEP: u8 = 2;
const EVENT_FILE_VERSION: u8 = 3;
const EVENT_SUMMARY: u8 = 5;
const EVENT_SESSION_LOG: u8 = 7;
const SUMMARY_VALUE: u8 = 1;
const VALUE_TAG: u8 = 1;
const VALUE_SIMPLE: u8 = 2;
const SESSION_LOG_STATUS: u8 = 1;
const SESSION_START: u64 = 1;

/// A protobuf message under construction; field numbers are below 16, so a key is one byte.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(mut self, field: u8, value: u64) -> Self {
        self.0.push(field << 3);
        self.push_varint(value);
        self
    }

    fn double(mut self, field: u8, value: f64) -> Self {
        self.0.push(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(mut self, field: u8, value: &[u8]) -> Self {
        self.0.push(field << 3 | 2);
        self.push_varint(value.len() as u64);
        self.0.extend(value);
        self
    }

    fn float(mut self, field: u8, value: f32) -> Self {
        self.0.push(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn push_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

fn tf_record(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    [&length, masked_crc(&length).as_slice(), payload, &masked_crc(payload)].concat()
}

/// CRC-32C masked as in TFRecords, since a CRC of data that contains CRCs is degenerate.
fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// CRC-32C (Castagnoli), computed bit by bit: an event has only some hundred bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), bit))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A decoded event.
    #[derive(Debug, Default, PartialEq)]
    struct Event {
        step: u64,
        file_version: Option<String>,
        session_start: bool,
        scalars: Vec<(String, f32)>,
    }

    enum Field<'a> {
        Varint(u64),
        Fixed(&'a [u8]),
        Bytes(&'a [u8]),
    }

    fn take<'a>(bytes: &mut &'a [u8], n: usize) -> &'a [u8] {
        bytes.split_off(..n).unwrap()
    }

    fn take_varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = take(bytes, 1)[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }

    fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = take_varint(&mut bytes);
            let field = match key & 7 {
                0 => Field::Varint(take_varint(&mut bytes)),
                1 => Field::Fixed(take(&mut bytes, 8)),
                2 => {
                    let n = take_varint(&mut bytes) as usize;
                    Field::Bytes(take(&mut bytes, n))
                }
                5 => Field::Fixed(take(&mut bytes, 4)),
                other => panic!("wire type {other}"),
            };
            fields.push((key >> 3, field));
        }
        fields
    }

    fn scalar(value: &[u8]) -> (String, f32) {
        let mut scalar = (String::new(), f32::NAN);
        for field in fields(value) {
            match field {
                (1, Field::Bytes(tag)) => scalar.0 = String::from_utf8(tag.to_vec()).unwrap(),
                (2, Field::Fixed(value)) => scalar.1 = f32::from_le_bytes(value.try_into().unwrap()),
                (other, _) => panic!("value field {other}"),
            }
        }
        scalar
    }

    fn event(payload: &[u8]) -> Event {
        let mut event = Event::default();
        for field in fields(payload) {
            match field {
                (1, Field::Fixed(time)) => assert!(f64::from_le_bytes(time.try_into().unwrap()) > 1.6e9),
                (2, Field::Varint(step)) => event.step = step,
                (3, Field::Bytes(version)) => event.file_version = Some(String::from_utf8(version.to_vec()).unwrap()),
                (5, Field::Bytes(summary)) => {
                    let value =
                        |(_, field)| if let Field::Bytes(value) = field { scalar(value) } else { panic!("value") };
                    event.scalars = fields(summary).into_iter().map(value).collect();
                }
                (7, Field::Bytes(log)) => event.session_start = log == [8, 1],
                (other, _) => panic!("event field {other}"),
            }
        }
        event
    }

    fn events(path: &Path) -> Vec<Event> {
        let content = std::fs::read(path).unwrap();
        let (mut bytes, mut events) = (content.as_slice(), Vec::new());
        while !bytes.is_empty() {
            let length = take(&mut bytes, 8);
            assert_eq!(take(&mut bytes, 4), masked_crc(length));
            let payload = take(&mut bytes, u64::from_le_bytes(length.try_into().unwrap()) as usize);
            assert_eq!(take(&mut bytes, 4), masked_crc(payload));
            events.push(event(payload));
        }
        events
    }

    /// Test vectors: the check value of the CRC catalogue, and two vectors of RFC 3720, appendix B.4.
    #[test]
    fn crc32c_matches_published_values() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn written_events_can_be_decoded() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = TensorBoardWriter::create(folder.path(), None).unwrap();
        writer.write(&Record::new(300).with("loss", 1.5).with("loss/vision", -2.25)).unwrap();
        let scalars = vec![("loss".to_string(), 1.5), ("loss/vision".to_string(), -2.25)];
        let version = Event { file_version: Some("brain.Event:2".into()), ..Event::default() };
        assert_eq!(events(writer.path()), [version, Event { step: 300, scalars, ..Event::default() }]);
    }

    #[test]
    fn a_resumed_run_purges_repeated_steps() {
        let folder = tempfile::tempdir().unwrap();
        let first = TensorBoardWriter::create(folder.path(), None).unwrap();
        let resumed = TensorBoardWriter::create(folder.path(), Some(50)).unwrap();
        assert!(first.path() < resumed.path());
        assert_eq!(events(resumed.path())[1], Event { step: 51, session_start: true, ..Event::default() });
    }
}

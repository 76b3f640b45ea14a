//! Metrics of each step, one JSON object per line.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use super::run_folder::open_for_writing;
use crate::{Error, Result, files};

/// Most bytes of a line; a record of a step has a few hundred.
const MAX_LINE: u64 = 1 << 20;

/// Key of the loss that is minimised; its parts are `loss/NAME`.
pub const LOSS: &str = "loss";
/// Key of the learning rate, before the factors of parameter groups.
pub const LEARNING_RATE: &str = "learning_rate";
/// Key of the global gradient norm, before clipping.
pub const GRAD_NORM: &str = "grad_norm";
/// Key of the training samples per second.
pub const SAMPLES_PER_SECOND: &str = "samples_per_second";
/// Key of the training tokens per second, without padding.
pub const TOKENS_PER_SECOND: &str = "tokens_per_second";
/// Key of the mean loss over the validation samples.
pub const VALIDATION_LOSS: &str = "validation/loss";

/// Metrics of one step; their names are also TensorBoard tags and plot legends.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Step of the metrics, counted from 1.
    pub step: u64,
    /// Values by name. NaN and infinity, which JSON does not have, are written as `null` and read as NaN.
    #[serde(flatten, deserialize_with = "numbers_or_nan")]
    pub values: BTreeMap<String, f64>,
}

fn numbers_or_nan<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<BTreeMap<String, f64>, D::Error> {
    let values = BTreeMap::<String, Option<f64>>::deserialize(deserializer)?;
    Ok(values.into_iter().map(|(name, value)| (name, value.unwrap_or(f64::NAN))).collect())
}

impl Record {
    /// A record without values.
    pub fn new(step: u64) -> Self {
        Self { step, values: BTreeMap::new() }
    }

    /// The record with one value more.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: f64) -> Self {
        self.values.insert(name.into(), value);
        self
    }

    /// A value by name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.values.get(name).copied()
    }
}

/// Append-only log of [`Record`]s that survives interruptions of the run.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Opens `path` for appending. Records up to and including step `resumed` are kept, and later ones dropped, since
    /// their steps are done again; `None` starts an empty file. A last line that a crash has cut short is dropped.
    ///
    /// # Errors
    /// [`Error::Io`], also if `path` is not a regular file, and [`Error::Format`] for a line that is not a record.
    pub fn open(path: impl AsRef<Path>, resumed: Option<u64>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let keep = match resumed {
            Some(step) if files::exists(&path)? => scan(&path, |record| record.step <= step)?,
            _ => 0,
        };
        let mut file = open_for_writing(&path)?;
        file.set_len(keep).and_then(|()| file.seek(SeekFrom::End(0))).map_err(|e| Error::io(&path, e))?;
        Ok(Self { path, file })
    }

    /// Appends a record; it has reached the operating system when this returns.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&mut self, record: &Record) -> Result<()> {
        let line = serde_json::to_string(record).map_err(|e| {
            Error::format(&self.path, format!("step {} cannot be written: {e}", record.step)).caused_by(e)
        })?;
        // One write, so that a killed process leaves at most one unfinished line.
        self.file.write_all(format!("{line}\n").as_bytes()).map_err(|e| Error::io(&self.path, e))
    }
}

/// All records of a metrics file.
///
/// # Errors
/// As [`MetricsLog::open`].
pub fn read_metrics(path: impl AsRef<Path>) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    scan(path.as_ref(), |record| {
        records.push(record);
        true
    })?;
    Ok(records)
}

/// Reads records as long as `accept` returns true, and returns the length of the accepted records in bytes.
fn scan(path: &Path, mut accept: impl FnMut(Record) -> bool) -> Result<u64> {
    let mut reader = BufReader::new(files::open(path)?);
    let (mut line, mut accepted) = (Vec::new(), 0u64);
    for number in 1u64.. {
        line.clear();
        (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line).map_err(|e| Error::io(path, e))?;
        if line.len() as u64 == MAX_LINE {
            let message = format!(
                "line {number} is longer than {MAX_LINE} bytes, so it is not a metrics record: move the file away"
            );
            return Err(Error::format(path, message));
        }
        if line.last() != Some(&b'\n') {
            break;
        }
        let record = serde_json::from_slice(&line).map_err(|e| {
            Error::format(
                path,
                format!("line {number} is not a metrics record ({e}): move the file away, or repair it"),
            )
            .caused_by(e)
        })?;
        if !accept(record) {
            break;
        }
        accepted += line.len() as u64;
    }
    Ok(accepted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, resumed: Option<u64>, steps: std::ops::RangeInclusive<u64>) {
        let mut log = MetricsLog::open(path, resumed).unwrap();
        steps.for_each(|step| log.write(&Record::new(step).with(LOSS, 1.0 / step as f64)).unwrap());
    }

    fn steps(path: &Path) -> Vec<u64> {
        read_metrics(path).unwrap().iter().map(|record| record.step).collect()
    }

    #[test]
    fn a_resumed_log_equals_an_uninterrupted_one() {
        let folder = tempfile::tempdir().unwrap();
        let [through, resumed] = ["through", "resumed"].map(|name| folder.path().join(name));
        write(&through, None, 1..=9);
        write(&resumed, None, 1..=7);
        let mut cut = std::fs::OpenOptions::new().append(true).open(&resumed).unwrap();
        cut.write_all(br#"{"step":8,"lo"#).unwrap();
        write(&resumed, Some(5), 6..=9);
        assert_eq!(std::fs::read(&through).unwrap(), std::fs::read(&resumed).unwrap());
        write(&resumed, None, 1..=2);
        assert_eq!(steps(&resumed), [1, 2]);
    }

    #[test]
    fn an_unfinished_last_line_is_dropped_and_an_invalid_line_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        std::fs::write(&path, "{\"step\":1,\"loss\":2.5}\n{\"step\":2,").unwrap();
        assert_eq!(steps(&path), [1]);
        write(&path, Some(1), 2..=2);
        assert_eq!(steps(&path), [1, 2]);
        std::fs::write(&path, "{\"step\":1}\nhello\n").unwrap();
        let error = MetricsLog::open(&path, Some(9)).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"step\":1}\nhello\n");
    }

    #[test]
    fn an_overlong_line_is_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        std::fs::write(&path, vec![b' '; 3 << 20]).unwrap();
        let error = read_metrics(&path).unwrap_err().to_string();
        assert!(error.contains("line 1 is longer than"), "{error}");
    }

    #[test]
    fn values_round_trip_and_non_finite_values_become_nan() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path, None).unwrap();
        log.write(&Record::new(3).with(LOSS, 0.1).with("loss/vision", f64::INFINITY)).unwrap();
        let record = read_metrics(&path).unwrap().remove(0);
        assert_eq!((record.step, record.get(LOSS)), (3, Some(0.1)));
        assert!(record.get("loss/vision").unwrap().is_nan());
    }
}

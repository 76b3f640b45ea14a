//! The numbers of each step, one JSON object a line.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use crate::{Error, Result};

/// Key of the loss that is minimised; its parts are `loss/NAME`.
pub const LOSS: &str = "loss";
/// Key of the learning rate, before the factors of parameter groups.
pub const LEARNING_RATE: &str = "learning_rate";
/// Key of the global gradient norm, before clipping.
pub const GRAD_NORM: &str = "grad_norm";
/// Key of the samples treated per second.
pub const SAMPLES_PER_SECOND: &str = "samples_per_second";
/// Key of the tokens treated per second, padding not counted.
pub const TOKENS_PER_SECOND: &str = "tokens_per_second";

/// Named numbers of one step; the same names serve as TensorBoard tags and as plot legends.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The step they belong to.
    pub step: u64,
    /// Values by name. JSON knows no NaN or infinity: they are written as `null` and read as NaN.
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

/// A file of [`Record`]s that grows with the run and survives its interruption.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Opens `path` for appending, keeping the records up to and including step `resumed` and dropping those of steps
    /// that will be done again; `None` starts an empty file.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Format`] for a line that is no record; a last line cut short by a crash is dropped.
    pub fn open(path: impl AsRef<Path>, resumed: Option<u64>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let keep = match resumed {
            Some(step) if path.exists() => scan(&path, |record| record.step <= step)?,
            _ => 0,
        };
        let open = || {
            let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
            file.set_len(keep)?;
            file.seek(SeekFrom::End(0))?;
            Ok(file)
        };
        let file = open().map_err(|e| Error::io(&path, e))?;
        Ok(Self { path, file })
    }

    /// Appends a record; it has reached the operating system when this returns.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&mut self, record: &Record) -> Result<()> {
        let line = serde_json::to_string(record).map_err(|e| Error::format(&self.path, e.to_string()))?;
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

/// Reads records while `accept` agrees, and returns how many bytes the accepted ones take.
fn scan(path: &Path, mut accept: impl FnMut(Record) -> bool) -> Result<u64> {
    let mut reader = BufReader::new(File::open(path).map_err(|e| Error::io(path, e))?);
    let (mut line, mut accepted) = (Vec::new(), 0u64);
    for number in 1u64.. {
        line.clear();
        reader.read_until(b'\n', &mut line).map_err(|e| Error::io(path, e))?;
        if line.last() != Some(&b'\n') {
            break;
        }
        let record = serde_json::from_slice(&line).map_err(|e| {
            Error::format(path, format!("line {number} is no metrics record ({e}): move the file away, or repair it"))
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
        let mut cut = OpenOptions::new().append(true).open(&resumed).unwrap();
        cut.write_all(br#"{"step":8,"lo"#).unwrap();
        write(&resumed, Some(5), 6..=9);
        assert_eq!(std::fs::read(&through).unwrap(), std::fs::read(&resumed).unwrap());
        write(&resumed, None, 1..=2);
        assert_eq!(steps(&resumed), [1, 2]);
    }

    #[test]
    fn an_unfinished_last_line_is_dropped_and_a_foreign_line_refused() {
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
    fn values_come_back_and_nan_stays_nan() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path, None).unwrap();
        log.write(&Record::new(3).with(LOSS, 0.1).with("loss/vision", f64::INFINITY)).unwrap();
        let record = read_metrics(&path).unwrap().remove(0);
        assert_eq!((record.step, record.get(LOSS)), (3, Some(0.1)));
        assert!(record.get("loss/vision").unwrap().is_nan());
    }
}

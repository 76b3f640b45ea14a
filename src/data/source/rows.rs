//! Sources of records as fields, whatever file they come from.

use super::super::fields::{RecordReader, Row};
use super::super::{Dataset, LeftOut, Record, SampleResult};
use crate::error::one_line;
use crate::{Error, Result};

/// Number of records that are searched for the columns of the recipe.
const SEARCHED: usize = 100;
/// Most fields that are named as not read.
const MAX_UNREAD: usize = 32;
/// Most characters of a list of columns in a message.
const SHOWN: usize = 120;

/// Records as fields, with random access from any thread.
pub(super) trait Rows: Send + Sync {
    /// Number of records.
    fn len(&self) -> usize;

    /// Fields of record number `index`.
    fn row(&self, index: usize) -> SampleResult<Row>;

    /// Name of record number `index` for logs.
    fn describe(&self, index: usize) -> String;

    /// Files that are not read.
    fn left_out(&self) -> LeftOut {
        LeftOut::default()
    }

    /// As [`Dataset::cheapest`].
    fn cheapest(&self, indices: Vec<usize>) -> Vec<usize> {
        indices
    }
}

impl<R: Rows + ?Sized> Rows for Box<R> {
    fn len(&self) -> usize {
        (**self).len()
    }

    fn row(&self, index: usize) -> SampleResult<Row> {
        (**self).row(index)
    }

    fn describe(&self, index: usize) -> String {
        (**self).describe(index)
    }

    fn left_out(&self) -> LeftOut {
        (**self).left_out()
    }

    fn cheapest(&self, indices: Vec<usize>) -> Vec<usize> {
        (**self).cheapest(indices)
    }
}

/// Data set of records that are read from fields.
#[derive(Debug)]
pub(super) struct RowDataset<R> {
    rows: R,
    reader: RecordReader,
}

impl<R: Rows> RowDataset<R> {
    /// A data set of the records of `rows`.
    ///
    /// # Errors
    /// [`Error::Data`] if none of the first records has a column that the reader is to read.
    pub fn new(rows: R, reader: RecordReader) -> Result<Self> {
        let dataset = Self { rows, reader };
        dataset.check_columns()?;
        Ok(dataset)
    }

    fn check_columns(&self) -> Result<()> {
        let mut missing: Vec<_> = self.reader.columns().named().collect();
        let mut found: Vec<String> = Vec::new();
        for index in 0..self.rows.len().min(SEARCHED) {
            if missing.is_empty() {
                return Ok(());
            }
            let Ok(row) = self.rows.row(index) else { continue };
            missing.retain(|(_, column)| !row.iter().any(|(name, _)| name == column));
            let new: Vec<_> = row.into_iter().map(|(name, _)| name).filter(|name| !found.contains(name)).collect();
            found.extend(new);
        }
        let Some((field, column)) = missing.first() else { return Ok(()) };
        let found: String = found.join(", ").chars().take(SHOWN).collect();
        Err(Error::data(format!(
            "{}: no column \"{}\" (`columns.{field}`): the first records have {}",
            self.rows.describe(0),
            one_line(&column.chars().take(SHOWN).collect::<String>()),
            one_line(&found),
        )))
    }
}

impl<R: Rows> Dataset for RowDataset<R> {
    type Item = Record;

    fn len(&self) -> usize {
        self.rows.len()
    }

    fn get(&self, index: usize) -> SampleResult<Record> {
        self.reader.read(&self.rows.row(index)?)
    }

    fn describe(&self, index: usize) -> String {
        self.rows.describe(index)
    }

    fn left_out(&self) -> LeftOut {
        self.rows.left_out()
    }

    fn unread_fields(&self) -> Vec<String> {
        let mut unread: Vec<String> = Vec::new();
        for row in (0..self.rows.len().min(SEARCHED)).filter_map(|index| self.rows.row(index).ok()) {
            let names = row.into_iter().filter(|(name, value)| {
                // A table of pandas has an index without a name.
                !name.is_empty() && value.is_set() && !self.reader.reads(name)
            });
            let new = names.map(|(name, _)| name).filter(|name| !unread.contains(name));
            let new: Vec<_> = new.take(MAX_UNREAD - unread.len()).collect();
            unread.extend(new);
        }
        unread
    }

    fn cheapest(&self, indices: Vec<usize>) -> Vec<usize> {
        self.rows.cheapest(indices)
    }
}

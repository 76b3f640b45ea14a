//! Rows of an embedding table or head that follow tokens from one vocabulary to another.

use std::fmt;
use std::ops::Range;

use candle_core::Tensor;

use crate::{Error, Result};

/// Source of a row of the new table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RowSource {
    /// The row of the same token.
    Row(u32),
    /// The mean of the rows of the token's pieces in the old vocabulary.
    Pieces(Vec<u32>),
    /// The mean of all old rows.
    Mean,
}

/// Rows of a new table in terms of the rows of an old one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowMap {
    rows: Vec<RowSource>,
    old_rows: usize,
    by_token: bool,
}

/// How many rows of a table were kept, moved, made and dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RowCounts {
    /// Rows under the same id.
    pub kept: usize,
    /// Rows whose token has another id.
    pub moved: usize,
    /// New rows that start at the mean of the rows of their pieces.
    pub from_pieces: usize,
    /// New rows that start at the mean of all rows.
    pub from_mean: usize,
    /// Rows of the source that no token claims.
    pub dropped: usize,
    /// Whether rows were assigned by token text; by id where the source has no tokenizer.
    pub by_token: bool,
}

impl RowMap {
    /// Rows assigned by token: `rows[id]` is the source of the row of token `id`.
    ///
    /// # Errors
    /// [`Error::Weights`] for a row that the old table of `old_rows` rows does not have.
    pub fn new(rows: Vec<RowSource>, old_rows: usize) -> Result<Self> {
        let is_outside = |row: &u32| *row as usize >= old_rows;
        let outside = |source: &RowSource| match source {
            RowSource::Row(row) => is_outside(row),
            RowSource::Pieces(rows) => rows.is_empty() || rows.iter().any(is_outside),
            RowSource::Mean => false,
        };
        match rows.iter().position(outside) {
            Some(id) => Err(Error::weights(format!("the row of token {id} is not among the {old_rows} old rows"))),
            None => Ok(Self { rows, old_rows, by_token: true }),
        }
    }

    /// Rows assigned by id, and further ones at the mean: for a source without tokenizer.
    pub fn by_id(old_rows: usize, new_rows: usize) -> Self {
        let row = |id| u32::try_from(id).ok().filter(|_| id < old_rows).map_or(RowSource::Mean, RowSource::Row);
        Self { rows: (0..new_rows).map(row).collect(), old_rows, by_token: false }
    }

    /// Number of rows of the old table.
    pub fn old_rows(&self) -> usize {
        self.old_rows
    }

    /// Number of rows of the new table.
    pub fn new_rows(&self) -> usize {
        self.rows.len()
    }

    /// Whether every row stays where it is and none is added or dropped.
    pub fn is_identity(&self) -> bool {
        self.old_rows == self.rows.len() && (0..).zip(&self.rows).all(|(id, row)| *row == RowSource::Row(id))
    }

    /// Counts for the report.
    pub fn counts(&self) -> RowCounts {
        let mut claimed = vec![false; self.old_rows];
        let mut counts = RowCounts { by_token: self.by_token, ..RowCounts::default() };
        for (id, row) in (0u32..).zip(&self.rows) {
            match row {
                RowSource::Row(old) => {
                    claimed[*old as usize] = true;
                    *(if *old == id { &mut counts.kept } else { &mut counts.moved }) += 1;
                }
                RowSource::Pieces(_) => counts.from_pieces += 1,
                RowSource::Mean => counts.from_mean += 1,
            }
        }
        counts.dropped = claimed.into_iter().filter(|claimed| !claimed).count();
        counts
    }

    /// The new table from the old one, `[old_rows, width]` to `[new_rows, width]`.
    ///
    /// # Errors
    /// [`Error::Weights`] if the table has another number of rows.
    pub fn apply(&self, table: &Tensor) -> Result<Tensor> {
        if table.dim(0)? != self.old_rows {
            let message = format!("a table has {} rows, expected {}", table.dim(0)?, self.old_rows);
            return Err(Error::weights(message));
        }
        if self.is_identity() {
            return Ok(table.clone());
        }
        let mut parts = Vec::new();
        for run in runs(&self.rows) {
            parts.push(self.part(table, run)?);
        }
        Ok(Tensor::cat(&parts, 0)?)
    }

    fn part(&self, table: &Tensor, Range { start, end }: Range<usize>) -> Result<Tensor> {
        Ok(match &self.rows[start] {
            RowSource::Row(first) => table.narrow(0, *first as usize, end - start)?,
            RowSource::Pieces(rows) => {
                table.index_select(&Tensor::new(rows.as_slice(), table.device())?, 0)?.mean_keepdim(0)?
            }
            RowSource::Mean => table.mean_keepdim(0)?.broadcast_as((end - start, table.dim(1)?))?,
        })
    }
}

/// Ranges of rows that are made in one go: rows that lie together in the old table, and means of all rows.
fn runs(rows: &[RowSource]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (id, row) in rows.iter().enumerate() {
        let joins = |run: &Range<usize>| match (&rows[run.start], row) {
            (RowSource::Row(first), RowSource::Row(row)) => *row as usize == *first as usize + (id - run.start),
            (RowSource::Mean, RowSource::Mean) => true,
            _ => false,
        };
        match runs.last_mut() {
            Some(run) if joins(run) => run.end = id + 1,
            _ => runs.push(id..id + 1),
        }
    }
    runs
}

impl fmt::Display for RowCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kept, moved, from_pieces, from_mean, dropped, by_token } = self;
        let how = if *by_token { "by token" } else { "by id, since the source has no tokenizer" };
        write!(
            f,
            "{kept} rows kept, {moved} moved, {from_pieces} new from their pieces, {from_mean} new from the mean, \
             {dropped} dropped ({how})"
        )
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn table() -> Tensor {
        Tensor::new(&[[1f32, 2.0], [3.0, 4.0], [5.0, 9.0]], &Device::Cpu).unwrap()
    }

    #[test]
    fn rows_are_kept_moved_made_and_dropped() {
        use RowSource::{Mean, Pieces, Row};
        let map = RowMap::new(vec![Row(0), Row(2), Pieces(vec![0, 2]), Mean, Mean], 3).unwrap();
        let new = map.apply(&table()).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(new, [[1.0, 2.0], [5.0, 9.0], [3.0, 5.5], [3.0, 5.0], [3.0, 5.0]]);
        let counts = RowCounts { kept: 1, moved: 1, from_pieces: 1, from_mean: 2, dropped: 1, by_token: true };
        assert_eq!(map.counts(), counts);
        assert!(map.apply(&table().narrow(0, 0, 2).unwrap()).is_err());
        assert!(RowMap::new(vec![Row(3)], 3).is_err() && RowMap::new(vec![Pieces(vec![])], 3).is_err());
    }

    #[test]
    fn without_tokenizer_rows_stay_and_further_ones_are_the_mean() {
        let map = RowMap::by_id(3, 4);
        let new = map.apply(&table()).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(new, [[1.0, 2.0], [3.0, 4.0], [5.0, 9.0], [3.0, 5.0]]);
        assert!(RowMap::by_id(3, 3).is_identity() && !map.is_identity());
        assert!(map.counts().to_string().contains("3 rows kept"), "{}", map.counts());
    }
}

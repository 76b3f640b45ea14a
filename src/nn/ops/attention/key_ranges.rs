//! Attention mask as one range of keys per query.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Result, Tensor};

/// Attention mask in O(sequence) memory: query `i` of batch row `b` attends to the keys `rows[b][i]`.
///
/// An empty range marks padding, whose output is undefined (zero in the CPU kernel).
#[derive(Debug, Clone)]
pub struct KeyRanges {
    rows: Arc<Vec<Vec<Range<usize>>>>,
    /// Additive mask (batch, 1, queries, keys), built on demand for devices without a kernel.
    dense: Arc<OnceLock<Tensor>>,
}

impl KeyRanges {
    /// Creates a mask from the ranges of each batch row and query; all rows must have the same number of queries.
    pub fn new(rows: Vec<Vec<Range<usize>>>) -> Self {
        Self { rows: Arc::new(rows), dense: Arc::default() }
    }

    /// A mask with which every query attends to every key.
    pub fn full(batch: usize, queries: usize, keys: usize) -> Self {
        Self::new(vec![vec![0..keys; queries]; batch])
    }

    /// The ranges, row by row.
    pub fn rows(&self) -> &[Vec<Range<usize>>] {
        &self.rows
    }

    /// Number of queries of each row.
    pub fn queries(&self) -> usize {
        self.rows.first().map_or(0, Vec::len)
    }

    /// The ranges of the last `count` queries of each row, or of all queries if a row has fewer.
    #[must_use]
    pub fn last(&self, count: usize) -> Self {
        Self::new(self.rows.iter().map(|row| row[row.len().saturating_sub(count)..].to_vec()).collect())
    }

    /// The ranges of some queries of each row.
    #[must_use]
    pub fn queries_in(&self, queries: Range<usize>) -> Self {
        let part = |row: &Vec<Range<usize>>| row.get(queries.clone()).unwrap_or_default().to_vec();
        Self::new(self.rows.iter().map(part).collect())
    }

    /// Checks that each batch row has `queries` queries, whose ranges lie within its number of keys.
    pub(super) fn check(&self, queries: usize, keys: &[usize]) -> Result<()> {
        let within = |(row, &keys): (&Vec<Range<usize>>, &usize)| {
            row.len() == queries && row.iter().all(|r| r.start <= r.end && r.end <= keys)
        };
        if self.rows.len() != keys.len() || !self.rows.iter().zip(keys).all(within) {
            candle_core::bail!("the attention ranges do not fit rows of {queries} queries and {keys:?} keys");
        }
        Ok(())
    }

    /// Additive mask (batch, 1, queries, keys): 0 where a query attends to a key, -1e30 elsewhere.
    ///
    /// -1e30 is finite, so that the softmax of a padding row is uniform instead of NaN.
    pub(super) fn dense(&self, keys: usize, dtype: DType, device: &Device) -> Result<Tensor> {
        let matches =
            |t: &&Tensor| t.dim(3).is_ok_and(|k| k == keys) && t.dtype() == dtype && t.device().same_device(device);
        if let Some(mask) = self.dense.get().filter(matches) {
            return Ok(mask.clone());
        }
        let queries = self.queries();
        let mut mask = vec![-1e30f32; self.rows.len() * queries * keys];
        for (range, line) in self.rows.iter().flatten().zip(mask.chunks_mut(keys.max(1))) {
            line[range.clone()].fill(0.0);
        }
        let mask = Tensor::from_vec(mask, (self.rows.len(), 1, queries, keys), device)?.to_dtype(dtype)?;
        // The mask is cached for the other layers of the forward pass, for one device and dtype.
        let _ = self.dense.set(mask.clone());
        Ok(mask)
    }
}

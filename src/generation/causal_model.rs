//! The interface between generation and a model.

use candle_core::Tensor;

use crate::Result;
use crate::batch::MultimodalBatch;
use crate::config::HaploVlConfig;
use crate::model::{Cache, HaploVl};

/// A model that predicts the next token of sequences and keeps their keys and values in a cache.
pub trait CausalModel {
    /// The KV cache.
    type Cache;

    /// The configuration: sizes, special tokens and limits.
    fn config(&self) -> &HaploVlConfig;

    /// An empty cache for `batch` rows of up to `capacity` positions.
    ///
    /// # Errors
    /// From the tensor library, for example when memory runs out.
    fn cache(&self, batch: usize, capacity: usize) -> Result<Self::Cache>;

    /// Appends a batch to the cache and returns the logits after the last position of each row, `(batch, vocab)`.
    ///
    /// # Errors
    /// The errors of the model, for example when the cache is full.
    fn prefill(&self, batch: &MultimodalBatch, cache: &mut Self::Cache) -> Result<Tensor>;

    /// Appends one token to each row and returns the logits after it, `(batch, vocab)`.
    ///
    /// # Errors
    /// The errors of [`Self::prefill`].
    fn decode(&self, ids: &[u32], cache: &mut Self::Cache) -> Result<Tensor>;

    /// Removes a row from the cache, whose place the last row takes, and returns whether it did; later decode steps
    /// then have one row less. By default nothing is removed, and finished rows are fed padding.
    ///
    /// # Errors
    /// From the tensor library, for example when memory runs out.
    fn swap_remove_row(&self, cache: &mut Self::Cache, row: usize) -> Result<bool> {
        let _ = (cache, row);
        Ok(false)
    }
}

impl CausalModel for HaploVl {
    type Cache = Cache;

    fn config(&self) -> &HaploVlConfig {
        self.config()
    }

    fn cache(&self, batch: usize, capacity: usize) -> Result<Cache> {
        self.cache(batch, capacity)
    }

    fn prefill(&self, batch: &MultimodalBatch, cache: &mut Cache) -> Result<Tensor> {
        self.prefill(batch, cache)
    }

    fn decode(&self, ids: &[u32], cache: &mut Cache) -> Result<Tensor> {
        self.decode(ids, cache)
    }

    fn swap_remove_row(&self, cache: &mut Cache, row: usize) -> Result<bool> {
        cache.swap_remove_row(row)?;
        Ok(true)
    }
}

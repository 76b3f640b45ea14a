//! KV cache of the whole model: both decoders, with the bookkeeping to append a batch.

use candle_core::{DType, Device};

use crate::batch::SequenceLayout;
use crate::config::{DecoderConfig, HaploVlConfig, ImageAttention};
use crate::nn::ops::KeyRanges;
use crate::nn::{LayerCache, key_ranges};
use crate::{Error, Result};

/// KV cache of both decoders, with one sequence per row.
#[derive(Debug)]
pub struct Cache {
    pub(super) pre: Vec<LayerCache>,
    pub(super) post: Vec<LayerCache>,
    /// First position of each row's sequence, after its left padding.
    starts: Vec<usize>,
    batch: usize,
    capacity: usize,
}

impl Cache {
    /// Allocates an empty cache of `batch` rows and `capacity` positions.
    pub(super) fn new(
        config: &HaploVlConfig,
        batch: usize,
        capacity: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        if capacity > config.max_position_embeddings {
            return Err(Error::generation(format!(
                "a KV cache of {capacity} positions exceeds the model's context of {} positions",
                config.max_position_embeddings
            )));
        }
        let layers = |d: &DecoderConfig| -> Result<Vec<LayerCache>> {
            let shape = (batch, capacity, d.num_key_value_heads, d.head_dim());
            (0..d.num_hidden_layers).map(|_| LayerCache::new(shape, dtype, device)).collect()
        };
        let (pre, post) = (layers(&config.pre_decoder)?, layers(&config.post_decoder)?);
        Ok(Self { pre, post, starts: vec![], batch, capacity })
    }

    /// Returns the number of cached positions, left padding included; it is the same for every row.
    pub fn len(&self) -> usize {
        self.pre.first().or(self.post.first()).map_or(0, LayerCache::len)
    }

    /// Returns whether no position is cached.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of rows.
    pub fn batch_size(&self) -> usize {
        self.batch
    }

    /// Returns the maximum number of positions.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Drops all positions from `len` on. The memory stays allocated.
    pub fn truncate(&mut self, len: usize) {
        self.pre.iter_mut().chain(&mut self.post).for_each(|layer| layer.truncate(len));
    }

    /// Removes a row; the last row takes its place.
    ///
    /// # Errors
    /// [`Error::Batch`] if there is no such row, and errors of candle.
    pub fn swap_remove_row(&mut self, row: usize) -> Result<()> {
        if row >= self.batch {
            return Err(Error::batch(format!("has no row {row} to remove, its KV cache has {}", self.batch)));
        }
        self.pre.iter_mut().chain(&mut self.post).try_for_each(|layer| layer.swap_remove_row(row))?;
        if row < self.starts.len() {
            self.starts.swap_remove(row);
        }
        self.batch -= 1;
        Ok(())
    }

    /// Copies the cache into new buffers, so that two continuations can start from one prefix.
    ///
    /// # Errors
    /// Errors of candle, if the device is out of memory.
    pub fn deep_clone(&self) -> Result<Self> {
        let clone = |layers: &[LayerCache]| layers.iter().map(LayerCache::deep_clone).collect::<Result<_>>();
        Ok(Self { pre: clone(&self.pre)?, post: clone(&self.post)?, starts: self.starts.clone(), ..*self })
    }

    /// Checks that `layout` can be appended. Returns the key range of each query, and the position of each token.
    pub(super) fn place(
        &mut self,
        layout: &SequenceLayout,
        attention: ImageAttention,
    ) -> Result<(KeyRanges, Vec<Vec<u32>>)> {
        self.check(layout)?;
        let past = self.len();
        if past == 0 {
            self.starts = layout.rows.iter().flatten().map(|sample| sample.range.start).collect();
            return Ok((key_ranges(layout, attention), layout.positions()));
        }
        if self.starts.iter().any(|start| *start > past) {
            return Err(Error::batch("continues a KV cache truncated inside a row's padding: truncate it to 0"));
        }
        let ranges = key_ranges(layout, attention);
        let rows = ranges.rows().iter().zip(&self.starts);
        let ranges = rows.map(|(row, &start)| row.iter().map(|r| start..past + r.end).collect()).collect();
        let position = |start: usize| (0..layout.seq_len).map(move |i| (past + i - start) as u32).collect();
        Ok((KeyRanges::new(ranges), self.starts.iter().map(|&start| position(start)).collect()))
    }

    fn check(&self, layout: &SequenceLayout) -> Result<()> {
        if layout.rows.len() != self.batch {
            return Err(Error::batch(format!("has {} rows, its KV cache has {}", layout.rows.len(), self.batch)));
        }
        let first = self.is_empty();
        for (row, samples) in layout.rows.iter().enumerate() {
            match samples.as_slice() {
                [one] if one.range.end == layout.seq_len && (first || one.range.start == 0) => {}
                _ => {
                    return Err(Error::batch(format!(
                        "row {row} does not fit a KV cache, expected one sequence padded on the left, or without \
                         padding if the cache already holds positions"
                    )));
                }
            }
        }
        Ok(())
    }
}

//! The cache of a whole model, and how a new batch continues what it holds.

use candle_core::{DType, Device};

use crate::batch::SequenceLayout;
use crate::config::{DecoderConfig, HaploVlConfig, ImageAttention};
use crate::nn::ops::KeyRanges;
use crate::nn::{LayerCache, key_ranges};
use crate::{Error, Result};

/// Keys and values of both decoders for some rows, each holding one sequence.
#[derive(Debug)]
pub struct Cache {
    pub(super) pre: Vec<LayerCache>,
    pub(super) post: Vec<LayerCache>,
    /// Where each row's sequence begins, behind its left padding.
    starts: Vec<usize>,
    batch: usize,
    capacity: usize,
}

impl Cache {
    /// An empty cache of `batch` rows and `capacity` positions.
    pub(super) fn new(
        config: &HaploVlConfig,
        batch: usize,
        capacity: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        if capacity > config.max_position_embeddings {
            return Err(Error::generation(format!(
                "a cache of {capacity} positions exceeds the model's context of {}",
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

    /// Positions held, left padding included; the same for every row.
    pub fn len(&self) -> usize {
        self.pre.first().or(self.post.first()).map_or(0, LayerCache::len)
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of rows.
    pub fn batch_size(&self) -> usize {
        self.batch
    }

    /// Most positions that can be held.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets all positions from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.pre.iter_mut().chain(&mut self.post).for_each(|layer| layer.truncate(len));
    }

    /// A cache with buffers of its own, for going on in two ways from the same prefix.
    ///
    /// # Errors
    /// From candle, if there is not enough memory on the device.
    pub fn deep_clone(&self) -> Result<Self> {
        let clone = |layers: &[LayerCache]| layers.iter().map(LayerCache::deep_clone).collect::<Result<_>>();
        Ok(Self { pre: clone(&self.pre)?, post: clone(&self.post)?, starts: self.starts.clone(), ..*self })
    }

    /// Checks that `layout` can be appended, and returns the keys that its queries see and their positions.
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
            return Err(Error::batch("continues a cache that was cut within a row's padding: truncate it to 0"));
        }
        let ranges = key_ranges(layout, attention);
        let rows = ranges.rows().iter().zip(&self.starts);
        let ranges = rows.map(|(row, &start)| row.iter().map(|r| start..past + r.end).collect()).collect();
        let position = |start: usize| (0..layout.seq_len).map(move |i| (past + i - start) as u32).collect();
        Ok((KeyRanges::new(ranges), self.starts.iter().map(|&start| position(start)).collect()))
    }

    fn check(&self, layout: &SequenceLayout) -> Result<()> {
        if layout.rows.len() != self.batch {
            return Err(Error::batch(format!("of {} rows for a cache of {}", layout.rows.len(), self.batch)));
        }
        let first = self.is_empty();
        for (row, samples) in layout.rows.iter().enumerate() {
            match samples.as_slice() {
                [one] if one.range.end == layout.seq_len && (first || one.range.start == 0) => {}
                _ => {
                    return Err(Error::batch(format!(
                        "row {row} cannot go through a cache: it needs one sequence a row, padded on the left, and no \
                         padding at all when it continues earlier ones"
                    )));
                }
            }
        }
        Ok(())
    }
}

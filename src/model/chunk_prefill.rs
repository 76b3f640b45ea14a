//! Prefill of a chunk of a prompt in work items, between which other sequences can be decoded.

use std::ops::Range;

use candle_core::Tensor;

use super::{HaploVl, SequenceCache};
use crate::batch::MultimodalBatch;
use crate::nn::ops::{KeyRanges, last_positions, on_pool};
use crate::nn::{DecoderLayer, HeldKv, KvStore, RotaryAngles, key_ranges};
use crate::{Error, Result};

/// Number of positions that one work item takes through a layer, about.
const ITEM_POSITIONS: usize = 512;

/// Prefill of a chunk under way: hidden states between two layers, or within one.
///
/// An image attends to itself, so its positions cannot be prefilled one part after the other. A chunk goes through the
/// model layer by layer instead, and through a long layer in blocks of positions.
#[derive(Debug)]
pub struct ChunkPrefill {
    /// Input of the layer, (1, positions, width).
    x: Tensor,
    /// Angles of the pre-decoder and of the post-decoder.
    angles: [Option<RotaryAngles>; 2],
    ranges: KeyRanges,
    /// Number of positions of the sequence before the chunk.
    past: usize,
    positions: usize,
    layer: usize,
    /// Keys and values of the layer, once its first block has computed them.
    kv: Option<HeldKv>,
    /// Output of the layer's finished blocks.
    blocks: Vec<Tensor>,
}

impl ChunkPrefill {
    /// The positions of the next block, one of equal blocks of about [`ITEM_POSITIONS`]. Of the last layer, only the
    /// last position is needed.
    fn next_block(&self, is_last_layer: bool) -> Range<usize> {
        if is_last_layer {
            return self.positions - 1..self.positions;
        }
        let blocks = ((self.positions + ITEM_POSITIONS / 2) / ITEM_POSITIONS).max(1);
        let size = self.positions.div_ceil(blocks);
        let start = self.blocks.len() * size;
        start..self.positions.min(start + size)
    }
}

impl HaploVl {
    /// Begins to append a chunk of a prompt to a sequence; [`Self::advance_prefill`] does the work.
    ///
    /// A sequence has one prefill at a time. Giving one up is dropping it: the sequence is then as it was.
    ///
    /// # Errors
    /// [`Error::Batch`] unless the batch is one sequence without padding that matches the model, and
    /// [`Error::Generation`] if the capacity is exceeded.
    pub fn start_prefill(&self, batch: &MultimodalBatch, sequence: &SequenceCache) -> Result<ChunkPrefill> {
        batch.only_sequence()?;
        let (past, positions) = (sequence.len(), batch.layout.seq_len);
        sequence.check_room(positions)?;
        let ranges = key_ranges(&batch.layout, self.config().image_attention);
        let ranges = ranges.rows().iter().map(|row| row.iter().map(|range| 0..past + range.end).collect()).collect();
        let x = on_pool(self.device(), || {
            let x = self.front().pre_decoder().pre_norm().forward(&self.front().embed(batch)?)?;
            self.input_of_layer(0, x)
        })?;
        Ok(ChunkPrefill {
            x,
            angles: self.angles(&[(past..past + positions).map(|position| position as u32).collect()])?,
            ranges: KeyRanges::new(ranges),
            past,
            positions,
            layer: 0,
            kv: None,
            blocks: vec![],
        })
    }

    /// Does one work item of a prefill: about 512 positions in one layer. After the last one, the sequence holds the
    /// chunk, and the logits (vocab_size) after its last position are returned.
    ///
    /// # Errors
    /// [`Error::Generation`] if the sequence has changed since the prefill began, and errors of candle.
    pub fn advance_prefill(&self, prefill: &mut ChunkPrefill, sequence: &mut SequenceCache) -> Result<Option<Tensor>> {
        let held = sequence.layers.len();
        if sequence.len() != prefill.past || prefill.layer > held {
            return Err(Error::generation(format!(
                "a prefill after {} positions cannot go on in a sequence of {}: it is over, or the sequence was \
                 changed meanwhile",
                prefill.past,
                sequence.len()
            )));
        }
        on_pool(self.device(), || {
            if prefill.layer < held {
                self.advance_layer(prefill, sequence)?;
            }
            if prefill.layer < held {
                return Ok(None);
            }
            prefill.layer += 1;
            sequence.add_positions(prefill.positions);
            let last = self.post_decoder().norm().forward(&last_positions(&prefill.x, 1)?)?;
            Ok(Some(self.lm_head().forward(&last)?.flatten_all()?))
        })
    }

    /// Takes the next block through its layer, and goes on to the next layer after the last block.
    fn advance_layer(&self, prefill: &mut ChunkPrefill, sequence: &mut SequenceCache) -> Result<()> {
        let (layer, decoder) = self.layer(prefill.layer)?;
        let angles = &prefill.angles[decoder];
        let kv = match prefill.kv.take() {
            Some(kv) => kv,
            None => {
                let cache = &mut sequence.layers[prefill.layer];
                cache.truncate(prefill.past);
                layer.append(&prefill.x, angles.as_ref(), KvStore::Sequences(vec![cache]))?
            }
        };
        let block = prefill.next_block(prefill.layer + 1 == sequence.layers.len());
        let x = prefill.x.narrow(1, block.start, block.len())?.contiguous()?;
        let angles = angles.as_ref().map(|angles| angles.positions(block.clone())).transpose()?;
        let ranges = prefill.ranges.queries_in(block.clone());
        prefill.blocks.push(layer.attend(&x, angles.as_ref(), &ranges, &kv)?);
        if block.end < prefill.positions {
            prefill.kv = Some(kv);
            return Ok(());
        }
        prefill.layer += 1;
        prefill.x = self.input_of_layer(prefill.layer, Tensor::cat(&std::mem::take(&mut prefill.blocks), 1)?)?;
        Ok(())
    }

    /// A layer, counted over both decoders, and the index of its decoder.
    fn layer(&self, layer: usize) -> Result<(&DecoderLayer, usize)> {
        let (pre, post) = (self.front().pre_decoder().layers(), self.post_decoder().layers());
        let found = pre.get(layer).map(|layer| (layer, 0));
        let found = found.or_else(|| Some((post.get(layer.checked_sub(pre.len())?)?, 1)));
        found
            .ok_or_else(|| Error::generation(format!("a prefill reached layer {layer}, which the model does not have")))
    }

    /// The hidden states after the layers before `layer`, behind the connector from the first layer of the post-decoder
    /// on.
    fn input_of_layer(&self, layer: usize, x: Tensor) -> Result<Tensor> {
        if layer == self.front().pre_decoder().layers().len() { self.connector().forward(&x) } else { Ok(x) }
    }
}

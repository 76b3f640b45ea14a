//! KV cache of one sequence among many: chunks of its prompt that other sequences share, then a tail of its own.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::{HaploVl, PassCaches};
use crate::config::{DecoderConfig, HaploVlConfig};
use crate::nn::ops::{KeyRanges, on_pool};
use crate::nn::{GEMV_MAX_ROWS, KvSegment, SequenceLayer};
use crate::{Error, Result};

/// Keys and values of a chunk of a prompt in all layers; immutable, so that sequences share it.
#[derive(Debug)]
pub struct KvChunk {
    layers: Vec<KvSegment>,
    positions: usize,
}

impl KvChunk {
    /// Returns the number of positions.
    pub fn len(&self) -> usize {
        self.positions
    }

    /// Returns whether the chunk has no position.
    pub fn is_empty(&self) -> bool {
        self.positions == 0
    }

    /// Returns the number of bytes of keys and values.
    pub fn bytes(&self) -> usize {
        let bytes = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        self.layers.iter().map(|layer| bytes(&layer.keys) + bytes(&layer.values)).sum()
    }
}

/// KV cache of both decoders for one sequence.
#[derive(Debug)]
pub struct SequenceCache {
    /// Layers of the pre-decoder, then those of the post-decoder.
    pub(super) layers: Vec<SequenceLayer>,
    /// Number of layers of the pre-decoder.
    first_post: usize,
    chunks: Vec<Arc<KvChunk>>,
    /// Number of positions in the chunks.
    shared: usize,
    /// Number of complete positions; layers may hold more of a pass that was not finished.
    len: usize,
    capacity: usize,
    device: Device,
}

impl SequenceCache {
    fn new(config: &HaploVlConfig, capacity: usize, dtype: DType, device: &Device) -> Result<Self> {
        if capacity > config.max_position_embeddings {
            return Err(Error::generation(format!(
                "a KV cache of {capacity} positions exceeds the model's context of {} positions",
                config.max_position_embeddings
            )));
        }
        let layers = decoders(config).into_iter().flat_map(|d| (0..d.num_hidden_layers).map(move |_| d));
        let layer =
            |d: &DecoderConfig| SequenceLayer::new((capacity, d.num_key_value_heads, d.head_dim()), dtype, device);
        Ok(Self {
            layers: layers.map(layer).collect::<Result<_>>()?,
            first_post: config.pre_decoder.num_hidden_layers,
            chunks: vec![],
            shared: 0,
            len: 0,
            capacity,
            device: device.clone(),
        })
    }

    /// Returns the number of cached positions.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether no position is cached.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the maximum number of positions.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Returns the shared chunks, in order; the positions after them are the tail.
    pub fn chunks(&self) -> &[Arc<KvChunk>] {
        &self.chunks
    }

    /// Appends a chunk without copying it.
    ///
    /// # Errors
    /// [`Error::Generation`] if positions of the tail are not [frozen](Self::freeze), the capacity is exceeded, or the
    /// chunk is of another model.
    pub fn push(&mut self, chunk: &Arc<KvChunk>) -> Result<()> {
        self.check_room(chunk.positions)?;
        if self.len != self.shared || chunk.layers.len() != self.layers.len() {
            return Err(Error::generation(format!(
                "a chunk of {} layers cannot follow {} positions of {} layers of which {} are frozen: freeze the \
                 others first, and share chunks of one model only",
                chunk.layers.len(),
                self.len,
                self.layers.len(),
                self.shared
            )));
        }
        self.drop_unfinished();
        for (layer, segment) in self.layers.iter_mut().zip(&chunk.layers) {
            layer.push(segment.clone())?;
        }
        self.add_chunk(chunk.clone());
        Ok(())
    }

    /// Makes a shared chunk of the tail. Nothing is copied, unless memory was allocated for more positions, as it is by
    /// decoding.
    ///
    /// # Errors
    /// Errors of candle, if the device is out of memory.
    pub fn freeze(&mut self) -> Result<Arc<KvChunk>> {
        self.drop_unfinished();
        let layers = self.layers.iter_mut().map(|layer| layer.freeze(&self.device)).collect::<Result<_>>()?;
        let chunk = Arc::new(KvChunk { layers, positions: self.len - self.shared });
        self.add_chunk(chunk.clone());
        Ok(chunk)
    }

    fn add_chunk(&mut self, chunk: Arc<KvChunk>) {
        self.shared += chunk.positions;
        self.len = self.shared;
        self.chunks.push(chunk);
    }

    /// Checks that `new` positions can be appended.
    pub(super) fn check_room(&self, new: usize) -> Result<()> {
        if self.len + new <= self.capacity {
            return Ok(());
        }
        Err(Error::generation(format!(
            "the cache holds {} of at most {} positions and cannot take {new} more: make it with a larger capacity",
            self.len, self.capacity
        )))
    }

    /// Drops what a pass that failed or was given up has left in some layers.
    pub(super) fn drop_unfinished(&mut self) {
        self.layers.iter_mut().for_each(|layer| layer.truncate(self.len));
    }

    /// Counts `new` positions that all layers now hold.
    pub(super) fn add_positions(&mut self, new: usize) {
        self.len += new;
    }
}

impl HaploVl {
    /// Creates an empty KV cache for one sequence of up to `capacity` positions; memory is allocated on demand.
    ///
    /// # Errors
    /// [`Error::Generation`] if `capacity` exceeds the context.
    pub fn sequence_cache(&self, capacity: usize) -> Result<SequenceCache> {
        SequenceCache::new(self.config(), capacity, self.cache_dtype(), self.device())
    }

    /// Returns the number of bytes of keys and values of one position.
    pub fn kv_bytes_per_position(&self) -> usize {
        let elements = |d: &DecoderConfig| 2 * d.num_hidden_layers * d.num_key_value_heads * d.head_dim();
        decoders(self.config()).map(elements).iter().sum::<usize>() * self.cache_dtype().size_in_bytes()
    }

    /// Appends one text token to each sequence and returns the logits (sequences, vocab_size) after it.
    ///
    /// All sequences go through the matmuls together; each attends to its own keys and values.
    ///
    /// # Errors
    /// Unless there is one id of the vocabulary for each sequence, and if a sequence is full; then nothing is appended.
    pub fn decode_sequences(&self, ids: &[u32], sequences: &mut [&mut SequenceCache]) -> Result<Tensor> {
        if ids.len() != sequences.len() || ids.is_empty() {
            return Err(Error::batch(format!("has {} token ids for {} sequences", ids.len(), sequences.len())));
        }
        sequences.iter().try_for_each(|sequence| sequence.check_room(1))?;
        let batch = self.token_batch(ids)?;
        if ids.len() > GEMV_MAX_ROWS {
            // Matmuls of more rows would sum in another order, and a row's bits would depend on its company.
            let groups = ids.chunks(GEMV_MAX_ROWS).zip(sequences.chunks_mut(GEMV_MAX_ROWS));
            let logits = groups.map(|(ids, sequences)| self.decode_sequences(ids, sequences));
            return Ok(Tensor::cat(&logits.collect::<Result<Vec<_>>>()?, 0)?);
        }
        sequences.iter_mut().for_each(|sequence| sequence.drop_unfinished());
        let ranges = sequences.iter().map(|sequence| vec![0..sequence.len + 1; 1]).collect();
        let positions: Vec<Vec<u32>> = sequences.iter().map(|sequence| vec![sequence.len as u32]).collect();
        let (pre, post) =
            sequences.iter_mut().map(|sequence| sequence.layers.split_at_mut(sequence.first_post)).unzip();
        let caches = [PassCaches::Sequences(pre), PassCaches::Sequences(post)];
        let logits = on_pool(self.device(), || {
            let last = self.run(&batch, &KeyRanges::new(ranges), &positions, &[], caches, Some(1))?.post_decoder_output;
            self.lm_head().forward(&last.squeeze(1)?)
        })?;
        sequences.iter_mut().for_each(|sequence| sequence.add_positions(1));
        Ok(logits)
    }
}

fn decoders(config: &HaploVlConfig) -> [&DecoderConfig; 2] {
    [&config.pre_decoder, &config.post_decoder]
}

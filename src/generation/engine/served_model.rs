//! The interface between the serving engine and a model.

use std::sync::Arc;

use candle_core::DType;

use crate::Result;
use crate::batch::MultimodalBatch;
use crate::config::HaploVlConfig;
use crate::model::{ChunkPrefill, HaploVl, KvChunk, SequenceCache};

/// A model that answers many sequences at the same time, each with a KV cache of its own.
///
/// A prompt is prefilled in the chunks of [`MultimodalBatch::chunks`], each on its own; a decode step appends one token
/// to each of several sequences. The logits of a sequence depend neither on the other sequences of a step nor on
/// whether its chunks were computed for it or for another one.
pub trait ServedModel: Send + Sync + 'static {
    /// KV cache of one sequence.
    type Sequence: Send;
    /// Keys and values of a prompt chunk, shared by sequences.
    type Chunk: Send + Sync;
    /// Prefill of a chunk that is under way.
    type Prefill: Send;

    /// The configuration: sizes, special tokens and limits.
    fn config(&self) -> &HaploVlConfig;

    /// Bytes of keys and values of one position.
    fn bytes_per_position(&self) -> usize;

    /// Names of the adapters that a request may choose.
    fn adapters(&self) -> Vec<String> {
        Vec::new()
    }

    /// [`Self::sequence`] of a request that chose an adapter, by its place in [`Self::adapters`].
    ///
    /// # Errors
    /// The errors of [`Self::sequence`].
    fn sequence_of(&self, _adapter: Option<usize>, capacity: usize) -> Result<Self::Sequence> {
        self.sequence(capacity)
    }

    /// An empty cache of up to `capacity` positions.
    ///
    /// # Errors
    /// [`Error::Generation`](crate::Error::Generation) if the model's context is shorter.
    fn sequence(&self, capacity: usize) -> Result<Self::Sequence>;

    /// Appends a chunk that is already computed; the sequence's tail must be empty.
    ///
    /// # Errors
    /// [`Error::Generation`](crate::Error::Generation) if the tail is not empty, or the capacity is exceeded.
    fn push_chunk(&self, sequence: &mut Self::Sequence, chunk: &Arc<Self::Chunk>) -> Result<()>;

    /// Begins to append a chunk of a prompt, a batch of one row without padding.
    ///
    /// # Errors
    /// [`Error::Batch`](crate::Error::Batch) for another batch or one that does not match the model, and
    /// [`Error::Generation`](crate::Error::Generation) if the capacity is exceeded.
    fn start_prefill(&self, batch: &MultimodalBatch, sequence: &Self::Sequence) -> Result<Self::Prefill>;

    /// Does one work item; after the last one, returns the logits (vocab) after the chunk's last position.
    ///
    /// # Errors
    /// The errors of the model, and [`Error::Generation`](crate::Error::Generation) if the sequence has changed since
    /// the prefill began.
    fn advance(&self, prefill: &mut Self::Prefill, sequence: &mut Self::Sequence) -> Result<Option<Vec<f32>>>;

    /// Makes a shared chunk of the sequence's tail (the chunk just prefilled), without copying if possible.
    ///
    /// # Errors
    /// Errors of the tensor library, for example when memory runs out.
    fn freeze(&self, sequence: &mut Self::Sequence) -> Result<Arc<Self::Chunk>>;

    /// Bytes that a chunk holds.
    fn chunk_bytes(&self, chunk: &Self::Chunk) -> usize;

    /// Appends one token to each sequence and returns the logits after it, one row a sequence.
    ///
    /// # Errors
    /// Unless there is one id of the vocabulary for each sequence, and if a sequence is full; then nothing is appended.
    fn decode(&self, ids: &[u32], sequences: &mut [&mut Self::Sequence]) -> Result<Vec<Vec<f32>>>;
}

impl ServedModel for HaploVl {
    type Sequence = SequenceCache;
    type Chunk = KvChunk;
    type Prefill = ChunkPrefill;

    fn config(&self) -> &HaploVlConfig {
        self.config()
    }

    fn bytes_per_position(&self) -> usize {
        self.kv_bytes_per_position()
    }

    fn sequence(&self, capacity: usize) -> Result<SequenceCache> {
        self.sequence_cache(capacity)
    }

    fn push_chunk(&self, sequence: &mut SequenceCache, chunk: &Arc<KvChunk>) -> Result<()> {
        sequence.push(chunk)
    }

    fn start_prefill(&self, batch: &MultimodalBatch, sequence: &SequenceCache) -> Result<ChunkPrefill> {
        self.start_prefill(batch, sequence)
    }

    fn advance(&self, prefill: &mut ChunkPrefill, sequence: &mut SequenceCache) -> Result<Option<Vec<f32>>> {
        let logits = self.advance_prefill(prefill, sequence)?;
        logits.map(|logits| Ok(logits.to_dtype(DType::F32)?.to_vec1()?)).transpose()
    }

    fn freeze(&self, sequence: &mut SequenceCache) -> Result<Arc<KvChunk>> {
        sequence.freeze()
    }

    fn chunk_bytes(&self, chunk: &KvChunk) -> usize {
        chunk.bytes()
    }

    fn decode(&self, ids: &[u32], sequences: &mut [&mut SequenceCache]) -> Result<Vec<Vec<f32>>> {
        Ok(self.decode_sequences(ids, sequences)?.to_dtype(DType::F32)?.to_vec2()?)
    }
}

//! A model with named adapters for the serving engine.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::ServedModel;
use crate::batch::MultimodalBatch;
use crate::config::HaploVlConfig;
use crate::model::{ChunkPrefill, HaploVl, KvChunk, SequenceCache};
use crate::{Error, Result};

/// A model and clones of it with adapters, which share its weights. Each sequence belongs to one of them.
///
/// Sequences of one adapter are decoded together, those of another after them: a step takes the time of as many steps as
/// it has different adapters.
#[derive(Debug)]
pub struct AdapterSet {
    base: Arc<HaploVl>,
    names: Vec<String>,
    adapted: Vec<Arc<HaploVl>>,
}

/// KV cache of a sequence, and the adapter that fills it.
#[derive(Debug)]
pub struct AdaptedSequence {
    adapter: Option<usize>,
    cache: SequenceCache,
}

impl AdapterSet {
    /// A model without adapters.
    pub fn new(base: Arc<HaploVl>) -> Self {
        Self { base, names: Vec::new(), adapted: Vec::new() }
    }

    /// The set with the same model with an adapter, under this name.
    ///
    /// # Errors
    /// [`Error::Config`] for an empty name, or one that the set has already.
    pub fn with(mut self, name: impl Into<String>, adapted: Arc<HaploVl>) -> Result<Self> {
        let name = name.into();
        if name.is_empty() || self.names.contains(&name) {
            return Err(Error::config("adapter", format!("is named {name:?}: give each adapter a name of its own")));
        }
        self.names.push(name);
        self.adapted.push(adapted);
        Ok(self)
    }

    fn model(&self, adapter: Option<usize>) -> Result<&HaploVl> {
        let missing = || Error::generation("a sequence belongs to an adapter that the engine does not have");
        match adapter {
            None => Ok(&self.base),
            Some(at) => self.adapted.get(at).map(|model| &**model).ok_or_else(missing),
        }
    }
}

impl ServedModel for AdapterSet {
    type Sequence = AdaptedSequence;
    type Chunk = KvChunk;
    type Prefill = ChunkPrefill;

    fn config(&self) -> &HaploVlConfig {
        self.base.config()
    }

    fn bytes_per_position(&self) -> usize {
        self.base.kv_bytes_per_position()
    }

    fn adapters(&self) -> Vec<String> {
        self.names.clone()
    }

    fn sequence(&self, capacity: usize) -> Result<AdaptedSequence> {
        self.sequence_of(None, capacity)
    }

    fn sequence_of(&self, adapter: Option<usize>, capacity: usize) -> Result<AdaptedSequence> {
        Ok(AdaptedSequence { adapter, cache: self.model(adapter)?.sequence_cache(capacity)? })
    }

    fn push_chunk(&self, sequence: &mut AdaptedSequence, chunk: &Arc<KvChunk>) -> Result<()> {
        sequence.cache.push(chunk)
    }

    fn start_prefill(&self, batch: &MultimodalBatch, sequence: &AdaptedSequence) -> Result<ChunkPrefill> {
        ServedModel::start_prefill(self.model(sequence.adapter)?, batch, &sequence.cache)
    }

    fn advance(&self, prefill: &mut ChunkPrefill, sequence: &mut AdaptedSequence) -> Result<Option<Vec<f32>>> {
        self.model(sequence.adapter)?.advance(prefill, &mut sequence.cache)
    }

    fn freeze(&self, sequence: &mut AdaptedSequence) -> Result<Arc<KvChunk>> {
        sequence.cache.freeze()
    }

    fn chunk_bytes(&self, chunk: &KvChunk) -> usize {
        chunk.bytes()
    }

    fn decode(&self, ids: &[u32], sequences: &mut [&mut AdaptedSequence]) -> Result<Vec<Vec<f32>>> {
        let adapters: BTreeSet<Option<usize>> = sequences.iter().map(|sequence| sequence.adapter).collect();
        let mut logits = vec![Vec::new(); sequences.len()];
        for adapter in adapters {
            let (mut places, mut of_adapter, mut caches) = (Vec::new(), Vec::new(), Vec::new());
            for (place, (sequence, id)) in sequences.iter_mut().zip(ids).enumerate() {
                if sequence.adapter == adapter {
                    places.push(place);
                    of_adapter.push(*id);
                    caches.push(&mut sequence.cache);
                }
            }
            let rows = ServedModel::decode(self.model(adapter)?, &of_adapter, &mut caches)?;
            places.into_iter().zip(rows).for_each(|(place, row)| logits[place] = row);
        }
        Ok(logits)
    }
}

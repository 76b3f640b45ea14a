//! A prompt as the engine needs it: its chunks, and the keys under which they are shared.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::LazyLock;

use candle_core::DType;

use crate::Result;
use crate::batch::{MultimodalBatch, Visual};

/// Content of a chunk: the adapter, its token ids, and its images and videos by a hash of their pixels.
///
/// Ids are compared as they are. The hash has 128 bits under keys drawn once a process, so that no one can prepare an
/// image that passes for another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ChunkKey {
    /// The adapter, on which keys and values depend.
    adapter: Option<usize>,
    ids: Vec<u32>,
    visuals: Vec<[u64; 2]>,
}

impl ChunkKey {
    pub(super) fn new(chunk: &MultimodalBatch, adapter: Option<usize>) -> Result<Self> {
        let visuals = chunk.visuals.iter().map(hash_of).collect::<Result<_>>()?;
        Ok(Self { adapter, ids: chunk.input_ids.flatten_all()?.to_vec1()?, visuals })
    }

    /// Number of positions.
    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }
}

fn hash_of(visual: &Visual) -> Result<[u64; 2]> {
    static STATES: LazyLock<[RandomState; 2]> = LazyLock::new(Default::default);
    let size = match visual {
        Visual::Image { size, .. } => Some((size.height, size.width)),
        Visual::Video { .. } => None,
    };
    let pixels = visual.pixel_values();
    let values = pixels.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
    let bytes = Vec::from_iter(values.iter().flat_map(|value| value.to_bits().to_ne_bytes()));
    Ok(STATES.each_ref().map(|state| {
        let mut hasher = state.build_hasher();
        (size, pixels.dims()).hash(&mut hasher);
        hasher.write(&bytes);
        hasher.finish()
    }))
}

/// The chunks of a prompt that are still to be prefilled, and the keys of all but the last.
///
/// The last chunk is never shared: its logits are needed, so that it is computed anyway.
#[derive(Debug, Clone)]
pub(super) struct PromptChunks {
    pub(super) chunks: VecDeque<MultimodalBatch>,
    pub(super) keys: VecDeque<ChunkKey>,
    /// The adapter that answers, by its place among the model's.
    pub(super) adapter: Option<usize>,
}

impl PromptChunks {
    pub(super) fn new(prompt: &MultimodalBatch, adapter: Option<usize>) -> Result<Self> {
        let chunks = VecDeque::from(prompt.chunks()?);
        let shared = chunks.iter().take(chunks.len().saturating_sub(1));
        let keys = shared.map(|chunk| ChunkKey::new(chunk, adapter)).collect::<Result<_>>()?;
        Ok(Self { keys, chunks, adapter })
    }

    /// Removes the first `count` chunks, which are computed already.
    pub(super) fn skip(&mut self, count: usize) {
        self.chunks.drain(..count.min(self.chunks.len()));
        self.keys.drain(..count.min(self.keys.len()));
    }
}

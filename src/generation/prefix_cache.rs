//! Prefix caching: a KV cache that is kept from prompt to prompt, so that a chat computes only its new tokens.

use candle_core::{DType, Tensor};

use super::{GenerationSession, Generator};
use crate::batch::{MultimodalBatch, Sample, Visual};
use crate::config::GenerationConfig;
use crate::model::{Cache, HaploVl};
use crate::{Error, Result};

/// The KV cache of one growing text, with the token ids and images that it holds.
///
/// The longest common prefix of a new prompt and the cached text is reused; only the positions after it are computed.
/// Images are compared pixel by pixel: equal placeholder tokens do not make equal images.
#[derive(Debug, Default)]
pub struct PrefixCache {
    cache: Option<Cache>,
    /// Token ids of the text; the cache holds these or fewer.
    ids: Vec<u32>,
    /// Number of leading ids that were a prompt; the rest was generated.
    prompt_len: usize,
    visuals: Vec<Visual>,
}

impl PrefixCache {
    /// A session that answers a batch of one row and reuses the longest common prefix; [`Self::next_piece`] advances
    /// it.
    ///
    /// # Errors
    /// The errors of [`GenerationSession::new`] and [`HaploVl::cache`].
    pub fn start(
        &mut self,
        generator: &Generator<HaploVl>,
        batch: &MultimodalBatch,
        config: &GenerationConfig,
    ) -> Result<GenerationSession> {
        let (ids, kept) = self.look_up(batch)?;
        let session = generator.session(&batch.positions(kept..ids.len())?, &ids[..kept], config)?;
        self.keep(generator.model(), batch, ids, kept)?;
        Ok(session)
    }

    /// Computes a prompt, a batch of one row, after its longest common prefix with the cached text, and returns the
    /// logits (1, vocab_size) after it. After an error the cache is empty.
    ///
    /// # Errors
    /// [`Error::Batch`] unless the batch is one sequence without padding, and the errors of [`HaploVl::prefill`].
    pub(crate) fn prefill(&mut self, model: &HaploVl, batch: &MultimodalBatch) -> Result<Tensor> {
        let (ids, kept) = self.look_up(batch)?;
        let rest = batch.positions(kept..ids.len())?;
        let logits = model.prefill(&rest, self.keep(model, batch, ids, kept)?);
        if logits.is_err() {
            self.clear();
        }
        logits
    }

    /// Appends a token to the prompt, and returns the logits (1, vocab_size) after it; [`Self::rewind`] removes it.
    ///
    /// # Errors
    /// [`Error::Generation`] without a prompt, and the errors of [`HaploVl::decode`].
    pub(crate) fn decode(&mut self, model: &HaploVl, id: u32) -> Result<Tensor> {
        match &mut self.cache {
            Some(cache) => model.decode(&[id], cache),
            None => Err(Error::generation("a token cannot follow a prompt that is not computed; this is a bug")),
        }
    }

    /// Removes what follows the prompt.
    pub(crate) fn rewind(&mut self) {
        self.ids.truncate(self.prompt_len);
        if let Some(cache) = &mut self.cache {
            cache.truncate(self.prompt_len);
        }
    }

    /// The ids of a new prompt, and the number of its positions that the cache holds.
    fn look_up(&self, batch: &MultimodalBatch) -> Result<(Vec<u32>, usize)> {
        let sample = batch.only_sequence()?;
        let ids: Vec<u32> = batch.input_ids.flatten_all()?.to_vec1()?;
        let kept = self.shared(&ids, sample, &batch.visuals)?;
        tracing::debug!(prefix = kept, tokens = ids.len(), "prefix cache looked up");
        Ok((ids, kept))
    }

    /// The cache, prepared for the positions of a prompt after the first `kept`.
    fn keep(&mut self, model: &HaploVl, batch: &MultimodalBatch, ids: Vec<u32>, kept: usize) -> Result<&mut Cache> {
        let cache = match self.cache.take() {
            Some(mut cache) => {
                cache.truncate(kept);
                cache
            }
            // Capacity for the longest prompt; memory is allocated on demand.
            None => model.cache(1, model.config().max_position_embeddings)?,
        };
        self.prompt_len = ids.len();
        self.ids = ids;
        self.visuals = batch.visuals.clone();
        Ok(self.cache.insert(cache))
    }

    /// The next text of `session`, which [`Self::start`] returned; `None` at its end.
    ///
    /// After an error the cache is empty.
    pub fn next_piece(&mut self, model: &HaploVl, session: &mut GenerationSession) -> Option<Result<String>> {
        let piece = session.next_piece(model, self.cache.as_mut()?);
        self.ids.truncate(self.prompt_len);
        self.ids.extend_from_slice(session.tokens());
        if matches!(piece, Some(Err(_))) {
            self.clear();
        }
        piece
    }

    /// Empties the cache and frees its memory.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Number of positions of a new prompt that the cache holds. The last one is always computed, for its logits.
    fn shared(&self, ids: &[u32], sample: &Sample, visuals: &[Visual]) -> Result<usize> {
        let most = self.cache.as_ref().map_or(0, Cache::len).min(ids.len() - 1);
        let mut kept = self.ids.iter().zip(ids).take(most).take_while(|(old, new)| old == new).count();
        for (i, range) in sample.visuals.iter().enumerate().take_while(|(_, range)| range.start < most) {
            let same = match (self.visuals.get(i), visuals.get(i)) {
                (Some(old), Some(new)) => equal(old, new)?,
                _ => false,
            };
            if kept < range.end || !same {
                kept = kept.min(range.start);
                break;
            }
        }
        Ok(kept)
    }
}

/// Whether two images or videos have the same pixels.
fn equal(a: &Visual, b: &Visual) -> Result<bool> {
    let same_form = match (a, b) {
        (Visual::Image { size: a, .. }, Visual::Image { size: b, .. }) => a == b,
        (Visual::Video { .. }, Visual::Video { .. }) => true,
        _ => false,
    };
    let (a, b) = (a.pixel_values(), b.pixel_values());
    if !same_form || a.shape() != b.shape() || a.dtype() != b.dtype() {
        return Ok(false);
    }
    Ok(a.id() == b.id() || a.eq(b)?.to_dtype(DType::F32)?.min_all()?.to_scalar::<f32>()? == 1.0)
}

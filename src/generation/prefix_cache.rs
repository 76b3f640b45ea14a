//! Prefix caching: a KV cache that is kept from prompt to prompt, so that a chat computes only its new tokens.

use candle_core::DType;

use super::{GenerationSession, Generator};
use crate::Result;
use crate::batch::{MultimodalBatch, Sample, Visual};
use crate::config::GenerationConfig;
use crate::model::{Cache, HaploVl};

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
        let sample = batch.only_sequence()?;
        let ids: Vec<u32> = batch.input_ids.flatten_all()?.to_vec1()?;
        let kept = self.shared(&ids, sample, &batch.visuals)?;
        tracing::debug!(prefix = kept, tokens = ids.len(), "prefix cache looked up");
        let session = generator.session(&batch.positions(kept..ids.len())?, &ids[..kept], config)?;
        match &mut self.cache {
            Some(cache) => cache.truncate(kept),
            // Capacity for the longest prompt; memory is allocated on demand.
            empty => *empty = Some(generator.model().cache(1, generator.model().config().max_position_embeddings)?),
        }
        self.prompt_len = ids.len();
        self.ids = ids;
        self.visuals = batch.visuals.clone();
        Ok(session)
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

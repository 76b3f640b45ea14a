//! A language model that reads an image as embeddings in place of the image's placeholders: LLaVA's and EVE's design.

use candle_core::{Device, Tensor};
use candle_nn::{Init, VarBuilder};
use haplovl::Result;
use haplovl::batch::MultimodalBatch;
use haplovl::config::HaploVlConfig;
use haplovl::generation::CausalModel;
use haplovl::model::{LanguageHead, Pass, PostDecoder, patches_in_order};
use haplovl::nn::{Activations, RotaryEmbedding, key_ranges};

use super::front::Front;

/// Language model with a front that makes an embedding of each patch. Tensor names are Hugging Face's.
pub struct Baseline {
    config: HaploVlConfig,
    front: Front,
    embed_tokens: Tensor,
    decoder: PostDecoder,
    rotary: Option<RotaryEmbedding>,
    lm_head: LanguageHead,
}

impl Baseline {
    /// Reads the tensors of a language model.
    pub fn new(config: &HaploVlConfig, front: Front, vb: VarBuilder) -> Result<Self> {
        let (width, vocab_size) = (config.post_decoder.hidden_size, config.vocab_size);
        let init = Init::Randn { mean: 0.0, stdev: 1.0 / (width as f64).sqrt() };
        Ok(Self {
            front,
            embed_tokens: vb.get_with_hints((vocab_size, width), "model.embed_tokens.weight", init)?,
            lm_head: LanguageHead::new(width, vocab_size, vb.clone())?,
            decoder: PostDecoder::new(&config.post_decoder, 0, vb)?,
            rotary: RotaryEmbedding::of(&config.post_decoder),
            config: config.clone(),
        })
    }

    /// The language head.
    pub fn lm_head(&self) -> &LanguageHead {
        &self.lm_head
    }

    /// The configuration.
    pub fn config(&self) -> &HaploVlConfig {
        &self.config
    }

    fn device(&self) -> &Device {
        self.embed_tokens.device()
    }

    /// Embeddings (batch, seq, width) of a batch, with the patches in place of their placeholders.
    fn embed(&self, batch: &MultimodalBatch) -> Result<Tensor> {
        let (rows, seq) = batch.input_ids.dims2()?;
        let text = self.embed_tokens.index_select(&batch.input_ids.flatten_all()?, 0)?;
        let merged = if batch.visuals.is_empty() { text } else { self.merge(batch, text)? };
        Ok(merged.reshape((rows, seq, ()))?)
    }

    fn merge(&self, batch: &MultimodalBatch, text: Tensor) -> Result<Tensor> {
        let patches = self.front.patches(&batch.pixel_values()?)?.flatten_to(1)?;
        let (positions, patches) = patches_in_order(batch, &self.config.vision, &patches)?;
        let mut index = Vec::from_iter(0..text.dim(0)? as u32);
        let first = index.len() as u32;
        for (position, row) in positions.into_iter().zip(first..) {
            index[position as usize] = row;
        }
        let index = Tensor::new(index, self.device())?;
        // A gather of the text and patch rows, whose gradient is exact.
        Ok(Tensor::cat(&[text, patches], 0)?.index_select(&index, 0)?)
    }

    /// Hidden states after the final norm (batch, count, width) of the last `count` positions, or of all of them.
    pub fn hidden_states(&self, batch: &MultimodalBatch, last: Option<usize>) -> Result<Tensor> {
        batch.validate()?;
        let ranges = key_ranges(&batch.layout, self.config.image_attention);
        let positions = batch.layout.positions();
        let angles = self.rotary.as_ref().map(|rotary| rotary.angles(&positions, self.device())).transpose()?;
        let mut pass = Pass { last, activations: Activations::Released, ..Pass::new(&ranges, angles) };
        Ok(self.decoder.forward(&self.embed(batch)?, &mut pass)?.0)
    }
}

/// Generation without a KV cache: the whole sequence is computed again for each token, of which answers have one to
/// three.
impl CausalModel for Baseline {
    type Cache = Option<MultimodalBatch>;

    fn config(&self) -> &HaploVlConfig {
        &self.config
    }

    fn cache(&self, _batch: usize, _capacity: usize) -> Result<Self::Cache> {
        Ok(None)
    }

    fn prefill(&self, batch: &MultimodalBatch, cache: &mut Self::Cache) -> Result<Tensor> {
        let last = self.hidden_states(batch, Some(1))?.squeeze(1)?;
        *cache = Some(batch.clone());
        self.lm_head.forward(&last)
    }

    fn decode(&self, ids: &[u32], cache: &mut Self::Cache) -> Result<Tensor> {
        let Some(mut batch) = cache.take() else {
            return Err(haplovl::Error::generation("there is nothing to continue: prefill a prompt first"));
        };
        let ids = Tensor::from_slice(ids, (ids.len(), 1), self.device())?;
        batch.input_ids = Tensor::cat(&[&batch.input_ids, &ids], 1)?;
        batch.layout.seq_len += 1;
        for sample in batch.layout.rows.iter_mut().filter_map(|row| row.last_mut()) {
            sample.range.end += 1;
        }
        self.prefill(&batch, cache)
    }
}

//! The whole model.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use super::{Cache, Connector, LanguageHead, MultimodalEmbeddings, Pass, PostDecoder, PreDecoder};
use crate::Result;
use crate::batch::{MultimodalBatch, SequenceLayout};
use crate::config::{HaploVlConfig, Rope};
use crate::nn::ops::KeyRanges;
use crate::nn::{RotaryAngles, RotaryEmbedding, key_ranges};
use crate::weights::ParameterShapes;

/// HaploVL: embeddings, pre-decoder, connector, post-decoder and language head.
#[derive(Debug, Clone)]
pub struct HaploVl {
    config: HaploVlConfig,
    embeddings: MultimodalEmbeddings,
    pre_decoder: PreDecoder,
    connector: Connector,
    post_decoder: PostDecoder,
    lm_head: LanguageHead,
    pre_rotary: Option<RotaryEmbedding>,
    post_rotary: Option<RotaryEmbedding>,
    compute_dtype: DType,
}

/// What a forward pass computed on the way.
#[derive(Debug, Clone)]
pub struct HiddenStates {
    /// After `pre_norm`, before the first layer: (batch, seq, pre-decoder width).
    pub pre_decoder_input: Tensor,
    /// Before the connector: (batch, seq, pre-decoder width).
    pub pre_decoder_output: Tensor,
    /// After the final norm: (batch, seq, post-decoder width).
    pub post_decoder_output: Tensor,
    /// Attention weights (batch, heads, seq, seq), f32, of the layers asked for, first to last.
    pub attentions: Vec<Tensor>,
}

impl HaploVl {
    /// Builds the model over the tensors of `vb`, the root of a checkpoint in the official layout.
    ///
    /// Computes in the number type of `vb`; see [`Self::with_compute_dtype`].
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if the configuration cannot work, and an error naming the tensor if one
    /// is missing or has another shape.
    pub fn new(config: &HaploVlConfig, vb: VarBuilder) -> Result<Self> {
        config.validate()?;
        let embeddings = MultimodalEmbeddings::new(config, vb.clone())?;
        let lm_head = LanguageHead::new(config, embeddings.embed_tokens(), vb.clone())?;
        let post_rotary = (config.post_decoder.rope != Rope::None).then(|| RotaryEmbedding::new(&config.post_decoder));
        Ok(Self {
            pre_decoder: PreDecoder::new(config, vb.clone())?,
            connector: Connector::new(config, vb.clone())?,
            post_decoder: PostDecoder::new(config, vb.clone())?,
            embeddings,
            lm_head,
            pre_rotary: match config.pre_decoder.rope {
                Rope::Own => Some(RotaryEmbedding::new(&config.pre_decoder)),
                Rope::Shared => post_rotary.clone(),
                Rope::None => None,
            },
            post_rotary,
            compute_dtype: vb.dtype(),
            config: config.clone(),
        })
    }

    /// Name and shape of every tensor that a checkpoint of this configuration holds. Takes no memory for weights.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if the configuration cannot work.
    pub fn parameter_shapes(config: &HaploVlConfig) -> Result<BTreeMap<String, Vec<usize>>> {
        let shapes = ParameterShapes::default();
        Self::new(config, shapes.var_builder())?;
        Ok(shapes.shapes())
    }

    /// Computes in another number type than the parameters have: bf16 over f32 master weights.
    pub fn with_compute_dtype(self, compute_dtype: DType) -> Self {
        Self { compute_dtype, ..self }
    }

    /// The configuration that the model was built from.
    pub fn config(&self) -> &HaploVlConfig {
        &self.config
    }

    /// The device of the parameters.
    pub fn device(&self) -> &Device {
        self.embeddings.device()
    }

    /// The embeddings, usable alone.
    pub fn embeddings(&self) -> &MultimodalEmbeddings {
        &self.embeddings
    }

    /// The language head, usable alone.
    pub fn lm_head(&self) -> &LanguageHead {
        &self.lm_head
    }

    /// Logits (batch, seq, vocab_size) of every position.
    ///
    /// # Errors
    /// If the batch does not fit the model.
    pub fn forward(&self, batch: &MultimodalBatch) -> Result<Tensor> {
        self.lm_head.forward(&self.hidden_states(batch, &[])?.post_decoder_output)
    }

    /// Everything up to the language head, and the attention weights of the layers in `attention_layers`, which are
    /// numbered as in the checkpoint: the pre-decoder's first.
    ///
    /// # Errors
    /// If the batch does not fit the model.
    pub fn hidden_states(&self, batch: &MultimodalBatch, attention_layers: &[usize]) -> Result<HiddenStates> {
        let ranges = key_ranges(&batch.layout, self.config.image_attention);
        self.run(batch, &ranges, &batch.layout.positions(), attention_layers, None)
    }

    /// The pre-decoder's part alone: (batch, seq, pre-decoder width), before the connector.
    ///
    /// # Errors
    /// If the batch does not fit the model.
    pub fn pre_decode(&self, batch: &MultimodalBatch) -> Result<Tensor> {
        let ranges = key_ranges(&batch.layout, self.config.image_attention);
        let angles = angles(&self.pre_rotary, &batch.layout.positions(), self.device())?;
        Ok(self.pre_decoder.forward(&self.embed(batch)?, &mut Pass::new(&ranges, angles))?.output)
    }

    /// A fresh cache of `batch` rows and `capacity` positions.
    ///
    /// # Errors
    /// [`Error::Generation`](crate::Error::Generation) if `capacity` exceeds the context, or memory runs out.
    pub fn cache(&self, batch: usize, capacity: usize) -> Result<Cache> {
        Cache::new(&self.config, batch, capacity, self.compute_dtype, self.device())
    }

    /// Appends a batch to the cache and returns the logits (batch, vocab_size) of its last position.
    ///
    /// Rows are padded on the left; a batch that continues earlier ones has no padding.
    ///
    /// # Errors
    /// If the batch does not fit the model or the cache.
    pub fn prefill(&self, batch: &MultimodalBatch, cache: &mut Cache) -> Result<Tensor> {
        let (ranges, positions) = cache.place(&batch.layout, self.config.image_attention)?;
        let hidden = self.run(batch, &ranges, &positions, &[], Some(cache))?.post_decoder_output;
        let last = hidden.narrow(1, hidden.dim(1)? - 1, 1)?.squeeze(1)?;
        self.lm_head.forward(&last.contiguous()?)
    }

    /// Appends one text token to each row and returns the logits (batch, vocab_size) behind it.
    ///
    /// # Errors
    /// If there is not one id for each row, or the cache is full.
    pub fn decode(&self, ids: &[u32], cache: &mut Cache) -> Result<Tensor> {
        let batch = MultimodalBatch {
            input_ids: Tensor::from_slice(ids, (ids.len(), 1), self.device())?,
            labels: None,
            layout: SequenceLayout::text(ids.len(), 1),
            visuals: vec![],
        };
        self.prefill(&batch, cache)
    }

    fn embed(&self, batch: &MultimodalBatch) -> Result<Tensor> {
        Ok(self.embeddings.forward(batch)?.to_dtype(self.compute_dtype)?)
    }

    fn run(
        &self,
        batch: &MultimodalBatch,
        ranges: &KeyRanges,
        positions: &[Vec<u32>],
        attention_layers: &[usize],
        cache: Option<&mut Cache>,
    ) -> Result<HiddenStates> {
        let (pre_caches, post_caches) = match cache {
            Some(cache) => (Some(cache.pre.as_mut_slice()), Some(cache.post.as_mut_slice())),
            None => (None, None),
        };
        let first_post = self.config.pre_decoder.num_hidden_layers;
        let (pre_layers, post_layers): (Vec<usize>, Vec<usize>) =
            attention_layers.iter().partition(|&&layer| layer < first_post);
        let post_layers: Vec<usize> = post_layers.into_iter().map(|layer| layer - first_post).collect();
        let pass = |rotary, caches, attention_layers| -> Result<Pass<'_>> {
            Ok(Pass { ranges, angles: angles(rotary, positions, self.device())?, caches, attention_layers })
        };
        let embeddings = self.embed(batch)?;
        let pre = self.pre_decoder.forward(&embeddings, &mut pass(&self.pre_rotary, pre_caches, &pre_layers)?)?;
        let x = self.connector.forward(&pre.output)?;
        let (post, post_attentions) =
            self.post_decoder.forward(&x, &mut pass(&self.post_rotary, post_caches, &post_layers)?)?;
        let mut attentions = pre.attentions;
        attentions.extend(post_attentions);
        Ok(HiddenStates {
            pre_decoder_input: pre.input,
            pre_decoder_output: pre.output,
            post_decoder_output: post,
            attentions,
        })
    }
}

fn angles(rotary: &Option<RotaryEmbedding>, positions: &[Vec<u32>], device: &Device) -> Result<Option<RotaryAngles>> {
    rotary.as_ref().map(|rotary| rotary.angles(positions, device)).transpose()
}

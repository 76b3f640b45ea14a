//! Whole model: forward pass, prefill and decoding.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use super::pre_decoder_model::angles_at;
use super::{Cache, Connector, LanguageHead, Pass, PassCaches, PostDecoder, PreDecoderModel};
use crate::batch::{MultimodalBatch, SequenceLayout};
use crate::config::HaploVlConfig;
use crate::nn::ops::{KeyRanges, on_pool};
use crate::nn::{
    Activations, Linear, MatmulLayer, MatmulVisitor, ParameterSlot, ParameterVisitor, RotaryAngles, RotaryEmbedding,
    TokenTable, key_ranges, linears_of,
};
use crate::options::{Precision, Quantization};
use crate::weights::{ParameterShapes, RandomWeights, TensorSource, check_source, source_var_builder};
use crate::{Error, Result};

/// Name of the embedding table.
pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";
/// Name of the head's linear layer.
pub(super) const HEAD: &str = "lm_head";

/// HaploVL: embeddings, pre-decoder, connector, post-decoder and language head.
#[derive(Debug, Clone)]
pub struct HaploVl {
    config: HaploVlConfig,
    front: PreDecoderModel,
    connector: Connector,
    post_decoder: PostDecoder,
    lm_head: LanguageHead,
    post_rotary: Option<RotaryEmbedding>,
    /// Dtype of KV caches; `None` uses the activation dtype.
    cache_dtype: Option<DType>,
}

/// Hidden states and attention weights of one forward pass.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HiddenStates {
    /// Normalised input of the pre-decoder, after `pre_norm`: (batch, seq, pre-decoder width).
    pub pre_decoder_input: Tensor,
    /// Output of the pre-decoder, before the connector: (batch, seq, pre-decoder width).
    pub pre_decoder_output: Tensor,
    /// Output of the post-decoder, after the final norm: (batch, seq, post-decoder width).
    pub post_decoder_output: Tensor,
    /// Attention weights (batch, heads, seq, seq), f32, of the requested layers, first to last.
    pub attentions: Vec<Tensor>,
}

impl HaploVl {
    /// Builds the model from the tensors of `vb`, the root of a checkpoint in the official layout.
    ///
    /// Activations have the dtype of `vb`; [`Self::with_compute_dtype`] changes it.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if the configuration is invalid, and an error that names the tensor if a
    /// tensor is missing or has another shape.
    pub fn new(config: &HaploVlConfig, vb: VarBuilder) -> Result<Self> {
        config.validate()?;
        let front = PreDecoderModel::new(config, vb.clone())?;
        let post = &config.post_decoder;
        let lm_head = match config.tie_word_embeddings {
            true => LanguageHead::tied(front.embeddings().embed_tokens().tensor()?),
            false => LanguageHead::new(post.hidden_size, config.vocab_size, vb.clone())?,
        };
        Ok(Self {
            connector: Connector::new(config, vb.clone())?,
            post_decoder: PostDecoder::new(post, config.pre_decoder.num_hidden_layers, vb)?,
            post_rotary: RotaryEmbedding::of(post),
            front,
            lm_head,
            config: config.clone(),
            cache_dtype: None,
        })
    }

    /// Builds the model from a tensor source, without gradients.
    ///
    /// With `quantization`, or if the source is quantised, the weight matrices of layers and head are kept in quantised
    /// blocks; they are converted one at a time. KV caches are then f16, see [`Self::with_cache_dtype`]. Quantised
    /// matmuls run on the CPU only; on other devices, a quantised source is dequantised.
    ///
    /// # Errors
    /// The errors of [`Self::new`] and [`check_source`], and [`Error::Device`](crate::Error::Device) if `quantization`
    /// is set and the device is not the CPU or the dtype is not f32.
    pub fn from_source(
        config: &HaploVlConfig,
        source: Arc<dyn TensorSource>,
        quantization: Option<Quantization>,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        Self::load(config, source, quantization, dtype, device, |_| None)
    }

    /// As [`Self::from_source`] in f32, with weight matrices and embedding table that are stored in bf16 or f16 kept so:
    /// the frozen base of an adapter in training.
    ///
    /// # Errors
    /// The errors of [`Self::from_source`].
    pub fn frozen_from_source(
        config: &HaploVlConfig,
        source: Arc<dyn TensorSource>,
        quantization: Option<Quantization>,
        device: &Device,
    ) -> Result<Self> {
        let stored = Arc::clone(&source);
        let half =
            move |name: &str| stored.stored_dtype(name).filter(|dtype| matches!(dtype, DType::BF16 | DType::F16));
        Self::load(config, source, quantization, DType::F32, device, half)
    }

    /// Loads the model; `kept` gives the dtype of the matrices that are kept in another dtype than `dtype`.
    fn load(
        config: &HaploVlConfig,
        source: Arc<dyn TensorSource>,
        quantization: Option<Quantization>,
        dtype: DType,
        device: &Device,
        kept: impl Fn(&str) -> Option<DType>,
    ) -> Result<Self> {
        check_source(&*source, &Self::parameter_shapes(config)?)?;
        let possible = device.is_cpu() && dtype == DType::F32;
        if let Some(kind) = quantization.filter(|_| !possible) {
            return Err(Error::device(format!(
                "{kind} weights need the CPU and dtype f32: choose both, or no quantisation"
            )));
        }
        let mut later = Self::matrices(config)?;
        let other = |kind: Quantization| later.iter().filter_map(|name| source.quantization(name)).find(|o| *o != kind);
        if let Some((kind, other)) = quantization.and_then(|kind| Some((kind, other(kind)?))) {
            return Err(Error::weights(format!(
                "{}: the weights are {other} already and cannot become {kind}: leave out the quantisation, or start \
                 from the model's floats",
                source.path().display()
            )));
        }
        later.retain(|name| {
            possible && (quantization.is_some() || source.quantization(name).is_some()) || kept(name).is_some()
        });
        // A tied head has no tensor in the checkpoint; it is quantised like the other matrices.
        let of_others = later.iter().find_map(|name| source.quantization(name));
        let kept_table = kept(EMBEDDING).map(|dtype| source.load_tensor(EMBEDDING, dtype, device)).transpose()?;
        // A tied head needs the table in memory.
        let mapped = || source.mapped_rows(EMBEDDING).filter(|_| possible && !config.tie_word_embeddings);
        let table = kept_table.map(TokenTable::Tensor).or_else(|| mapped().map(TokenTable::Mapped));
        let placeholders = later.iter().cloned().chain(table.is_some().then(|| EMBEDDING.to_string())).collect();
        let mut model = Self::new(config, source_var_builder(source.clone(), placeholders, dtype, device))?;
        table.iter().for_each(|table| model.set_table(table));
        model.try_for_each_linear(|name, linear| {
            let name = format!("{name}.weight");
            if later.contains(&name) {
                match source.load_quantized(&name, linear.dims2()?.1)? {
                    Some(weight) => return linear.set_quantized(weight),
                    None => {
                        let dtype = kept(&name).unwrap_or(dtype);
                        linear.set_weight(source.load_tensor(&name, dtype, device)?)?;
                    }
                }
            }
            let kind = quantization.or(of_others.filter(|_| !source.has_tensor(&name)));
            kind.map_or(Ok(()), |kind| linear.quantize(kind))
        })?;
        let is_quantized = quantization.is_some() || later.iter().any(|name| source.quantization(name).is_some());
        if !is_quantized {
            return Ok(model);
        }
        // The error of quantised weights exceeds that of an f16 cache and of bf16 attention; float weights stay exact.
        model.visit_matmuls(&mut |_, layer| {
            if let MatmulLayer::Attention(attention) = layer {
                attention.set_precision(Precision::Bf16);
            }
        });
        Ok(model.with_cache_dtype(DType::F16))
    }

    /// Replaces the embedding table, and the head that is tied to it.
    pub(super) fn set_table(&mut self, table: &TokenTable) {
        let tied = table.tensor().ok().filter(|_| self.config.tie_word_embeddings).cloned();
        self.visit_parameters(&mut |name, slot| match (slot, &tied) {
            (ParameterSlot::Table(slot), _) => *slot = table.clone(),
            (ParameterSlot::Linear(head), Some(tied)) if name == HEAD => {
                *head = Linear::from_tensors(tied.clone(), None)
            }
            _ => {}
        });
    }

    /// Replaces the weight of the head by one that may have other rows.
    pub(super) fn set_head(&mut self, weight: &Tensor) {
        self.lm_head = LanguageHead::tied(weight);
    }

    /// Takes the sizes and ids of the vocabulary from another configuration, whose tables the model has.
    pub(super) fn set_vocabulary(&mut self, config: &HaploVlConfig) {
        self.config = HaploVlConfig {
            vocab_size: config.vocab_size,
            image_token_index: config.image_token_index,
            video_token_index: config.video_token_index,
            ..self.config.clone()
        };
    }

    /// Returns the checkpoint names of the weight matrices of layers and head, which hold most of the parameters.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if the configuration is invalid.
    pub fn matrices(config: &HaploVlConfig) -> Result<BTreeSet<String>> {
        let shapes = ParameterShapes::default();
        let mut names = BTreeSet::new();
        Self::new(config, shapes.var_builder())?.try_for_each_linear(|name, _| {
            names.insert(format!("{name}.weight"));
            Ok(())
        })?;
        let parameters = shapes.shapes();
        // A tied head has no tensor in the checkpoint.
        names.retain(|name| parameters.contains_key(name));
        Ok(names)
    }

    /// Visits the matmuls of layers and head.
    pub fn visit_matmuls(&mut self, visit: &mut MatmulVisitor<'_>) {
        self.front.visit_matmuls(visit);
        self.post_decoder.visit_matmuls(visit);
        self.lm_head.visit_matmuls(visit);
    }

    /// Visits all parameters. A head that is tied to the embedding table is visited as `lm_head`, after the table.
    pub fn visit_parameters(&mut self, visit: &mut ParameterVisitor<'_>) {
        self.front.visit_parameters(visit);
        self.connector.visit_parameters(visit);
        self.post_decoder.visit_parameters(visit);
        self.lm_head.visit_matmuls(&mut linears_of(visit));
    }

    /// Calls `f` with every linear layer of layers and head and the layer's checkpoint name (without `.weight`), until
    /// `f` fails.
    ///
    /// # Errors
    /// The first error of `f`.
    pub fn try_for_each_linear(&mut self, mut f: impl FnMut(&str, &mut Linear) -> Result<()>) -> Result<()> {
        let mut result = Ok(());
        self.visit_matmuls(&mut |name, layer| {
            if let (true, MatmulLayer::Linear(linear)) = (result.is_ok(), layer) {
                result = f(name, linear);
            }
        });
        result
    }

    /// Returns name and shape of every tensor in a checkpoint of this configuration, without allocating weights.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if the configuration is invalid.
    pub fn parameter_shapes(config: &HaploVlConfig) -> Result<BTreeMap<String, Vec<usize>>> {
        let shapes = ParameterShapes::default();
        Self::new(config, shapes.var_builder())?;
        Ok(shapes.shapes())
    }

    /// The weights with which [`Self::new`] creates a model from a seed, drawn when they are read, as a source that says it
    /// stores `dtype`.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if the configuration is invalid.
    pub fn random_weights(config: &HaploVlConfig, seed: u64, dtype: DType) -> Result<RandomWeights> {
        let shapes = ParameterShapes::default();
        Self::new(config, shapes.var_builder())?;
        Ok(RandomWeights::new(&shapes, seed, dtype))
    }

    /// Sets the activation dtype, independent of the dtype of the parameters: for example bf16 over f32 master weights.
    pub fn with_compute_dtype(self, compute_dtype: DType) -> Self {
        Self { front: self.front.with_compute_dtype(compute_dtype), ..self }
    }

    /// Sets the precision of the matmuls of layers and head on the CPU, forward and backward. [`Precision::Bf16`] takes
    /// about half the time on CPUs with [native bf16 instructions](Precision::has_fast_bf16). Losses over the head stay
    /// f32.
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.visit_matmuls(&mut |_, layer| layer.set_precision(precision));
        self
    }

    /// Sets the KV-cache dtype, independent of the activation dtype.
    ///
    /// [`DType::F16`] takes half the memory of f32; keys and values are rounded to 11 significant bits and saturate at
    /// 65,504. CPU kernels read f16 caches directly, with half the memory traffic per token. Any other dtype that
    /// differs from the activation dtype, and every differing dtype on a GPU, costs a conversion of the whole cache per
    /// token.
    pub fn with_cache_dtype(self, cache_dtype: DType) -> Self {
        Self { cache_dtype: Some(cache_dtype), ..self }
    }

    /// Returns the dtype of keys and values in KV caches.
    pub fn cache_dtype(&self) -> DType {
        self.cache_dtype.unwrap_or(self.front.compute_dtype())
    }

    /// Sets whether layers keep, release or recompute their activations in training. Unless they are kept, gradients
    /// must be taken with [`crate::nn::gradients_of`].
    pub fn with_activations(self, activations: Activations) -> Self {
        Self { front: self.front.with_activations(activations), ..self }
    }

    /// Returns the configuration of the model.
    pub fn config(&self) -> &HaploVlConfig {
        &self.config
    }

    /// Returns the device of the parameters.
    pub fn device(&self) -> &Device {
        self.front.embeddings().device()
    }

    /// Returns the embeddings and the pre-decoder.
    pub fn front(&self) -> &PreDecoderModel {
        &self.front
    }

    /// Returns the connector.
    pub fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Returns the post-decoder.
    pub fn post_decoder(&self) -> &PostDecoder {
        &self.post_decoder
    }

    /// Computes the rotary angles of `positions` for the pre-decoder and the post-decoder.
    pub(super) fn angles(&self, positions: &[Vec<u32>]) -> Result<[Option<RotaryAngles>; 2]> {
        Ok([self.front.angles(positions)?, angles_at(&self.post_rotary, positions, self.device())?])
    }

    /// Returns the language head.
    pub fn lm_head(&self) -> &LanguageHead {
        &self.lm_head
    }

    /// Computes the logits (batch, seq, vocab_size) of every position.
    ///
    /// # Errors
    /// If the batch does not match the model.
    pub fn forward(&self, batch: &MultimodalBatch) -> Result<Tensor> {
        self.lm_head.forward(&self.hidden_states(batch, &[])?.post_decoder_output)
    }

    /// Runs everything up to the language head, and returns the attention weights of `attention_layers`. Layers are
    /// numbered as in the checkpoint: pre-decoder layers first.
    ///
    /// # Errors
    /// If the batch does not match the model, or it has no such layer.
    pub fn hidden_states(&self, batch: &MultimodalBatch, attention_layers: &[usize]) -> Result<HiddenStates> {
        let layers = self.config.pre_decoder.num_hidden_layers + self.config.post_decoder.num_hidden_layers;
        if let Some(layer) = attention_layers.iter().find(|layer| **layer >= layers) {
            return Err(Error::config(
                "attention layer",
                format!("is {layer}, the model has layers 0 to {}", layers - 1),
            ));
        }
        self.uncached(batch, attention_layers, None)
    }

    /// Computes [`HiddenStates::post_decoder_output`] of the last `count` positions, (batch, count, post-decoder
    /// width), or of all positions if the batch has fewer. The last layer skips the other positions.
    ///
    /// Labels follow the image tokens, so a training step on captions saves most of one layer.
    ///
    /// # Errors
    /// If the batch does not match the model.
    pub fn last_hidden_states(&self, batch: &MultimodalBatch, count: usize) -> Result<Tensor> {
        Ok(self.uncached(batch, &[], Some(count))?.post_decoder_output)
    }

    /// Allocates an empty KV cache of `batch` rows and `capacity` positions.
    ///
    /// # Errors
    /// [`Error::Generation`](crate::Error::Generation) if `capacity` exceeds the context, or memory is exhausted.
    pub fn cache(&self, batch: usize, capacity: usize) -> Result<Cache> {
        Cache::new(&self.config, batch, capacity, self.cache_dtype(), self.device())
    }

    /// Appends a batch to the cache and returns the logits (batch, vocab_size) of the last position.
    ///
    /// The first batch is padded on the left; later batches have no padding.
    ///
    /// # Errors
    /// If the batch does not match the model or the cache.
    pub fn prefill(&self, batch: &MultimodalBatch, cache: &mut Cache) -> Result<Tensor> {
        batch.validate()?;
        if let Some(rows) = rows_at_a_time(batch).filter(|_| cache.is_empty() && self.device().is_cpu()) {
            let logits = self.prefill_by_rows(batch, rows, cache);
            if logits.is_err() {
                cache.truncate(0);
            }
            return logits;
        }
        let (ranges, positions) = cache.place(&batch.layout, self.config.image_attention)?;
        let caches = [PassCaches::Layers(&mut cache.pre), PassCaches::Layers(&mut cache.post)];
        on_pool(self.device(), || {
            let last = self.run(batch, &ranges, &positions, &[], caches, Some(1))?.post_decoder_output;
            self.lm_head.forward(&last.squeeze(1)?)
        })
    }

    /// Prefills some rows at a time, each group without the padding that only other rows need.
    fn prefill_by_rows(&self, batch: &MultimodalBatch, rows: usize, cache: &mut Cache) -> Result<Tensor> {
        cache.place(&batch.layout, self.config.image_attention)?;
        let mut logits = Vec::new();
        for first in (0..batch.batch_size()).step_by(rows) {
            let part = batch.rows(first..batch.batch_size().min(first + rows))?;
            let mut filled = self.cache(part.batch_size(), part.layout.seq_len)?;
            logits.push(self.prefill(&part, &mut filled)?);
            cache.set_rows(first, &filled, batch.layout.seq_len)?;
        }
        Ok(Tensor::cat(&logits, 0)?)
    }

    /// Appends one text token to each row and returns the logits (batch, vocab_size) that follow it.
    ///
    /// # Errors
    /// Unless there is one id of the vocabulary per row, or if the cache is full.
    pub fn decode(&self, ids: &[u32], cache: &mut Cache) -> Result<Tensor> {
        self.prefill(&self.token_batch(ids)?, cache)
    }

    /// A batch of one text token a row.
    pub(super) fn token_batch(&self, ids: &[u32]) -> Result<MultimodalBatch> {
        // A check on the host is free, also for a model on a GPU.
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.config.vocab_size) {
            return Err(Error::batch(format!("token id {id} is outside the vocabulary of {}", self.config.vocab_size)));
        }
        Ok(MultimodalBatch {
            input_ids: Tensor::from_slice(ids, (ids.len(), 1), self.device())?,
            labels: None,
            layout: SequenceLayout::text(ids.len(), 1),
            visuals: vec![],
        })
    }

    /// Runs the whole batch without KV cache.
    fn uncached(
        &self,
        batch: &MultimodalBatch,
        attention_layers: &[usize],
        last: Option<usize>,
    ) -> Result<HiddenStates> {
        batch.validate()?;
        let ranges = key_ranges(&batch.layout, self.config.image_attention);
        let no_caches = [PassCaches::None, PassCaches::None];
        self.run(batch, &ranges, &batch.layout.positions(), attention_layers, no_caches, last)
    }

    /// Runs the model; with `last`, the last layer computes only that many last positions.
    pub(super) fn run(
        &self,
        batch: &MultimodalBatch,
        ranges: &KeyRanges,
        positions: &[Vec<u32>],
        attention_layers: &[usize],
        [pre_caches, post_caches]: [PassCaches<'_>; 2],
        last: Option<usize>,
    ) -> Result<HiddenStates> {
        let first_post = self.config.pre_decoder.num_hidden_layers;
        let (pre_layers, post_layers): (Vec<usize>, Vec<usize>) =
            attention_layers.iter().partition(|&&layer| layer < first_post);
        let post_layers: Vec<usize> = post_layers.into_iter().map(|layer| layer - first_post).collect();
        let pass = |angles, caches, attention_layers| Pass {
            caches,
            attention_layers,
            activations: self.front.activations(),
            ..Pass::new(ranges, angles)
        };
        let [pre_angles, post_angles] = self.angles(positions)?;
        let pre = self.front.forward(batch, &mut pass(pre_angles, pre_caches, &pre_layers))?;
        let x = self.connector.forward(&pre.output)?;
        let mut pass = Pass { last, ..pass(post_angles, post_caches, &post_layers) };
        let (post, post_attentions) = self.post_decoder.forward(&x, &mut pass)?;
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

/// Positions up to which rows are prefilled together: enough for the matmuls, and few enough that activations stay in
/// the CPU's caches.
const PREFILL_POSITIONS: usize = 1024;

/// Number of rows to prefill at a time; `None` for all.
fn rows_at_a_time(batch: &MultimodalBatch) -> Option<usize> {
    let rows = (PREFILL_POSITIONS / batch.layout.seq_len.max(1)).max(1);
    (rows < batch.batch_size()).then_some(rows)
}

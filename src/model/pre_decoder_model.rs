//! Embeddings and pre-decoder: the part of the model that stage 1 distils.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use super::{MultimodalEmbeddings, Pass, PreDecoder, PreDecoderOutput};
use crate::Result;
use crate::batch::MultimodalBatch;
use crate::config::{HaploVlConfig, ImageAttention, Rope};
use crate::nn::{Activations, MatmulVisitor, ParameterVisitor, RotaryAngles, RotaryEmbedding, key_ranges};
use crate::options::Precision;

/// Embeddings and pre-decoder: token ids and pixels to hidden states.
#[derive(Debug, Clone)]
pub struct PreDecoderModel {
    embeddings: MultimodalEmbeddings,
    pre_decoder: PreDecoder,
    rotary: Option<RotaryEmbedding>,
    image_attention: ImageAttention,
    compute_dtype: DType,
    activations: Activations,
}

impl PreDecoderModel {
    /// Builds the model from the tensors of `vb`, the root of a checkpoint. Tensors of the post-decoder are not read.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if the configuration is invalid, and an error that names the tensor if
    /// a tensor is missing or has another shape.
    pub fn new(config: &HaploVlConfig, vb: VarBuilder) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            embeddings: MultimodalEmbeddings::new(config, vb.clone())?,
            pre_decoder: PreDecoder::new(config, vb.clone())?,
            rotary: match config.pre_decoder.rope {
                Rope::Shared => RotaryEmbedding::of(&config.post_decoder),
                _ => RotaryEmbedding::of(&config.pre_decoder),
            },
            image_attention: config.image_attention,
            compute_dtype: vb.dtype(),
            activations: Activations::Kept,
        })
    }

    /// Sets the dtype of activations, independent of the dtype of the parameters.
    pub fn with_compute_dtype(self, compute_dtype: DType) -> Self {
        Self { compute_dtype, ..self }
    }

    /// Sets the precision of the layers' matmuls on the CPU.
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.visit_matmuls(&mut |_, layer| layer.set_precision(precision));
        self
    }

    /// Returns the dtype of activations.
    pub fn compute_dtype(&self) -> DType {
        self.compute_dtype
    }

    /// Sets whether layers keep, release or recompute their activations in training. Unless they are kept, gradients
    /// must be taken with [`crate::nn::gradients_of`].
    pub fn with_activations(self, activations: Activations) -> Self {
        Self { activations, ..self }
    }

    /// Returns whether layers keep, release or recompute their activations in training.
    pub fn activations(&self) -> Activations {
        self.activations
    }

    /// Returns the embeddings.
    pub fn embeddings(&self) -> &MultimodalEmbeddings {
        &self.embeddings
    }

    /// Returns the pre-decoder.
    pub fn pre_decoder(&self) -> &PreDecoder {
        &self.pre_decoder
    }

    /// Visits the matmuls of the layers.
    pub fn visit_matmuls(&mut self, visit: &mut MatmulVisitor<'_>) {
        self.pre_decoder.visit_matmuls(visit);
    }

    /// Visits the parameters of embeddings and pre-decoder.
    pub fn visit_parameters(&mut self, visit: &mut ParameterVisitor<'_>) {
        self.embeddings.visit_parameters(visit);
        self.pre_decoder.visit_parameters(visit);
    }

    /// Computes the rotary angles of `positions`; `None` if the pre-decoder has no rotary positions.
    ///
    /// # Errors
    /// Errors of candle only.
    pub fn angles(&self, positions: &[Vec<u32>]) -> Result<Option<RotaryAngles>> {
        angles_at(&self.rotary, positions, self.embeddings.device())
    }

    /// Runs embeddings and pre-decoder on a batch.
    ///
    /// # Errors
    /// If the batch does not match the model, or a KV cache is full.
    pub fn forward(&self, batch: &MultimodalBatch, pass: &mut Pass) -> Result<PreDecoderOutput> {
        self.pre_decoder.forward(&self.embed(batch)?, pass)
    }

    /// Embeds a batch in the dtype of activations.
    pub(super) fn embed(&self, batch: &MultimodalBatch) -> Result<Tensor> {
        Ok(self.embeddings.forward(batch)?.to_dtype(self.compute_dtype)?)
    }

    /// Computes the hidden states (batch, seq, hidden_size) of a batch without KV cache, before the connector.
    ///
    /// # Errors
    /// If the batch does not match the model.
    pub fn hidden_states(&self, batch: &MultimodalBatch) -> Result<Tensor> {
        batch.validate()?;
        let ranges = key_ranges(&batch.layout, self.image_attention);
        let angles = self.angles(&batch.layout.positions())?;
        let mut pass = Pass { activations: self.activations, ..Pass::new(&ranges, angles) };
        Ok(self.forward(batch, &mut pass)?.output)
    }
}

/// Computes the rotary angles of `positions`, or `None` without rotary positions.
pub(super) fn angles_at(
    rotary: &Option<RotaryEmbedding>,
    positions: &[Vec<u32>],
    device: &Device,
) -> Result<Option<RotaryAngles>> {
    rotary.as_ref().map(|rotary| rotary.angles(positions, device)).transpose()
}

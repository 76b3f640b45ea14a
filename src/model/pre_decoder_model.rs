//! Embeddings and pre-decoder together: the half of the model that is distilled.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use super::{MultimodalEmbeddings, Pass, PreDecoder, PreDecoderOutput};
use crate::Result;
use crate::batch::MultimodalBatch;
use crate::config::{HaploVlConfig, ImageAttention, Rope};
use crate::nn::{Activations, MatmulVisitor, RotaryAngles, RotaryEmbedding, key_ranges};
use crate::options::Precision;

/// From ids and pixels to the pre-decoder's hidden states.
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
    /// Builds it over the tensors of `vb`, the root of a checkpoint; the post-decoder's are not touched.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if the configuration cannot work, and an error naming the tensor if one
    /// is missing or has another shape.
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

    /// Computes in another number type than the parameters have.
    pub fn with_compute_dtype(self, compute_dtype: DType) -> Self {
        Self { compute_dtype, ..self }
    }

    /// Sets the precision of the layers' matmuls on the CPU.
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.visit_matmuls(&mut |_, layer| layer.set_precision(precision));
        self
    }

    /// The number type that activations are computed in.
    pub fn compute_dtype(&self) -> DType {
        self.compute_dtype
    }

    /// Treats the activations of layers in training in this way; gradients are then those of [`crate::nn::gradients_of`].
    pub fn with_activations(self, activations: Activations) -> Self {
        Self { activations, ..self }
    }

    /// What becomes of the activations of layers in training.
    pub fn activations(&self) -> Activations {
        self.activations
    }

    /// The embeddings, usable alone.
    pub fn embeddings(&self) -> &MultimodalEmbeddings {
        &self.embeddings
    }

    /// The pre-decoder, usable alone.
    pub fn pre_decoder(&self) -> &PreDecoder {
        &self.pre_decoder
    }

    /// Visits the matmuls of the layers.
    pub fn visit_matmuls(&mut self, visit: &mut MatmulVisitor<'_>) {
        self.pre_decoder.visit_matmuls(visit);
    }

    /// Rotary angles of `positions`; `None` without rotary positions.
    ///
    /// # Errors
    /// From candle only.
    pub fn angles(&self, positions: &[Vec<u32>]) -> Result<Option<RotaryAngles>> {
        angles_at(&self.rotary, positions, self.embeddings.device())
    }

    /// The batch through embeddings and layers.
    ///
    /// # Errors
    /// If the batch does not fit the model, or a cache is full.
    pub fn forward(&self, batch: &MultimodalBatch, pass: &mut Pass) -> Result<PreDecoderOutput> {
        let embeddings = self.embeddings.forward(batch)?.to_dtype(self.compute_dtype)?;
        self.pre_decoder.forward(&embeddings, pass)
    }

    /// The hidden states (batch, seq, hidden_size) of a batch on its own, before the connector.
    ///
    /// # Errors
    /// If the batch does not fit the model.
    pub fn hidden_states(&self, batch: &MultimodalBatch) -> Result<Tensor> {
        batch.validate()?;
        let ranges = key_ranges(&batch.layout, self.image_attention);
        let angles = self.angles(&batch.layout.positions())?;
        let mut pass = Pass { activations: self.activations, ..Pass::new(&ranges, angles) };
        Ok(self.forward(batch, &mut pass)?.output)
    }
}

/// Angles of `positions` under frequencies that may not be there.
pub(super) fn angles_at(
    rotary: &Option<RotaryEmbedding>,
    positions: &[Vec<u32>],
    device: &Device,
) -> Result<Option<RotaryAngles>> {
    rotary.as_ref().map(|rotary| rotary.angles(positions, device)).transpose()
}

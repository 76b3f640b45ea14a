//! Pre-decoder, which fuses image patches and text, and the connector to the post-decoder.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::{DecoderStack, Pass};
use crate::Result;
use crate::config::{HaploVlConfig, NormKind};
use crate::nn::{DecoderLayer, Linear, MatmulVisitor, Norm, ParameterSlot, ParameterVisitor};

/// Epsilon of `pre_norm`, independent of the layers' epsilon: a constant of the released model and of CLIP.
const PRE_NORM_EPS: f64 = 1e-5;

/// Pre-decoder: a layer norm over all tokens, then layers shaped like CLIP-ViT's.
#[derive(Debug, Clone)]
pub struct PreDecoder {
    pre_norm: Norm,
    stack: DecoderStack,
}

/// Output of the pre-decoder, with its normalised input.
#[derive(Debug, Clone)]
pub struct PreDecoderOutput {
    /// Hidden states after `pre_norm`, before the first layer: (batch, seq, hidden_size).
    pub input: Tensor,
    /// Hidden states after the last layer: (batch, seq, hidden_size).
    pub output: Tensor,
    /// Attention weights (batch, heads, seq, seq) of the requested layers.
    pub attentions: Vec<Tensor>,
}

impl PreDecoder {
    /// Reads `model.pre_norm` and the first layers of `model.layers`; `vb` is the root of the checkpoint.
    ///
    /// # Errors
    /// If `vb` lacks a tensor, or a tensor has another shape.
    pub fn new(config: &HaploVlConfig, vb: VarBuilder) -> Result<Self> {
        let (vb, decoder) = (vb.pp("model"), &config.pre_decoder);
        Ok(Self {
            pre_norm: Norm::new(NormKind::LayerNorm, decoder.hidden_size, PRE_NORM_EPS, vb.pp("pre_norm"))?,
            stack: DecoderStack::new(decoder, 0, vb.pp("layers"))?,
        })
    }

    /// Visits the matmuls of the layers.
    pub fn visit_matmuls(&mut self, visit: &mut MatmulVisitor<'_>) {
        self.stack.visit_matmuls(visit);
    }

    /// Visits the parameters of `pre_norm` and the layers.
    pub fn visit_parameters(&mut self, visit: &mut ParameterVisitor<'_>) {
        self.pre_norm.visit_parameters("model.pre_norm", visit);
        self.stack.visit_parameters(visit);
    }

    /// Returns the norm before the first layer.
    pub(super) fn pre_norm(&self) -> &Norm {
        &self.pre_norm
    }

    /// Returns the layers, first to last.
    pub fn layers(&self) -> &[DecoderLayer] {
        self.stack.layers()
    }

    /// Runs `pre_norm` and the layers on embeddings.
    ///
    /// # Shapes
    /// `embeddings` (batch, seq, hidden_size) -> `output` of the same shape, or only the last positions if
    /// [`Pass::last`] is set.
    ///
    /// # Errors
    /// If shapes do not match, or a KV cache is full.
    pub fn forward(&self, embeddings: &Tensor, pass: &mut Pass) -> Result<PreDecoderOutput> {
        let input = self.pre_norm.forward(embeddings)?;
        let (output, attentions) = self.stack.forward(&input, pass)?;
        Ok(PreDecoderOutput { input, output, attentions })
    }
}

/// Connector: a linear map without bias from the pre-decoder's width to the post-decoder's width.
#[derive(Debug, Clone)]
pub struct Connector(Linear);

impl Connector {
    /// Reads `model.pre_connector`; `vb` is the root of the checkpoint.
    ///
    /// # Errors
    /// If `vb` lacks the tensor, or the tensor has another shape.
    pub fn new(config: &HaploVlConfig, vb: VarBuilder) -> Result<Self> {
        let (from, to) = (config.pre_decoder.hidden_size, config.post_decoder.hidden_size);
        Ok(Self(Linear::new(from, to, false, vb.pp("model.pre_connector"))?))
    }

    /// Visits the linear layer as `model.pre_connector`.
    pub fn visit_parameters(&mut self, visit: &mut ParameterVisitor<'_>) {
        visit("model.pre_connector", ParameterSlot::Linear(&mut self.0));
    }

    /// Projects (batch, seq, pre-decoder width) -> (batch, seq, post-decoder width).
    ///
    /// # Errors
    /// If `x` has another width.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward(x)
    }
}

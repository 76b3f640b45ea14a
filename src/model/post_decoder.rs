//! Post-decoder (layers and final norm of a language model) and language head.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::{DecoderStack, Pass};
use crate::Result;
use crate::config::DecoderConfig;
use crate::nn::{DecoderLayer, Linear, MatmulLayer, MatmulVisitor, Norm, ParameterVisitor};

/// Post-decoder: the layers of a language model and its final norm.
#[derive(Debug, Clone)]
pub struct PostDecoder {
    stack: DecoderStack,
    norm: Norm,
}

impl PostDecoder {
    /// Reads `model.layers` from index `first` on, and `model.norm`; `vb` is the root of the checkpoint.
    ///
    /// `first` is the number of pre-decoder layers in a HaploVL, and 0 in a standalone language model.
    ///
    /// # Errors
    /// If `vb` lacks a tensor, or a tensor has another shape.
    pub fn new(config: &DecoderConfig, first: usize, vb: VarBuilder) -> Result<Self> {
        let vb = vb.pp("model");
        Ok(Self {
            stack: DecoderStack::new(config, first, vb.pp("layers"))?,
            norm: Norm::new(config.norm_mode, config.hidden_size, config.norm_eps, vb.pp("norm"))?,
        })
    }

    /// Visits the matmuls of the layers.
    pub fn visit_matmuls(&mut self, visit: &mut MatmulVisitor<'_>) {
        self.stack.visit_matmuls(visit);
    }

    /// Visits the parameters of the layers and the final norm.
    pub fn visit_parameters(&mut self, visit: &mut ParameterVisitor<'_>) {
        self.stack.visit_parameters(visit);
        self.norm.visit_parameters("model.norm", visit);
    }

    /// Returns the layers, first to last.
    pub fn layers(&self) -> &[DecoderLayer] {
        self.stack.layers()
    }

    /// Returns the norm after the last layer.
    pub(super) fn norm(&self) -> &Norm {
        &self.norm
    }

    /// Runs the layers and the final norm. Returns the hidden states, and the attention weights that `pass` requests.
    ///
    /// # Shapes
    /// `x` (batch, seq, hidden_size) -> the same, or only the last positions if [`Pass::last`] is set.
    ///
    /// # Errors
    /// If shapes do not match, or a KV cache is full.
    pub fn forward(&self, x: &Tensor, pass: &mut Pass) -> Result<(Tensor, Vec<Tensor>)> {
        let (x, attentions) = self.stack.forward(x, pass)?;
        Ok((self.norm.forward(&x)?, attentions))
    }
}

/// Language head: the matrix `lm_head`, or the embedding table if both are tied.
#[derive(Debug, Clone)]
pub struct LanguageHead(Linear);

impl LanguageHead {
    /// Reads `lm_head.weight` (vocab_size, hidden_size); `vb` is the root of the checkpoint.
    ///
    /// # Errors
    /// If `vb` lacks the tensor, or the tensor has another shape.
    pub fn new(hidden_size: usize, vocab_size: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self(Linear::new(hidden_size, vocab_size, false, vb.pp("lm_head"))?))
    }

    /// Uses a table (vocab_size, hidden_size) as the head: that of the embedding if both are tied.
    pub fn tied(embed_tokens: &Tensor) -> Self {
        Self(Linear::from_tensors(embed_tokens.clone(), None))
    }

    /// Computes logits: (.., hidden_size) -> (.., vocab_size).
    ///
    /// # Errors
    /// If `x` has another width.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward(x)
    }

    /// Visits the head's linear layer as `lm_head`.
    pub fn visit_matmuls(&mut self, visit: &mut MatmulVisitor<'_>) {
        visit("lm_head", MatmulLayer::Linear(&mut self.0));
    }

    /// Returns the linear layer.
    pub fn linear(&self) -> &Linear {
        &self.0
    }

    /// Returns the weight (vocab_size, hidden_size), for losses that compute logits in chunks.
    ///
    /// # Errors
    /// [`Error::Weights`](crate::Error::Weights) if the weight is quantised.
    pub fn weight(&self) -> Result<&Tensor> {
        self.0.weight()
    }
}

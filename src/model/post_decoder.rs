//! The post-decoder: a language model's layers and final norm, and the language head.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::{DecoderStack, Pass};
use crate::Result;
use crate::config::DecoderConfig;
use crate::nn::{Linear, MatmulLayer, MatmulVisitor, Norm};

/// The layers of a language model and its final norm.
#[derive(Debug, Clone)]
pub struct PostDecoder {
    stack: DecoderStack,
    norm: Norm,
}

impl PostDecoder {
    /// Reads `model.layers` from number `first` on, and `model.norm`; `vb` is the root of the checkpoint.
    ///
    /// In a HaploVL, `first` is the number of the pre-decoder's layers; in a language model, 0.
    ///
    /// # Errors
    /// If the store lacks a tensor, or one has another shape.
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

    /// (batch, seq, hidden_size) -> the same after the final norm, and the attention weights asked for.
    ///
    /// # Errors
    /// If shapes do not fit, or a cache is full.
    pub fn forward(&self, x: &Tensor, pass: &mut Pass) -> Result<(Tensor, Vec<Tensor>)> {
        let (x, attentions) = self.stack.forward(x, pass)?;
        Ok((self.norm.forward(&x)?, attentions))
    }
}

/// The language head `lm_head`, or the embedding table where they are tied.
#[derive(Debug, Clone)]
pub struct LanguageHead(Linear);

impl LanguageHead {
    /// Reads `lm_head.weight` (vocab_size, hidden_size); `vb` is the root of the checkpoint.
    ///
    /// # Errors
    /// If the store lacks the tensor, or it has another shape.
    pub fn new(hidden_size: usize, vocab_size: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self(Linear::new(hidden_size, vocab_size, false, vb.pp("lm_head"))?))
    }

    /// The head that is the embedding table (vocab_size, hidden_size) itself.
    pub fn tied(embed_tokens: &Tensor) -> Self {
        Self(Linear::from_tensors(embed_tokens.clone(), None))
    }

    /// (.., hidden_size) -> logits (.., vocab_size).
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

    /// The weight, (vocab_size, hidden_size), for losses that never hold all logits.
    ///
    /// # Errors
    /// [`Error::Weights`](crate::Error::weights) if it is quantised.
    pub fn weight(&self) -> Result<&Tensor> {
        self.0.weight()
    }
}

//! The post-decoder: a language model's layers and final norm, and the language head.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::{DecoderStack, Pass};
use crate::Result;
use crate::config::DecoderConfig;
use crate::nn::{EachMatrix, Linear, Norm};
use crate::options::Precision;

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

    /// Sets how exact products are, on the CPU.
    pub fn set_precision(&mut self, precision: Precision) {
        self.stack.set_precision(precision);
    }

    /// Calls `f` with every matrix of the layers.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn each_matrix(&mut self, f: &mut EachMatrix<'_>) -> Result<()> {
        self.stack.each_matrix(f)
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

    /// Sets how exact products are, on the CPU.
    pub fn set_precision(&mut self, precision: Precision) {
        self.0.set_precision(precision);
    }

    /// Calls `f` with the matrix.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn each_matrix(&mut self, f: &mut EachMatrix<'_>) -> Result<()> {
        f("lm_head", &mut self.0)
    }

    /// The weight, (vocab_size, hidden_size), for losses that never hold all logits.
    ///
    /// # Errors
    /// [`Error::Weights`](crate::Error::Weights) if it is quantised.
    pub fn weight(&self) -> Result<&Tensor> {
        self.0.weight()
    }
}

//! The post-decoder: a language model's layers and final norm, and the language head.

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::{DecoderStack, Pass};
use crate::Result;
use crate::config::HaploVlConfig;
use crate::nn::{Linear, Norm};

/// The layers of a language model and its final norm.
#[derive(Debug, Clone)]
pub struct PostDecoder {
    stack: DecoderStack,
    norm: Norm,
}

impl PostDecoder {
    /// Reads the layers of `model.layers` behind the pre-decoder's, and `model.norm`; `vb` is the root.
    ///
    /// # Errors
    /// If the store lacks a tensor, or one has another shape.
    pub fn new(config: &HaploVlConfig, vb: VarBuilder) -> Result<Self> {
        let (vb, decoder) = (vb.pp("model"), &config.post_decoder);
        Ok(Self {
            stack: DecoderStack::new(decoder, config.pre_decoder.num_hidden_layers, vb.pp("layers"))?,
            norm: Norm::new(decoder.norm_mode, decoder.hidden_size, decoder.norm_eps, vb.pp("norm"))?,
        })
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
    /// Reads `lm_head.weight`, or uses `embed_tokens` (vocab_size, hidden_size) if the configuration ties them.
    ///
    /// # Errors
    /// If the store lacks the tensor, or it has another shape.
    pub fn new(config: &HaploVlConfig, embed_tokens: &Tensor, vb: VarBuilder) -> Result<Self> {
        if config.tie_word_embeddings {
            return Ok(Self(Linear::from_tensors(embed_tokens.clone(), None)));
        }
        Ok(Self(Linear::new(config.post_decoder.hidden_size, config.vocab_size, false, vb.pp("lm_head"))?))
    }

    /// (.., hidden_size) -> logits (.., vocab_size).
    ///
    /// # Errors
    /// If `x` has another width.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward(x)
    }

    /// The weight, (vocab_size, hidden_size), for losses that never hold all logits.
    pub fn weight(&self) -> &Tensor {
        self.0.weight()
    }
}

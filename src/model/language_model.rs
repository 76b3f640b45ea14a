//! Standalone language model of the Llama family: a source to initialise from, and the text teacher of stage 1.

use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;

use super::pre_decoder_model::angles_at;
use super::{LanguageHead, Pass, PostDecoder};
use crate::batch::SequenceLayout;
use crate::config::ImageAttention;
use crate::nn::{RotaryEmbedding, init, key_ranges};
use crate::weights::LlmConfig;
use crate::{Error, Result};

/// Language model: embedding table, layers, final norm and head, with the tensor names of Hugging Face.
#[derive(Debug, Clone)]
pub struct LanguageModel {
    embed_tokens: Tensor,
    decoder: PostDecoder,
    rotary: Option<RotaryEmbedding>,
    lm_head: LanguageHead,
}

impl LanguageModel {
    /// Reads `model.embed_tokens`, `model.layers`, `model.norm` and, unless tied, `lm_head`; `vb` is the root of the
    /// checkpoint.
    ///
    /// # Errors
    /// If `vb` lacks a tensor, or a tensor has another shape.
    pub fn new(config: &LlmConfig, vb: VarBuilder) -> Result<Self> {
        let hidden = config.decoder.hidden_size;
        let embed_tokens = vb.get_with_hints((config.vocab_size, hidden), "model.embed_tokens.weight", init(hidden))?;
        let lm_head = match config.tie_word_embeddings {
            true => LanguageHead::tied(&embed_tokens),
            false => LanguageHead::new(hidden, config.vocab_size, vb.clone())?,
        };
        let decoder = PostDecoder::new(&config.decoder, 0, vb)?;
        Ok(Self { embed_tokens, decoder, rotary: RotaryEmbedding::of(&config.decoder), lm_head })
    }

    /// Returns the device of the parameters.
    pub fn device(&self) -> &Device {
        self.embed_tokens.device()
    }

    /// Returns the embedding table, (vocab_size, hidden_size).
    pub fn embed_tokens(&self) -> &Tensor {
        &self.embed_tokens
    }

    /// Returns the language head.
    pub fn lm_head(&self) -> &LanguageHead {
        &self.lm_head
    }

    /// Looks up token ids (batch, seq), u32 -> embeddings (batch, seq, hidden_size).
    ///
    /// # Errors
    /// If an id is outside the vocabulary.
    pub fn embed(&self, input_ids: &Tensor) -> Result<Tensor> {
        let (batch, seq) = input_ids.dims2()?;
        Ok(self.embed_tokens.index_select(&input_ids.flatten_all()?, 0)?.reshape((batch, seq, ()))?)
    }

    /// Computes the hidden states after the final norm from embeddings; both have shape (batch, seq, hidden_size).
    ///
    /// # Errors
    /// If `layout` is invalid, or has another number of rows or positions than `embeddings`.
    pub fn hidden_states(&self, embeddings: &Tensor, layout: &SequenceLayout) -> Result<Tensor> {
        let (rows, seq_len, _) = embeddings.dims3()?;
        if (rows, seq_len) != (layout.rows.len(), layout.seq_len) {
            return Err(Error::batch(format!(
                "has {rows} rows of {seq_len} embeddings, but its layout has {} rows of {}",
                layout.rows.len(),
                layout.seq_len
            )));
        }
        layout.validate()?;
        let ranges = key_ranges(layout, ImageAttention::Causal);
        let angles = angles_at(&self.rotary, &layout.positions(), self.device())?;
        Ok(self.decoder.forward(embeddings, &mut Pass::new(&ranges, angles))?.0)
    }
}

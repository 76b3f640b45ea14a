//! Attention maps: how much attention a word of the prompt pays to each part of an image.

use std::ops::Range;

use candle_core::Tensor;

use super::LoadedModel;
use crate::batch::{MultimodalBatch, Visual};
use crate::processor::{AttentionMap, Conversation};
use crate::{Error, Result};

/// A word of a conversation's messages: one whole word, or several in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word<'a> {
    /// The word, in the case in which the messages have it.
    pub text: &'a str,
    /// One of its places in the messages, counted from 0; `None` is the mean over all.
    pub occurrence: Option<usize>,
}

impl<'a> From<&'a str> for Word<'a> {
    fn from(text: &'a str) -> Self {
        Self { text, occurrence: None }
    }
}

impl LoadedModel {
    /// The attention map of a word over each image of the conversation, in the order of images; videos have none.
    ///
    /// `layer` counts as in the checkpoint: first the pre-decoder's layers, then the post-decoder's. Weights are those
    /// of one `head`, or the mean over all heads. A word of several tokens, or all places of a word that occurs several
    /// times, get the mean over their tokens. Memory is quadratic in the length of the prompt.
    ///
    /// # Errors
    /// [`Error::Config`] for a layer or head that the model does not have, [`Error::Prompt`] if no message contains the
    /// word, or not as often, [`Error::Weights`] if attention weights are NaN, and if the conversation does not fit the model.
    pub fn word_attention<'a>(
        &self,
        conversation: &Conversation,
        word: impl Into<Word<'a>>,
        layer: usize,
        head: Option<usize>,
    ) -> Result<Vec<AttentionMap>> {
        let word = word.into();
        self.check_layer_and_head(layer, head)?;
        let words = chosen(self.processor().find_word(conversation, word.text)?, word)?;
        let batch = self.batch(std::slice::from_ref(conversation))?;
        let text = batch.text_positions();
        let positions: Vec<u32> = words.into_iter().flatten().filter_map(|token| text.get(token).copied()).collect();
        self.attention_maps(&batch, positions, layer, head)
    }

    /// The attention map of an answer's first token over each image of the conversation that awaits the answer: the
    /// attention of the position that predicts it, the last one of the prompt. `layer`, `head` and memory are as in
    /// [`Self::word_attention`].
    ///
    /// # Errors
    /// The errors of [`Self::word_attention`], but for those of words.
    pub fn answer_attention(
        &self,
        conversation: &Conversation,
        layer: usize,
        head: Option<usize>,
    ) -> Result<Vec<AttentionMap>> {
        self.check_layer_and_head(layer, head)?;
        let batch = self.batch(std::slice::from_ref(conversation))?;
        let last = batch.layout.seq_len.saturating_sub(1) as u32;
        self.attention_maps(&batch, vec![last], layer, head)
    }

    /// The attention of some positions to each image of a batch of one row.
    fn attention_maps(
        &self,
        batch: &MultimodalBatch,
        positions: Vec<u32>,
        layer: usize,
        head: Option<usize>,
    ) -> Result<Vec<AttentionMap>> {
        let weights = self.attention(batch, positions, layer, head)?;
        check_finite(&weights, layer)?;
        let spans = batch.layout.rows.iter().flatten().flat_map(|sample| &sample.visuals);
        let mut maps = Vec::new();
        for (visual, span) in batch.visuals.iter().zip(spans) {
            if let Visual::Image { size, .. } = visual {
                let weights = weights.get(span.clone()).unwrap_or_default();
                maps.push(AttentionMap::new(&self.model().config().vision, *size, weights)?);
            }
        }
        Ok(maps)
    }

    /// The attention of some positions to each position of a batch of one row, as the mean over the former.
    fn attention(
        &self,
        batch: &MultimodalBatch,
        positions: Vec<u32>,
        layer: usize,
        head: Option<usize>,
    ) -> Result<Vec<f32>> {
        let weights = Tensor::cat(&self.model().hidden_states(batch, &[layer])?.attentions, 0)?.squeeze(0)?;
        let count = positions.len();
        let positions = Tensor::from_vec(positions, count, weights.device())?;
        let by_head = weights.index_select(&positions, 1)?.mean(1)?;
        let weights = match head {
            Some(head) => by_head.get(head)?,
            None => by_head.mean(0)?,
        };
        Ok(weights.to_vec1()?)
    }

    fn check_layer_and_head(&self, layer: usize, head: Option<usize>) -> Result<()> {
        let (pre, post) = (&self.model().config().pre_decoder, &self.model().config().post_decoder);
        let (first_post, layers) = (pre.num_hidden_layers, pre.num_hidden_layers + post.num_hidden_layers);
        if layer >= layers {
            let message = format!("is {layer}, but the model has {layers} layers, {first_post} of them pre-decoder");
            return Err(Error::config("layer", message + ": count from 0"));
        }
        let heads = if layer < first_post { pre.num_attention_heads } else { post.num_attention_heads };
        match head {
            Some(head) if head >= heads => {
                let message = format!("is {head}, but layer {layer} has {heads} heads: count from 0");
                Err(Error::config("head", message))
            }
            _ => Ok(()),
        }
    }
}

/// The tokens of the places that are asked for.
fn chosen(found: Vec<Range<usize>>, Word { text, occurrence }: Word<'_>) -> Result<Vec<Range<usize>>> {
    let Some(place) = occurrence else { return Ok(found) };
    let (place_of, count) = (found.get(place).cloned(), found.len());
    place_of.map(|tokens| vec![tokens]).ok_or_else(|| {
        Error::prompt(format!("has the word `{text}` {count} time(s), but not at place {place}: count from 0"))
    })
}

fn check_finite(weights: &[f32], layer: usize) -> Result<()> {
    match weights.iter().find(|weight| !weight.is_finite()) {
        None => Ok(()),
        Some(found) => Err(Error::weights(format!(
            "the attention weights of layer {layer} (`model.layers.{layer}.self_attn`) are {found}, expected finite \
             ones: check that the model's weights are complete and finite, and if they are f16 \
             or bf16, load them in f32"
        ))),
    }
}

//! One sequence of a batch under way.

use super::session::Decode;
use super::{FinishReason, Sampler, TextStream};
use crate::Result;
use crate::config::GenerationConfig;

/// A row's own handle on the decoder.
type RowDecode<'a> = Box<dyn Fn(&[u32]) -> Result<String> + 'a>;

/// One sequence of the batch.
pub(super) struct SequenceState<'a> {
    sampler: Sampler,
    stream: TextStream<RowDecode<'a>>,
    eos: Vec<u32>,
    pad: u32,
    pub(super) budget: usize,
    pub(super) tokens: Vec<u32>,
    pub(super) text: String,
    pub(super) finish_reason: Option<FinishReason>,
}

impl<'a> SequenceState<'a> {
    pub(super) fn new(
        sampler: Sampler,
        config: &GenerationConfig,
        budget: usize,
        pad: u32,
        decode: Decode<'a>,
    ) -> Self {
        Self {
            sampler,
            stream: TextStream::new(Box::new(move |ids| decode(ids)), &config.stop_strings),
            eos: config.eos_token_id.clone(),
            pad,
            budget,
            tokens: vec![],
            text: String::new(),
            finish_reason: None,
        }
    }

    /// Picks a token and returns what to feed next, which for a finished row is padding that nobody looks at.
    pub(super) fn step(&mut self, logits: &mut [f32]) -> Result<u32> {
        if self.finish_reason.is_some() {
            return Ok(self.pad);
        }
        let id = self.sampler.sample(logits)?;
        self.tokens.push(id);
        if self.eos.contains(&id) {
            self.finish(FinishReason::EndOfSequence(id))?;
            return Ok(id);
        }
        let piece = self.stream.push(id)?;
        self.text.push_str(&piece.text);
        if let Some(stop) = piece.stop {
            self.finish_reason = Some(FinishReason::StopString(stop));
        } else if self.tokens.len() >= self.budget {
            self.finish(FinishReason::Length)?;
        }
        Ok(id)
    }

    /// Shows what was held back; if it holds a stop string after all, that is the reason.
    pub(super) fn finish(&mut self, reason: FinishReason) -> Result<()> {
        let piece = self.stream.finish()?;
        self.text.push_str(&piece.text);
        self.finish_reason = Some(piece.stop.map_or(reason, FinishReason::StopString));
        Ok(())
    }
}

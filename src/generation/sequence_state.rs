//! The state of one sequence of a batch during generation.

use super::session::Decode;
use super::{FinishReason, Sampler, TextStream};
use crate::Result;
use crate::config::GenerationConfig;

/// The decoder as a closure, which an `Arc` alone is not.
type RowDecode = Box<dyn Fn(&[u32]) -> Result<String> + Send + Sync>;

/// State of one sequence of the batch: sampler, text so far, and finish reason.
pub(super) struct SequenceState {
    pub(super) sampler: Sampler,
    stream: TextStream<RowDecode>,
    eos: Vec<u32>,
    pad: u32,
    pub(super) budget: usize,
    pub(super) tokens: Vec<u32>,
    pub(super) text: String,
    pub(super) finish_reason: Option<FinishReason>,
}

impl SequenceState {
    pub(super) fn new(sampler: Sampler, config: &GenerationConfig, budget: usize, pad: u32, decode: Decode) -> Self {
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

    /// Samples a token and returns the id to feed to the model next; for a finished row that is padding.
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

    /// Ends the sequence and adds the text that was held back; if that text holds a stop string, it is the reason.
    pub(super) fn finish(&mut self, reason: FinishReason) -> Result<()> {
        let piece = self.stream.finish()?;
        self.text.push_str(&piece.text);
        self.finish_reason = Some(piece.stop.map_or(reason, FinishReason::StopString));
        Ok(())
    }
}

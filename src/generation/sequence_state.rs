//! The state of one sequence of a batch during generation.

use super::session::Decode;
use super::{AnswerEnd, ConstraintState, FinishReason, Sampler, TextStream};
use crate::config::GenerationConfig;
use crate::{Error, Result};

/// The decoder as a closure, which an `Arc` alone is not.
type RowDecode = Box<dyn Fn(&[u32]) -> Result<String> + Send + Sync>;

/// State of one sequence of the batch: sampler, constraint, text so far, and finish reason.
pub(super) struct SequenceState {
    pub(super) sampler: Sampler,
    constraint: Option<Box<dyn ConstraintState>>,
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
            constraint: None,
            stream: TextStream::new(Box::new(move |ids| decode(ids)), &config.stop_strings),
            eos: config.eos_token_id.clone(),
            pad,
            budget,
            tokens: vec![],
            text: String::new(),
            finish_reason: None,
        }
    }

    /// The same state with a constraint on the answer.
    pub(super) fn with_constraint(self, constraint: Option<Box<dyn ConstraintState>>) -> Self {
        Self { constraint, ..self }
    }

    /// Samples a token and returns the id to feed to the model next; for a finished row that is padding.
    pub(super) fn step(&mut self, logits: &mut [f32]) -> Result<u32> {
        if self.finish_reason.is_some() {
            return Ok(self.pad);
        }
        self.constrain(logits)?;
        let id = self.sampler.sample(logits)?;
        self.tokens.push(id);
        if self.eos.contains(&id) {
            self.finish(FinishReason::EndOfSequence(id))?;
            return Ok(id);
        }
        let is_complete = self.accept(id)?;
        let piece = self.stream.push(id)?;
        self.text.push_str(&piece.text);
        if let Some(stop) = piece.stop {
            self.finish_reason = Some(FinishReason::StopString(stop));
        } else if is_complete {
            self.finish(FinishReason::Complete)?;
        } else if self.tokens.len() >= self.budget {
            self.finish(FinishReason::Length)?;
        }
        Ok(id)
    }

    /// Sets the logits of tokens that the constraint forbids to minus infinity.
    fn constrain(&mut self, logits: &mut [f32]) -> Result<()> {
        let Some(constraint) = &mut self.constraint else { return Ok(()) };
        let allowed = constraint.allowed()?;
        let may_end = constraint.end()? != AnswerEnd::Forbidden;
        let ends = self.eos.iter().map(|&id| (id as usize, logits.get(id as usize).copied()));
        let ends = Vec::from_iter(ends.filter_map(|(id, logit)| Some((id, logit?))));
        allowed.apply(logits);
        ends.into_iter().for_each(|(id, logit)| logits[id] = if may_end { logit } else { f32::NEG_INFINITY });
        if logits.iter().all(|logit| *logit == f32::NEG_INFINITY) {
            let position = self.tokens.len();
            let message = format!("the constraint allows no token at position {position} of the answer, nor its end");
            return Err(Error::generation(message));
        }
        Ok(())
    }

    /// Tells the constraint of a token, and returns whether the answer has to end after it.
    fn accept(&mut self, id: u32) -> Result<bool> {
        let Some(constraint) = &mut self.constraint else { return Ok(false) };
        constraint.accept(id)?;
        Ok(constraint.end()? == AnswerEnd::Required)
    }

    /// Ends the sequence and adds the text that was held back; if that text holds a stop string, it is the reason.
    pub(super) fn finish(&mut self, reason: FinishReason) -> Result<()> {
        let piece = self.stream.finish()?;
        self.text.push_str(&piece.text);
        self.finish_reason = Some(piece.stop.map_or(reason, FinishReason::StopString));
        Ok(())
    }
}

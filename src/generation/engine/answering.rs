//! A request that was accepted, whatever its stage: the state of its answer, and the way to its caller.

use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use super::logprobs::token_logprob;
use super::{Event, Finished, TokenLogprob};
use crate::Result;
use crate::generation::output::Clock;
use crate::generation::sequence_state::SequenceState;
use crate::generation::{CancelToken, FinishReason};

/// A request's answer under way.
pub(super) struct Answering {
    pub(super) state: SequenceState,
    /// Number of alternatives to report beside each token.
    pub(super) logprobs: Option<usize>,
    /// Tokens since the last text.
    pub(super) unreported: Vec<TokenLogprob>,
    pub(super) prompt_tokens: usize,
    pub(super) cached_tokens: usize,
    /// Runs since the submission.
    pub(super) clock: Clock,
    /// When the prefill began.
    pub(super) started: Option<Instant>,
    pub(super) last_token: Option<Instant>,
    pub(super) deadline: Option<Instant>,
    pub(super) cancel: CancelToken,
    pub(super) events: Sender<Event>,
}

impl Answering {
    /// The reason to end the request now, if there is one.
    pub(super) fn interruption(&self) -> Option<FinishReason> {
        if self.cancel.is_cancelled() {
            return Some(FinishReason::Cancelled);
        }
        self.deadline.is_some_and(|deadline| deadline <= Instant::now()).then_some(FinishReason::TimedOut)
    }

    /// Time since the submission.
    pub(super) fn elapsed(&self) -> Duration {
        self.clock.beginning().elapsed()
    }

    /// Records the start of the prefill, after `cached_tokens` of the prompt.
    pub(super) fn start(&mut self, cached_tokens: usize) {
        self.cached_tokens = cached_tokens;
        self.started = Some(Instant::now());
        self.send(Event::Started { prompt_tokens: self.prompt_tokens, cached_tokens });
    }

    /// Time from the submission to the start, or to now.
    pub(super) fn queue_time(&self) -> Duration {
        self.started.unwrap_or_else(Instant::now) - self.clock.beginning()
    }

    /// Samples a token from its logits, reports new text, and returns the id and the time since the token before.
    pub(super) fn take_token(&mut self, mut logits: Vec<f32>) -> Result<(u32, Option<Duration>)> {
        let raw = self.logprobs.map(|count| (count, logits.clone()));
        let shown = self.state.text.len();
        let id = self.state.step(&mut logits)?;
        if let Some((count, raw)) = raw.filter(|_| !matches!(self.reason(), Some(FinishReason::EndOfSequence(_)))) {
            self.unreported.push(token_logprob(&raw, id, count));
        }
        self.clock.step(self.state.tokens.len());
        self.report(shown);
        let now = Instant::now();
        Ok((id, self.last_token.replace(now).map(|last| now - last)))
    }

    /// The reason why the answer ended, if it has.
    pub(super) fn reason(&self) -> Option<&FinishReason> {
        self.state.finish_reason.as_ref()
    }

    /// Ends the answer, and reports text that was held back.
    pub(super) fn finish(&mut self, reason: FinishReason) -> Result<()> {
        let shown = self.state.text.len();
        self.state.finish(reason)?;
        self.report(shown);
        Ok(())
    }

    /// Reports the text from byte `shown` on. Tokens of a stop string alone are in no report.
    fn report(&mut self, shown: usize) {
        let text = self.state.text.get(shown..).unwrap_or_default().to_owned();
        match self.reason() {
            None if text.is_empty() => return,
            Some(FinishReason::StopString(_)) if text.is_empty() => return,
            Some(_) if text.is_empty() && self.unreported.is_empty() => return,
            _ => {}
        }
        let tokens = std::mem::take(&mut self.unreported);
        self.send(Event::Text { text, tokens });
    }

    /// The last event of an answer that has ended.
    pub(super) fn finished(&self, reason: FinishReason) -> Event {
        let timings = self.clock.timings(self.prompt_tokens, self.cached_tokens, self.state.tokens.len());
        let queue_seconds = self.queue_time().as_secs_f64();
        Event::Finished(Finished { reason, tokens: self.state.tokens.clone(), timings, queue_seconds })
    }

    /// Sends an event; a caller that is gone has cancelled the request already.
    pub(super) fn send(&self, event: Event) {
        let _ = self.events.send(event);
    }
}

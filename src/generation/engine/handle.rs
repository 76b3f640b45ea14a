//! The caller's side of a request.

use std::sync::mpsc::Receiver;
use std::thread;

use super::{Event, Finished};
use crate::generation::{Answer, CancelToken, GeneratedSequence};
use crate::{Error, Result};

/// A request under way: an iterator of its events, which waits for the next one.
///
/// Dropping the handle cancels the request within one token. Events wait here without limit but that of the answer's
/// tokens, so that a slow reader holds up no one else.
#[derive(Debug)]
pub struct Handle {
    events: Receiver<Event>,
    cancel: CancelToken,
}

impl Handle {
    pub(super) fn new(events: Receiver<Event>, cancel: CancelToken) -> Self {
        Self { events, cancel }
    }

    /// Cancels the request within one token; no event follows.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// A token that cancels the request from elsewhere.
    pub fn cancel_token(&self) -> CancelToken {
        self.cancel.clone()
    }

    /// The whole answer; after [`Self::cancel`] and after a time-out, the part that was generated, with that reason.
    ///
    /// # Errors
    /// The error of [`Event::Failed`].
    pub fn answer(self) -> Result<Answer> {
        let mut answer = String::new();
        while let Ok(event) = self.events.recv() {
            match event {
                Event::Started { .. } => {}
                Event::Text { text, .. } => answer.push_str(&text),
                Event::Finished(finished) => return Ok(finished.answer(answer)),
                Event::Failed(error) => return Err(error),
            }
        }
        Err(Error::generation("the engine ended before the answer did; this is a bug"))
    }

    /// Calls `sink` with each event on a thread of its own, so that a slow one holds up no other request, until it
    /// returns false, which cancels the request, as does a panic of it.
    ///
    /// # Errors
    /// [`Error::Generation`] if no thread can be started.
    pub fn forward(mut self, mut sink: impl FnMut(Event) -> bool + Send + 'static) -> Result<CancelToken> {
        let cancel = self.cancel_token();
        let thread = thread::Builder::new().name("engine-sink".into());
        let spawned = thread.spawn(move || while self.next().is_some_and(&mut sink) {});
        match spawned {
            Ok(_) => Ok(cancel),
            Err(e) => Err(Error::generation(format!("a thread for events cannot be started: {e}")).caused_by(e)),
        }
    }
}

impl Iterator for Handle {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        if self.cancel.is_cancelled() {
            return None;
        }
        let event = self.events.recv().ok();
        event.filter(|_| !self.cancel.is_cancelled())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Finished {
    fn answer(self, text: String) -> Answer {
        let sequence = GeneratedSequence { text, tokens: self.tokens, finish_reason: self.reason };
        Answer { sequence, timings: self.timings }
    }
}

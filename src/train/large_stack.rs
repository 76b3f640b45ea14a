//! Threads with a stack that is large enough for the graphs of deep models.

use crate::{Error, Result};

/// Stack size in bytes: candle traverses and drops graphs recursively.
pub(super) const STACK_BYTES: usize = 256 << 20;

/// Runs `f` on a thread with a stack large enough for the graphs of deep models, in the `tracing` span and with the
/// `tracing` subscriber of the caller. [`Run::train`](super::Run::train) calls it itself; wrap your own use of a
/// [`Trainer`](super::Trainer) in it.
///
/// # Errors
/// Those of `f`, and [`Error::Training`] if the thread cannot be started or panics.
pub fn on_large_stack<T: Send>(f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let (subscriber, span) = (tracing::dispatcher::get_default(Clone::clone), tracing::Span::current());
    let traced = || tracing::dispatcher::with_default(&subscriber, || span.in_scope(f));
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("trainer".into()).stack_size(STACK_BYTES);
        let handle = thread
            .spawn_scoped(scope, traced)
            .map_err(|e| Error::training(format!("a thread cannot be started: {e}")).caused_by(e))?;
        handle.join().map_err(|_| Error::training("the training thread panicked; this is a bug"))?
    })
}

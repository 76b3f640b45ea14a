//! Guarded calls of the tokenizers library, which panics on some invalid `tokenizer.json`.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// Whether this thread is in a guarded call.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs a call and converts a panic into an error, without a report on stderr.
///
/// Panics come from regular expressions that exceed their limit, and from components that lack fields.
pub(super) fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    silence_guarded_panics();
    let before = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(call));
    GUARDED.set(before);
    result.unwrap_or_else(|_| Err("its tokenizer.json makes the tokenizers library fail".into()))
}

/// Installs a panic hook that reports panics outside of guarded calls only. The hook is installed once and checks its
/// own thread, so panics of other threads are reported as before.
fn silence_guarded_panics() {
    static SET: Once = Once::new();
    // A thread that is panicking may not change the hook; a later call sets it.
    if std::thread::panicking() {
        return;
    }
    SET.call_once(|| {
        let report = take_hook();
        set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                report(info);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::panic, reason = "what is tested")]
    fn panics_become_errors_and_later_calls_work() {
        let failed = guarded::<()>(|| panic!("no report of this")).unwrap_err();
        assert!(failed.to_string().contains("makes the tokenizers library fail"));
        assert!(!GUARDED.get());
        assert_eq!(guarded(|| Ok(1)).unwrap(), 1);
    }
}

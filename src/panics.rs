//! Panics of libraries on invalid files, which become errors without a report on stderr.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// Whether this thread is in a guarded call.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// The result of a call, or `None` if it panics.
pub(crate) fn catch<T>(call: impl FnOnce() -> T) -> Option<T> {
    silence_guarded_panics();
    let before = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(call));
    GUARDED.set(before);
    result.ok()
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
        assert!(catch::<()>(|| panic!("no report of this")).is_none());
        assert!(!GUARDED.get());
        assert_eq!(catch(|| 1), Some(1));
    }
}

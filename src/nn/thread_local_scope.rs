//! Thread-local values that are set while a function runs.

use std::cell::RefCell;
use std::thread::LocalKey;

/// Runs `f` with `value` in `place`; returns the result of `f` and the value. The former value is restored, even if `f`
/// panics.
pub(super) fn scoped<T, R>(
    place: &'static LocalKey<RefCell<Option<T>>>,
    value: T,
    f: impl FnOnce() -> R,
) -> (R, Option<T>) {
    let _outer = Restore { place, outer: place.replace(Some(value)) };
    (f(), place.take())
}

/// Guard that restores the former value.
struct Restore<T: 'static> {
    place: &'static LocalKey<RefCell<Option<T>>>,
    outer: Option<T>,
}

impl<T> Drop for Restore<T> {
    fn drop(&mut self) {
        self.place.set(self.outer.take());
    }
}

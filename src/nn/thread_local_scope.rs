//! What code finds on its thread while something runs.

use std::cell::RefCell;
use std::thread::LocalKey;

/// Runs `f` with `value` in `place`, and takes it out again with what `f` gives. What was there before is put back, also if
/// `f` panics.
pub(super) fn scoped<T, R>(
    place: &'static LocalKey<RefCell<Option<T>>>,
    value: T,
    f: impl FnOnce() -> R,
) -> (R, Option<T>) {
    let _outer = Restore { place, outer: place.replace(Some(value)) };
    (f(), place.take())
}

struct Restore<T: 'static> {
    place: &'static LocalKey<RefCell<Option<T>>>,
    outer: Option<T>,
}

impl<T> Drop for Restore<T> {
    fn drop(&mut self) {
        self.place.set(self.outer.take());
    }
}

//! Guarded calls of the tokenizers library, which panics on some invalid `tokenizer.json`.

use crate::panics::catch;

/// Runs a call and converts a panic into an error, without a report on stderr.
///
/// Panics come from regular expressions that exceed their limit, and from components that lack fields.
pub(super) fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    catch(call).unwrap_or_else(|| Err("its tokenizer.json makes the tokenizers library fail".into()))
}

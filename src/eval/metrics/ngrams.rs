//! Words and n-grams of tokenised captions.

use std::collections::HashMap;

use super::python_text::words;

/// Longest n-gram.
pub(super) const MAX_N: usize = 4;

/// Number of times that each n-gram of one to four words is in a caption.
#[derive(Debug, Clone, Default)]
pub(super) struct NgramCounts<'a> {
    /// Number of words.
    pub(super) words: usize,
    pub(super) counts: HashMap<Vec<&'a str>, usize>,
}

impl<'a> NgramCounts<'a> {
    pub(super) fn of(caption: &'a str) -> Self {
        let words = Vec::from_iter(words(caption));
        let mut counts = HashMap::new();
        for n in 1..=MAX_N {
            words.windows(n).for_each(|ngram| *counts.entry(ngram.to_vec()).or_default() += 1);
        }
        Self { words: words.len(), counts }
    }
}

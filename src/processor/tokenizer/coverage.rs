//! Coverage of texts by a vocabulary: words that it lacks.

use std::collections::HashSet;
use std::ops::Range;

use tokenizers::ModelWrapper;

use super::{TextTokenizer, Token, encode, grow};
use crate::Result;

/// Words of a text, and those that the vocabulary lacks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Coverage<'t> {
    /// Number of words.
    pub(crate) words: usize,
    /// Words with a part that becomes the unknown token.
    pub(crate) unknown: Vec<&'t str>,
    /// Words with a character that falls to bytes, without those that are unknown.
    pub(crate) bytes: Vec<&'t str>,
}

/// Ids that tell words that a vocabulary lacks.
#[derive(Debug)]
pub(crate) struct CoverageCheck<'k> {
    tokenizer: &'k TextTokenizer,
    unknown: Option<u32>,
    bytes: HashSet<u32>,
    word_level: bool,
}

impl<'k> CoverageCheck<'k> {
    pub(crate) fn new(tokenizer: &'k TextTokenizer) -> Self {
        let model = tokenizer.inner().get_model();
        let falls_back = match model {
            ModelWrapper::BPE(model) => model.byte_fallback,
            ModelWrapper::Unigram(model) => model.byte_fallback(),
            _ => false,
        };
        let byte = |byte: u8| tokenizer.id(&format!("<0x{byte:02X}>"));
        let bytes = if falls_back { (0..=u8::MAX).filter_map(byte).collect() } else { HashSet::new() };
        let word_level = matches!(model, ModelWrapper::WordLevel(_));
        Self { tokenizer, unknown: tokenizer.unknown_id(), bytes, word_level }
    }

    /// Whether a text can have words that the vocabulary lacks: not of a byte-level vocabulary.
    pub(crate) fn can_lack(&self) -> bool {
        self.unknown.is_some() || !self.bytes.is_empty()
    }

    /// Words of a text. A word is what the tokenizer of a word-level model takes for one, and elsewhere a run of letters
    /// and digits or of other characters.
    pub(crate) fn of<'t>(&self, text: &'t str) -> Result<Coverage<'t>> {
        self.tokenizer.check_bytes(text)?;
        let tokens = encode(self.tokenizer.plain(), text, 0..text.len())?;
        let words = if self.word_level { tokens.iter().map(|t| t.range.clone()).collect() } else { runs(text) };
        let mut coverage = Coverage { words: words.len(), ..Coverage::default() };
        let mut first = 0;
        for range in words {
            let Some(word) = text.get(range.clone()) else { continue };
            first += tokens[first..].iter().take_while(|token| token.range.end <= range.start).count();
            let of_word = || tokens[first..].iter().take_while(|token| token.range.start < range.end);
            if of_word().any(|token| Some(token.id) == self.unknown) {
                coverage.unknown.push(word);
            } else if of_word().any(|token: &Token| self.bytes.contains(&token.id)) {
                coverage.bytes.push(word);
            }
        }
        Ok(coverage)
    }

    /// The form in which a word is added, which is the same for its spellings in other case if the tokenizer ignores
    /// case.
    pub(crate) fn key(&self, word: &str) -> Result<String> {
        if self.word_level { grow::normalized(self.tokenizer.inner(), word) } else { Ok(word.to_string()) }
    }
}

/// Ranges of the words of a text.
fn runs(text: &str) -> Vec<Range<usize>> {
    let kind = |c: char| if c.is_whitespace() { 0 } else { 1 + u8::from(c.is_alphanumeric() || c == '_') };
    let mut runs: Vec<(u8, Range<usize>)> = Vec::new();
    for (at, c) in text.char_indices() {
        let (kind, end) = (kind(c), at + c.len_utf8());
        match runs.last_mut() {
            Some((last, range)) if *last == kind => range.end = end,
            _ => runs.push((kind, at..end)),
        }
    }
    runs.into_iter().filter(|(kind, _)| *kind > 0).map(|(_, range)| range).collect()
}

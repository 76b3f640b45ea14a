//! Token positions of a word in a prompt.

use std::ops::Range;

use super::conversation::Conversation;
use super::processor::Processor;
use crate::{Error, Result};

impl Processor {
    /// Finds the tokens of each occurrence of `word` (one whole word, or several in a row) in messages, in order.
    ///
    /// Tokens are counted over the text of the sequence, without images and videos;
    /// [`text_positions`](crate::batch::MultimodalBatch::text_positions) gives their positions in the batch.
    ///
    /// # Errors
    /// [`Error::Prompt`] if no message contains the word, and the errors of [`Self::sequence`].
    pub fn find_word(&self, conversation: &Conversation, word: &str) -> Result<Vec<Range<usize>>> {
        let (prompt, tokens) = self.tokens(conversation, true)?;
        let text = Vec::from_iter(tokens.iter().filter(|token| !self.is_placeholder(token.id)));
        let said = prompt.spans.iter().flat_map(|span| {
            let words = prompt.text.get(span.range.clone()).map(|said| whole_words(said, word));
            let start = span.range.start;
            words.into_iter().flatten().map(move |range| start + range.start..start + range.end)
        });
        let tokens_of = |bytes: Range<usize>| {
            let first = text.partition_point(|token| token.range.end <= bytes.start);
            first..text.partition_point(|token| token.range.start < bytes.end).max(first)
        };
        let found: Vec<_> = said.map(tokens_of).filter(|tokens| !tokens.is_empty()).collect();
        if found.is_empty() {
            let message = format!("does not contain the word `{word}`: choose one that it contains, in the same case");
            return Err(Error::prompt(message));
        }
        Ok(found)
    }
}

/// Occurrences of `word` in `text` that are not part of a longer word.
fn whole_words(text: &str, word: &str) -> Vec<Range<usize>> {
    let joins = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    text.match_indices(word)
        .map(|(start, found)| start..start + found.len())
        .filter(|range| !range.is_empty())
        .filter(|range| !joins(text[..range.start].chars().next_back()) && !joins(text[range.end..].chars().next()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::whole_words;

    #[test]
    fn parts_of_longer_words_do_not_count() {
        assert_eq!(whole_words("a cat, a catkin, a wildcat and cat", "cat"), [2..5, 31..34]);
        assert_eq!(whole_words("the red cat and a red cat", "red cat"), [4..11, 18..25]);
        assert!(whole_words("über", "ber").is_empty());
        assert!(whole_words("any", "").is_empty());
    }
}

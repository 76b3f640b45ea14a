//! Token ids to text that can be shown: whole characters, and no part of a stop string.

use super::detokenizer::Detokenizer;
use super::stop::{StopStrings, TextPiece};
use crate::Result;

/// Incremental decoding followed by the search for stop strings.
#[derive(Debug, Clone)]
pub struct TextStream<F> {
    detokenizer: Detokenizer<F>,
    stops: StopStrings,
}

impl<F: Fn(&[u32]) -> Result<String>> TextStream<F> {
    /// A stream over `decode` that ends at any of `stop_strings`.
    pub fn new(decode: F, stop_strings: &[String]) -> Self {
        Self { detokenizer: Detokenizer::new(decode), stops: StopStrings::new(stop_strings) }
    }

    /// Takes the next token id and returns the text that can be shown now.
    ///
    /// # Errors
    /// The errors of the decoder.
    pub fn push(&mut self, id: u32) -> Result<TextPiece> {
        Ok(self.stops.push(&self.detokenizer.push(id)?))
    }

    /// Ends the text and returns the part that was held back.
    ///
    /// # Errors
    /// The errors of the decoder.
    pub fn finish(&mut self) -> Result<TextPiece> {
        let mut piece = self.stops.push(&self.detokenizer.flush()?);
        if piece.stop.is_none() {
            piece.text.push_str(&self.stops.flush());
        }
        Ok(piece)
    }
}

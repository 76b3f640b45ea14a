//! Token ids to text, one token at a time.

use crate::Result;

/// What a decoder writes for bytes that are no UTF-8, such as the first bytes of a longer character.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// Most tokens that may wait for their text. A character needs at most four, so this is reached only by a run of
/// tokens without text or of broken bytes.
const MAX_WAITING: usize = 16;

/// Decodes a growing list of ids so that the pieces together are the text of the whole.
///
/// Tokens cannot be decoded one by one: a character may be spread over several, and SentencePiece-like decoders drop
/// the space before the first token they see. So each new token is decoded together with the few before it, and the
/// text is what it adds; the window then moves on. The cost of a token does not depend on how many came before.
#[derive(Debug, Clone)]
pub struct Detokenizer<F> {
    decode: F,
    /// The last tokens whose text is out, for context, and then those whose text is not.
    window: Vec<u32>,
    /// How many tokens of the window are context only.
    context: usize,
    /// What of the window's text is out.
    shown: String,
}

impl<F: Fn(&[u32]) -> Result<String>> Detokenizer<F> {
    /// A detokenizer over `decode`, which turns ids into text and special tokens into nothing.
    pub fn new(decode: F) -> Self {
        Self { decode, window: Vec::new(), context: 0, shown: String::new() }
    }

    /// Takes the next id and returns the text that is certain now; empty while a character is incomplete.
    ///
    /// # Errors
    /// Those of the decoder.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.window.push(id);
        let text = self.text()?;
        let complete = text.trim_end_matches(REPLACEMENT).len();
        let full = self.window.len() - self.context >= MAX_WAITING;
        let piece = self.show(&text, if full { text.len() } else { complete });
        if self.shown.len() == text.len() && !piece.is_empty() {
            self.advance()?;
        } else if full {
            self.window.truncate(self.context);
        }
        Ok(piece)
    }

    /// The text of an incomplete character, at the end: as the decoder writes it.
    ///
    /// # Errors
    /// Those of the decoder.
    pub fn flush(&mut self) -> Result<String> {
        let text = self.text()?;
        Ok(self.show(&text, text.len()))
    }

    /// The text of the window. A decoder may write the context otherwise when a stray byte follows: what is out cannot
    /// be found in that, so that the context is given up.
    fn text(&mut self) -> Result<String> {
        let text = (self.decode)(&self.window)?;
        if text.len() <= self.shown.len() || text.starts_with(&self.shown) {
            return Ok(text);
        }
        self.window.drain(..self.context);
        (self.context, self.shown) = (0, String::new());
        (self.decode)(&self.window)
    }

    /// The text from what is out up to byte `to`, which is out then.
    fn show(&mut self, text: &str, to: usize) -> String {
        // A decoder may take text back while a character is incomplete; it comes again when the character is whole.
        let piece = text.get(self.shown.len()..to).unwrap_or_default().to_string();
        self.shown.push_str(&piece);
        piece
    }

    /// Drops the old context; the tokens behind it are the new one.
    fn advance(&mut self) -> Result<()> {
        self.window.drain(..self.context);
        self.context = self.window.len();
        self.shown = (self.decode)(&self.window)?;
        Ok(())
    }
}

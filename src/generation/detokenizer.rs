//! Incremental decoding: token ids to text, one token at a time.

use crate::Result;

/// The character that a decoder writes for invalid UTF-8, such as the first bytes of a longer character.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// Most tokens that may wait for their text. A character needs at most four, so only a run of tokens without text, or
/// of invalid bytes, reaches this limit.
const MAX_WAITING: usize = 16;

/// An incremental decoder of token ids, whose pieces together are the text of the whole sequence.
///
/// Tokens cannot be decoded one by one: a character may span several tokens, and SentencePiece-like decoders drop the
/// space before their first token. Each new token is therefore decoded together with a window of the few tokens before
/// it, and the piece is the text that it adds. The cost of a token does not depend on how many came before.
#[derive(Debug, Clone)]
pub struct Detokenizer<F> {
    decode: F,
    /// The last tokens whose text was returned, as context, followed by the tokens whose text is pending.
    window: Vec<u32>,
    /// Number of leading tokens of the window that are context only.
    context: usize,
    /// The part of the window's text that was returned.
    shown: String,
}

impl<F: Fn(&[u32]) -> Result<String>> Detokenizer<F> {
    /// A detokenizer over `decode`, which turns token ids into text and leaves out special tokens.
    pub fn new(decode: F) -> Self {
        Self { decode, window: Vec::new(), context: 0, shown: String::new() }
    }

    /// Takes the next token id and returns the text that is complete now; empty while a character is incomplete.
    ///
    /// # Errors
    /// The errors of the decoder.
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

    /// The text of an incomplete character at the end of the sequence, as the decoder writes it.
    ///
    /// # Errors
    /// The errors of the decoder.
    pub fn flush(&mut self) -> Result<String> {
        let text = self.text()?;
        Ok(self.show(&text, text.len()))
    }

    /// The text of the window. When a stray byte follows, a decoder may write the context differently from the text
    /// that was returned; the context is dropped then.
    fn text(&mut self) -> Result<String> {
        let text = (self.decode)(&self.window)?;
        if text.len() <= self.shown.len() || text.starts_with(&self.shown) {
            return Ok(text);
        }
        self.window.drain(..self.context);
        (self.context, self.shown) = (0, String::new());
        (self.decode)(&self.window)
    }

    /// The text from the end of the returned part to byte `to`, which is marked as returned.
    fn show(&mut self, text: &str, to: usize) -> String {
        // A decoder may take text back while a character is incomplete; it comes again when the character is whole.
        let piece = text.get(self.shown.len()..to).unwrap_or_default().to_string();
        self.shown.push_str(&piece);
        piece
    }

    /// Drops the old context; the tokens after it become the new one.
    fn advance(&mut self) -> Result<()> {
        self.window.drain(..self.context);
        self.context = self.window.len();
        self.shown = (self.decode)(&self.window)?;
        Ok(())
    }
}

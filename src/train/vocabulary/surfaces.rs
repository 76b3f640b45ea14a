//! Texts that tokens stand for, however their vocabulary spells them: `Ġred`, `▁red`, and `red` where tokens are words, are
//! all " red".

use std::collections::HashMap;

use crate::processor::TextTokenizer;

/// Text before a token, behind which its own space is part of the decoded text.
const ANCHOR: &str = "a";

/// The tokens of a vocabulary behind another token.
pub(super) struct Surfaces<'t> {
    tokenizer: &'t TextTokenizer,
    anchor: Vec<u32>,
    /// The anchor as it is decoded.
    before: String,
}

impl<'t> Surfaces<'t> {
    pub fn new(tokenizer: &'t TextTokenizer) -> Self {
        let anchor = tokenizer.encode(ANCHOR).unwrap_or_default();
        let before = tokenizer.decode(&anchor, false).unwrap_or_default();
        Self { tokenizer, anchor, before }
    }

    /// The text of a token with its space, if it has one; `None` for a part of a character, which has no text.
    pub fn text(&self, id: u32) -> Option<String> {
        let decoded = self.tokenizer.decode(&[&self.anchor[..], &[id]].concat(), false).ok()?;
        let text = decoded.strip_prefix(&self.before)?;
        (!text.is_empty() && !text.contains('\u{FFFD}')).then(|| text.to_string())
    }

    /// Ids by text. Of the tokens of one text the last one counts: bytes come before pieces.
    pub fn ids(&self) -> HashMap<String, u32> {
        let size = u32::try_from(self.tokenizer.size()).unwrap_or(u32::MAX);
        let ids = (0..size).filter(|id| !self.tokenizer.is_special(*id));
        ids.filter_map(|id| Some((self.text(id)?, id))).collect()
    }

    /// Known pieces of a text.
    pub fn pieces(&self, text: &str) -> Vec<u32> {
        let behind = || self.tokenizer.encode(&format!("{ANCHOR}{text}")).ok();
        let behind = text.starts_with(' ').then(behind).flatten();
        let pieces = behind.as_ref().and_then(|ids| Some(ids.strip_prefix(&self.anchor[..])?.to_vec()));
        let mut pieces = pieces.unwrap_or_else(|| self.tokenizer.encode(text).unwrap_or_default());
        pieces.retain(|id| !self.tokenizer.is_unknown(*id));
        pieces
    }
}

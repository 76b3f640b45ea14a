//! What each token adds to a text, in bytes.

use std::collections::HashMap;

use tokenizers::DecoderWrapper;

use super::TextTokenizer;
use crate::{Error, Result};

/// The bytes that each token adds to a decoded text, as constraints on the form of answers need them.
///
/// A token may be a part of a character. Tokens that add nothing (control tokens, ids without a token), and the rare ones
/// whose bytes depend on the tokens around them, have no bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenBytes {
    behind: Vec<Vec<u8>>,
    /// Of those that differ.
    first: HashMap<u32, Vec<u8>>,
}

impl TokenBytes {
    /// The bytes of each id behind other tokens.
    pub fn bytes(&self) -> &[Vec<u8>] {
        &self.behind
    }

    /// The ids whose bytes are others at the beginning of a text, and these bytes: with SentencePiece, and with whole
    /// words, a text loses the space before its first token.
    pub fn first_bytes(&self) -> &HashMap<u32, Vec<u8>> {
        &self.first
    }

    /// The first printable ASCII character that no token is alone, if there is one. A vocabulary with all of them can go on
    /// after any beginning of an ASCII text.
    pub fn missing_ascii(&self) -> Option<char> {
        let alone = |byte: u8| self.behind.iter().any(|bytes| *bytes == [byte]);
        (b' '..=b'~').find(|byte| !alone(*byte)).map(char::from)
    }
}

impl TextTokenizer {
    /// The bytes of the ids below `vocab_size`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer fails, or if no token is a letter or a word.
    pub fn token_bytes(&self, vocab_size: usize) -> Result<TokenBytes> {
        let ids = 0..vocab_size.min(self.size()) as u32;
        let (mut behind, mut first) = (Vec::with_capacity(vocab_size), HashMap::new());
        if self.is_byte_level() {
            behind.extend(ids.map(|id| self.byte_level_bytes(id)));
        } else {
            let word = self.plain_word(vocab_size)?;
            for id in ids {
                let (own, alone) = (self.bytes_behind(Some(word), id)?, self.bytes_behind(None, id)?);
                if own != alone {
                    first.insert(id, alone);
                }
                behind.push(own);
            }
        }
        behind.resize(vocab_size, Vec::new());
        Ok(TokenBytes { behind, first })
    }

    fn is_byte_level(&self) -> bool {
        match self.inner().get_decoder() {
            Some(DecoderWrapper::ByteLevel(_)) => true,
            Some(DecoderWrapper::Sequence(steps)) => matches!(steps.get_decoders(), [DecoderWrapper::ByteLevel(_)]),
            _ => false,
        }
    }

    fn byte_level_bytes(&self, id: u32) -> Vec<u8> {
        let token = self.inner().id_to_token(id).filter(|_| !self.is_special(id)).unwrap_or_default();
        // A token with other characters is an added one, written as it is.
        token.chars().map(byte_of).collect::<Option<_>>().unwrap_or_else(|| token.into_bytes())
    }

    /// A token that is decoded as ASCII letters, whatever stands behind it.
    fn plain_word(&self, vocab_size: usize) -> Result<u32> {
        for id in 0..vocab_size.min(self.size()) as u32 {
            let text = self.decode(&[id], true)?;
            if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphabetic()) {
                return Ok(id);
            }
        }
        Err(Error::tokenizer("has no token of ASCII letters, so that the bytes of its tokens cannot be told"))
    }

    /// The bytes that a token adds behind the token `before`, or at the beginning of a text.
    fn bytes_behind(&self, before: Option<u32>, id: u32) -> Result<Vec<u8>> {
        let token = self.inner().id_to_token(id).filter(|_| !self.is_special(id));
        if let Some(byte) = token.as_deref().and_then(byte_token) {
            return Ok(if self.has_byte_fallback() { vec![byte] } else { Vec::new() });
        }
        let before = Vec::from_iter(before);
        let (text, both) = (self.decode(&before, true)?, self.decode(&[before.as_slice(), &[id]].concat(), true)?);
        let added = both.strip_prefix(&text).unwrap_or_default();
        Ok(if added.contains(char::REPLACEMENT_CHARACTER) { Vec::new() } else { added.into() })
    }

    fn has_byte_fallback(&self) -> bool {
        match self.inner().get_decoder() {
            Some(DecoderWrapper::ByteFallback(_)) => true,
            Some(DecoderWrapper::Sequence(steps)) => {
                steps.get_decoders().iter().any(|step| matches!(step, DecoderWrapper::ByteFallback(_)))
            }
            _ => false,
        }
    }
}

/// The byte that byte-level BPE writes as this character: printable bytes of Latin-1 as themselves, and the others in
/// order from U+0100 on.
fn byte_of(character: char) -> Option<u8> {
    let code = match u32::from(character) {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => code,
        code @ 0x100..=0x120 => code - 0x100,
        code @ 0x121..=0x142 => code - 0x121 + 0x7F,
        0x143 => 0xAD,
        _ => return None,
    };
    u8::try_from(code).ok()
}

/// The byte of a token such as `<0x0A>`.
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};
    use tokenizers::Tokenizer;

    use super::*;

    fn tokenizer(file: serde_json::Value) -> TextTokenizer {
        TextTokenizer::new(file.to_string().parse::<Tokenizer>().unwrap(), Map::new()).unwrap()
    }

    /// Checks that the bytes of tokens together are the decoded text, for texts of these tokens.
    fn check(tokenizer: &TextTokenizer, texts: &[&[u32]]) {
        let known = tokenizer.token_bytes(tokenizer.size()).unwrap();
        for ids in texts {
            let behind = |id: &u32| known.bytes()[*id as usize].clone();
            let mut bytes = known.first_bytes().get(&ids[0]).cloned().unwrap_or_else(|| behind(&ids[0]));
            bytes.extend(ids[1..].iter().flat_map(behind));
            assert_eq!(bytes, tokenizer.decode(ids, true).unwrap().into_bytes(), "{ids:?}");
        }
    }

    #[test]
    fn byte_level_alphabet_covers_every_byte_once() {
        let mut bytes = Vec::from_iter(('\0'..='\u{200}').filter_map(byte_of));
        bytes.sort_unstable();
        assert_eq!(bytes, Vec::from_iter(0..=255));
        // Known from published vocabularies: space, newline, and the two bytes of é.
        assert_eq!(['Ġ', 'Ċ', 'Ã', '©'].map(byte_of), [b' ', b'\n', 0xC3, 0xA9].map(Some));
    }

    #[test]
    fn byte_level_tokens_may_be_parts_of_characters() {
        let tokenizer = tokenizer(json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
            "added_tokens": [
                { "id": 5, "content": "<end>", "special": true, "normalized": false, "single_word": false, "lstrip": false, "rstrip": false },
                { "id": 6, "content": "<a tool>", "special": false, "normalized": false, "single_word": false, "lstrip": false, "rstrip": false },
            ],
            "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false },
            "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false },
            "model": { "type": "BPE", "vocab": { "a": 0, "Ġa": 1, "Ã": 2, "©": 3, "Ċ": 4 }, "merges": [] },
        }));
        let known = tokenizer.token_bytes(9).unwrap();
        let bytes: [&[u8]; 9] = [b"a", b" a", b"\xC3", b"\xA9", b"\n", b"", b"<a tool>", b"", b""];
        assert_eq!(known.bytes(), bytes);
        assert!(known.first_bytes().is_empty());
        assert_eq!(known.missing_ascii(), Some(' '));
        check(&tokenizer, &[&[1, 2, 3, 4], &[0, 5, 1], &[6, 0]]);
    }

    #[test]
    fn pieces_with_byte_fallback_lose_the_first_space() {
        let replace = |from: &str, to: &str| json!({ "type": "Replace", "pattern": { "String": from }, "content": to });
        let steps = [
            replace("\u{2581}", " "),
            json!({ "type": "ByteFallback" }),
            json!({ "type": "Fuse" }),
            json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }),
        ];
        let vocab = json!({ "<unk>": 0, "<0x0A>": 1, "<0xC3>": 2, "<0xA9>": 3, "a": 4, "\u{2581}a": 5, "\u{2581}": 6, "<0x>": 7 });
        let tokenizer = tokenizer(json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
            "added_tokens": [], "pre_tokenizer": null, "decoder": { "type": "Sequence", "decoders": steps },
            "model": { "type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>", "byte_fallback": true },
        }));
        let known = tokenizer.token_bytes(8).unwrap();
        let bytes: [&[u8]; 8] = [b"<unk>", b"\n", b"\xC3", b"\xA9", b"a", b" a", b" ", b"<0x>"];
        assert_eq!(known.bytes(), bytes);
        assert_eq!(*known.first_bytes(), HashMap::from([(5, b"a".to_vec()), (6, vec![])]));
        check(&tokenizer, &[&[5, 5, 2, 3], &[4, 6, 1, 4], &[6, 6, 4]]);
    }

    #[test]
    fn words_of_shapes_world_bring_their_spaces() {
        let tokenizer = crate::data::shapes::tokenizer().unwrap();
        let texts = ["a large red ring, a small blue star.", "yes", "question: how many?"];
        let texts = texts.map(|text| tokenizer.encode(text).unwrap());
        check(&tokenizer, &texts.each_ref().map(Vec::as_slice));
        let known = tokenizer.token_bytes(tokenizer.size()).unwrap();
        assert_eq!(known.first_bytes()[&tokenizer.id("red").unwrap()], b"red");
        assert_eq!(known.missing_ascii(), Some(' '));
    }
}

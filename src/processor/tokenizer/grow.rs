//! Growth of a vocabulary: tokens that are added to a tokenizer.

use serde_json::{Map, Value, json};
use tokenizers::tokenizer::{NormalizedString, OffsetReferential, OffsetType, PreTokenizedString};
use tokenizers::{ModelWrapper, Normalizer, PreTokenizer, Tokenizer};

use super::TextTokenizer;
use super::guard::guarded;
use crate::{Error, Result};

/// Characters of spaces in pieces.
const SPACES: [char; 2] = [' ', '\u{2581}'];

impl TextTokenizer {
    /// The same tokenizer with the special tokens and the words that its vocabulary lacks, and the added ones in the
    /// order of their ids, which follow all others.
    ///
    /// A word is found as a whole word only: `ring` is not found in `earring`. A special token that is in the vocabulary
    /// as an ordinary one becomes special and keeps its id, and a word that is there only as a part of others is found as a
    /// word under that id. Words that are one token or an added token already, alone or behind a space, are left out.
    ///
    /// A tokenizer that puts a space before every text between special tokens (`legacy` ones of SentencePiece) puts it
    /// before the first one only if words are added, since the space would also stand behind each word.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] naming a word that is empty or too long, or if the ids of the tokenizer have holes, so that
    /// no id can be given.
    pub fn with_tokens(self, special: &[String], words: &[String]) -> Result<(Self, Vec<String>)> {
        let mut lacking = Vec::new();
        for word in words {
            if word.trim() != word || word.is_empty() {
                return Err(Error::tokenizer(format!("the word {word:?} to add is empty or has spaces at its ends")));
            }
            if !self.is_one_token(word)? {
                lacking.push(word);
            }
        }
        if special.is_empty() && lacking.is_empty() {
            return Ok((self, Vec::new()));
        }
        let mut growth = Growth::new(&self)?;
        special.iter().try_for_each(|token| growth.add_special(token))?;
        lacking.into_iter().try_for_each(|word| growth.add_word(word))?;
        let Growth { file, added, changed, .. } = growth;
        if !changed {
            return Ok((self, added));
        }
        let Self { config, .. } = self;
        let problem = |e: Error| Error::tokenizer(format!("tokens cannot be added: {e}")).caused_by(e);
        Ok((
            Self::parse(&file.to_string(), config, "tokenizer.json".as_ref(), "check its ids").map_err(problem)?,
            added,
        ))
    }

    /// Whether a word is one known token, alone or behind another word: byte-level vocabularies have many words only with
    /// the space before them, as which they were learned.
    fn is_one_token(&self, word: &str) -> Result<bool> {
        let is_known = |ids: &[u32]| matches!(ids, [id] if Some(*id) != self.unknown_id());
        let (before, behind) = (self.encode("a")?, self.encode(&format!("a {word}"))?);
        Ok(is_known(&self.encode(word)?) || behind.strip_prefix(&before[..]).is_some_and(is_known))
    }
}

/// A tokenizer in the form of `tokenizer.json`, to which tokens are added.
struct Growth<'t> {
    tokenizer: &'t Tokenizer,
    file: Value,
    next: u32,
    added: Vec<String>,
    changed: bool,
}

impl<'t> Growth<'t> {
    fn new(tokenizer: &'t TextTokenizer) -> Result<Self> {
        let fail = |e: &dyn std::fmt::Display| Error::tokenizer(format!("cannot be written as tokenizer.json: {e}"));
        let tokenizer = tokenizer.inner();
        let text = tokenizer.to_string(false).map_err(|e| fail(&e))?;
        let file: Value = serde_json::from_str(&text).map_err(|e| fail(&e))?;
        let largest = tokenizer.get_vocab(true).into_values().max();
        let next = largest.map_or(Some(0), |id| id.checked_add(1));
        let next = next.ok_or_else(|| Error::tokenizer("has the largest id that there is: no token can be added"))?;
        Ok(Self { tokenizer, file, next, added: Vec::new(), changed: false })
    }

    fn add_special(&mut self, token: &str) -> Result<()> {
        if token.is_empty() {
            return Err(Error::tokenizer("a special token to add is empty"));
        }
        let entries = self.entries()?;
        if let Some(entry) = entries.iter_mut().find(|entry| entry["content"] == token) {
            if entry["special"] != true {
                entry["special"] = true.into();
                self.changed = true;
            }
            return Ok(());
        }
        let id = match self.tokenizer.token_to_id(token) {
            Some(id) => id,
            None => self.new_id(token),
        };
        self.add_entry(id, token, json!({ "special": true, "normalized": false, "single_word": false }))
    }

    fn add_word(&mut self, word: &str) -> Result<()> {
        let normalized = normalized(self.tokenizer, word)?;
        let is_listed = self.entries()?.iter().any(|entry| entry["content"] == word);
        if is_listed || self.added.contains(&normalized) || self.added.iter().any(|added| added == word) {
            return Ok(());
        }
        // Only a vocabulary of words gets a new word of its own; other models would find it within words.
        let is_word = self.is_word_level() && is_one_part(self.tokenizer, &normalized)?;
        if is_word {
            let id = self.new_id(&normalized);
            return self.extend_model(&normalized, id);
        }
        self.prefix_first_text_only();
        // Found after normalisation, which else would take the spaces from the texts around the word.
        let uncased = self::normalized(self.tokenizer, "A")?.trim_start_matches(SPACES) == "a";
        let is_normalized = uncased || normalized.trim_start_matches(SPACES) == word;
        // A piece of words that is found only behind others, such as `ing`, is a whole word under its id from now on.
        let id = self.tokenizer.token_to_id(word).unwrap_or_else(|| self.new_id(word));
        self.add_entry(id, word, json!({ "special": false, "normalized": is_normalized, "single_word": true }))
    }

    /// Has a tokenizer that puts a space before every text between added tokens put it before the first text only: a text goes
    /// on behind a word.
    fn prefix_first_text_only(&mut self) {
        let prefix = self.take_prefix();
        let pre_tokenizer = self.file["pre_tokenizer"].take();
        let mut steps = match pre_tokenizer.get("pretokenizers").and_then(Value::as_array) {
            Some(steps) => steps.clone(),
            None => [pre_tokenizer].into_iter().filter(|step| !step.is_null()).collect(),
        };
        let bytes = steps.iter().position(|step| step["type"] == "ByteLevel" && step["add_prefix_space"] == true);
        for step in steps.iter_mut().filter(|step| step["prepend_scheme"] == "always") {
            step["prepend_scheme"] = "first".into();
        }
        if let Some(at) = bytes {
            steps[at]["add_prefix_space"] = false.into();
        }
        if let Some(prefix) = prefix.or_else(|| bytes.map(|_| " ".into())) {
            let first =
                json!({ "type": "Metaspace", "replacement": prefix, "prepend_scheme": "first", "split": false });
            steps.insert(0, first);
        }
        if !steps.is_empty() {
            self.file["pre_tokenizer"] = json!({ "type": "Sequence", "pretokenizers": steps });
        }
    }

    /// Takes the step out of the normaliser that puts a text before every text, and returns that.
    fn take_prefix(&mut self) -> Option<Value> {
        let normalizer = &mut self.file["normalizer"];
        let is_prefix = |step: &Value| step["type"] == "Prepend";
        if is_prefix(normalizer) {
            return Some(normalizer.take()["prepend"].take());
        }
        let steps = normalizer.get_mut("normalizers")?.as_array_mut()?;
        Some(steps.remove(steps.iter().position(is_prefix)?)["prepend"].take())
    }

    fn is_word_level(&self) -> bool {
        matches!(self.tokenizer.get_model(), ModelWrapper::WordLevel(_))
    }

    fn new_id(&mut self, token: &str) -> u32 {
        let id = self.next;
        self.next = self.next.saturating_add(1);
        self.added.push(token.into());
        id
    }

    fn add_entry(&mut self, id: u32, token: &str, properties: Value) -> Result<()> {
        let mut entry = json!({ "id": id, "content": token, "lstrip": false, "rstrip": false });
        if let (Some(entry), Value::Object(properties)) = (entry.as_object_mut(), properties) {
            entry.extend(properties);
        }
        self.entries()?.push(entry);
        self.changed = true;
        // Ids of a word-level model may only be without holes if it has the added tokens as well.
        if self.is_word_level() { self.extend_model(token, id) } else { Ok(()) }
    }

    fn extend_model(&mut self, token: &str, id: u32) -> Result<()> {
        let known: Vec<(String, Value)> = self
            .entries()?
            .iter()
            .filter_map(|e| Some((e["content"].as_str()?.to_string(), e["id"].clone())))
            .collect();
        let vocab = self.vocab()?;
        for (content, id) in known {
            vocab.entry(content).or_insert(id);
        }
        vocab.insert(token.into(), id.into());
        self.changed = true;
        Ok(())
    }

    fn entries(&mut self) -> Result<&mut Vec<Value>> {
        self.file["added_tokens"].as_array_mut().ok_or_else(|| Error::tokenizer("has no list of added tokens"))
    }

    fn vocab(&mut self) -> Result<&mut Map<String, Value>> {
        self.file["model"]["vocab"].as_object_mut().ok_or_else(|| Error::tokenizer("has no vocabulary of words"))
    }
}

/// A word after the tokenizer's normaliser.
pub(super) fn normalized(tokenizer: &Tokenizer, word: &str) -> Result<String> {
    let mut text = NormalizedString::from(word);
    if let Some(normalizer) = tokenizer.get_normalizer() {
        guarded(|| normalizer.normalize(&mut text)).map_err(super::tokenizer_error)?;
    }
    Ok(text.get().to_string())
}

/// Whether the pre-tokenizer leaves a word in one part.
fn is_one_part(tokenizer: &Tokenizer, word: &str) -> Result<bool> {
    let mut text = PreTokenizedString::from(word);
    if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
        guarded(|| pre_tokenizer.pre_tokenize(&mut text)).map_err(super::tokenizer_error)?;
    }
    let parts = text.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
    Ok(matches!(parts.as_slice(), [(part, ..)] if *part == word))
}

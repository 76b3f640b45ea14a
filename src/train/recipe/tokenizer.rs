//! Tokenizer of a run, and the words that are added to its vocabulary.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::stage::not_empty;
use crate::config::validate::at_most;
use crate::{Error, Result};

/// Most words that may be added.
const MAX_WORDS: usize = 1 << 16;

/// Tokenizer of a run. In a recipe a string, the source, or a table `tokenizer = { source, add, add_missing }`.
///
/// Placeholders, control tokens of the chat template and the end token are added if the vocabulary lacks them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenizerConfig {
    /// Folder or hub id of the tokenizer and chat template, or `shapes` for those of shapes world.
    pub source: String,
    /// Words to add to the vocabulary, each as one token; those that it has are left out.
    pub add: Vec<String>,
    /// Number of words to add beside those: the most frequent words of the training texts that the vocabulary lacks, at
    /// most this many. The words are kept in the run's folder, so that a resumed run has the same vocabulary.
    pub add_missing: usize,
}

impl TokenizerConfig {
    /// The tokenizer of `source`, without further words.
    pub fn new(source: impl Into<String>) -> Self {
        Self { source: source.into(), ..Self::default() }
    }

    /// Whether words are to be added.
    pub fn adds_words(&self) -> bool {
        !self.add.is_empty() || self.add_missing > 0
    }

    pub(super) fn validate(&self) -> Result<()> {
        not_empty("tokenizer", &self.source)?;
        at_most("tokenizer.add_missing", self.add_missing, MAX_WORDS)?;
        at_most("tokenizer.add (how many)", self.add.len(), MAX_WORDS)?;
        match self.add.iter().find(|word| word.is_empty() || word.trim() != word.as_str()) {
            Some(word) => Err(Error::config(
                "tokenizer.add",
                format!("holds {word:?}, expected words without spaces at their ends"),
            )),
            None => Ok(()),
        }
    }

    /// The words of the identity of a run; `None` without any.
    pub(super) fn identity(&self) -> Option<String> {
        let words = format!("{:?} {}", self.add, self.add_missing);
        self.adds_words().then(|| format!("{:08x}", crc32fast::hash(words.as_bytes())))
    }
}

impl<S: Into<String>> From<S> for TokenizerConfig {
    fn from(source: S) -> Self {
        Self::new(source)
    }
}

/// The table form.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    source: String,
    #[serde(default)]
    add: Vec<String>,
    #[serde(default)]
    add_missing: usize,
}

impl Serialize for TokenizerConfig {
    fn serialize<S: Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        let Self { source, add, add_missing } = self.clone();
        if self.adds_words() { Table { source, add, add_missing }.serialize(s) } else { s.serialize_str(&source) }
    }
}

impl<'de> Deserialize<'de> for TokenizerConfig {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        d.deserialize_any(SourceOrTable)
    }
}

struct SourceOrTable;

impl<'de> Visitor<'de> for SourceOrTable {
    type Value = TokenizerConfig;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, or a table with `source`")
    }

    fn visit_str<E>(self, source: &str) -> std::result::Result<TokenizerConfig, E> {
        Ok(TokenizerConfig::new(source))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<TokenizerConfig, A::Error> {
        let Table { source, add, add_missing } = Table::deserialize(MapAccessDeserializer::new(map))?;
        Ok(TokenizerConfig { source, add, add_missing })
    }
}

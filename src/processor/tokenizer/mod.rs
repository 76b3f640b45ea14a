//! Tokenizer: text to token ids and back.

mod coverage;
mod gguf;
mod grow;
mod guard;
mod limits;
mod sentencepiece;
mod slow;
mod special;
mod token_bytes;

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use serde_json::{Map, Value};
use tokenizers::{ModelWrapper, Tokenizer};

pub(crate) use self::coverage::CoverageCheck;
use self::guard::guarded;
use self::limits::{Components, longest_token};
pub use self::token_bytes::TokenBytes;
use super::folder::read_json;
use super::prompt::Prompt;
use crate::batch::too_long;
use crate::{Error, Result, files};

/// A token and the bytes of the text that it covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) id: u32,
    pub(super) range: Range<usize>,
}

/// Tokenizer that reads control tokens in the template's text only, never in the text of messages.
///
/// The tokenizers library panics on some broken files; here such a panic becomes an [`Error::Tokenizer`]. For that the first
/// call in a process wraps the panic hook, once: it stays silent about panics inside of the tokenizers library, and passes
/// all others on to the hook that was set before.
#[derive(Debug, Clone)]
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    /// The same tokenizer with control tokens as plain text; built when a message first contains one.
    plain: OnceLock<Tokenizer>,
    special: HashSet<u32>,
    config: Map<String, Value>,
    /// Maximum length of a text for the tokenizer, in bytes.
    max_text_bytes: usize,
    longest_token: usize,
}

impl TextTokenizer {
    /// Wraps a tokenizer and the content of its `tokenizer_config.json`, which may be empty.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if its padding cannot be switched off, or if a component could make a text too long.
    pub fn new(mut tokenizer: Tokenizer, config: Map<String, Value>) -> Result<Self> {
        tokenizer.with_padding(None).with_truncation(None).map_err(tokenizer_error)?;
        let components = Components::of(&tokenizer).map_err(|e| Error::tokenizer(e.to_string()).caused_by(e))?;
        let max_text_bytes = components.max_text_bytes().map_err(Error::tokenizer)?;
        let longest_token = longest_token(&tokenizer).map_err(Error::tokenizer)?;
        let added = tokenizer.get_added_tokens_decoder();
        let special = added.into_iter().filter(|(_, token)| token.special).map(|(id, _)| id).collect();
        Ok(Self { tokenizer, plain: OnceLock::new(), special, config, max_text_bytes, longest_token })
    }

    /// Reads the tokenizer of a folder: `tokenizer.json`, or else a SentencePiece model (`tokenizer.model`),
    /// `vocab.json` with `merges.txt`, or `vocab.txt`; and, if they exist, `tokenizer_config.json`,
    /// `special_tokens_map.json` and `added_tokens.json`.
    ///
    /// Without `tokenizer.json` the ids are those of HF's slow tokenizer of the class in `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if there is no tokenizer or it is invalid, [`Error::Io`] or [`Error::Format`] for another
    /// invalid file.
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Self> {
        let (folder, path) = (folder.as_ref(), folder.as_ref().join("tokenizer.json"));
        let mut config = match read_json(&folder.join("tokenizer_config.json"))? {
            Some(Value::Object(config)) => config,
            _ => Map::new(),
        };
        let slow = if files::exists(&path)? { None } else { slow::read(folder, &mut config)? };
        let Some(slow) = slow else {
            let advice = "copy the tokenizer.json (or tokenizer.model) of the language model into the folder";
            let text = files::read_text(&path, limits::MAX_FILE_BYTES)
                .map_err(|e| Error::tokenizer(format!("{e}; {advice}")).caused_by(e))?;
            return Self::parse(&text, config, &path, advice);
        };
        // Written as tokenizer.json from now on, which HF's class of the slow tokenizer would convert again.
        config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
        Self::parse(&slow.to_string(), config, folder, "copy the tokenizer's files again, or bring tokenizer.json")
    }

    /// The tokenizer of a folder that may have none; `None` if it has no file of a vocabulary.
    ///
    /// # Errors
    /// As [`Self::from_folder`], if there is one.
    pub(crate) fn find(folder: &Path) -> Result<Option<Self>> {
        for name in [&["tokenizer.json"], slow::FILES].concat() {
            if files::exists(folder.join(name))? {
                return Self::from_folder(folder).map(Some);
            }
        }
        Ok(None)
    }

    /// Parses the content of a `tokenizer.json`, with the content of `tokenizer_config.json`.
    fn parse(text: &str, config: Map<String, Value>, path: &Path, advice: &str) -> Result<Self> {
        let fail = |e: &dyn std::fmt::Display| Error::tokenizer(format!("{}: {e}; {advice}", path.display()));
        let components: Components = serde_json::from_str(text).map_err(|e| fail(&e).caused_by(e))?;
        components.max_text_bytes().map_err(|problem| fail(&problem))?;
        // Not `from_bytes`, which is generic: this crate would compile the parser of every kind of tokenizer again.
        let tokenizer = guarded(|| text.parse::<Tokenizer>()).map_err(|e| fail(&e).caused_by(e))?;
        let tokenizer = Self::new(tokenizer, config)?;
        components.check_ids(tokenizer.inner()).map_err(|problem| fail(&problem))?;
        components.check_unknown(tokenizer.inner()).map_err(|problem| fail(&problem))?;
        Ok(tokenizer)
    }

    /// Encodes a text with control tokens as plain text, and without added special tokens.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer fails on the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.check_bytes(text)?;
        let encoding = guarded(|| self.plain().encode_fast(text, false)).map_err(tokenizer_error)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Decodes token ids to text.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer fails.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        guarded(|| self.tokenizer.decode(ids, skip_special_tokens)).map_err(tokenizer_error)
    }

    /// The id of a token; `None` if the vocabulary lacks it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The distinct words of a text that the tokenizer has no token for and replaces by its unknown token. Most tokenizers
    /// split such words into known pieces and have no unknown token.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer fails on the text.
    pub fn unknown_words<'t>(&self, text: &'t str) -> Result<Vec<&'t str>> {
        let mut words = Vec::new();
        for word in CoverageCheck::new(self).of(text)?.unknown {
            if !words.contains(&word) {
                words.push(word);
            }
        }
        Ok(words)
    }

    /// The id of the token for unknown text, of the model or of `unk_token` in `tokenizer_config.json`.
    pub(super) fn unknown_id(&self) -> Option<u32> {
        let named = || self.named_token("unk_token").and_then(|token| self.id(token));
        match self.tokenizer.get_model() {
            ModelWrapper::BPE(model) => model.unk_token.as_deref().map_or_else(named, |token| self.id(token)),
            ModelWrapper::WordLevel(model) => self.id(&model.unk_token),
            ModelWrapper::WordPiece(model) => self.id(&model.unk_token),
            ModelWrapper::Unigram(_) => named().or_else(|| self.id("<unk>")),
        }
    }

    /// Whether an id is the token for unknown text.
    pub(crate) fn is_unknown(&self, id: u32) -> bool {
        self.unknown_id() == Some(id)
    }

    /// Number of ids, those without a token included: the largest id and 1.
    pub fn size(&self) -> usize {
        self.tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1)
    }

    /// Whether an id is a control token.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// The id of `eos_token` in `tokenizer_config.json`.
    pub fn eos_id(&self) -> Option<u32> {
        self.id(self.named_token("eos_token")?)
    }

    /// The wrapped tokenizer, for example to decode a stream.
    pub fn inner(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The content of `tokenizer_config.json`.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// `bos_token` and other special tokens, for chat templates.
    pub(super) fn named_tokens(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let names = ["bos_token", "eos_token", "pad_token", "unk_token"];
        names.into_iter().filter_map(|name| Some((name, self.named_token(name)?)))
    }

    /// A token of the configuration, given as a string or as an object with `content`.
    fn named_token(&self, name: &str) -> Option<&str> {
        let field = self.config.get(name)?;
        field.as_str().or_else(|| field.get("content")?.as_str())
    }

    /// Checks a placeholder of the model, and that every id has a row in the embedding table.
    pub(super) fn check_placeholder(&self, token: &str, field: &str, id: u32) -> Result<()> {
        match self.id(token) {
            Some(found) if found == id => Ok(()),
            found => Err(Error::tokenizer(format!(
                "`{token}` {}, but `{field}` of config.json is {id}: add it as a special token to tokenizer.json, or \
                 set `{field}` to its id",
                found.map_or("is missing".into(), |found| format!("has id {found}"))
            ))),
        }
    }

    pub(super) fn check_vocabulary(&self, vocab_size: usize) -> Result<()> {
        let most = self.tokenizer.get_vocab(true).into_iter().max_by_key(|&(_, id)| id);
        match most {
            Some((token, id)) if id as usize >= vocab_size => Err(Error::tokenizer(format!(
                "`{token}` has id {id}, outside the model's vocabulary of {vocab_size}: this tokenizer belongs to \
                 another model"
            ))),
            _ => Ok(()),
        }
    }

    /// Checks that the configured tokens are in the vocabulary, and that those that begin and end texts are special.
    pub(super) fn check_named_tokens(&self) -> Result<()> {
        for (name, token) in self.named_tokens() {
            let control = matches!(name, "bos_token" | "eos_token");
            self.check_token(token, control).map_err(|problem| {
                Error::tokenizer(format!("`{name}` of tokenizer_config.json is `{token}`, which {problem}"))
            })?;
        }
        Ok(())
    }

    /// Checks that a control token of the chat template is a special token.
    pub(super) fn check_control_token(&self, token: &str) -> Result<()> {
        self.check_token(token, true)
            .map_err(|problem| Error::tokenizer(format!("the chat template writes `{token}`, which {problem}")))
    }

    fn check_token(&self, token: &str, control: bool) -> std::result::Result<(), &'static str> {
        match self.id(token) {
            None => Err("is not in tokenizer.json: add it to `added_tokens` there as a special token"),
            Some(id) if control && !self.is_special(id) => {
                Err("is no special token of tokenizer.json: set `special` of it to true in `added_tokens`")
            }
            Some(_) => Ok(()),
        }
    }

    /// Length of the longest token, in bytes.
    pub(super) fn longest_token(&self) -> usize {
        self.longest_token
    }

    fn check_bytes(&self, text: &str) -> Result<()> {
        if text.len() > self.max_text_bytes {
            let (found, most) = (text.len(), self.max_text_bytes);
            return Err(Error::prompt(format!(
                "has {found} bytes, expected at most {most} with this tokenizer: shorten it"
            )));
        }
        Ok(())
    }

    /// Rejects a long prompt whose beginning alone has far more tokens than the context, before all of it is tokenised.
    fn check_beginning(&self, text: &str, context: usize) -> Result<()> {
        let bytes = text.floor_char_boundary(context.saturating_mul(8));
        if bytes == text.len() {
            return Ok(());
        }
        let tokens = encode(&self.tokenizer, text, 0..bytes)?.len();
        // The cut changes few tokens at the end of the beginning.
        if tokens > context + context / 4 + 16 { Err(too_long(tokens, context)) } else { Ok(()) }
    }

    /// Tokens of a prompt: the tokens of the whole text, unless message text contains control tokens. Those spans are
    /// then cut out and encoded as plain text.
    pub(super) fn encode_prompt(&self, prompt: &Prompt, context: usize) -> Result<Vec<Token>> {
        self.check_bytes(&prompt.text)?;
        self.check_beginning(&prompt.text, context)?;
        let whole = encode(&self.tokenizer, &prompt.text, 0..prompt.text.len())?;
        let said = |token: &Token| {
            let overlaps = |range: &Range<usize>| token.range.start < range.end && range.start < token.range.end;
            self.is_control(token, &prompt.text) && prompt.spans.iter().any(|span| overlaps(&span.range))
        };
        let forged: Vec<_> = whole.iter().filter(|token| said(token)).map(|token| token.range.clone()).collect();
        if forged.is_empty() {
            return Ok(whole);
        }
        let (mut tokens, mut at) = (Vec::with_capacity(whole.len()), 0);
        for range in forged {
            tokens.extend(encode(&self.tokenizer, &prompt.text, at..range.start)?);
            tokens.extend(encode(self.plain(), &prompt.text, range.clone())?);
            at = range.end;
        }
        tokens.extend(encode(&self.tokenizer, &prompt.text, at..prompt.text.len())?);
        match tokens.iter().find(|token| said(token)) {
            None => Ok(tokens),
            Some(token) => Err(Error::tokenizer(format!(
                "cannot write {:?} as plain text: leave it out of the messages",
                &prompt.text[token.range.clone()]
            ))),
        }
    }

    /// Whether a token of a text is a control token that the text spells out. The unknown token, which many vocabularies
    /// declare as a control token, also stands for any other text.
    pub(super) fn is_control(&self, token: &Token, text: &str) -> bool {
        let written = text.get(token.range.clone()).map(str::trim);
        self.is_special(token.id)
            && (!self.is_unknown(token.id) || self.tokenizer.id_to_token(token.id).as_deref() == written)
    }

    fn plain(&self) -> &Tokenizer {
        self.plain.get_or_init(|| {
            let mut plain = self.tokenizer.clone();
            plain.set_encode_special_tokens(true);
            plain
        })
    }
}

fn encode(tokenizer: &Tokenizer, text: &str, range: Range<usize>) -> Result<Vec<Token>> {
    let encoding = guarded(|| tokenizer.encode(&text[range.clone()], false)).map_err(tokenizer_error)?;
    let within = |&(start, end): &(usize, usize)| range.start + start..range.start + end;
    let ids = encoding.get_ids().iter().zip(encoding.get_offsets());
    Ok(ids.map(|(&id, offsets)| Token { id, range: within(offsets) }).collect())
}

fn tokenizer_error(error: tokenizers::Error) -> Error {
    Error::tokenizer(error.to_string()).caused_by(error)
}

//! The tokenizer as llama.cpp keeps it: in the metadata of a GGUF file.

use candle_core::quantized::gguf_file::Value;
use serde_json::Value as Json;
use tokenizers::Tokenizer;

use super::TextTokenizer;
use crate::{Error, Result};

/// Split patterns of byte-level tokenizers, and llama.cpp's names for them.
const PATTERNS: [(&str, &str); 3] = [
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "qwen2",
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "llama-bpe",
    ),
    // The pattern of the component `ByteLevel` itself.
    ("", "gpt-2"),
];

/// llama.cpp's kinds of tokens.
mod token_type {
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
    pub const BYTE: i32 = 6;
}

impl TextTokenizer {
    /// The keys `tokenizer.ggml.*` for a model with `rows` ids; ids without a token become unused ones.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a tokenizer of a kind that llama.cpp lacks.
    pub(crate) fn gguf_metadata(&self, rows: usize) -> Result<Vec<(String, Value)>> {
        let file = self.inner().to_string(false).map_err(|e| Error::tokenizer(e.to_string()).caused_by(e))?;
        let file: Json = serde_json::from_str(&file).map_err(|e| Error::tokenizer(e.to_string()).caused_by(e))?;
        let tokens = tokens(self.inner(), rows);
        let mut keys = match kind(&file).map_err(Error::tokenizer)? {
            Kind::ByteLevel(pattern) => {
                let merges = merges(&file).into_iter().map(|[left, right]| Value::String(format!("{left} {right}")));
                vec![
                    ("model", Value::String("gpt2".into())),
                    ("pre", Value::String(pattern.into())),
                    ("merges", Value::Array(merges.collect())),
                ]
            }
            Kind::SentencePiece => vec![
                ("model", Value::String("llama".into())),
                ("pre", Value::String("default".into())),
                ("scores", scores(&file, &tokens)),
                ("add_space_prefix", Value::Bool(adds_space(&file))),
            ],
        };
        keys.push(("token_type", self.token_types(&tokens)));
        let texts = tokens.into_iter().enumerate();
        let texts = texts.map(|(id, token)| Value::String(token.unwrap_or_else(|| format!("[PAD{id}]"))));
        keys.push(("tokens", Value::Array(texts.collect())));
        keys.extend(self.named_ids());
        Ok(keys.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect())
    }

    fn token_types(&self, tokens: &[Option<String>]) -> Value {
        let added = self.inner().get_added_tokens_decoder();
        let kind = |(id, token): (usize, &Option<String>)| {
            let id = id as u32;
            Value::I32(match token {
                None => token_type::UNUSED,
                Some(_) if self.is_unknown(id) => token_type::UNKNOWN,
                Some(_) if self.is_special(id) => token_type::CONTROL,
                Some(_) if added.contains_key(&id) => token_type::USER_DEFINED,
                Some(token) if is_byte(token) => token_type::BYTE,
                Some(_) => token_type::NORMAL,
            })
        };
        Value::Array(tokens.iter().enumerate().map(kind).collect())
    }

    /// Ids of the named tokens, and whether texts begin with one of them.
    fn named_ids(&self) -> Vec<(&'static str, Value)> {
        let names = [
            ("bos_token", "bos_token_id"),
            ("eos_token", "eos_token_id"),
            ("pad_token", "padding_token_id"),
            ("unk_token", "unknown_token_id"),
        ];
        let id = |name: &str| self.id(self.named_token(name)?);
        let adds = |field: &str, name: &str| {
            let asked = self.config().get(field).and_then(Json::as_bool).unwrap_or(false);
            Value::Bool(asked && id(name).is_some())
        };
        let ids = names.into_iter().filter_map(|(name, key)| Some((key, Value::U32(id(name)?))));
        let begins = [
            ("add_bos_token", adds("add_bos_token", "bos_token")),
            ("add_eos_token", adds("add_eos_token", "eos_token")),
        ];
        ids.chain(begins).collect()
    }
}

/// A kind of tokenizer that llama.cpp has.
enum Kind {
    /// BPE over bytes, with llama.cpp's name of the pattern that splits texts.
    ByteLevel(&'static str),
    /// SentencePiece's BPE with tokens for bytes.
    SentencePiece,
}

fn kind(file: &Json) -> std::result::Result<Kind, String> {
    let model = &file["model"];
    let name = model["type"].as_str().unwrap_or("unknown");
    let parts = components(&file["pre_tokenizer"]);
    let is_byte_level = parts.iter().any(|part| part["type"] == "ByteLevel");
    match name {
        "BPE" if is_byte_level => {
            let split = parts.iter().find_map(|part| part["pattern"]["Regex"].as_str()).unwrap_or_default();
            let known = PATTERNS.iter().find(|(pattern, _)| *pattern == split);
            let pattern = known.map(|(_, name)| Kind::ByteLevel(name));
            pattern.ok_or_else(|| {
                format!("splits texts by `{split:.60}`, which llama.cpp has no name for: it cannot be exported")
            })
        }
        "BPE" if model["byte_fallback"] == true => Ok(Kind::SentencePiece),
        _ => Err(format!(
            "is of the kind `{name:.20}`, expected BPE over bytes or SentencePiece's BPE, as llama.cpp has: it cannot be \
             exported"
        )),
    }
}

/// The components of a pre-tokenizer or normalizer.
fn components(part: &Json) -> Vec<&Json> {
    let nested = ["pretokenizers", "normalizers"].iter().find_map(|field| part[*field].as_array());
    nested.map_or_else(|| vec![part], |parts| parts.iter().collect())
}

/// The pairs that BPE merges, first to last.
fn merges(file: &Json) -> Vec<[&str; 2]> {
    file["model"]["merges"].as_array().into_iter().flatten().filter_map(pair).collect()
}

fn pair(merge: &Json) -> Option<[&str; 2]> {
    match merge {
        Json::String(text) => text.split_once(' ').map(|(left, right)| [left, right]),
        other => Some([other[0].as_str()?, other[1].as_str()?]),
    }
}

/// Scores by which llama.cpp chooses the next merge: the earlier a token's merge, the higher.
fn scores(file: &Json, tokens: &[Option<String>]) -> Value {
    let mut ranks = std::collections::HashMap::new();
    for (rank, [left, right]) in merges(file).into_iter().enumerate() {
        ranks.entry(format!("{left}{right}")).or_insert(rank);
    }
    let score =
        |token: &Option<String>| token.as_ref().and_then(|token| ranks.get(token)).map_or(0.0, |rank| -(*rank as f32));
    Value::Array(tokens.iter().map(|token| Value::F32(score(token))).collect())
}

/// Whether a space is put before every text.
fn adds_space(file: &Json) -> bool {
    let parts = [&file["normalizer"], &file["pre_tokenizer"]].map(components).concat();
    parts.iter().any(|part| match part["type"].as_str() {
        Some("Prepend") => true,
        Some("Metaspace") => part["prepend_scheme"] != "never",
        _ => false,
    })
}

/// Tokens by id.
fn tokens(tokenizer: &Tokenizer, rows: usize) -> Vec<Option<String>> {
    let mut tokens = vec![None; rows];
    for (token, id) in tokenizer.get_vocab(true) {
        if let Some(slot) = tokens.get_mut(id as usize) {
            *slot = Some(token);
        }
    }
    tokens
}

/// Whether a token stands for a byte: `<0x0A>`.
fn is_byte(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

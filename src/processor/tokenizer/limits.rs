//! Limits of a `tokenizer.json`: how much its components may lengthen a text.
//!
//! Normalizers and decoders are untrusted programs that rewrite text, some to a multiple of its length. The maximum
//! factor of each is known beforehand, so the product of the factors is limited, and with it the length of texts.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::Value;
use tokenizers::{ModelWrapper, Tokenizer};

/// Maximum size of a `tokenizer.json` in bytes; the largest published ones have 34 MB.
pub(super) const MAX_FILE_BYTES: u64 = 64 << 20;
/// Maximum bytes of a text after normalisation; each byte takes about 50 bytes of memory.
const MAX_NORMALIZED_BYTES: usize = 8 << 20;
/// Maximum growth of a text by normalizer and pre-tokenizer; published ones reach 300.
const MAX_TEXT_GROWTH: usize = 512;
/// Maximum growth of a token by the decoder; published ones reach 6.
const MAX_DECODER_GROWTH: usize = 64;
/// Maximum number of components of one kind.
const MAX_COMPONENTS: usize = 64;
/// Maximum bytes that a component inserts at one place.
const MAX_INSERTED_BYTES: usize = 256;
const MAX_ADDED_TOKENS: usize = 1 << 16;
/// Maximum bytes of a token.
const MAX_TOKEN_BYTES: usize = 1024;
/// Maximum number of pieces in a post-processor's template; the text counts once per piece.
const MAX_TEMPLATE_PIECES: usize = 64;
/// Maximum length in characters of a word that WordPiece splits, in quadratic time.
const MAX_WORD_CHARS: usize = 10_000;
/// Maximum bytes of a `Precompiled` map; published ones have 240 kB.
const MAX_CHARSMAP_BYTES: usize = 4 << 20;

/// Reason to reject a `tokenizer.json`.
type Refused<T> = Result<T, String>;

/// Parts of a `tokenizer.json` that are checked before the tokenizers library reads it.
#[derive(Deserialize)]
pub(super) struct Components {
    #[serde(default)]
    added_tokens: Vec<AddedEntry>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    decoder: Option<Value>,
}

/// An entry of `added_tokens`.
#[derive(Deserialize)]
struct AddedEntry {
    id: Option<Value>,
    content: Option<String>,
}

impl Components {
    /// The components of a tokenizer in their serialised form.
    pub(super) fn of(tokenizer: &Tokenizer) -> serde_json::Result<Self> {
        Ok(Self {
            added_tokens: vec![],
            normalizer: tokenizer.get_normalizer().map(serde_json::to_value).transpose()?,
            pre_tokenizer: tokenizer.get_pre_tokenizer().map(serde_json::to_value).transpose()?,
            post_processor: tokenizer.get_post_processor().map(serde_json::to_value).transpose()?,
            decoder: tokenizer.get_decoder().map(serde_json::to_value).transpose()?,
        })
    }

    /// Checks that added tokens have the ids that the file gives them: the tokenizers library numbers them itself.
    pub(super) fn check_ids(&self, tokenizer: &Tokenizer) -> Refused<()> {
        for AddedEntry { id, content } in &self.added_tokens {
            let (Some(id), Some(content)) = (id, content) else { continue };
            let found = tokenizer.token_to_id(content);
            if found.map(u64::from) != id.as_u64() {
                let found = found.map_or_else(|| "none".into(), |found| found.to_string());
                return Err(format!(
                    "the added token `{content}` has id {id}, but {found} follows from the vocabulary: number added \
                     tokens without holes after it, and each once"
                ));
            }
        }
        Ok(())
    }

    /// Checks that the model has its token for unknown text. Byte-level models never need it.
    pub(super) fn check_unknown(&self, tokenizer: &Tokenizer) -> Refused<()> {
        let unknown = match tokenizer.get_model() {
            ModelWrapper::WordLevel(model) => Some(&model.unk_token),
            ModelWrapper::WordPiece(model) => Some(&model.unk_token),
            ModelWrapper::BPE(model) if !is_byte_level(self.pre_tokenizer.as_ref()) => model.unk_token.as_ref(),
            _ => None,
        };
        match unknown.filter(|token| tokenizer.token_to_id(token).is_none()) {
            Some(token) => Err(format!("`unk_token` of the model is `{token}`, which its vocabulary lacks: add it")),
            None => Ok(()),
        }
    }

    /// Checks all components and returns the maximum length of texts for the tokenizer, in bytes.
    pub(super) fn max_text_bytes(&self) -> Refused<usize> {
        if self.added_tokens.len() > MAX_ADDED_TOKENS {
            return Err(format!("has {} added tokens, expected at most {MAX_ADDED_TOKENS}", self.added_tokens.len()));
        }
        let normalizer = growth_of("normalizer", self.normalizer.as_ref(), MAX_TEXT_GROWTH)?;
        let growth =
            normalizer * growth_of("pre_tokenizer", self.pre_tokenizer.as_ref(), MAX_TEXT_GROWTH / normalizer)?;
        growth_of("decoder", self.decoder.as_ref(), MAX_DECODER_GROWTH)?;
        growth_of("post_processor", self.post_processor.as_ref(), 1)?;
        Ok(MAX_NORMALIZED_BYTES / growth)
    }
}

/// Whether a pre-tokenizer turns text into bytes.
fn is_byte_level(pre_tokenizer: Option<&Value>) -> bool {
    let mut steps = Vec::new();
    pre_tokenizer.is_some_and(|step| flatten("pre_tokenizer", step, &mut steps).is_ok())
        && steps.iter().any(|step| kind(step) == Some("ByteLevel"))
}

/// Checks the tokenizer's other parts, and returns the length of its longest token in bytes.
pub(super) fn longest_token(tokenizer: &Tokenizer) -> Refused<usize> {
    if let ModelWrapper::WordPiece(model) = tokenizer.get_model()
        && model.max_input_chars_per_word > MAX_WORD_CHARS
    {
        let found = model.max_input_chars_per_word;
        return Err(format!("`max_input_chars_per_word` is {found}, expected at most {MAX_WORD_CHARS}"));
    }
    let longest = tokenizer.get_vocab(true).keys().map(String::len).max().unwrap_or(1);
    if longest > MAX_TOKEN_BYTES {
        return Err(format!("has a token of {longest} bytes, expected at most {MAX_TOKEN_BYTES}"));
    }
    Ok(longest)
}

/// Maximum factor by which a component lengthens a text.
fn growth_of(part: &str, component: Option<&Value>, most: usize) -> Refused<usize> {
    let Some(component) = component.filter(|component| !component.is_null()) else { return Ok(1) };
    let mut steps = Vec::new();
    flatten(part, component, &mut steps)?;
    let growth = steps.iter().try_fold(1usize, |growth, step| {
        let factor = step_growth(step).map_err(|problem| format!("`{part}`: {problem}"))?;
        let prefix = prefix_growth(step).map_err(|problem| format!("`{part}`: {problem}"))?;
        Ok::<_, String>(growth.saturating_mul(factor).saturating_add(prefix))
    })?;
    if growth > most {
        return Err(format!(
            "`{part}` may make a text more than {most} times as long: remove `Replace` or `Prepend` steps"
        ));
    }
    Ok(growth)
}

/// The steps of a `Sequence`, including those of nested sequences.
fn flatten<'v>(part: &str, component: &'v Value, steps: &mut Vec<&'v Value>) -> Refused<()> {
    if kind(component) != Some("Sequence") {
        steps.push(component);
        return if steps.len() > MAX_COMPONENTS {
            Err(format!("`{part}` has more than {MAX_COMPONENTS} steps"))
        } else {
            Ok(())
        };
    }
    let inner =
        ["normalizers", "pretokenizers", "decoders", "processors"].iter().find_map(|name| component[name].as_array());
    let inner = inner.ok_or_else(|| format!("`{part}` has a `Sequence` without steps"))?;
    inner.iter().try_for_each(|step| flatten(part, step, steps))
}

fn kind(component: &Value) -> Option<&str> {
    component["type"].as_str()
}

fn step_growth(step: &Value) -> Refused<usize> {
    match kind(step).ok_or("a step has no `type`")? {
        "Replace" => replace_growth(step),
        "Precompiled" => precompiled_growth(step["precompiled_charsmap"].as_str().unwrap_or_default()),
        // Unicode's worst characters, and the worst of several changes of one step.
        "NFKC" | "NFKD" => Ok(11),
        "NFC" | "NFD" => Ok(3),
        "BertNormalizer" => Ok(8),
        "Metaspace" => metaspace_growth(step),
        "ByteLevel" | "Lowercase" | "WordPiece" | "BPEDecoder" | "CTC" | "ByteFallback" => Ok(2),
        "TemplateProcessing" => template_growth(step),
        "FixedLength" if step["length"].as_u64().is_none_or(|length| length == 0) => {
            Err("`length` of `FixedLength` is not at least 1".into())
        }
        _ => Ok(1),
    }
}

/// A prefix stands before every part of the text between two added tokens: at most once for two bytes of it.
fn prefix_growth(step: &Value) -> Refused<usize> {
    if kind(step) == Some("Prepend") { Ok(inserted(step, "prepend")?.div_ceil(2)) } else { Ok(0) }
}

/// Bytes of the text that a step inserts.
fn inserted(step: &Value, field: &str) -> Refused<usize> {
    let bytes = step[field].as_str().map_or(0, str::len);
    if bytes > MAX_INSERTED_BYTES {
        let kind = kind(step).unwrap_or_default();
        return Err(format!("`{field}` of `{kind}` has {bytes} bytes, expected at most {MAX_INSERTED_BYTES}"));
    }
    Ok(bytes)
}

/// Spaces become the replacement, and a prefix is put before every part of the text, or before its start only.
fn metaspace_growth(step: &Value) -> Refused<usize> {
    let replacement = inserted(step, "replacement")?;
    let once = matches!(step["prepend_scheme"].as_str(), Some("never" | "first"));
    Ok(if once { replacement.max(1) } else { 1 + replacement })
}

/// A regular expression or an empty text may match between any two characters.
fn replace_growth(step: &Value) -> Refused<usize> {
    let content = inserted(step, "content")?;
    Ok(match step["pattern"]["String"].as_str() {
        Some(pattern) if !pattern.is_empty() => content.div_ceil(pattern.len()).max(1),
        _ => 1 + content,
    })
}

/// The map holds the length of a table, the table, and zero-terminated texts.
fn precompiled_growth(charsmap: &str) -> Refused<usize> {
    let broken = || "`precompiled_charsmap` is broken: copy tokenizer.json again".to_owned();
    if charsmap.len() > MAX_CHARSMAP_BYTES {
        return Err(format!(
            "`precompiled_charsmap` has {} characters, expected at most {MAX_CHARSMAP_BYTES}",
            charsmap.len()
        ));
    }
    let bytes = BASE64_STANDARD.decode(charsmap).map_err(|_| broken())?;
    let (size, rest) = bytes.split_first_chunk::<4>().ok_or_else(broken)?;
    let size = usize::try_from(u32::from_le_bytes(*size)).map_err(|_| broken())?;
    let texts = rest.get(size..).filter(|_| size > 0 && size.is_multiple_of(4)).ok_or_else(broken)?;
    let longest = texts.split(|&byte| byte == 0).map(<[u8]>::len).max().unwrap_or(0);
    if longest > MAX_INSERTED_BYTES || std::str::from_utf8(texts).is_err() {
        return Err(broken());
    }
    Ok(longest.max(1))
}

/// Each occurrence of the text in a template is a copy, although nothing else is added to a prompt.
fn template_growth(step: &Value) -> Refused<usize> {
    for field in ["single", "pair"] {
        let pieces = step[field].as_array().map_or(0, Vec::len);
        if pieces > MAX_TEMPLATE_PIECES {
            return Err(format!(
                "`{field}` of `TemplateProcessing` has {pieces} pieces, expected at most {MAX_TEMPLATE_PIECES}"
            ));
        }
    }
    let texts = step["single"].as_array().into_iter().flatten().filter(|piece| piece.get("Sequence").is_some()).count();
    if texts > 1 { Err("`TemplateProcessing` repeats the text".into()) } else { Ok(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_of_published_components_is_small() {
        let growth = |component: Value| growth_of("normalizer", Some(&component), MAX_TEXT_GROWTH);
        let sequence = |steps: &str| {
            serde_json::from_str(&format!(r#"{{"type": "Sequence", "normalizers": [{steps}]}}"#)).unwrap()
        };
        let llama =
            r#"{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}"#;
        assert_eq!(growth(sequence(llama)), Ok(9));
        assert_eq!(growth(serde_json::json!({ "type": "NFC" })), Ok(3));
        let spaces = r#"{"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}"#;
        assert_eq!(growth(sequence(spaces)), Ok(2));
    }
}

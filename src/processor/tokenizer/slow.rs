//! Folders without `tokenizer.json`, for the tokenizers that Hugging Face calls slow: SentencePiece models, and
//! vocabularies with merges or of words and their pieces.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::limits::MAX_FILE_BYTES;
use super::sentencepiece::{Options, convert};
use super::special::{added_tokens, complete, content, surround};
use crate::{Error, Result, files};

/// Names of SentencePiece models.
const SENTENCEPIECE: [&str; 2] = ["tokenizer.model", "spiece.model"];
const VOCAB_JSON: &str = "vocab.json";
const MERGES: &str = "merges.txt";
const VOCAB_TXT: &str = "vocab.txt";
/// Files by which such a folder is known.
pub(super) const FILES: &[&str] = &[SENTENCEPIECE[0], SENTENCEPIECE[1], VOCAB_JSON, VOCAB_TXT];
/// Number of `<extra_id_..>` tokens that T5 has by default.
const EXTRA_IDS: u64 = 100;

/// Pattern by which GPT-2 cuts a text into words.
const GPT2_WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Pattern by which Qwen2 cuts a text into words.
const QWEN2_WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Pattern of CLIP's words; everything else is dropped.
const CLIP_WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Builds the content of `tokenizer.json` from the other files of a folder, and completes `config`, the content of
/// `tokenizer_config.json`, by the special tokens; `None` if there is no such file.
///
/// # Errors
/// [`Error::Tokenizer`] naming the file and what is wrong in it, or the class that is not supported.
pub(super) fn read(folder: &Path, config: &mut Map<String, Value>) -> Result<Option<Value>> {
    for name in SENTENCEPIECE {
        if files::exists(folder.join(name))? {
            return sentencepiece(folder, name, config).map(Some);
        }
    }
    if files::exists(folder.join(VOCAB_JSON))? {
        return byte_level(folder, config).map(Some);
    }
    if files::exists(folder.join(VOCAB_TXT))? {
        return word_piece(folder, config).map(Some);
    }
    Ok(None)
}

/// Name of the tokenizer's class without `Fast`; `None` if the configuration names none.
fn class(config: &Map<String, Value>) -> Option<String> {
    let name = config.get("tokenizer_class")?.as_str()?;
    Some(name.strip_suffix("Fast").unwrap_or(name).to_string())
}

fn unsupported(folder: &Path, class: &str, known: &str) -> Error {
    Error::tokenizer(format!(
        "{}: `tokenizer_class` is {class}, which cannot be read without tokenizer.json, only {known}: bring the \
         tokenizer.json of this model",
        folder.display()
    ))
}

fn flag(config: &Map<String, Value>, name: &str) -> Option<bool> {
    config.get(name).and_then(Value::as_bool)
}

/// The token named by a field of the configuration, with its id.
fn named<'c>(config: &'c Map<String, Value>, tokens: &[Value], field: &str) -> Option<(&'c str, u32)> {
    let text = content(config.get(field)?)?;
    let id = tokens.iter().find(|token| token["content"] == text)?["id"].as_u64()?;
    Some((text, u32::try_from(id).ok()?))
}

/// Ids of the model's tokens.
fn vocabulary(tokenizer: &Value) -> HashMap<String, u32> {
    let id = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
    match &tokenizer["model"]["vocab"] {
        Value::Object(map) => map.iter().filter_map(|(token, value)| Some((token.clone(), id(value)?))).collect(),
        Value::Array(list) => (0..).zip(list).filter_map(|(n, pair)| Some((pair[0].as_str()?.into(), n))).collect(),
        _ => HashMap::new(),
    }
}

/// A class of tokenizers: its name, the special tokens that it has by default, and those that it puts around a text.
struct Class {
    name: &'static str,
    defaults: &'static [(&'static str, &'static str)],
    before: Option<&'static str>,
    after: Option<&'static str>,
}

impl Class {
    /// The class of this name among `known`.
    fn find(folder: &Path, name: &str, known: &'static [Self]) -> Result<&'static Self> {
        let names = || known.iter().map(|class| class.name).collect::<Vec<_>>().join(", ");
        known.iter().find(|class| class.name == name).ok_or_else(|| unsupported(folder, name, &names()))
    }

    /// Adds the added tokens and the post-processor to a converted tokenizer. `add_bos_token` and `add_eos_token` of the
    /// configuration take precedence over the class.
    fn finish(&self, folder: &Path, config: &Map<String, Value>, mut tokenizer: Value) -> Result<Value> {
        let tokens = added_tokens(folder, config, &vocabulary(&tokenizer))?;
        let field = |own: Option<&'static str>, name: &'static str, setting: &str| match flag(config, setting) {
            Some(true) => Some(own.unwrap_or(name)),
            Some(false) => None,
            None => own,
        };
        let before = field(self.before, "bos_token", "add_bos_token").and_then(|name| named(config, &tokens, name));
        let after = field(self.after, "eos_token", "add_eos_token").and_then(|name| named(config, &tokens, name));
        tokenizer["post_processor"] = surround(before, after);
        tokenizer["added_tokens"] = tokens.into();
        Ok(tokenizer)
    }
}

/// Classes that use a SentencePiece model as it is.
const SENTENCEPIECE_CLASSES: &[Class] = &[
    Class { name: "LlamaTokenizer", defaults: LLAMA_TOKENS, before: Some("bos_token"), after: None },
    Class { name: "CodeLlamaTokenizer", defaults: LLAMA_TOKENS, before: Some("bos_token"), after: None },
    Class {
        name: "T5Tokenizer",
        defaults: &[("eos_token", "</s>"), ("unk_token", "<unk>"), ("pad_token", "<pad>")],
        before: None,
        after: Some("eos_token"),
    },
    Class {
        name: "GemmaTokenizer",
        defaults: &[("bos_token", "<bos>"), ("eos_token", "<eos>"), ("unk_token", "<unk>"), ("pad_token", "<pad>")],
        before: Some("bos_token"),
        after: None,
    },
];
const LLAMA_TOKENS: &[(&str, &str)] = &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")];

fn sentencepiece(folder: &Path, name: &str, config: &mut Map<String, Value>) -> Result<Value> {
    let path = folder.join(name);
    let class = class(config).unwrap_or_else(|| "LlamaTokenizer".into());
    let class = Class::find(folder, &class, SENTENCEPIECE_CLASSES)?;
    let options = match class.name {
        "GemmaTokenizer" => Options { legacy: true, add_prefix_space: false, strip: false },
        name => Options {
            legacy: flag(config, "legacy").unwrap_or(true),
            add_prefix_space: flag(config, "add_prefix_space").unwrap_or(true),
            strip: name == "T5Tokenizer",
        },
    };
    let bytes = files::read(&path, MAX_FILE_BYTES)?;
    let tokenizer = convert(&bytes, options).map_err(|problem| broken(&path, &problem))?;
    complete(config, folder, class.defaults)?;
    if class.name == "T5Tokenizer" {
        add_extra_ids(config, &tokenizer);
    }
    class.finish(folder, config, tokenizer)
}

/// T5's sentinels, which stand behind the vocabulary in falling order.
fn add_extra_ids(config: &mut Map<String, Value>, tokenizer: &Value) {
    let count = config.get("extra_ids").and_then(Value::as_u64).unwrap_or(EXTRA_IDS).min(1 << 12);
    let size = tokenizer["model"]["vocab"].as_array().map_or(0, Vec::len) as u64;
    let token =
        |n: u64| json!({ "content": format!("<extra_id_{n}>"), "lstrip": true, "rstrip": true, "special": true });
    let tokens = (0..count).map(|n| ((size + count - 1 - n).to_string(), token(n)));
    config.entry("added_tokens_decoder").or_insert_with(|| Value::Object(tokens.collect()));
}

fn broken(path: &Path, problem: &str) -> Error {
    Error::tokenizer(format!("{} {problem}: copy or download it again, or bring tokenizer.json", path.display()))
}

/// Classes with byte-level BPE.
const BYTE_LEVEL_CLASSES: &[Class] = &[
    Class { name: "GPT2Tokenizer", defaults: GPT2_TOKENS, before: None, after: None },
    Class { name: "CodeGenTokenizer", defaults: GPT2_TOKENS, before: None, after: None },
    Class {
        name: "Qwen2Tokenizer",
        defaults: &[("eos_token", "<|endoftext|>"), ("pad_token", "<|endoftext|>")],
        before: None,
        after: None,
    },
    Class {
        name: "CLIPTokenizer",
        defaults: &[
            ("bos_token", "<|startoftext|>"),
            ("eos_token", "<|endoftext|>"),
            ("unk_token", "<|endoftext|>"),
            ("pad_token", "<|endoftext|>"),
        ],
        before: Some("bos_token"),
        after: Some("eos_token"),
    },
    Class { name: "RobertaTokenizer", defaults: ROBERTA_TOKENS, before: Some("cls_token"), after: Some("sep_token") },
    Class { name: "BartTokenizer", defaults: ROBERTA_TOKENS, before: Some("cls_token"), after: Some("sep_token") },
];
const GPT2_TOKENS: &[(&str, &str)] =
    &[("bos_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>")];
const ROBERTA_TOKENS: &[(&str, &str)] = &[
    ("bos_token", "<s>"),
    ("cls_token", "<s>"),
    ("eos_token", "</s>"),
    ("sep_token", "</s>"),
    ("unk_token", "<unk>"),
    ("pad_token", "<pad>"),
];

/// Byte-level BPE of `vocab.json` and `merges.txt`.
fn byte_level(folder: &Path, config: &mut Map<String, Value>) -> Result<Value> {
    let Some(class) = class(config) else {
        return Err(Error::tokenizer(format!(
            "{}: `tokenizer_class` of tokenizer_config.json is missing, which says how {VOCAB_JSON} is used: set it, or \
             bring tokenizer.json",
            folder.display()
        )));
    };
    let class = Class::find(folder, &class, BYTE_LEVEL_CLASSES)?;
    let (vocab, merges) = (read_vocab(&folder.join(VOCAB_JSON))?, read_merges(&folder.join(MERGES))?);
    let prefix = flag(config, "add_prefix_space").unwrap_or(false);
    complete(config, folder, class.defaults)?;
    let tokenizer = match class.name {
        "CLIPTokenizer" => clip_form(&vocab, &merges, config),
        "Qwen2Tokenizer" => byte_level_form(&vocab, &merges, json!({ "type": "NFC" }), QWEN2_WORDS, false),
        _ => byte_level_form(&vocab, &merges, Value::Null, GPT2_WORDS, prefix),
    };
    class.finish(folder, config, tokenizer)
}

fn byte_level_form(
    vocab: &Map<String, Value>,
    merges: &[[String; 2]],
    normalizer: Value,
    words: &str,
    prefix: bool,
) -> Value {
    let bytes = |prefix: bool| json!({ "type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": false, "use_regex": words == GPT2_WORDS });
    let cut = json!({ "type": "Split", "pattern": { "Regex": words }, "behavior": "Isolated", "invert": false });
    let steps = if words == GPT2_WORDS { vec![bytes(prefix)] } else { vec![cut, bytes(prefix)] };
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": normalizer,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": steps }, "post_processor": null,
        "decoder": bytes(false),
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                   "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges },
    })
}

/// CLIP's lower-cased words, each of whose last pieces ends with `</w>`.
fn clip_form(vocab: &Map<String, Value>, merges: &[[String; 2]], config: &Map<String, Value>) -> Value {
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false });
    let replace = |pattern: Value, content: &str| json!({ "type": "Replace", "pattern": pattern, "content": content });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "NFC" }, replace(json!({ "Regex": r"\s+" }), " "), { "type": "Lowercase" },
        ] },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": CLIP_WORDS }, "behavior": "Removed", "invert": true }, bytes,
        ] },
        "post_processor": null,
        "decoder": { "type": "Sequence", "decoders": [
            bytes, replace(json!({ "String": "</w>" }), " "), { "type": "Fuse" },
            replace(json!({ "Regex": r" \z" }), ""),
        ] },
        "model": { "type": "BPE", "dropout": null, "unk_token": config.get("unk_token").and_then(content),
                   "continuing_subword_prefix": "", "end_of_word_suffix": "</w>", "fuse_unk": false,
                   "byte_fallback": false, "vocab": vocab, "merges": merges },
    })
}

/// Classes with WordPiece.
const WORD_PIECE_CLASSES: &[Class] = &[
    Class { name: "BertTokenizer", defaults: BERT_TOKENS, before: Some("cls_token"), after: Some("sep_token") },
    Class { name: "DistilBertTokenizer", defaults: BERT_TOKENS, before: Some("cls_token"), after: Some("sep_token") },
    Class { name: "ElectraTokenizer", defaults: BERT_TOKENS, before: Some("cls_token"), after: Some("sep_token") },
];
const BERT_TOKENS: &[(&str, &str)] = &[
    ("unk_token", "[UNK]"),
    ("sep_token", "[SEP]"),
    ("pad_token", "[PAD]"),
    ("cls_token", "[CLS]"),
    ("mask_token", "[MASK]"),
];

/// BERT's WordPiece of `vocab.txt`, one token a line.
fn word_piece(folder: &Path, config: &mut Map<String, Value>) -> Result<Value> {
    let class = class(config).unwrap_or_else(|| "BertTokenizer".into());
    let class = Class::find(folder, &class, WORD_PIECE_CLASSES)?;
    complete(config, folder, class.defaults)?;
    let vocab = read_lines(&folder.join(VOCAB_TXT))?;
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": { "type": "BertNormalizer", "clean_text": true,
                        "handle_chinese_chars": flag(config, "tokenize_chinese_chars").unwrap_or(true),
                        "strip_accents": config.get("strip_accents"),
                        "lowercase": flag(config, "do_lower_case").unwrap_or(true) },
        "pre_tokenizer": { "type": "BertPreTokenizer" }, "post_processor": null,
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": { "type": "WordPiece", "unk_token": config.get("unk_token").and_then(content),
                   "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocab },
    });
    class.finish(folder, config, tokenizer)
}

/// Tokens, one a line, with the number of the line as id.
fn read_lines(path: &Path) -> Result<Map<String, Value>> {
    let text = files::read_text(path, MAX_FILE_BYTES)?;
    let mut vocab = Map::new();
    for (id, token) in text.lines().enumerate() {
        if vocab.insert(token.into(), json!(id)).is_some() {
            return Err(broken(path, &format!("has the token `{token}` twice")));
        }
    }
    Ok(vocab)
}

fn read_vocab(path: &Path) -> Result<Map<String, Value>> {
    let text = files::read_text(path, MAX_FILE_BYTES)?;
    let vocab: Map<String, Value> = serde_json::from_str(&text)
        .map_err(|e| broken(path, &format!("is no JSON object of tokens and ids ({e})")).caused_by(e))?;
    let bad = vocab.iter().find(|(_, id)| id.as_u64().is_none_or(|id| id >= u64::from(u32::MAX)));
    match bad {
        Some((token, id)) => Err(broken(path, &format!("gives `{token}` the id {id}, expected a number below 2^32"))),
        None => Ok(vocab),
    }
}

/// Pairs of tokens, one a line; the first line may be a comment with the version.
fn read_merges(path: &PathBuf) -> Result<Vec<[String; 2]>> {
    let text = files::read_text(path, MAX_FILE_BYTES)?;
    let lines =
        text.lines().enumerate().filter(|(n, line)| !(line.is_empty() || *n == 0 && line.starts_with("#version")));
    let pair = |(n, line): (usize, &str)| match line.split_once(' ') {
        Some((left, right)) if !right.contains(' ') => Ok([left.to_string(), right.to_string()]),
        _ => Err(broken(path, &format!("has no pair of tokens in line {}", n + 1))),
    };
    lines.map(pair).collect()
}

//! SentencePiece models (`tokenizer.model`), converted to the form of `tokenizer.json`.
//!
//! The conversion gives the ids of Hugging Face's slow tokenizers, which call SentencePiece itself. Two things differ
//! from the fast tokenizers: a space before a text is kept beside the prefix, and user-defined pieces do not get a prefix
//! behind them.

mod bpe;
mod proto;
mod wire;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use self::proto::{Algorithm, ModelProto, PieceKind};

/// The character for a space in pieces.
const SPACE: &str = "\u{2581}";
/// More leading spaces than a text has.
const ALL_SPACES: usize = 1 << 30;

/// Settings of a slow tokenizer beside its SentencePiece model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Options {
    /// Whether every text between special tokens is encoded alone, with a prefix of its own, as in the first version of
    /// HF's tokenizers.
    pub(super) legacy: bool,
    /// Whether a text gets a space before it; in legacy mode the model decides this, and texts only lose it.
    pub(super) add_prefix_space: bool,
    /// Whether decoded text loses the spaces at its ends.
    pub(super) strip: bool,
}

/// Converts the bytes of a `tokenizer.model` to the content of a `tokenizer.json` without added tokens and without a
/// post-processor.
///
/// # Errors
/// The reason why the file cannot be converted.
pub(super) fn convert(bytes: &[u8], options: Options) -> Result<Value, String> {
    let model = ModelProto::parse(bytes)?;
    if model.treat_whitespace_as_suffix {
        return Err("has `treat_whitespace_as_suffix` set, which is not supported".into());
    }
    let algorithm = match model.algorithm {
        Algorithm::Bpe | Algorithm::Char => bpe::model(&model)?,
        Algorithm::Unigram => unigram(&model)?,
        Algorithm::Word => return Err("is a word model, expected bpe, unigram or char".into()),
    };
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": normalizer(&model, options)?,
        "pre_tokenizer": pre_tokenizer(&model, options),
        "post_processor": null,
        "decoder": decoder(&model, options),
        "model": algorithm,
    }))
}

/// Unigram model; a user-defined piece gets SentencePiece's score, which lets it win.
fn unigram(model: &ModelProto) -> Result<Value, String> {
    let normal = model.pieces.iter().filter(|piece| piece.kind == PieceKind::Normal);
    let best = normal.map(|piece| f64::from(piece.score)).fold(f64::NEG_INFINITY, f64::max);
    let score = |piece: &proto::Piece| match piece.kind {
        PieceKind::UserDefined if best.is_finite() => piece.text.len() as f64 * best - 0.1,
        _ => f64::from(piece.score),
    };
    let vocab: Vec<Value> = model.pieces.iter().map(|piece| json!([piece.text, score(piece)])).collect();
    Ok(json!({ "type": "Unigram", "unk_id": model.unknown()?, "vocab": vocab, "byte_fallback": model.byte_fallback }))
}

/// SentencePiece's normalisation; the prefix is part of it in legacy mode only.
fn normalizer(model: &ModelProto, options: Options) -> Result<Value, String> {
    let replace = |pattern: Value, content: &str| json!({ "type": "Replace", "pattern": pattern, "content": content });
    let regex = |pattern: &str| json!({ "Regex": pattern });
    let space = space_of(model);
    let mut steps = Vec::new();
    if !options.legacy {
        steps.push(replace(json!({ "String": SPACE }), " "));
    }
    if !model.precompiled_charsmap.is_empty() {
        let map = BASE64_STANDARD.encode(&model.precompiled_charsmap);
        steps.push(json!({ "type": "Precompiled", "precompiled_charsmap": map }));
    }
    if model.remove_extra_whitespaces {
        steps.push(replace(regex("(?<= ) +"), ""));
        if options.legacy {
            steps.push(replace(regex(r"\A "), ""));
        }
    }
    if model.escape_whitespaces {
        steps.push(replace(json!({ "String": " " }), SPACE));
    }
    if model.remove_extra_whitespaces {
        // A lookbehind, so that a run of spaces is tried once.
        steps.push(replace(regex(&format!(r"(?<!{space}){space}+\z")), ""));
    }
    if options.legacy && model.add_dummy_prefix {
        steps.push(json!({ "type": "Prepend", "prepend": space }));
    }
    Ok(match steps.len() {
        0 => Value::Null,
        _ => json!({ "type": "Sequence", "normalizers": steps }),
    })
}

/// The prefix at the start of a text, and cuts around user-defined pieces.
fn pre_tokenizer(model: &ModelProto, options: Options) -> Value {
    let metaspace = |replacement: &str, scheme: &str| json!({ "type": "Metaspace", "replacement": replacement, "prepend_scheme": scheme, "split": false });
    let mut steps = Vec::new();
    if !options.legacy && options.add_prefix_space {
        let joins = model.remove_extra_whitespaces && !model.precompiled_charsmap.is_empty();
        if joins && model.escape_whitespaces {
            // The prefix is normalised as well, and becomes one with a space after it.
            steps.push(metaspace(SPACE, "first"));
        } else {
            // No text starts with a space here: they have been replaced, so that one is prepended to every text.
            steps.push(metaspace(" ", "first"));
            steps.extend(model.escape_whitespaces.then(|| metaspace(SPACE, "never")));
        }
    }
    let split = |pattern: String, behavior: &str| json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": behavior, "invert": false });
    let symbols = user_defined(model).filter(|_| model.algorithm != Algorithm::Unigram);
    if symbols.is_some() || model.algorithm == Algorithm::Unigram {
        steps.extend(never_found(model).map(|pattern| split(pattern, "MergedWithPrevious")));
    }
    steps.extend(symbols.map(|pattern| split(pattern, "Isolated")));
    match steps.len() {
        0 => Value::Null,
        _ => json!({ "type": "Sequence", "pretokenizers": steps }),
    }
}

/// Pattern of the user-defined pieces, the longest first.
fn user_defined(model: &ModelProto) -> Option<String> {
    let mut texts = texts_of(model, |kind| kind == PieceKind::UserDefined);
    texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
    (!texts.is_empty()).then(|| texts.into_iter().map(escape).collect::<Vec<_>>().join("|"))
}

/// Pattern of the first character of control and byte pieces that are spelt out in a text, where the text is cut: the
/// model of `tokenizer.json` would find them.
fn never_found(model: &ModelProto) -> Option<String> {
    let texts = texts_of(model, |kind| matches!(kind, PieceKind::Control | PieceKind::Unknown | PieceKind::Byte));
    let cut = |text: &str| {
        let mut rest = text.chars();
        let first = rest.next()?.to_string();
        (!rest.as_str().is_empty()).then(|| format!("{}(?={})", escape(&first), escape(rest.as_str())))
    };
    let cuts: Vec<String> = texts.into_iter().filter_map(cut).collect();
    (!cuts.is_empty()).then(|| cuts.join("|"))
}

fn texts_of(model: &ModelProto, wanted: impl Fn(PieceKind) -> bool) -> Vec<&str> {
    model.pieces.iter().filter(|piece| wanted(piece.kind)).map(|piece| piece.text.as_str()).collect()
}

/// A regular expression that matches the text.
fn escape(text: &str) -> String {
    let part = |c: char| if c.is_ascii_punctuation() { vec!['\\', c] } else { vec![c] };
    text.chars().flat_map(part).collect()
}

/// Pieces to text: spaces, bytes, and the prefix taken off again.
fn decoder(model: &ModelProto, options: Options) -> Value {
    let mut steps = vec![json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " })];
    if model.pieces.iter().any(|piece| piece.kind == PieceKind::Byte) {
        steps.push(json!({ "type": "ByteFallback" }));
    }
    steps.push(json!({ "type": "Fuse" }));
    let own = usize::from(options.add_prefix_space);
    let start = match (options.legacy && model.add_dummy_prefix, model.remove_extra_whitespaces || options.strip) {
        (_, true) => ALL_SPACES,
        (true, false) => own + 1,
        (false, false) => own,
    };
    if start > 0 {
        steps.push(json!({ "type": "Strip", "content": " ", "start": start, "stop": 0 }));
    }
    if options.strip {
        // Not `Strip`, which fails on an empty text.
        let pattern = json!({ "Regex": r"(?<! ) +\z" });
        steps.push(json!({ "type": "Replace", "pattern": pattern, "content": "" }));
    }
    json!({ "type": "Sequence", "decoders": steps })
}

fn space_of(model: &ModelProto) -> &'static str {
    if model.escape_whitespaces { SPACE } else { " " }
}

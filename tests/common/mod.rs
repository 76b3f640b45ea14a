//! Fixtures that several test files share.
#![allow(dead_code, reason = "each test file compiles this module and uses a subset")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use haplovl::config::HaploVlConfig;
use haplovl::processor::{Processor, ProcessorSettings, TextTokenizer};
use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

/// Builds a character-level tokenizer for [`HaploVlConfig::tiny`].
///
/// Special tokens: `<|endoftext|>` 91, `<|im_start|>` 92, `<|im_end|>` 93, `<image>` 94, `<video>` 95. Characters
/// outside of ASCII, and `` ` ~ ^ \ { } ``, are unknown (0).
pub fn tiny_tokenizer() -> Tokenizer {
    let characters = (' '..='~').filter(|c| !"`~^\\{}".contains(*c)).chain(['\n']);
    let tokens = ["\u{FFFD}".to_owned()].into_iter().chain(characters.map(String::from));
    let vocab: Map<_, _> = tokens.zip(0..).map(|(token, id)| (token, json!(id))).collect();
    tokenizer(json!({ "type": "BPE", "vocab": vocab, "merges": [], "unk_token": "\u{FFFD}" }), false)
}

/// Builds a tokenizer from a `model` section, on bytes or characters. The control tokens of ChatML and the placeholders
/// follow the vocabulary of the model.
pub fn tokenizer(model: Value, byte_level: bool) -> Tokenizer {
    let first = model["vocab"].as_object().unwrap().len();
    let special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"];
    let added = |(n, token)| {
        json!({ "id": first + n, "content": token, "special": true, "normalized": false,
                "single_word": false, "lstrip": false, "rstrip": false })
    };
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let (pre_tokenizer, decoder) =
        if byte_level { (bytes.clone(), bytes) } else { (Value::Null, json!({ "type": "Fuse" })) };
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": special.into_iter().enumerate().map(added).collect::<Vec<_>>(),
        "pre_tokenizer": pre_tokenizer, "decoder": decoder, "model": model,
    });
    Tokenizer::from_bytes(file.to_string()).unwrap()
}

/// Builds the processor of [`HaploVlConfig::tiny`], with [`tiny_tokenizer`] and ChatML.
pub fn tiny_processor() -> Processor {
    let config = HaploVlConfig::tiny();
    let end = Map::from_iter([("eos_token".to_owned(), json!("<|endoftext|>"))]);
    let tokenizer = TextTokenizer::new(tiny_tokenizer(), end).unwrap();
    Processor::new(&config, ProcessorSettings::new(&config), tokenizer, None).unwrap()
}

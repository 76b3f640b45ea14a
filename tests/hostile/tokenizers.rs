//! Tokenizer files that try to exhaust memory or time, or that do not match their model.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper fails its test")]

use std::time::{Duration, Instant};

use crate::common::{tiny_processor, tiny_tokenizer};
use haplovl::config::HaploVlConfig;
use haplovl::processor::{ChatTemplate, Conversation, Processor, ProcessorSettings, TextTokenizer};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// The tiny model's `tokenizer.json` with a change.
fn changed(change: impl FnOnce(&mut Value)) -> Value {
    let mut file = serde_json::from_str(&tiny_tokenizer().to_string(false).unwrap()).unwrap();
    change(&mut file);
    file
}

/// Loads a folder with this `tokenizer.json` and tokenises a text with it.
fn load(file: &Value) -> haplovl::Result<Vec<u32>> {
    let folder = tempfile::tempdir().unwrap();
    tiny_processor().save(&folder).unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
    let started = Instant::now();
    let processor = Processor::from_folder(&folder, &HaploVlConfig::tiny());
    let ids = processor.and_then(|processor| {
        let ids = processor.sequence(&Conversation::ask([], "see the eels"), true)?.input_ids;
        processor.tokenizer().decode(&ids, false)?;
        Ok(ids)
    });
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    ids
}

fn error(file: &Value) -> String {
    let message = load(file).unwrap_err().to_string();
    assert!(message.chars().count() < 300, "{message}");
    message
}

fn sequence(part: &str, steps: Vec<Value>) -> Value {
    json!({ "type": "Sequence", part: steps })
}

#[test]
fn normalisation_cannot_explode_texts() {
    let replace = |pattern: Value, content: &str| json!({ "type": "Replace", "pattern": pattern, "content": content });
    let double = replace(json!({ "String": "e" }), "ee");
    let empty = replace(json!({ "String": "" }), "x");
    let regex = replace(json!({ "Regex": "e*" }), "ee");
    let prepend = |content: String| json!({ "type": "Prepend", "prepend": content });
    for step in [double, empty, regex] {
        for (part, steps) in [("normalizer", "normalizers"), ("decoder", "decoders")] {
            let message = error(&changed(|file| file[part] = sequence(steps, vec![step.clone(); 40])));
            assert!(message.contains(&format!("`{part}` may make a text more than")), "{message}");
            let nested = (0..40).fold(step.clone(), |inner, _| sequence(steps, vec![inner, step.clone()]));
            let message = error(&changed(|file| file[part] = nested));
            assert!(message.contains(&format!("`{part}` may make a text more than")), "{message}");
        }
    }
    let long = error(&changed(|file| file["normalizer"] = prepend("a".repeat(1 << 20))));
    assert!(long.contains("`prepend` of `Prepend` has 1048576 bytes, expected at most 256"), "{long}");
    let many = error(&changed(|file| file["normalizer"] = sequence("normalizers", vec![prepend("a".into()); 1000])));
    assert!(many.contains("`normalizer` has more than 64 steps"), "{many}");
    let long = error(&changed(|file| file["decoder"] = replace(json!({ "String": "e" }), &"a".repeat(1 << 20))));
    assert!(long.contains("`content` of `Replace` has 1048576 bytes"), "{long}");
    let bytes =
        vec![json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true }); 40];
    let bytes = error(&changed(|file| file["pre_tokenizer"] = sequence("pretokenizers", bytes)));
    assert!(bytes.contains("`pre_tokenizer` may make a text"), "{bytes}");
    let piece = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    for count in [2, 100_000] {
        let template =
            json!({ "type": "TemplateProcessing", "single": vec![&piece; count], "pair": [], "special_tokens": {} });
        let message = error(&changed(|file| file["post_processor"] = template));
        assert!(message.contains("`TemplateProcessing`"), "{message}");
    }
}

#[test]
fn precompiled_character_maps_are_validated() {
    let map = |bytes: &str| {
        changed(|file| file["normalizer"] = json!({ "type": "Precompiled", "precompiled_charsmap": bytes }))
    };
    for broken in ["/".repeat(136), String::new(), "AAAA".into(), "!".into(), "BAAAAAAAAAA=".repeat(2)] {
        let message = error(&map(&broken));
        assert!(message.contains("`precompiled_charsmap` is broken"), "{message}");
    }
    let message = error(&map(&"A".repeat(5 << 20)));
    assert!(message.contains("`precompiled_charsmap` has 5242880 characters"), "{message}");
}

#[test]
fn components_without_fields_are_errors() {
    for part in ["normalizer", "pre_tokenizer", "decoder", "post_processor"] {
        for value in [
            json!({}),
            json!([]),
            json!(7),
            json!("x"),
            json!({ "type": "None such" }),
            json!({ "type": "Sequence" }),
            json!({ "type": "Replace" }),
        ] {
            let message = error(&changed(|file| file[part] = value.clone()));
            assert!(message.contains("tokenizer.json"), "{part} {value}: {message}");
        }
    }
    let fixed = error(&changed(|file| file["pre_tokenizer"] = json!({ "type": "FixedLength", "length": 0 })));
    assert!(fixed.contains("`length` of `FixedLength`"), "{fixed}");
}

#[test]
fn many_or_long_tokens_are_rejected() {
    let added = |count: usize, length: usize| {
        changed(|file| {
            let mut token = file["added_tokens"][0].clone();
            token["content"] = json!("x".repeat(length));
            let tokens = file["added_tokens"].as_array_mut().unwrap();
            tokens.resize(count, token);
        })
    };
    let many = error(&added(70_000, 3));
    assert!(many.contains("has 70000 added tokens, expected at most 65536"), "{many}");
    let long = error(&added(6, 5000));
    assert!(long.contains("has a token of 5000 bytes"), "{long}");
}

#[test]
fn control_tokens_must_exist_and_be_special() {
    for token in ["<|im_start|>", "<|im_end|>", "<|endoftext|>"] {
        let without =
            changed(|file| file["added_tokens"].as_array_mut().unwrap().retain(|added| added["content"] != token));
        // The placeholders follow it and their ids would change.
        let message = error(&without);
        assert!(message.contains("is missing") || message.contains(token) || message.contains("has id"), "{message}");
    }
    let plain = changed(|file| file["added_tokens"][1]["special"] = json!(false));
    assert!(error(&plain).contains("`<|im_start|>`, which is no special token"), "{}", error(&plain));
}

#[test]
fn named_tokens_must_be_in_the_vocabulary() {
    let message = |name: &str, token: Value| {
        let config = HaploVlConfig::tiny();
        let tokenizer = TextTokenizer::new(tiny_tokenizer(), Map::from_iter([(name.to_owned(), token)])).unwrap();
        Processor::new(&config, ProcessorSettings::new(&config), tokenizer, None).map(drop).map_err(|e| e.to_string())
    };
    for name in ["unk_token", "bos_token", "eos_token", "pad_token"] {
        let missing = message(name, json!("nope")).unwrap_err();
        assert!(
            missing.contains(&format!("`{name}` of tokenizer_config.json is `nope`, which is not in")),
            "{missing}"
        );
        let missing = message(name, json!({ "content": "nope" })).unwrap_err();
        assert!(missing.contains("`nope`"), "{missing}");
        assert_eq!(message(name, Value::Null), Ok(()));
        assert_eq!(message(name, json!("<|im_end|>")), Ok(()));
    }
    assert!(message("eos_token", json!("e")).unwrap_err().contains("is no special token"));
    assert_eq!(message("unk_token", json!("e")), Ok(()));
}

#[test]
fn control_tokens_of_templates_are_checked() {
    let message = |source: &str| {
        let config = HaploVlConfig::tiny();
        let tokenizer = TextTokenizer::new(tiny_tokenizer(), Map::new()).unwrap();
        let template = Some(ChatTemplate::new(source).unwrap());
        Processor::new(&config, ProcessorSettings::new(&config), tokenizer, template)
            .map(drop)
            .map_err(|e| e.to_string())
    };
    for (token, body) in [
        ("<|start_header_id|>", "<|start_header_id|>{{ m.role }}"),
        ("<｜User｜>", "<｜User｜>"),
        ("<|end|>", "x<|<|end|>"),
    ] {
        let source = format!("{{% for m in messages %}}{body}{{% endfor %}}");
        assert!(message(&source).unwrap_err().contains(&format!("the chat template writes `{token}`")), "{source}");
    }
    assert_eq!(message("{% for m in messages %}<|im_end|> <| x |> <|{{ m.role }}{% endfor %}"), Ok(()));
}

#[test]
fn long_texts_are_rejected_early() {
    let processor = tiny_processor();
    for bytes in [4000, 100_000, 10 << 20] {
        let started = Instant::now();
        let message =
            processor.sequence(&Conversation::ask([], "ab ".repeat(bytes / 3 + 1)), true).unwrap_err().to_string();
        assert!(message.contains("model's context of 256"), "{message}");
        assert!(started.elapsed() < Duration::from_secs(1));
    }
    let message = processor.tokenizer().encode(&"a".repeat(10 << 20)).unwrap_err().to_string();
    assert!(message.contains("has 10485760 bytes, expected at most 8388608 with this tokenizer"), "{message}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any JSON as a component is loaded or rejected without a panic.
    #[test]
    fn any_component_is_loaded_or_rejected(part in 0..4usize, kind in "Replace|Prepend|Strip|Split|Sequence|BPEDecoder|WordPiece|Metaspace|CTC|ByteLevel|Digits|Precompiled", field in "content|pattern|prepend|start|stop|behavior|prefix|suffix|normalizers|decoders", value in prop_oneof![Just(json!(null)), Just(json!(-1)), Just(json!(u64::MAX)), Just(json!("")), Just(json!([])), Just(json!({"Regex": "("}))]) {
        let part = ["normalizer", "pre_tokenizer", "decoder", "post_processor"][part];
        let mut component = json!({ "type": kind, "content": "a", "start": 1, "stop": 0, "pattern": {"String": "e"}, "behavior": "Isolated", "prefix": "", "suffix": "" });
        component[field] = value;
        let _ = load(&changed(|file| file[part] = component));
    }

    /// Plain text is encoded without special tokens and decodes to itself.
    #[test]
    fn plain_text_round_trips(text in "[ -_a-z|]{0,60}") {
        let tokenizer = TextTokenizer::new(tiny_tokenizer(), Map::new()).unwrap();
        let text = text.replace(['\\', '^'], "");
        let ids = tokenizer.encode(&text).unwrap();
        prop_assert!(!ids.iter().any(|&id| tokenizer.is_special(id)));
        prop_assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
}

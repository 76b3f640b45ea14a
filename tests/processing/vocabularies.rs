//! Vocabularies as they are published: SentencePiece models and other files without `tokenizer.json`.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use haplovl::processor::TextTokenizer;
use serde_json::Value;

/// Folders with `tokenizer.model` and `expected.json` below the fixtures and below `$HAPLOVL_BRING_DIR`.
fn sentencepiece_folders() -> Vec<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bring");
    let brought = std::env::var_os("HAPLOVL_BRING_DIR").map(PathBuf::from);
    let mut folders = Vec::new();
    for root in [Some(own), brought].into_iter().flatten() {
        let inside = std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path());
        folders.extend(
            inside.chain([root]).filter(|f| ["tokenizer.model", "expected.json"].iter().all(|n| f.join(n).is_file())),
        );
    }
    folders.sort();
    folders
}

/// The tokenizer of a folder, with `legacy` set as the cases say.
fn opened(folder: &Path, legacy: bool) -> TextTokenizer {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = copy.path().join("tokenizer_config.json");
    let mut config: Value = std::fs::read(&path).map_or(serde_json::json!({}), |b| serde_json::from_slice(&b).unwrap());
    config["legacy"] = legacy.into();
    std::fs::write(&path, config.to_string()).unwrap();
    TextTokenizer::from_folder(copy.path()).unwrap()
}

#[test]
fn sentencepiece_models_give_the_ids_and_texts_of_the_slow_tokenizer() {
    let (mut cases, mut wrong) = (0, Vec::new());
    let folders = sentencepiece_folders();
    for folder in &folders {
        let expected: Value = serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
        for (name, rows) in expected.as_object().unwrap() {
            let tokenizer = opened(folder, name == "legacy=True");
            for row in rows.as_array().unwrap() {
                let text = row["text"].as_str().unwrap();
                let ids: Vec<u32> = serde_json::from_value(row["ids"].clone()).unwrap();
                let found = tokenizer.inner().encode(text, true).unwrap();
                let decoded = tokenizer.decode(&ids, true).unwrap();
                cases += 1;
                if found.get_ids() != ids || row["decoded"] != *decoded {
                    let folder = folder.file_name().unwrap().display();
                    wrong.push(format!(
                        "{folder} {name} {text:?}: {:?} not {ids:?}; {decoded:?} not {}",
                        found.get_ids(),
                        row["decoded"]
                    ));
                }
            }
        }
    }
    println!("{cases} cases in {} folders", folders.len());
    assert!(cases >= 30);
    assert!(wrong.is_empty(), "{} of {cases} differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

fn message(files: &[(&str, &str)]) -> String {
    let message = TextTokenizer::from_folder(folder(files).path()).unwrap_err().to_string();
    assert!(message.len() < 300, "{message}");
    message
}

const VOCAB: &str = r#"{"a": 0, "b": 1, "c": 2, "Ġ": 3, "ab": 4, "Ġab": 5}"#;
const MERGES: &str = "#version: 0.2\na b\nĠ ab\n";

#[test]
fn a_vocabulary_with_merges_is_read_by_its_class() {
    let qwen = r#"{"tokenizer_class": "Qwen2TokenizerFast", "eos_token": "<|im_end|>", "added_tokens_decoder":
        {"6": {"content": "<|endoftext|>", "special": true}, "7": {"content": "<|im_end|>", "special": true}}}"#;
    let folder = folder(&[("vocab.json", VOCAB), ("merges.txt", MERGES), ("tokenizer_config.json", qwen)]);
    let tokenizer = TextTokenizer::from_folder(folder.path()).unwrap();
    assert_eq!(tokenizer.encode("ab abc").unwrap(), [4, 5, 2]);
    assert_eq!(tokenizer.decode(&[4, 5, 2, 7], true).unwrap(), "ab abc");
    assert!(tokenizer.is_special(7) && tokenizer.eos_id() == Some(7) && tokenizer.size() == 8);
    let unknown = [
        ("vocab.json", VOCAB),
        ("merges.txt", MERGES),
        ("tokenizer_config.json", r#"{"tokenizer_class": "XTokenizer"}"#),
    ];
    assert!(message(&unknown).contains("`tokenizer_class` is XTokenizer"), "{}", message(&unknown));
    assert!(message(&unknown[..2]).contains("`tokenizer_class` of tokenizer_config.json is missing"));
}

#[test]
fn word_pieces_are_read() {
    let vocab = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ndog\n##s\n!\n";
    let tokenizer = TextTokenizer::from_folder(folder(&[("vocab.txt", vocab)]).path()).unwrap();
    assert_eq!(tokenizer.inner().encode("Dogs ! cat", true).unwrap().get_ids(), [2, 5, 6, 7, 1, 3]);
    assert_eq!(tokenizer.unknown_words("dogs cat").unwrap(), ["cat"]);
}

#[test]
fn added_tokens_that_contradict_the_vocabulary_are_refused() {
    let with =
        |config: &str| message(&[("vocab.json", VOCAB), ("merges.txt", MERGES), ("tokenizer_config.json", config)]);
    let decoder =
        |tokens: &str| format!(r#"{{"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": {{{tokens}}}}}"#);
    let hole = with(&decoder(r#""9": {"content": "<x>"}"#));
    assert!(hole.contains("`<x>` has id 9, expected 6"), "{hole}");
    let collision = with(&decoder(r#""3": {"content": "ab"}"#));
    assert!(collision.contains("`ab` has id 3, but id 4"), "{collision}");
    let large = with(&decoder(r#""4294967296": {"content": "<x>"}"#));
    assert!(large.contains("4294967296, expected a number below 2^32"), "{large}");
    let twice = message(&[
        ("vocab.json", VOCAB),
        ("merges.txt", MERGES),
        ("added_tokens.json", r#"{"<x>": 6, "<y>": 6}"#),
        ("tokenizer_config.json", r#"{"tokenizer_class": "GPT2Tokenizer"}"#),
    ]);
    assert!(twice.contains("both have id 6"), "{twice}");
}

#[test]
fn broken_sentencepiece_models_are_refused() {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bring/sentencepiece/tokenizer.model");
    let good = std::fs::read(own).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let open = |bytes: &[u8]| {
        std::fs::write(folder.path().join("tokenizer.model"), bytes).unwrap();
        TextTokenizer::from_folder(folder.path()).map(drop)
    };
    open(&good).unwrap();
    for cut in [0, 1, 100, good.len() / 2] {
        let message = open(&good[..cut]).unwrap_err().to_string();
        assert!(message.contains("tokenizer.model") && message.len() < 300, "{cut}: {message}");
    }
    // Whatever a byte says, the model is read or refused.
    for at in (0..good.len()).step_by(97) {
        let mut bytes = good.clone();
        bytes[at] ^= 0xFF;
        let _ = open(&bytes);
    }
}

#[test]
fn long_texts_take_linear_time() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bring/sentencepiece");
    let tokenizer = opened(&folder, false);
    for text in ["a small red dog. ", " ", "\u{2581}", "a", "\n"] {
        let text = text.repeat((600 << 10) / text.len());
        let start = std::time::Instant::now();
        let ids = tokenizer.encode(&text).unwrap();
        assert!(!ids.is_empty());
        assert!(start.elapsed().as_secs() < 30, "{:?} for {:?}", start.elapsed(), &text[..3]);
        println!("{:?} {} tokens of {} bytes", start.elapsed(), ids.len(), text.len());
    }
}

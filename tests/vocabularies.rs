//! Vocabularies as they are published: SentencePiece models and other files without `tokenizer.json`.

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

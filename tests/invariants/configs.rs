//! Configurations round-trip through every serialised form.

use std::path::{Path, PathBuf};

use haplovl::config::HaploVlConfig;
use serde_json::{Value, json};

use crate::configs;

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Lists every official configuration in the repository, by name.
fn official() -> Vec<(String, Value)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let parity = root.join("tests/fixtures/parity");
    let models =
        std::fs::read_dir(parity.join("model")).unwrap().map(|entry| entry.unwrap().path().join("config.json"));
    let files: Vec<PathBuf> = models.chain([root.join("benches/config.json")]).collect();
    let mut found: Vec<_> = files.iter().map(|file| (file.display().to_string(), read(file))).collect();
    found.push(("7b pro".into(), read(&parity.join("haplo-7b-pro.tensors.json"))["config"].clone()));
    found
}

/// Compares JSON values, with numbers equal by value: 10000 equals 10000.0.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        _ => a == b,
    }
}

/// Returns whether `b` contains every field of `a` with the same value; `b` may have more fields.
fn is_subset(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => a.iter().all(|(key, a)| b.get(key).is_some_and(|b| is_subset(a, b))),
        _ => same(a, b),
    }
}

fn round_trip(official: &Value) -> Value {
    let ours = HaploVlConfig::from_json(official.clone()).unwrap();
    let back = ours.to_official().unwrap();
    assert_eq!(HaploVlConfig::from_json(back.clone()).unwrap(), ours, "reading the written form");
    back
}

#[test]
fn official_config_round_trips() {
    for (name, official) in official() {
        let back = round_trip(&official);
        assert!(is_subset(&official, &back), "{name}: {back:#}");
        // A complete configuration is unchanged, unknown fields included.
        let mut complete = back;
        complete["torch_dtype"] = json!("bfloat16");
        complete["architectures"] = json!(["HaploForConditionalGeneration"]);
        complete["base_config"]["attention_dropout"] = json!(0.0);
        complete["pre_config"]["unheard_of"] = json!({ "nested": [1, null, "text"] });
        complete["post_config"] = json!({ "never": "used" });
        assert!(same(&round_trip(&complete), &complete), "{name}");
    }
}

#[test]
fn fields_that_the_file_repeats_follow_a_new_vocabulary() {
    for (name, mut official) in official() {
        let read = HaploVlConfig::from_json(official.clone()).unwrap();
        official["pre_config"]["vocab_size"] = json!(read.vocab_size);
        official["pre_config"]["image_token_index"] = json!(read.image_token_index);
        official["pre_config"]["video_token_index"] = json!(read.video_token_index);
        let mut config = HaploVlConfig::from_json(official).unwrap();
        (config.vocab_size, config.image_token_index, config.video_token_index) = (777, 7, 8);
        let back = config.to_official().unwrap();
        assert_eq!(back["pre_config"]["image_token_index"], 7, "{name}");
        let again = HaploVlConfig::from_json(back).unwrap();
        assert_eq!((again.vocab_size, again.image_token_index, again.video_token_index), (777, 7, 8), "{name}");
    }
}

#[test]
fn missing_fields_take_their_default_and_round_trip() {
    for (name, official) in official() {
        for part in ["base_config", "pre_config"] {
            for field in official[part].as_object().unwrap().keys() {
                let mut shorter = official.clone();
                shorter[part].as_object_mut().unwrap().remove(field);
                match HaploVlConfig::from_json(shorter.clone()) {
                    Ok(_) => assert!(is_subset(&shorter, &round_trip(&shorter)), "{name}, {part}.{field}"),
                    // The default may contradict other fields; then the error names a field.
                    Err(error) => assert!(error.to_string().starts_with("configuration field `"), "{error}"),
                }
            }
        }
    }
}

#[test]
fn own_form_round_trips() {
    let presets = [
        ("haplovl_7b_pro", HaploVlConfig::haplovl_7b_pro()),
        ("haplovl_8b", HaploVlConfig::haplovl_8b()),
        ("haplovl_7b", HaploVlConfig::haplovl_7b()),
    ];
    for (name, config) in configs().into_iter().chain(presets) {
        config.validate().unwrap_or_else(|e| panic!("{name}: {e}"));
        let json = serde_json::to_value(&config).unwrap();
        assert_eq!(HaploVlConfig::from_json(json).unwrap(), config, "{name}");
        if config.is_official() {
            let official = config.to_official().unwrap();
            let ours = HaploVlConfig::from_json(official.clone()).unwrap();
            assert_eq!(HaploVlConfig { official_extra: None, ..ours }, config, "{name}");
        } else {
            let error = config.to_official().unwrap_err().to_string();
            assert!(error.contains("the official config.json cannot express"), "{name}: {error}");
        }
    }
}

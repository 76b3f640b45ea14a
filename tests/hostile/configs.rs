//! Configurations from arbitrary JSON: each is read or rejected with a short message, and a configuration that was read
//! passes validation.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper fails its test")]

use haplovl::config::{GenerationConfig, HaploVlConfig, PreprocessorConfig, ProcessorConfig};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// Any JSON value, including numbers at the limits of their types.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop_oneof![Just(0), Just(1), Just(u32::MAX as u64), Just(u64::MAX), Just(1 << 60)].prop_map(Value::from),
        "\\PC{0,8}|silu|anyres|anyres_max_[0-9]{1,20}|haplo|own|shared".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(("[a-z_]{0,8}", inner), 0..4).prop_map(|pairs| Value::Object(Map::from_iter(pairs))),
        ]
    })
}

/// The paths of all values in a JSON value.
fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| pointers(value, &format!("{at}/{key}"), found)),
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(n, value)| pointers(value, &format!("{at}/{n}"), found))
        }
        _ => {}
    }
}

/// A valid configuration with one value replaced.
fn spoilt(valid: &Value, place: prop::sample::Index, value: Value) -> Value {
    let mut places = Vec::new();
    pointers(valid, "", &mut places);
    let mut spoilt = valid.clone();
    *spoilt.pointer_mut(place.get::<String>(&places)).unwrap() = value;
    spoilt
}

fn check<T>(read: haplovl::Result<T>) -> Option<T> {
    read.map_err(|error| {
        let message = error.to_string();
        assert!(message.chars().count() < 300 && !message.chars().any(char::is_control), "{message}");
    })
    .ok()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn models(value in any_json(), place in any::<prop::sample::Index>(), official in any::<bool>()) {
        check(HaploVlConfig::from_json(value.clone()));
        let valid = HaploVlConfig::tiny();
        let valid = if official { valid.to_official().unwrap() } else { json!(valid) };
        if let Some(config) = check(HaploVlConfig::from_json(spoilt(&valid, place, value))) {
            config.validate().unwrap();
            prop_assert_eq!(HaploVlConfig::from_json(json!(config)).unwrap(), config);
        }
    }

    #[test]
    fn processors(value in any_json(), place in any::<prop::sample::Index>()) {
        let vision = HaploVlConfig::tiny().vision;
        check(PreprocessorConfig::from_json(value.clone(), &vision));
        check(ProcessorConfig::from_json(value.clone(), &vision));
        let images = PreprocessorConfig::image(&vision).to_json();
        if let Some(config) = check(PreprocessorConfig::from_json(spoilt(&images, place, value.clone()), &vision)) {
            // Writing adds the steps that are always taken, so what is written must read back as itself.
            let written = config.to_json();
            prop_assert_eq!(PreprocessorConfig::from_json(written.clone(), &vision).unwrap().to_json(), written);
        }
        let tokens = ProcessorConfig::new(&vision).to_json();
        check(ProcessorConfig::from_json(spoilt(&tokens, place, value), &vision));
    }

    #[test]
    fn generation(value in any_json(), place in any::<prop::sample::Index>()) {
        let valid = GenerationConfig { eos_token_id: vec![1], temperature: Some(1.0), ..GenerationConfig::default() };
        for json in [value.clone(), spoilt(&json!(valid), place, value)] {
            if let Ok(config) = serde_json::from_value::<GenerationConfig>(json) {
                check(config.validate());
                check(config.check_vocabulary(96));
                prop_assert!(config.validate().is_err() || config.token_limit() <= GenerationConfig::MAX_NEW_TOKENS);
            }
        }
    }
}

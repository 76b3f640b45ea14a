//! Options of the example, and the files that it writes.

use std::path::{Path, PathBuf};

use clap::Parser;

use super::checksum::checksum;
use super::modes::Mode;
use super::outputs::{Outputs, place};
use super::sampling::SamplingOptions;

#[test]
fn options_without_an_effect_are_refused() {
    let check = |mode: Mode, options: &[&str]| mode.check(&Vec::from_iter(options.iter().map(ToString::to_string)));
    for (mode, fine, refused) in [
        (Mode::Compare, ["compare", "json"], "out"),
        (Mode::Questions, ["images", "temperature"], "limit"),
        (Mode::Scenes, ["side", "quantize"], "choice"),
        (Mode::Benchmark("pope"), ["data", "adapter"], "scenes"),
        (Mode::Benchmark("shapes"), ["side", "seed"], "images"),
        (Mode::Score("pope"), ["partial", "sheet"], "model"),
    ] {
        check(mode, &fine).unwrap();
        let message = check(mode, &[fine[0], refused]).unwrap_err().to_string();
        assert!(message.starts_with(&format!("--{refused} has no effect with")), "{message}");
    }
}

#[derive(Parser)]
struct Sampling {
    #[command(flatten)]
    options: SamplingOptions,
}

#[test]
fn settings_are_the_options_that_are_given() {
    let of = |arguments: &[&str], own_count: bool| {
        let options = Sampling::parse_from([&["evaluate"], arguments].concat()).options;
        serde_json::json!(options.settings(own_count).unwrap()).to_string()
    };
    let settings = |arguments: &[&str]| of(arguments, false);
    // A model may sample by its own settings.
    assert_eq!(of(&["--seed", "5", "--temperature", "0"], true), r#"{"temperature":0.0,"seed":5}"#);
    assert_eq!(settings(&["--seed", "5", "--temperature", "0"]), "{}");
    assert_eq!(settings(&["--max-new-tokens", "512"]), r#"{"max_new_tokens":512}"#);
    assert_eq!(settings(&["--temperature", "0.5", "--seed", "5"]), r#"{"temperature":0.5,"seed":5}"#);
}

#[test]
fn a_model_that_was_trained_again_has_another_checksum() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    assert_eq!(checksum(folder.path()), None);
    let mut bytes = vec![7; 3 << 20];
    std::fs::write(&path, &bytes).unwrap();
    let before = checksum(folder.path()).unwrap();
    std::fs::write(folder.path().join("README.md"), "of no effect").unwrap();
    assert_eq!(checksum(folder.path()).unwrap(), before);
    bytes[1 << 20] = 8;
    std::fs::write(&path, &bytes).unwrap();
    assert_ne!(checksum(folder.path()).unwrap(), before);
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    assert!(checksum(folder.path()).is_some_and(|sum| sum != before) && checksum(&path).is_some());
}

fn outputs(folder: &Path, predictions: &str, sheet: Option<&str>) -> Outputs {
    let at = |name: &str| folder.join(name);
    Outputs { folder: Some(at("out")), predictions: at(predictions), is_written: true, sheet: sheet.map(at) }
}

#[test]
fn a_file_is_not_written_over_another_one() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("questions.tsv");
    std::fs::write(&input, "").unwrap();
    let inputs: [PathBuf; 1] = [input];
    let prepare = |predictions: &str, sheet| outputs(folder.path(), predictions, sheet).prepare(&inputs);
    prepare("out/predictions.jsonl", Some("out/sheet.tsv")).unwrap();
    for (predictions, sheet, expected) in [
        ("a.jsonl", Some("out/../questions.tsv"), "is a file that is read"),
        ("out/report.jsonl", Some("sheet.csv"), "ends in .tsv"),
        ("a.png", None, "ends in .jsonl"),
    ] {
        let message = prepare(predictions, sheet).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    let own = Outputs { is_written: false, ..outputs(folder.path(), "out/results.json", None) };
    assert!(own.prepare(&[]).unwrap_err().to_string().contains("is the file of predictions"));
}

#[test]
fn results_of_other_predictions_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out/results.json");
    let own = outputs(folder.path(), "a.jsonl", None);
    own.prepare(&[]).unwrap();
    let results = serde_json::json!({ "config": { "predictions": place(&own.predictions) } });
    std::fs::write(&path, results.to_string()).unwrap();
    own.prepare(&[]).unwrap();
    outputs(folder.path(), "out/../a.jsonl", None).prepare(&[]).unwrap();
    let message = outputs(folder.path(), "b.jsonl", None).prepare(&[]).unwrap_err().to_string();
    assert!(message.contains("results.json: holds the results of") && message.contains("a.jsonl"), "{message}");
}

#[cfg(unix)]
#[test]
fn devices_and_pipes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let socket = std::os::unix::net::UnixListener::bind(folder.path().join("sheet.tsv")).unwrap();
    let message = outputs(folder.path(), "a.jsonl", Some("sheet.tsv")).prepare(&[]).unwrap_err().to_string();
    assert!(message.contains("is no regular file"), "{message}");
    drop(socket);
}

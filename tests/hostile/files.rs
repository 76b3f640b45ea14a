//! Files of a model folder that are pipes, devices, huge, or dangling links: each is rejected quickly with its name.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper fails its test")]

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::tiny_processor;
use haplovl::config::{GenerationConfig, HaploVlConfig};
use haplovl::processor::Processor;

const FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "video_processor/preprocessor_config.json",
    "processor_config.json",
    "config.json",
];

/// The error of a folder with one file replaced.
fn error(name: &str, replace: impl FnOnce(&Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    tiny_processor().save(&folder).unwrap();
    std::fs::write(folder.path().join("config.json"), serde_json::to_string(&HaploVlConfig::tiny()).unwrap()).unwrap();
    let path = folder.path().join(name);
    let _ = std::fs::remove_file(&path);
    replace(&path);
    let started = Instant::now();
    let loaded = HaploVlConfig::from_file(folder.path().join("config.json"))
        .and_then(|config| Processor::from_folder(&folder, &config).map(drop));
    assert!(started.elapsed() < Duration::from_secs(5), "{name}: {:?}", started.elapsed());
    let message = loaded.unwrap_err().to_string();
    assert!(message.contains(name), "{name}: {message}");
    message
}

fn make_fifo(path: &Path) {
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the path ends with a zero byte and outlives the call.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
}

#[test]
fn pipes_devices_and_folders_are_rejected() {
    for name in FILES {
        assert!(error(name, make_fifo).contains("a pipe, socket or device"));
        assert!(error(name, |path| symlink("/dev/zero", path).unwrap()).contains("a pipe, socket or device"));
        assert!(error(name, |path| std::fs::create_dir(path).unwrap()).contains("is a folder"));
    }
}

#[test]
fn dangling_links_are_not_treated_as_absent_files() {
    for name in FILES {
        error(name, |path| symlink("nowhere", path).unwrap());
        error(name, |path| symlink(path, path).unwrap());
    }
}

#[test]
fn huge_files_are_read_up_to_a_limit() {
    for name in FILES {
        // A sparse file of zeros.
        let sparse = |path: &Path| std::fs::File::create(path).unwrap().set_len(1 << 40).unwrap();
        assert!(error(name, sparse).contains("is larger than"));
    }
    let keys = |path: &Path| {
        let keys: Vec<_> = (0..1_400_000).map(|n| format!("\"key{n}\":1")).collect();
        std::fs::write(path, format!("{{{}}}", keys.join(","))).unwrap();
    };
    assert!(error("config.json", keys).contains("is larger than"));
}

#[test]
fn generation_config_must_be_a_regular_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("generation_config.json");
    make_fifo(&path);
    let message = GenerationConfig::from_file(&path).unwrap_err().to_string();
    assert!(message.contains("generation_config.json") && message.contains("a pipe"), "{message}");
}

#[test]
fn errors_of_fields_name_the_file() {
    let wrong =
        |path: &Path| std::fs::write(path, r#"{"base_config": {"vocab_size": "many"}, "pre_config": {}}"#).unwrap();
    let message = error("config.json", wrong);
    assert!(message.contains("base_config.vocab_size"), "{message}");
    let wrong = |path: &Path| std::fs::write(path, r#"{"size": 7}"#).unwrap();
    assert!(error("preprocessor_config.json", wrong).contains("preprocessor_config.size"));
}

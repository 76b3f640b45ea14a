//! Checkpoint folders: retention, validation, and leftovers of a killed process.

#![allow(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use haplovl::train::checkpoint::{CheckpointManager, Contents};

fn tensors(value: f32) -> BTreeMap<String, Tensor> {
    let tensor = |n: usize| Tensor::full(value, (n, 3), &Device::Cpu).unwrap();
    BTreeMap::from([("a.weight".into(), tensor(2)), ("b".into(), tensor(1))])
}

fn open(folder: &Path, keep_last: usize) -> CheckpointManager {
    CheckpointManager::open(folder, "tune of tiny", keep_last).unwrap()
}

fn save(checkpoints: &CheckpointManager, step: u64, score: Option<f64>) {
    let (parameters, mut optimizer) = (tensors(step as f32), tensors(-(step as f32)));
    optimizer.insert("step".into(), Tensor::new(step as i64, &Device::Cpu).unwrap());
    let state = BTreeMap::from([("epoch".to_string(), step * 10)]);
    checkpoints.save(&Contents { step, parameters: &parameters, optimizer: &optimizer, state: &state, score }).unwrap();
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn contents_round_trip() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(folder.path(), 2);
    save(&checkpoints, 50, Some(0.5));
    let latest = checkpoints.latest_valid().unwrap();
    assert!(latest.refused.is_empty());
    let checkpoint = latest.checkpoint.unwrap();
    assert_eq!((checkpoint.step(), checkpoint.score()), (50, Some(0.5)));
    assert_eq!(checkpoint.path(), folder.path().join("step-00000050"));
    assert_eq!(checkpoint.state::<BTreeMap<String, u64>>().unwrap()["epoch"], 500);
    assert!(checkpoint.state::<Vec<u8>>().unwrap_err().to_string().contains("field `state`"));
    let (parameters, optimizer) = (checkpoint.parameters(&Device::Cpu), checkpoint.optimizer(&Device::Cpu));
    assert_eq!(values(&parameters.unwrap()["a.weight"]), [50.0; 6]);
    let optimizer = optimizer.unwrap();
    assert_eq!(values(&optimizer["b"]), [-50.0; 3]);
    assert_eq!(optimizer["step"].to_scalar::<i64>().unwrap(), 50);
}

#[test]
fn the_newest_and_the_best_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(folder.path(), 2);
    let scores = [(10, Some(0.9)), (20, Some(0.3)), (30, None), (40, Some(f64::NAN)), (50, Some(0.4)), (60, Some(0.7))];
    scores.into_iter().for_each(|(step, score)| save(&checkpoints, step, score));
    assert_eq!(names(folder.path()), ["step-00000020", "step-00000050", "step-00000060"]);
    assert_eq!(checkpoints.best().unwrap(), Some(20));
}

#[test]
fn saving_after_a_step_back_removes_later_steps() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(folder.path(), 1);
    save(&checkpoints, 100, Some(0.1));
    save(&checkpoints, 75, None);
    assert_eq!(names(folder.path()), ["step-00000075"]);
}

#[test]
fn damaged_checkpoints_are_rejected_and_the_previous_one_is_offered() {
    type Damage = fn(&Path);
    let cases: [(&str, Damage); 8] = [
        ("parameters.safetensors is 10 bytes long", |path| truncate(&path.join("parameters.safetensors"), 10)),
        ("optimizer.safetensors is 0 bytes long", |path| truncate(&path.join("optimizer.safetensors"), 0)),
        ("parameters.safetensors is damaged: its CRC-32", |path| flip_last_byte(&path.join("parameters.safetensors"))),
        ("optimizer.safetensors: No such file", |path| fs::remove_file(path.join("optimizer.safetensors")).unwrap()),
        ("state.json: No such file", |path| fs::remove_file(path.join("state.json")).unwrap()),
        ("state.json is not complete JSON", |path| truncate(&path.join("state.json"), 100)),
        ("state.json has format null version null", |path| fs::write(path.join("state.json"), "{}").unwrap()),
        ("state.json is damaged: its CRC-32", |path| replace(&path.join("state.json"), "\"step\": 50", "\"step\": 49")),
    ];
    for (expected, damage) in cases {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = open(folder.path(), 2);
        save(&checkpoints, 25, None);
        save(&checkpoints, 50, None);
        damage(&checkpoints.path(50));
        let latest = checkpoints.latest_valid().unwrap();
        assert_eq!(latest.checkpoint.unwrap().step(), 25, "{expected}");
        let refused = latest.refused[0].to_string();
        assert!(refused.contains(expected) && refused.contains("step-00000050"), "{expected} not in: {refused}");
        let error = checkpoints.load(50).unwrap_err().to_string();
        assert!(error.contains("the newest valid checkpoint is") && error.ends_with("step-00000025"), "{error}");
        save(&checkpoints, 50, None);
        assert_eq!(checkpoints.load(50).unwrap().step(), 50, "{expected}: not replaced");
        assert_eq!(names(folder.path()), ["step-00000025", "step-00000050"]);
    }
}

#[test]
fn a_checkpoint_of_another_run_step_or_optimizer_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(folder.path(), 9);
    save(&checkpoints, 50, None);
    let other = CheckpointManager::view(folder.path(), "distill of tiny").load(50).unwrap_err().to_string();
    assert!(other.contains("belongs to another run, `tune of tiny`"), "{other}");
    fs::rename(checkpoints.path(50), checkpoints.path(49)).unwrap();
    assert!(checkpoints.load(49).unwrap_err().to_string().contains("has step 50"));
    for counter in [49i64, -50, 0x7fc0_0000_7fc0_0000] {
        let optimizer = BTreeMap::from([("step".to_string(), Tensor::new(counter, &Device::Cpu).unwrap())]);
        let (parameters, state) = (tensors(1.0), 0);
        let contents =
            Contents { step: 60, parameters: &parameters, optimizer: &optimizer, state: &state, score: None };
        checkpoints.save(&contents).unwrap();
        let error = checkpoints.load(60).unwrap_err().to_string();
        assert!(error.contains(&format!("counts {counter} steps, expected 60")), "{error}");
    }
}

#[test]
fn the_checksum_covers_every_byte_of_the_manifest() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(folder.path(), 2);
    save(&checkpoints, 25, None);
    save(&checkpoints, 50, Some(0.25));
    let path = checkpoints.path(50).join("state.json");
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        for bit in [1, 2, 16] {
            let mut damaged = whole.clone();
            damaged[at] ^= bit;
            fs::write(&path, &damaged).unwrap();
            let found = checkpoints.latest_valid().unwrap().checkpoint.unwrap().step();
            assert_eq!(found, 25, "byte {at} of {} bit {bit}", String::from_utf8_lossy(&damaged));
        }
    }
    fs::write(&path, &whole).unwrap();
    assert_eq!(checkpoints.latest_valid().unwrap().checkpoint.unwrap().step(), 50);
}

#[test]
fn manifests_of_version_1_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(folder.path(), 2);
    save(&checkpoints, 50, Some(0.25));
    let path = checkpoints.path(50).join("state.json");
    let text = fs::read_to_string(&path).unwrap().replace("\"version\": 2", "\"version\": 1");
    let old: Vec<&str> = text.lines().filter(|line| !line.contains("\"checksum\"")).collect();
    fs::write(&path, old.join("\n")).unwrap();
    assert_eq!(checkpoints.load(50).unwrap().score(), Some(0.25));
    // Without a checksum, damage is detected only if the state cannot be deserialised.
    let latest = checkpoints.latest_valid_where(|checkpoint| checkpoint.state::<Vec<u8>>().map(drop)).unwrap();
    assert!(latest.checkpoint.is_none() && latest.refused[0].to_string().contains("field `state`"));
    // A manifest of version 2 without a checksum is damaged.
    fs::write(&path, old.join("\n").replace("\"version\": 1", "\"version\": 2")).unwrap();
    assert!(checkpoints.load(50).unwrap_err().to_string().contains("has no checksum"));
}

#[cfg(unix)]
#[test]
fn pipes_and_devices_in_a_checkpoint_are_rejected() {
    for name in ["state.json", "parameters.safetensors", "optimizer.safetensors"] {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = open(folder.path(), 2);
        save(&checkpoints, 25, None);
        save(&checkpoints, 50, None);
        let path = checkpoints.path(50).join(name);
        for make in [|path: &Path| fifo(path), |path: &Path| std::os::unix::fs::symlink("/dev/zero", path).unwrap()] {
            fs::remove_file(&path).unwrap();
            make(&path);
            let latest = checkpoints.latest_valid().unwrap();
            assert_eq!(latest.checkpoint.unwrap().step(), 25, "{name}");
            assert!(latest.refused[0].to_string().contains("expected a regular file"), "{:?}", latest.refused);
        }
    }
}

#[cfg(unix)]
fn fifo(path: &Path) {
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn regular_files_with_names_of_checkpoints_are_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let within = |name: &str| folder.path().join(name);
    let mine = [".tmp-x", ".old-", ".old-step-1", "step-00000099"];
    let leftovers = [".tmp-step-00000020", ".old-step-00000010"];
    mine.iter().chain(&leftovers).for_each(|name| fs::write(within(name), "file").unwrap());
    save(&open(folder.path(), 2), 10, None);
    let checkpoints = open(folder.path(), 2);
    assert_eq!((checkpoints.steps().unwrap(), checkpoints.latest_valid().unwrap().refused.len()), (vec![10], 0));
    mine.iter().for_each(|name| assert!(within(name).is_file(), "{name}"));
    save(&checkpoints, 99, None);
    assert_eq!(names(folder.path()), [".old-", ".old-step-1", ".tmp-x", "step-00000010", "step-00000099"]);
}

#[test]
fn leftovers_of_a_killed_process_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let within = |name: &str| folder.path().join(name);
    let checkpoints = open(folder.path(), 3);
    [10, 20, 30].into_iter().for_each(|step| save(&checkpoints, step, None));
    // Leftovers of an interrupted save or removal.
    fs::create_dir(within(".tmp-step-00000040")).unwrap();
    fs::write(within(".tmp-step-00000040/parameters.safetensors"), "half").unwrap();
    // Leftovers of an interrupted replacement, before and after the new checkpoint is renamed.
    fs::rename(within("step-00000020"), within(".old-step-00000020")).unwrap();
    fs::create_dir(within(".old-step-00000030")).unwrap();
    // Unrelated folders and files.
    fs::create_dir(within("step-7")).unwrap();
    fs::write(within("notes.txt"), "mine").unwrap();

    let checkpoints = open(folder.path(), 3);
    assert_eq!(checkpoints.steps().unwrap(), [10, 20, 30]);
    assert_eq!(checkpoints.load(20).unwrap().step(), 20);
    assert_eq!(names(folder.path()), ["notes.txt", "step-00000010", "step-00000020", "step-00000030", "step-7"]);
}

/// Environment variable with the folder of [`saves_until_killed`], which does nothing without it.
const VICTIM: &str = "HAPLOVL_TEST_CHECKPOINT_FOLDER";

#[test]
fn saves_until_killed() {
    let Some(folder) = std::env::var_os(VICTIM) else { return };
    let checkpoints = open(Path::new(&folder), 1);
    let first = checkpoints.latest_valid().unwrap().checkpoint.map_or(1, |checkpoint| checkpoint.step());
    // Starting with the last step again also tests replacement.
    for step in first.. {
        save(&checkpoints, step, None);
    }
}

#[test]
fn sigkill_at_any_moment_leaves_a_valid_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let mut newest = 0;
    for round in 0..8 {
        let mut victim = std::process::Command::new(std::env::current_exe().unwrap());
        victim.args(["--exact", "saves_until_killed"]).env(VICTIM, folder.path()).stdout(std::process::Stdio::null());
        let mut victim = victim.spawn().unwrap();
        while newest == 0 && !names(folder.path()).iter().any(|name| name.starts_with("step-")) {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        std::thread::sleep(std::time::Duration::from_micros(31_700 + 1_300 * round));
        victim.kill().unwrap();
        victim.wait().unwrap();
        let latest = open(folder.path(), 1).latest_valid().unwrap();
        let step = latest.checkpoint.unwrap().step();
        assert!(latest.refused.is_empty() && step >= newest, "{step} after {newest}: {:?}", latest.refused);
        newest = step;
    }
    assert!(newest > 1, "the victim was killed before it saved anything");
}

#[test]
fn an_empty_folder_has_no_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(&folder.path().join("checkpoints"), 1);
    assert!(checkpoints.latest_valid().unwrap().checkpoint.is_none());
    assert_eq!(checkpoints.best().unwrap(), None);
    assert!(checkpoints.load(3).unwrap_err().to_string().contains("step-00000003"));
}

fn truncate(path: &Path, length: u64) {
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(length).unwrap();
}

fn flip_last_byte(path: &Path) {
    let mut content = fs::read(path).unwrap();
    *content.last_mut().unwrap() ^= 1;
    fs::write(path, content).unwrap();
}

fn replace(path: &Path, from: &str, to: &str) {
    let content = fs::read_to_string(path).unwrap();
    assert!(content.contains(from));
    fs::write(path, content.replacen(from, to, 1)).unwrap();
}

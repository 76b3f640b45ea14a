//! All results of the last runs as one file, `throughput.json` in the target folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

/// Collects what criterion has written, of this run and of earlier ones.
pub fn write() {
    let Some(target) = target_folder() else { return };
    let mut results = BTreeMap::new();
    collect(&target.join("criterion"), &mut results);
    let report = json!({ "machine": machine(), "commit": commit(), "results": results });
    let path = target.join("throughput.json");
    match std::fs::write(&path, format!("{report:#}\n")) {
        Ok(()) => println!("all results: {}", path.display()),
        Err(error) => eprintln!("{}: {error}", path.display()),
    }
}

/// This program lies in `target/release/deps`.
pub fn target_folder() -> Option<PathBuf> {
    Some(std::env::current_exe().ok()?.ancestors().nth(3)?.to_path_buf())
}

/// Every `new/estimates.json` below `folder`, with its `new/benchmark.json`.
fn collect(folder: &Path, results: &mut BTreeMap<String, Value>) {
    if let Some((id, result)) = result(&folder.join("new")) {
        results.insert(id, result);
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.path().is_dir()).for_each(|entry| collect(&entry.path(), results));
}

fn result(folder: &Path) -> Option<(String, Value)> {
    let read = |name: &str| -> Option<Value> { serde_json::from_slice(&std::fs::read(folder.join(name)).ok()?).ok() };
    let (benchmark, estimates) = (read("benchmark.json")?, read("estimates.json")?);
    let ms = estimates["median"]["point_estimate"].as_f64()? / 1e6;
    let mut result = json!({ "ms": ms });
    if let Some(elements) = benchmark["throughput"]["Elements"].as_f64() {
        let unit = if benchmark["group_id"] == "ops" { "operations_per_s" } else { "tokens_per_s" };
        result[unit] = json!(elements / ms * 1e3);
    }
    Some((benchmark["full_id"].as_str()?.to_string(), result))
}

fn machine() -> Value {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    json!({ "cpu": model.trim_start_matches([' ', '\t', ':']), "cores": cores, "os": std::env::consts::OS })
}

fn commit() -> Option<String> {
    let output = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
}

//! Report of all latest results: the file `throughput.json` in the target folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::megabytes;

/// Environment variable that makes the process print its peak memory at its end.
const PRINT_PEAK: &str = "HAPLOVL_BENCH_PEAK";
/// File with the peak memory of a bench, in the bench's folder.
const PEAK_FILE: &str = "peak_mb.json";

/// Collects criterion's results of this run and of earlier runs. Benches that ran since `start` run once more, each in
/// a separate process, to measure their peak memory in isolation.
pub fn write(start: SystemTime) {
    if std::env::var_os(PRINT_PEAK).is_some() {
        return println!("{}", megabytes("VmHWM:").unwrap_or(f64::NAN));
    }
    let Some(target) = target_folder() else { return };
    let mut results = BTreeMap::new();
    collect(&target.join("criterion"), start, &mut results);
    let report = json!({ "machine": machine(), "commit": commit(), "results": results });
    let path = target.join("throughput.json");
    match std::fs::write(&path, format!("{report:#}\n")) {
        Ok(()) => println!("all results: {}", path.display()),
        Err(error) => eprintln!("{}: {error}", path.display()),
    }
}

/// Returns the target folder: this program is in `target/release/deps`.
pub fn target_folder() -> Option<PathBuf> {
    Some(std::env::current_exe().ok()?.ancestors().nth(3)?.to_path_buf())
}

/// Collects every `new/estimates.json` below `folder` with its `new/benchmark.json`.
fn collect(folder: &Path, start: SystemTime, results: &mut BTreeMap<String, Value>) {
    if let Some((id, result)) = result(folder, start) {
        results.insert(id, result);
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.path().is_dir()).for_each(|entry| collect(&entry.path(), start, results));
}

fn result(folder: &Path, start: SystemTime) -> Option<(String, Value)> {
    let read = |name: &str| -> Option<Value> { serde_json::from_slice(&std::fs::read(folder.join(name)).ok()?).ok() };
    let (benchmark, estimates) = (read("new/benchmark.json")?, read("new/estimates.json")?);
    let id = benchmark["full_id"].as_str()?.to_string();
    let ms = estimates["median"]["point_estimate"].as_f64()? / 1e6;
    let mut result = json!({ "ms": ms });
    if let Some(elements) = benchmark["throughput"]["Elements"].as_f64() {
        let unit = if benchmark["group_id"] == "ops" { "operations_per_s" } else { "tokens_per_s" };
        result[unit] = json!(elements / ms * 1e3);
    }
    let measured = std::fs::metadata(folder.join("new/estimates.json")).ok()?.modified().ok()?;
    if measured >= start
        && let Some(peak) = peak(&id)
    {
        std::fs::write(folder.join(PEAK_FILE), peak.to_string()).ok()?;
    }
    if let Some(peak) = read(PEAK_FILE) {
        result["peak_mb"] = peak;
    }
    Some((id, result))
}

/// Measures the peak memory, in MB, of a process that runs the bench once.
fn peak(id: &str) -> Option<f64> {
    let mut this = Command::new(std::env::current_exe().ok()?);
    let output = this.args(["--bench", "--test", "--exact", id]).env(PRINT_PEAK, "1").output().ok()?;
    String::from_utf8(output.stdout).ok()?.lines().last()?.parse().ok().filter(|peak: &f64| peak.is_finite())
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

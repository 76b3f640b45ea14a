//! Paired comparison of two results.json.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use haplovl::eval::metrics::{Comparison, Test, compare};
use serde_json::{Map, Value, json};

use crate::cli;

/// Compares two models by their results on the same benchmark.
pub fn run(files: &[PathBuf], seed: u64, as_json: bool) -> Result<()> {
    let [first, second] = files else { bail!("--compare needs two files, found {}", files.len()) };
    let (a, b) = (read(first)?, read(second)?);
    ensure!(
        a["benchmark"] == b["benchmark"],
        "{} is of benchmark {}, {} of {}: compare results of one benchmark",
        first.display(),
        a["benchmark"],
        second.display(),
        b["benchmark"]
    );
    let (a, b) = (units(first, &a)?, units(second, &b)?);
    let pairs = a.iter().filter_map(|(unit, score)| Some((score.as_f64()?, b.get(unit)?.as_f64()?)));
    let pairs = Vec::from_iter(pairs);
    let Some(found) = compare(&pairs, seed) else { bail!("the two files have no unit in common") };
    let single = a.len() + b.len() - 2 * pairs.len();
    if single > 0 {
        cli::note(format_args!("note: {single} units are in one of the files only, and left out"));
    }
    if as_json { cli::print(json!(found)) } else { print([first, second], &found) }
}

fn read(path: &Path) -> Result<Value> {
    let text = std::fs::read(path).map_err(|e| anyhow::anyhow!("{}: {e}: expected a results.json", path.display()))?;
    serde_json::from_slice(&text).map_err(|e| anyhow::anyhow!("{}: is no results.json ({e})", path.display()))
}

fn units<'v>(path: &Path, results: &'v Value) -> Result<&'v Map<String, Value>> {
    let units = results["units"].as_object();
    units.with_context(|| format!("{}: has no `units`: expected a results.json of this program", path.display()))
}

fn print([first, second]: [&PathBuf; 2], found: &Comparison) -> Result<()> {
    cli::print("| results | mean score |\n|---|---|")?;
    cli::print(format_args!("| {} | {:.4} |", first.display(), found.first))?;
    cli::print(format_args!("| {} | {:.4} |", second.display(), found.second))?;
    let test = match found.test {
        Test::McNemar { only_first, only_second } => {
            format!("McNemar's exact test, {only_first} units right in the first alone, {only_second} in the second")
        }
        Test::PairedBootstrap => "paired bootstrap".into(),
    };
    let (low, high) = (found.interval.low, found.interval.high);
    cli::print(format_args!(
        "\ndifference {:+.4} (95 % interval {low:+.4} to {high:+.4}) on {} units, p = {:.4} ({test})",
        found.difference, found.units, found.p
    ))
}

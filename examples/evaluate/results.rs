//! Results of a benchmark: the table, and results.json.

use std::path::Path;
use std::process::Command;
use std::time::UNIX_EPOCH;

use anyhow::Result;
use haplovl::eval::benchmark::{QuestionSet, Results, Row};
use haplovl::weights::write_bytes_atomically;
use serde_json::{Map, Value, json};

use crate::answers::Effort;
use crate::cli;

/// What is printed and written about a run.
pub struct Summary<'a> {
    pub questions: &'a QuestionSet,
    pub results: &'a Results,
    pub config: Value,
    pub effort: Effort,
    pub seed: u64,
}

impl Summary<'_> {
    /// The content of results.json.
    pub fn to_json(&self) -> Value {
        let Self { questions, results, config, effort, seed } = self;
        let benchmark = questions.benchmark();
        let rate = if effort.seconds > 0.0 { Some(effort.new_tokens as f64 / effort.seconds) } else { None };
        let units = results.units.iter().map(|(unit, score)| (unit.clone(), json!(score)));
        json!({
            "benchmark": benchmark.name, "title": benchmark.title, "metric": format!("{:?}", benchmark.metric),
            "config": config, "seed": seed, "version": env!("CARGO_PKG_VERSION"), "commit": commit(),
            "questions": questions.questions().len(), "scored": results.scores.len(),
            "left_out_records": questions.left_out().0, "problems": results.problems,
            "seconds": effort.seconds, "new_tokens": effort.new_tokens, "tokens_per_second": rate,
            "resumed_answers": effort.resumed,
            "measures": results.rows.iter().map(|row| measure(row, *seed)).collect::<Vec<_>>(),
            "units": Map::from_iter(units),
        })
    }

    /// Prints the table of results.
    pub fn print(&self, json: &Value) -> Result<()> {
        if !self.results.rows.is_empty() {
            cli::print("| category | measure | value | 95 % interval | of |\n|---|---|---|---|---|")?;
        }
        for measure in json["measures"].as_array().into_iter().flatten() {
            let text =
                |name: &str| measure[name].as_str().unwrap_or_default().replace('|', "/").escape_debug().to_string();
            let number = |name: &str| shown(measure["name"].as_str(), measure[name].as_f64().unwrap_or_default());
            let (units, unit) = (measure["units"].as_u64().unwrap_or_default(), text("unit"));
            cli::print(format_args!(
                "| {} | {} | {} | {} to {} | {units} {unit}s |",
                text("category"),
                text("name"),
                number("value"),
                number("low"),
                number("high")
            ))?;
        }
        for (problem, count) in &self.results.problems {
            cli::print(format_args!("\n{count} answers: {problem}"))?;
        }
        if self.effort.seconds > 0.0 {
            let Effort { seconds, new_tokens, .. } = self.effort;
            let rate = new_tokens as f64 / seconds;
            cli::note(format_args!("{seconds:.1} s, {new_tokens} tokens, {rate:.1} tokens/s"));
        }
        Ok(())
    }
}

/// CIDEr-D as it is, shares in percent.
fn shown(name: Option<&str>, value: f64) -> String {
    if name == Some("CIDEr-D") { format!("{value:.4}") } else { format!("{:.2} %", 100.0 * value) }
}

fn measure(row: &Row, seed: u64) -> Value {
    let Row { category, measure, .. } = row;
    let interval = measure.interval(seed);
    json!({
        "category": category, "name": measure.name(), "value": measure.value(), "low": interval.low,
        "high": interval.high, "unit": measure.unit(), "units": measure.units(),
    })
}

/// Results without the scores of units, which are as many as questions.
pub fn without_units(mut json: Value) -> Value {
    if let Some(fields) = json.as_object_mut() {
        fields.remove("units");
    }
    json
}

/// Writes results.json.
pub fn write(path: &Path, json: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(json)? + "\n";
    Ok(write_bytes_atomically(path, text.as_bytes())?)
}

/// The commit of the source tree that the program was built in, with `-dirty` if files of it are changed; none if the tree
/// is gone, or newer than the program.
fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(["-C", env!("CARGO_MANIFEST_DIR")]).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let head = git(&["log", "-1", "--format=%H %ct"])?;
    let (commit, time) = head.split_once(' ')?;
    let built = std::env::current_exe().and_then(|program| program.metadata()?.modified()).ok()?;
    let built = built.duration_since(UNIX_EPOCH).ok()?.as_secs();
    let is_dirty = git(&["status", "--porcelain", "--untracked-files=no"]).is_none_or(|changes| !changes.is_empty());
    (built >= time.parse().ok()?).then(|| format!("{commit}{}", if is_dirty { "-dirty" } else { "" }))
}

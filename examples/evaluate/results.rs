//! Results of a benchmark: the table, and results.json.

use std::path::{Path, PathBuf};
use std::process::Command;

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

/// Parts of the source tree that the program is built from.
const SOURCES: [&str; 5] = ["src", "examples", "assets", "Cargo.toml", "Cargo.lock"];

/// The commit of the source tree that the program was built in, with `-dirty` if sources are changed; none if the tree is
/// gone, or a source is newer than the program.
fn commit() -> Option<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let git = |arguments: &[&str]| {
        let mut git = Command::new("git");
        let git = git.env_remove("GIT_DIR").env_remove("GIT_WORK_TREE").arg("-C").arg(root).args(arguments);
        let output = git.output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let of_sources = |arguments: &[&str]| git(&[arguments, &["--"], &SOURCES].concat());
    // Files of another repository around the tree are not tracked.
    let files = of_sources(&["ls-files", "-z"]).filter(|files| !files.is_empty())?;
    let time = |path: PathBuf| path.metadata().and_then(|found| found.modified()).ok();
    let built = time(std::env::current_exe().ok()?)?;
    let is_older = |name: &str| time(root.join(name)).is_none_or(|changed| changed <= built);
    let dirty = if of_sources(&["status", "--porcelain"])?.is_empty() { "" } else { "-dirty" };
    let head = git(&["rev-parse", "HEAD"])?;
    files.split_terminator('\0').all(is_older).then(|| head + dirty)
}

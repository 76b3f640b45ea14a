//! The comparison: trains what is missing, tests it, and reports.

mod chart;
mod correctness;
mod cost;
mod exam;
mod interval;
mod model;
mod plan;
mod report;
mod results;
mod scaling;
mod stages;

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};

pub use cost::{Cost, FORMULA};
pub use plan::{Plan, Suite};
pub use report::report;
use results::RESULTS;
pub use results::Results;
use stages::Trainer;

/// What to compare, and where.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder of all runs.
    pub out: PathBuf,
    /// Folder of `plan.toml`, `config.json` and the recipes.
    pub recipes: PathBuf,
    /// Name of the setting.
    pub setting: String,
    /// Entries.
    pub suite: Suite,
    /// Designs; all of the suite if empty.
    pub designs: Vec<String>,
    /// Number of seeds.
    pub seeds: u64,
}

/// How far a comparison came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All entries have results.
    Finished,
    /// A stop was requested; the same call goes on.
    Stopped,
}

/// An error of a file or folder, in one line.
fn named(path: &Path, error: impl Display) -> anyhow::Error {
    anyhow!("{}: {error}", path.display())
}

/// Cost of each design of a size, in the order of the plan; all are checked against the first design of the plan.
///
/// # Errors
/// If parameters or FLOPs differ by more than 5 %.
pub fn costs(options: &Options, size: Option<&str>, designs: &[String]) -> Result<Vec<(String, Cost)>> {
    let plan = Plan::read(&options.recipes)?;
    let stop = Arc::new(|| false);
    let trainer = Trainer { options, plan: &plan, setting: plan.setting(&options.setting)?, stop };
    let first = plan.designs.first().context("plan.toml has no design")?;
    let reference = Cost::of(first.model, &trainer.config(first, size)?)?;
    let cost = |name: &String| {
        let design = plan.design(name)?;
        let cost = Cost::of(design.model, &trainer.config(design, size)?)?;
        cost.check_equal(name, &reference, &first.name)?;
        Ok((name.clone(), cost))
    };
    designs.iter().map(cost).collect()
}

/// Trains and tests all entries that have no results yet, until `stop` says so; `note` gets a line about each.
///
/// # Errors
/// Errors of training and of files, and results that were made by another plan.
pub fn run(options: &Options, stop: impl Fn() -> bool + Send + Sync + 'static, note: impl Fn(&str)) -> Result<Outcome> {
    let plan = Plan::read(&options.recipes)?;
    let setting = plan.setting(&options.setting)?;
    let options = &Options { out: std::path::absolute(&options.out)?, ..options.clone() };
    let trainer = Trainer { options, plan: &plan, setting, stop: Arc::new(stop) };
    let entries = plan.entries(options.suite, &options.designs, options.seeds)?;
    for (n, entry) in entries.iter().enumerate() {
        let place = format!("{} of {}: {} seed {}", n + 1, entries.len(), entry.name(), entry.seed);
        let folder = trainer.entry_folder(entry);
        let provenance = plan.provenance(&options.recipes, setting, entry)?;
        let results = match Results::read(&folder)? {
            Some(results) if results.provenance == provenance => results,
            Some(_) => bail!(
                "{} was made by other recipes than those in {}: move its folder away to make it again, or choose another --out",
                folder.join(RESULTS).display(),
                options.recipes.display()
            ),
            None => {
                note(&format!("{place}, in {}", folder.display()));
                let Some(trained) = trainer.train(entry)? else { return Ok(Outcome::Stopped) };
                Results::make(&trainer, entry, &provenance, &trained)?
            }
        };
        let accuracy = 100.0 * results.correctness.accuracy().overall().accuracy();
        note(&format!("{place}: accuracy {accuracy:.1} %"));
    }
    Ok(Outcome::Finished)
}

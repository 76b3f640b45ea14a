//! Example: compares HaploVL with other designs of vision-language models on shapes world, at equal cost.
//!
//! `cargo run --release --example compare -- --out runs/compare`

#[path = "../common/cli.rs"]
mod cli;
mod comparison;
#[path = "../common/memory.rs"]
mod memory;
#[path = "../common/signals.rs"]
mod signals;
#[path = "../common/threads.rs"]
mod threads;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;

use comparison::{FORMULA, Options, Outcome, Plan, Suite, costs, report, run};
use signals::Signals;

/// Trains each design of recipes/compare/plan.toml from a shared vision teacher and language model, tests it on held-out
/// scenes, and ends in a page of tables and charts.
///
/// Everything is done once: the same command goes on where it was stopped, by Ctrl-C, --budget or a crash. Runs are in
/// OUT/SETTING/seed-N/DESIGN/STAGE, results.json and answers.jsonl in the folder of the design, the shared models in
/// OUT/SETTING/shared, and the page is OUT/SETTING/report.md.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:\n  \
    compare --out runs/compare --budget 8\n  \
    compare --out runs/compare --designs haplovl,llava --seeds 1\n  \
    compare --out runs/compare --suite scaling --seeds 1\n  \
    compare --out runs/compare --report results.md\n  \
    compare --out /tmp/compare --setting tiny")]
struct Arguments {
    /// Folder of all runs
    #[arg(long, default_value = "runs/compare", value_name = "DIR")]
    out: PathBuf,
    /// Designs, apart by commas; all of the suite by default
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    designs: Vec<String>,
    /// Seeds of each design
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100))]
    seeds: u64,
    /// World and sizes: easy, hard or tiny
    #[arg(long, default_value = "easy", value_name = "NAME")]
    setting: String,
    /// What to compare
    #[arg(long, value_enum, default_value = "designs")]
    suite: Suite,
    /// Stop after so many hours; the same command goes on later
    #[arg(long, value_name = "HOURS", value_parser = hours)]
    budget: Option<Duration>,
    /// Only write the page of the results that there are, to this file
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Folder of plan.toml, config.json and the recipes
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/recipes/compare"), value_name = "DIR")]
    recipes: PathBuf,
}

fn hours(text: &str) -> std::result::Result<Duration, String> {
    let hours: f64 = text.parse().map_err(|_| "expected a number of hours".to_string())?;
    Duration::try_from_secs_f64(3600.0 * hours).map_err(|_| "expected a number of hours of at least 0".to_string())
}

fn main() -> ExitCode {
    let signals = Signals::default();
    let code = cli::main(|arguments: Arguments| compare(arguments, &signals));
    signals.exit_code().map_or(code, ExitCode::from)
}

fn compare(arguments: Arguments, signals: &Signals) -> Result<()> {
    let Arguments { out, designs, seeds, setting, suite, budget, report: page, recipes } = arguments;
    let options = Options { out, recipes, setting, suite, designs, seeds };
    if let Some(page) = page {
        report(&options, &page)?;
        return cli::print(page.display());
    }
    memory::keep();
    threads::leave_to_micro_batches();
    print_costs(&options)?;
    signals.register()?;
    let (began, received) = (Instant::now(), signals.clone());
    let stop = move || received.exit_code().is_some() || budget.is_some_and(|budget| began.elapsed() >= budget);
    let outcome = run(&options, stop, |line| cli::note(line))?;
    if outcome == Outcome::Stopped {
        cli::note("stopped; the same command goes on");
        return Ok(());
    }
    let page = options.out.join(&options.setting).join("report.md");
    cli::write(report(&options, &page)?)?;
    cli::print(format_args!("\n{}", page.display()))
}

/// Prints parameters and operations of each design, which must be equal.
fn print_costs(options: &Options) -> Result<()> {
    let entries = Plan::read(&options.recipes)?.entries(options.suite, &options.designs, 1)?;
    let mut sizes = Vec::from_iter(entries.iter().map(|entry| entry.size.as_deref()));
    sizes.sort_unstable();
    sizes.dedup();
    cli::note(FORMULA);
    for size in sizes {
        let mut designs = Vec::from_iter(entries.iter().map(|entry| entry.design.clone()));
        designs.dedup();
        for (name, cost) in costs(options, size, &designs)? {
            let (size, flops) = (size.unwrap_or("full"), cost.question() / 1e9);
            let (all, frozen) = (cost.parameters, cost.frozen);
            cli::note(format_args!(
                "{name:<20} {size:<10} {all:>10} parameters, {frozen:>8} frozen, {flops:.4} GFLOPs a question"
            ));
        }
    }
    Ok(())
}

//! Example: plots a metric of several training runs in one chart.
//!
//! `cargo run --release --example plot -- runs/a runs/b --out compare.svg`

#[path = "common/cli.rs"]
mod cli;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;
use haplovl::train::metrics::read_metrics;
use haplovl::train::plot::{Plot, Series};

/// Plots a metric of several training runs in one chart, and prints the last value of each run.
///
/// A run is given by its folder, optionally after a name for the legend: `"with stage 1=runs/a"`. Metrics are those of
/// metrics.jsonl: loss, validation/loss, learning_rate, grad_norm and so on.
#[derive(Debug, Parser)]
#[command(after_help = "Example:\n  \
    plot --key validation/loss \"with stage 1=runs/a\" \"without=runs/b\" --out compare.svg")]
struct Arguments {
    /// Runs to compare
    #[arg(required = true, value_name = "[NAME=]FOLDER")]
    runs: Vec<String>,
    /// Metric to draw
    #[arg(long, default_value = "validation/loss", value_name = "METRIC")]
    key: String,
    /// Title of the chart
    #[arg(long, value_name = "TEXT")]
    title: Option<String>,
    /// File to write
    #[arg(long, default_value = "compare.svg", value_name = "FILE")]
    out: PathBuf,
}

fn main() -> ExitCode {
    cli::main(|arguments: Arguments| {
        let Arguments { runs, key, title, out: file } = arguments;
        let series = runs.iter().map(|run| curve(run, &key)).collect::<Result<Vec<_>>>()?;
        cli::print(format_args!("| run | steps | last {key} |\n|---|---|---|"))?;
        for series in &series {
            if let Some((step, value)) = series.points.last() {
                cli::print(format_args!("| {} | {step} | {value:.4} |", series.name))?;
            }
        }
        let plot = Plot::losses(title.unwrap_or_else(|| key.clone()), series);
        Plot { smoothing: 0.0, y_label: key, ..plot }.write_svg(&file)?;
        cli::note(format_args!("drawn into {}", file.display()));
        Ok(())
    })
}

fn curve(run: &str, key: &str) -> Result<Series> {
    // The name of a folder may contain `=`.
    let (name, folder) = match run.split_once('=') {
        Some((name, folder)) if !Path::new(run).is_dir() => (name, folder),
        _ => (run, run),
    };
    let path = Path::new(folder).join("metrics.jsonl");
    let records = read_metrics(&path)?;
    let series = Series::of_records(name, &records, key);
    if series.points.is_empty() {
        let keys =
            records.iter().flat_map(|record| record.values.keys().cloned()).collect::<std::collections::BTreeSet<_>>();
        bail!("{} has no metric `{key}`, only {}", path.display(), Vec::from_iter(keys).join(", "));
    }
    Ok(series)
}

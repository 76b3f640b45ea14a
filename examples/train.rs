//! Trains by a recipe.
//!
//! `cargo run --release --example train -- recipes/shapes/quick.toml`

#[path = "common/cli.rs"]
mod cli;
#[path = "common/memory.rs"]
mod memory;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use haplovl::options::DeviceChoice;
use haplovl::train::{Recipe, Run, on_large_stack};
use haplovl::weights::SafetensorsFiles;

/// Trains by recipes, one after the other: each is one stage, and the next may build on its export.
///
/// A run's folder holds recipe.toml (the recipe as run), metrics.jsonl, tensorboard/, loss.svg, samples.md, checkpoints/
/// and, at the end, export/. With --resume finished runs are passed over and an unfinished one goes on from its newest
/// checkpoint, so that the same list of recipes can be started again after a stop.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:\n  \
    train recipes/shapes/quick.toml\n  \
    train recipes/shapes/vision.toml recipes/shapes/language.toml recipes/shapes/distill.toml --resume\n  \
    train recipes/haplovl-7b/tune.toml --dry-run --set update.steps=100 --set output=runs/try")]
struct Arguments {
    /// Recipes, run in this order
    #[arg(required = true, value_name = "RECIPE")]
    recipes: Vec<PathBuf>,
    /// Go on from the newest whole checkpoint
    #[arg(long)]
    resume: bool,
    /// Change a field of the recipes, such as update.steps=100; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Say what would be done, and stop
    #[arg(long)]
    dry_run: bool,
    /// Write the model of the newest checkpoint to a folder, also while the run goes on elsewhere, and stop
    #[arg(long, value_name = "DIR", conflicts_with_all = ["dry_run", "resume"])]
    export: Option<PathBuf>,
    /// Where to compute: auto, cpu, cuda, cuda:N or metal
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
}

fn main() -> ExitCode {
    cli::main(|arguments: Arguments| {
        let one_folder =
            arguments.export.is_some() || arguments.set.iter().any(|setting| setting.starts_with("output="));
        if arguments.recipes.len() > 1 && one_folder {
            anyhow::bail!("--export and --set output=.. would give all recipes one folder: name one recipe at a time");
        }
        memory::keep();
        // All are read and checked before the first is run: hours later is no time to hear of a slip in the last one.
        let recipes = arguments.recipes.iter().map(|path| Ok((path, Recipe::read(path, &arguments.set)?)));
        let mut recipes = recipes.collect::<Result<Vec<_>>>()?;
        // Its weights are the last thing that an export writes.
        let export = |recipe: &Recipe| recipe.output.join("export");
        let is_finished = |recipe: &Recipe| arguments.resume && SafetensorsFiles::open(export(recipe)).is_ok();
        for (path, recipe) in recipes.extract_if(.., |(_, recipe)| is_finished(recipe)) {
            eprintln!("{}: finished, see {}", path.display(), export(&recipe).display());
        }
        if recipes.iter().any(|(_, recipe)| recipe.update.parallel > 1) {
            leave_threads_to_batches();
        }
        let device = arguments.device.open()?;
        if arguments.export.is_none() && !arguments.dry_run {
            recipes.iter().try_for_each(|(_, recipe)| recipe.check_device(&device))?;
        }
        recipes.into_iter().try_for_each(|(_, recipe)| -> Result<()> {
            let device = device.clone();
            on_large_stack(|| {
                let mut run = Run::new(recipe, device)?;
                if let Some(folder) = &arguments.export {
                    let step = run.export_checkpoint(folder)?;
                    println!("{}: the model after step {step}", folder.display());
                    return Ok(());
                }
                eprintln!("{}", run.facts());
                if !arguments.dry_run {
                    let folder = run.train(arguments.resume)?;
                    println!("{}", folder.display());
                }
                Ok(())
            })?;
            Ok(())
        })
    })
}

/// Keeps candle from splitting element-wise operations: its pool serves one caller at a time, so micro-batches that are
/// computed in parallel would wait for each other.
fn leave_threads_to_batches() {
    const THREADS: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(THREADS).is_none() {
        // SAFETY: this is still the only thread.
        unsafe { std::env::set_var(THREADS, "1") };
    }
}

//! Example: trains models from recipes.
//!
//! `cargo run --release --example train -- recipes/shapes/quick.toml`

#[path = "common/cli.rs"]
mod cli;
#[path = "common/memory.rs"]
mod memory;
#[path = "common/signals.rs"]
mod signals;
#[path = "common/threads.rs"]
mod threads;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use candle_core::Device;
use clap::Parser;
use haplovl::distributed::{DEFAULT_TIMEOUT, World};
use haplovl::options::DeviceChoice;
use haplovl::train::{CheckpointChoice, FinishedRun, Outcome, Recipe, Run, Scaling};
use haplovl::weights::check_new_folder;
use signals::Signals;

/// Trains from recipes in order: each recipe is one stage, and the next one may start from its export.
///
/// The folder of a run contains recipe.toml (the recipe with all defaults and overrides), metrics.jsonl, tensorboard/,
/// loss.svg, samples.md, checkpoints/ and, at the end, export/. SIGINT (Ctrl-C), SIGTERM and SIGHUP write a checkpoint after
/// the current step and exit with 130, 143 or 129; a second signal ends the program at once. With --resume finished runs are
/// skipped and an unfinished one continues from its newest checkpoint, so that the same command can be repeated after a
/// stop. A finished run continues if the recipe has more update.steps or update.epochs than before.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:\n  \
    train recipes/shapes/quick.toml\n  \
    train recipes/shapes/vision.toml recipes/shapes/language.toml recipes/shapes/distill.toml --resume\n  \
    train recipes/shapes/quick.toml --resume --set update.steps=2000\n  \
    train recipes/shapes/quick.toml --export runs/best --best\n  \
    train recipes/haplovl-7b/tune.toml --dry-run --set update.epochs=2 --set output=runs/try\n  \
    train recipes/haplovl-7b/tune.toml --dry-run --world 8 --device-memory 80GB --bandwidth 25GB\n  \
    mpirun -n 4 train recipes/shapes/quick.toml    (built with --features mpi)")]
struct Arguments {
    /// Recipes, run in this order
    #[arg(required = true, value_name = "RECIPE")]
    recipes: Vec<PathBuf>,
    /// Continue from the newest valid checkpoint
    #[arg(long)]
    resume: bool,
    /// Change a field of the recipes, such as update.steps=100; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print the parameters, a table of the data and a first sample without training
    #[arg(long)]
    dry_run: bool,
    /// With --dry-run: print what each of N ranks would hold and send; models and data are not opened
    #[arg(long, value_name = "N", requires = "dry_run")]
    world: Option<usize>,
    /// With --world: memory of a device, such as 80GB or 64GiB
    #[arg(long, value_name = "BYTES", requires = "world", value_parser = bytes)]
    device_memory: Option<f64>,
    /// With --world: bytes that a rank can send in a second, such as 25GB
    #[arg(long, value_name = "BYTES", requires = "world", value_parser = bytes)]
    bandwidth: Option<f64>,
    /// With --world: operations of a device in a second, in units of 10^12
    #[arg(long, value_name = "TFLOPS", requires = "world", default_value_t = Scaling::FLOPS / 1e12)]
    tflops: f64,
    /// On several ranks: seconds after which a rank that others wait for is taken to hang; more than an evaluation, a
    /// checkpoint or the export takes
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_TIMEOUT.as_secs())]
    timeout: u64,
    /// Only export the model of the newest checkpoint to a new folder, also while another process continues the run
    #[arg(long, value_name = "DIR", conflicts_with_all = ["dry_run", "resume"])]
    export: Option<PathBuf>,
    /// Export the checkpoint with the lowest validation loss
    #[arg(long, requires = "export")]
    best: bool,
    /// Export the checkpoint after this many steps
    #[arg(long, value_name = "N", requires = "export", conflicts_with = "best")]
    step: Option<u64>,
    /// Device: auto, cpu, cuda, cuda:N or metal
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
}

fn main() -> ExitCode {
    let signals = Signals::default();
    let stopped = Cell::new(false);
    let code = cli::main(|arguments: Arguments| {
        let one_folder =
            arguments.export.is_some() || arguments.set.iter().any(|setting| setting.starts_with("output="));
        if arguments.recipes.len() > 1 && one_folder {
            anyhow::bail!("--export and --set output=.. would give all recipes one folder: name one recipe at a time");
        }
        if let Some(folder) = &arguments.export {
            // Before the model is built, which may take long.
            check_new_folder(folder)?;
        }
        memory::keep();
        // All recipes are read and checked before the first one runs, so that an error in the last one is found at
        // once.
        let recipes = arguments.recipes.iter().map(|path| Ok((path, Recipe::read(path, &arguments.set)?)));
        let mut recipes = recipes.collect::<Result<Vec<_>>>()?;
        if let Some(ranks) = arguments.world {
            return recipes.iter().try_for_each(|(path, recipe)| print_scaling(path, recipe, ranks, &arguments));
        }
        let mut finished = Vec::new();
        if arguments.resume {
            let mut unfinished = Vec::new();
            for (path, recipe) in recipes {
                match recipe.finished_run()? {
                    Some(run) => finished.push((path, run)),
                    None => unfinished.push((path, recipe)),
                }
            }
            recipes = unfinished;
        }
        if recipes.iter().any(|(_, recipe)| recipe.update.parallel_micro_batches > 1) {
            threads::leave_to_micro_batches();
        }
        let world = World::from_environment(Duration::from_secs(arguments.timeout))?;
        if world.is_first() {
            finished.iter().for_each(|(path, finished)| note_finished(path, finished));
        }
        if world.size() > 1 && arguments.export.is_some() {
            anyhow::bail!("--export is for one process: start it without `mpirun`");
        }
        let done = run_all(recipes, &arguments, &signals, &stopped, &world);
        if let Err(error) = &done {
            leave(&world, error);
        }
        done
    });
    signals.exit_code().filter(|_| stopped.get()).map_or(code, ExitCode::from)
}

/// Ends all ranks after an error of this one.
fn leave(world: &World, error: &anyhow::Error) {
    if world.size() == 1 {
        return;
    }
    if !world.is_first() {
        // An error of all ranks is said by rank 0, which ends the others.
        std::thread::sleep(Duration::from_secs(1));
    }
    cli::note_error(&anyhow::anyhow!("rank {} of {}: {error}", world.rank(), world.size()));
    world.abort();
}

/// A number of bytes, such as 80GB, 64GiB or 1e9.
fn bytes(text: &str) -> Result<f64> {
    let units = [("GiB", (1u64 << 30) as f64), ("MiB", (1u64 << 20) as f64), ("GB", 1e9), ("MB", 1e6), ("B", 1.0)];
    let unit = units.iter().find_map(|(unit, size)| Some((text.strip_suffix(unit)?, *size)));
    let (number, size) = unit.unwrap_or((text, 1.0));
    match number.trim().parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number * size),
        _ => anyhow::bail!("expected a number of bytes such as 80GB or 64GiB"),
    }
}

fn print_scaling(path: &Path, recipe: &Recipe, ranks: usize, arguments: &Arguments) -> Result<()> {
    let mut scaling = recipe.scaling(ranks)?;
    (scaling.device_memory, scaling.bandwidth) = (arguments.device_memory, arguments.bandwidth);
    scaling.flops_per_second = arguments.tflops * 1e12;
    cli::print(format_args!("{}: {scaling}", path.display()))
}

fn run_all(
    recipes: Vec<(&PathBuf, Recipe)>,
    arguments: &Arguments,
    signals: &Signals,
    stopped: &Cell<bool>,
    world: &World,
) -> Result<()> {
    let device = arguments.device.open()?;
    if arguments.export.is_none() && !arguments.dry_run {
        recipes.iter().try_for_each(|(_, recipe)| recipe.check_device(&device))?;
        signals.register()?;
    }
    for (path, recipe) in recipes {
        // A signal may have reached any rank.
        if world.any(signals.exit_code().is_some())? {
            stopped.set(true);
            note(world, format_args!("{}: not started", path.display()));
            continue;
        }
        if run(recipe, path, arguments, signals, device.clone(), world)? == Ended::Stopped {
            stopped.set(true);
        }
    }
    world.finish()?;
    Ok(())
}

/// Writes a line to stderr, on rank 0 alone.
fn note(world: &World, line: impl std::fmt::Display) {
    if world.is_first() {
        cli::note(line);
    }
}

fn note_finished(path: &Path, finished: &FinishedRun) {
    let export = finished.export.display();
    let steps = finished.step.map_or_else(String::new, |step| format!(" after {step} steps"));
    let more = if finished.is_longer { ", which is more than the recipe asks for" } else { "" };
    cli::note(format_args!("{}: finished{steps}{more}, see {export}", path.display()));
}

/// Whether a run finished.
#[derive(PartialEq)]
enum Ended {
    Done,
    Stopped,
}

fn run(
    recipe: Recipe,
    path: &Path,
    arguments: &Arguments,
    signals: &Signals,
    device: Device,
    world: &World,
) -> Result<Ended> {
    let mut run = Run::in_world(recipe, device, world.clone())?;
    if let Some(folder) = &arguments.export {
        let choice = match arguments.step {
            Some(step) => CheckpointChoice::Step(step),
            None if arguments.best => CheckpointChoice::Best,
            None => CheckpointChoice::Newest,
        };
        let step = run.export_checkpoint(folder, choice)?;
        cli::print(format_args!("{}: the model after step {step}", folder.display()))?;
        return Ok(Ended::Done);
    }
    note(world, run.facts());
    if arguments.dry_run {
        return Ok(Ended::Done);
    }
    let stop = signals.stop(run.cancel_token());
    let mut run = run.with_default_observers().with_observer(stop);
    match run.train(arguments.resume)? {
        Outcome::Stopped { step, .. } => {
            note(world, format_args!("stopped after step {step}; the same command with --resume continues"));
            Ok(Ended::Stopped)
        }
        outcome => {
            // The remaining recipes do not need a reader of stdout.
            let printed = world.is_first().then(|| cli::print(outcome.export().unwrap_or(path).display()));
            if let Some(Err(error)) = printed {
                cli::note_error(&error);
            }
            Ok(Ended::Done)
        }
    }
}

//! Example: quantises a model, and measures how much its predictions change.
//!
//! `cargo run --release --example quantize -- --model DIR --type q8_0 --output DIR-q8_0`

#[path = "common/cli.rs"]
mod cli;
#[path = "common/download.rs"]
mod download;
#[path = "common/memory.rs"]
mod memory;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use haplovl::config::HaploVlConfig;
use haplovl::data::shapes::{ShapesConfig, Split};
use haplovl::eval::Divergence;
use haplovl::pipeline::{DeviceChoice, LoadOptions, LoadedModel, ModelSource, Quantization, quantize_folder};
use haplovl::processor::{Content, Conversation, Message, Processor};
use haplovl::weights::check_new_folder;

/// Writes a quantised copy of a model: `model.gguf` in a folder for the `--model` of every other example.
///
/// With --compare, runs both models on images of shapes world and prints the divergence of their predictions: the mean
/// Kullback-Leibler divergence of the next token in nats, and the share of positions with the same most likely token.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:\n  \
    quantize --model ./haplovl-7b --type q4_k --output ./haplovl-7b-q4_k\n  \
    quantize --model runs/shapes/tune/export --type q8_0 --output runs/q8_0 --compare 100")]
struct Arguments {
    /// `builtin`, a folder, or a hub id such as ORGANISATION/NAME or ORGANISATION/NAME@REVISION
    #[arg(long, value_name = "MODEL")]
    model: ModelSource,
    /// Block format: q8_0 (8.5 bits per weight, close to f32 in quality), q6_k (6.6 bits) or q4_k (4.5 bits)
    #[arg(long = "type", value_name = "TYPE")]
    kind: Quantization,
    /// Folder to write; must not exist yet, or be empty
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Number of images to compare the models on
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u64).range(0..=100_000))]
    compare: u64,
    /// Side of the compared images in pixels
    #[arg(long, default_value_t = 64, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(16..=1024))]
    side: u32,
}

fn main() -> ExitCode {
    cli::main(|arguments: Arguments| {
        memory::keep();
        let Arguments { model, kind, output, compare, side } = arguments;
        // Before a download, which may take long.
        check_new_folder(&output)?;
        let resolved = download::model(&model)?;
        let folder = resolved.path();
        if compare > 0 {
            check_images(folder, side)?;
        }
        cli::note(format_args!("quantising {model} to {kind} ..."));
        quantize_folder(folder, &output, kind)?;
        let (before, after) = (megabytes(folder)?, megabytes(&output)?);
        cli::print(format_args!("{}: {after:.1} MB of weights, from {before:.1} MB", output.display()))?;
        if compare > 0 {
            let found = divergence(&load(folder)?, &load(&output)?, compare, side)?;
            cli::print(format_args!(
                "against the original: KL {:.5} nats, same most likely token at {:.2} % of {} positions",
                found.kl,
                100.0 * found.agreement,
                found.positions
            ))?;
        }
        Ok(())
    })
}

/// Size of all weight files in a folder, in MB.
fn megabytes(folder: &Path) -> Result<f64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "safetensors" || e == "gguf" || e == "bin") {
            bytes += std::fs::metadata(path)?.len();
        }
    }
    Ok(bytes as f64 / 1e6)
}

fn load(folder: &Path) -> Result<LoadedModel> {
    Ok(LoadedModel::from_folder(folder, LoadOptions::default().with_device(DeviceChoice::Cpu))?)
}

/// Checks that the comparison prompt fits the model's context, before anything is written.
fn check_images(folder: &Path, side: u32) -> Result<()> {
    let config = HaploVlConfig::from_file(folder.join("config.json"))?;
    Processor::from_folder(folder, &config)?.sequence(&request(0, side), true)?;
    Ok(())
}

/// Prompt about scene `index` for both models.
fn request(index: u64, side: u32) -> Conversation {
    let scene = Split::Test.scene(index, &ShapesConfig::default());
    Message::user([Content::from(scene.render(side)), "Describe the picture.".into()]).into()
}

fn divergence(original: &LoadedModel, quantized: &LoadedModel, images: u64, side: u32) -> Result<Divergence> {
    let mut all = Divergence::default();
    for index in 0..images {
        let batch = original.batch(&[request(index, side)])?;
        let logits = [original, quantized].map(|model| model.model().forward(&batch));
        let [reference, other] = logits;
        all = all.merged(Divergence::of(&reference?, &other?)?);
    }
    Ok(all)
}

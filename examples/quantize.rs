//! Makes a model smaller and faster by storing its weights in few bits, and measures what that costs.
//!
//! `cargo run --release --example quantize -- --model DIR --type q8_0 --output DIR-q8_0`

#[path = "common/cli.rs"]
mod cli;
#[path = "common/memory.rs"]
mod memory;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;
use haplovl::data::shapes::{ShapesConfig, Split};
use haplovl::eval::Divergence;
use haplovl::options::DeviceChoice;
use haplovl::options::Quantization;
use haplovl::pipeline::{LoadOptions, LoadedModel, ModelSource, quantize_folder};
use haplovl::processor::{Content, Message};

/// Writes a copy of a model with the matrices of its layers in blocks of few bits: `model.gguf` in a folder that every
/// other example takes with `--model`.
///
/// With --compare, asks both models about pictures of shapes world and prints how far their predictions are apart: the
/// mean Kullback-Leibler divergence of the next token in nats, and how often both find the same token likeliest.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:\n  \
    quantize --model ./haplovl-7b --type q4_k --output ./haplovl-7b-q4_k\n  \
    quantize --model runs/shapes/tune/export --type q8_0 --output runs/q8_0 --compare 100")]
struct Arguments {
    /// A folder, or a hub id such as ORGANISATION/NAME or ORGANISATION/NAME@REVISION
    #[arg(long, value_name = "MODEL")]
    model: ModelSource,
    /// q8_0 (8.5 bits a weight, hardly to be told from floats), q6_k (6.6 bits) or q4_k (4.5 bits)
    #[arg(long = "type", value_name = "TYPE")]
    kind: Quantization,
    /// The folder to write
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Pictures to compare the models on
    #[arg(long, default_value_t = 0, value_name = "N")]
    compare: u64,
    /// Side of these pictures in pixels
    #[arg(long, default_value_t = 64, value_name = "PIXELS")]
    side: u32,
}

fn main() -> ExitCode {
    cli::main(|arguments: Arguments| {
        memory::keep();
        let Arguments { model, kind, output, compare, side } = arguments;
        ensure!(!output.exists(), "{} exists already: name a new folder with `--output`", output.display());
        let folder = model.folder()?;
        eprintln!("quantising {model} to {kind} ...");
        quantize_folder(&folder, &output, kind)?;
        println!("{}: {:.1} MB of weights, from {:.1} MB", output.display(), megabytes(&output)?, megabytes(&folder)?);
        if compare > 0 {
            let found = divergence(&load(&folder)?, &load(&output)?, compare, side)?;
            println!(
                "against the original: KL {:.5} nats, same likeliest token at {:.2} % of {} positions",
                found.kl,
                100.0 * found.agreement,
                found.positions
            );
        }
        Ok(())
    })
}

/// Of all files of weights in a folder.
fn megabytes(folder: &Path) -> Result<f64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "safetensors" || e == "gguf") {
            bytes += std::fs::metadata(path)?.len();
        }
    }
    Ok(bytes as f64 / 1e6)
}

fn load(folder: &Path) -> Result<LoadedModel> {
    Ok(LoadedModel::from_folder(folder, LoadOptions::default().with_device(DeviceChoice::Cpu))?)
}

fn divergence(original: &LoadedModel, quantized: &LoadedModel, pictures: u64, side: u32) -> Result<Divergence> {
    let mut all = Divergence::default();
    for index in 0..pictures {
        let scene = Split::Test.scene(index, &ShapesConfig::default());
        let content = [Content::from(scene.render(side)), "Describe the picture.".into()];
        let batch = original.batch(&[Message::user(content).into()])?;
        let logits = [original, quantized].map(|model| model.model().forward(&batch));
        let [reference, other] = logits;
        all = all.merged(Divergence::of(&reference?, &other?)?);
    }
    Ok(all)
}

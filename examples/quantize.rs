//! Example: quantises a model, and measures how much its predictions change; or writes one with random weights.
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

use anyhow::{Result, bail};
use clap::Parser;
use haplovl::config::HaploVlConfig;
use haplovl::data::shapes::{ShapesConfig, Split};
use haplovl::eval::Divergence;
use haplovl::pipeline::{
    DeviceChoice, LoadOptions, LoadedModel, ModelSource, Quantization, export_llama_cpp, quantize_folder, random_folder,
};
use haplovl::processor::{Content, Conversation, Message, Processor};
use haplovl::weights::{ResolvedModel, check_new_folder};

/// Writes a quantised copy of a model: `model.gguf` in a folder for the `--model` of every other example.
///
/// The model is read and written in parts, so that little of it is in memory. With --compare, runs both models on images of
/// shapes world and prints the divergence of their predictions: the mean Kullback-Leibler divergence of the next token in
/// nats, and the share of positions with the same most likely token. With --random-weights, writes a new model of any size,
/// to measure speed and memory with.
#[derive(Debug, Parser)]
#[command(
    group = clap::ArgGroup::new("source").required(true).args(["model", "random_weights"]),
    after_help = "Examples:\n  \
    quantize --model ./haplovl-7b --type q4_k --output ./haplovl-7b-q4_k\n  \
    quantize --model runs/shapes/tune/export --type q8_0 --output runs/q8_0 --compare 100\n  \
    quantize --random-weights haplovl_7b_pro --output ./random-7b\n  \
    quantize --model ./haplovl-7b --llama-cpp --type q4_k --embedding ./llm --output language-half.gguf"
)]
struct Arguments {
    /// `builtin`, a folder, or a hub id such as ORGANISATION/NAME or ORGANISATION/NAME@REVISION
    #[arg(long, value_name = "MODEL")]
    model: Option<ModelSource>,
    /// Write a model of this configuration with random weights: haplovl_7b_pro, haplovl_8b, haplovl_7b, tiny, or a
    /// config.json; in bf16 as safetensors, unless --type is given
    #[arg(long, value_name = "CONFIG", conflicts_with = "compare")]
    random_weights: Option<String>,
    /// Seed of the random weights
    #[arg(long, default_value_t = 0, value_name = "N", conflicts_with = "model")]
    seed: u64,
    /// Model whose tokenizer and chat template a model with random weights gets
    #[arg(long, default_value = "builtin", value_name = "MODEL", conflicts_with = "model")]
    tokenizer: ModelSource,
    /// Block format: q8_0 (8.5 bits per weight, close to f32 in quality), q6_k (6.6 bits) or q4_k (4.5 bits)
    #[arg(long = "type", value_name = "TYPE", required_unless_present_any = ["random_weights", "llama_cpp"])]
    kind: Option<Quantization>,
    /// Write the language half alone, without the vision half, as a GGUF file for llama.cpp: --output is that file;
    /// without --type its tensors keep their dtypes
    #[arg(long, conflicts_with_all = ["compare", "random_weights"])]
    llama_cpp: bool,
    /// Language model whose embedding table the language half gets, for models with a smaller one of their own
    #[arg(long, value_name = "LLM", requires = "llama_cpp")]
    embedding: Option<ModelSource>,
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
        match (&arguments.model, arguments.kind, &arguments.random_weights) {
            (Some(model), _, _) if arguments.llama_cpp => export(&arguments, model),
            (Some(model), Some(kind), _) => quantize(&arguments, model, kind),
            (_, _, Some(config)) => random(&arguments, config),
            // Refused by clap.
            _ => Ok(()),
        }
    })
}

fn export(arguments: &Arguments, model: &ModelSource) -> Result<()> {
    let Arguments { output, kind, embedding, .. } = arguments;
    let resolved = download::model(model)?;
    let embedding = embedding.as_ref().map(download::model).transpose()?;
    cli::note(format_args!("exporting the language half of {model}, without pre-decoder and images ..."));
    let floats = export_llama_cpp(resolved.path(), output, *kind, embedding.as_ref().map(ResolvedModel::path))?;
    if let Some(first) = floats.first() {
        cli::note(format_args!("{} matrices are f16, since their rows are not whole blocks: {first} ..", floats.len()));
    }
    cli::print(format_args!("{}: {:.1} MB", output.display(), std::fs::metadata(output)?.len() as f64 / 1e6))
}

fn random(arguments: &Arguments, config: &str) -> Result<()> {
    let Arguments { tokenizer, output, seed, kind, .. } = arguments;
    let config = match HaploVlConfig::preset(config) {
        Some(preset) => preset,
        None if Path::new(config).exists() => HaploVlConfig::from_file(config)?,
        None => bail!(
            "there is no file `{config}`: give one, or the configuration haplovl_7b_pro, haplovl_8b, haplovl_7b or tiny"
        ),
    };
    check_new_folder(output)?;
    let tokenizer = download::model(tokenizer)?;
    cli::note("drawing weights ...");
    random_folder(&config, tokenizer.path(), output, *seed, *kind)?;
    cli::print(format_args!("{}: {:.1} MB of random weights", output.display(), megabytes(output)?))
}

fn quantize(arguments: &Arguments, model: &ModelSource, kind: Quantization) -> Result<()> {
    let Arguments { output, compare, side, .. } = arguments;
    // Before a download, which may take long.
    check_new_folder(output)?;
    let resolved = download::model(model)?;
    let folder = resolved.path();
    if *compare > 0 {
        check_images(folder, *side)?;
    }
    cli::note(format_args!("quantising {model} to {kind} ..."));
    quantize_folder(folder, output, kind)?;
    let (before, after) = (megabytes(folder)?, megabytes(output)?);
    cli::print(format_args!("{}: {after:.1} MB of weights, from {before:.1} MB", output.display()))?;
    if *compare > 0 {
        let found = divergence(&load(folder)?, &load(output)?, *compare, *side)?;
        cli::print(format_args!(
            "against the original: KL {:.5} nats, same most likely token at {:.2} % of {} positions",
            found.kl,
            100.0 * found.agreement,
            found.positions
        ))?;
    }
    Ok(())
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

//! Example: merges a LoRA adapter into its model.
//!
//! `cargo run --release --example merge -- --model DIR --adapter DIR --output DIR-merged`

#[path = "common/cli.rs"]
mod cli;
#[path = "common/download.rs"]
mod download;
#[path = "common/memory.rs"]
mod memory;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use haplovl::pipeline::{ModelSource, Quantization, merge_folder};
use haplovl::weights::check_new_folder;

/// Writes a full checkpoint of a model with a LoRA adapter merged into its weights, one tensor at a time.
///
/// The folder is for the `--model` of every other example. An adapter can also be used unmerged, with their `--adapter`,
/// also over quantised weights.
#[derive(Debug, Parser)]
#[command(after_help = "Example:\n  \
    merge --model ./haplovl-7b --adapter runs/tune/export --type q8_0 --output ./haplovl-7b-tuned")]
struct Arguments {
    /// `builtin`, a folder, or a hub id such as ORGANISATION/NAME or ORGANISATION/NAME@REVISION
    #[arg(long, value_name = "MODEL")]
    model: ModelSource,
    /// Folder of the adapter in PEFT's form: adapter_config.json and adapter_model.safetensors
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// Folder to write; must not exist yet, or be empty
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Quantise the merged weights: q8_0, q6_k or q4_k
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<Quantization>,
}

fn main() -> ExitCode {
    cli::main(|arguments: Arguments| {
        memory::keep();
        let Arguments { model, adapter, output, kind } = arguments;
        // Before a download, which may take long.
        check_new_folder(&output)?;
        let resolved = download::model(&model)?;
        cli::note(format_args!("merging {} into {model} ...", adapter.display()));
        merge_folder(resolved.path(), &adapter, &output, kind)?;
        cli::print(output.display())
    })
}

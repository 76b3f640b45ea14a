//! Example: describes images.
//!
//! `cargo run --release --example caption`, or with `-- --model DIR cat.jpg`, or with a folder of images.

#[path = "common/batch.rs"]
mod batch;
#[path = "common/checksum.rs"]
mod checksum;
#[path = "common/cli.rs"]
mod cli;
mod common;
#[path = "common/download.rs"]
mod download;
#[path = "common/images.rs"]
mod images;
#[path = "common/model.rs"]
mod model;
#[path = "common/sampling.rs"]
mod sampling;
#[path = "common/settings.rs"]
mod settings;
#[path = "common/words.rs"]
mod words;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use haplovl::pipeline::Captioner;
use serde_json::json;

use batch::{Asked, BatchOptions};
use images::Images;

/// Describes images: captions on stdout, everything else on stderr.
///
/// A single caption is shown while it is generated. Several images are described in batches, one line each: name, tab,
/// caption, or with --json one line of JSON. An image that cannot be described is reported and passed over, and the exit
/// code is 1 at the end. Formats: PNG, JPEG, WebP, GIF, BMP and TIFF.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:\n  \
    caption                                         draws a scene, describes it with the built-in model\n  \
    caption --model ./haplovl-7b cat.jpg\n  \
    caption --model ORGANISATION/NAME a.png b.png --json\n  \
    caption --model ./haplovl-7b images/ 'more/*.jpg' --output captions.jsonl\n  \
    caption --model ./haplovl-7b --input list.txt --output captions.jsonl --resume --batch 16\n  \
    caption --model ./haplovl-7b cat.jpg --prompt \"Write a poem about this.\" --temperature 0.8 --seed 3")]
struct Arguments {
    #[command(flatten)]
    inputs: BatchOptions,
    #[command(flatten)]
    images: Images,
    /// The request to the model, for records without a question of their own
    #[arg(long, default_value = Captioner::DEFAULT_PROMPT, value_name = "TEXT", value_parser = words::text)]
    prompt: String,
    #[command(flatten)]
    options: common::Options,
}

fn main() -> ExitCode {
    cli::main(|Arguments { mut inputs, images, prompt, options }: Arguments| {
        inputs.names.extend(images.images);
        match inputs.only_image()? {
            None if inputs.is_given() => several(&inputs, &prompt, &options),
            one => stream(Images { images: one.into_iter().map(Into::into).collect() }, prompt, &options),
        }
    })
}

/// Shows the caption of one image while it is generated.
fn stream(images: Images, prompt: String, options: &common::Options) -> Result<()> {
    let images = images.open(options.sampling.seed)?;
    let model = options.load()?;
    words::note_unknown(&model, &prompt)?;
    let captioner = Captioner::new(&model).with_prompt(prompt).with_generation(options.generation(&model)?);
    images.into_iter().try_for_each(|(path, image)| {
        let mut stream = captioner.stream(image)?;
        common::print_pieces(&mut stream, options.json)?;
        common::print_facts(&stream.finish()?, options.json, json!({ "image": path.to_string_lossy() }))
    })
}

fn several(options: &BatchOptions, prompt: &str, common: &common::Options) -> Result<()> {
    let settings = || settings::settings(&common.model, &common.sampling, true);
    let run = options.open(Asked { field: "prompt", text: prompt }, common.json, settings)?;
    let model = common.load()?;
    words::note_unknown(&model, prompt)?;
    run.answer(&model, common.generation(&model)?)
}

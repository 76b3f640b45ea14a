//! Example: describes images.
//!
//! `cargo run --release --example caption`, or with `-- --model DIR --image cat.jpg`

#[path = "common/cli.rs"]
mod cli;
mod common;
#[path = "common/download.rs"]
mod download;
#[path = "common/images.rs"]
mod images;
#[path = "common/model.rs"]
mod model;
#[path = "common/words.rs"]
mod words;

use std::process::ExitCode;

use clap::Parser;
use haplovl::pipeline::Captioner;
use serde_json::json;

use images::Images;

/// Describes images: captions on stdout, everything else on stderr.
///
/// Several images are described one after the other, one line each. Formats: PNG, JPEG, WebP, GIF, BMP and TIFF.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:\n  \
    caption                                         draws a scene, describes it with the built-in model\n  \
    caption --model ./haplovl-7b --image cat.jpg\n  \
    caption --model ORGANISATION/NAME --image a.png --image b.png --json\n  \
    caption --model ./haplovl-7b --image cat.jpg --prompt \"Write a poem about this.\" --temperature 0.8 --seed 3")]
struct Arguments {
    #[command(flatten)]
    images: Images,
    /// The request to the model
    #[arg(long, default_value = Captioner::DEFAULT_PROMPT, value_name = "TEXT", value_parser = words::text)]
    prompt: String,
    #[command(flatten)]
    options: common::Options,
}

fn main() -> ExitCode {
    cli::main(|arguments: Arguments| {
        let Arguments { images, prompt, options } = arguments;
        let images = images.open(options.seed)?;
        let model = options.load()?;
        words::note_unknown(&model, &prompt)?;
        let captioner = Captioner::new(&model).with_prompt(prompt).with_generation(options.generation(&model)?);
        images.into_iter().try_for_each(|(path, image)| {
            let mut stream = captioner.stream(image)?;
            common::print_pieces(&mut stream, options.json)?;
            common::print_facts(&stream.finish()?, options.json, json!({ "image": path }))
        })
    })
}

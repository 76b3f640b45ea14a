//! Describes pictures.
//!
//! `cargo run --release --example caption`, or with `-- --model DIR --image picture.jpg`

mod common;
#[path = "common/pictures.rs"]
mod pictures;

use std::process::ExitCode;

use clap::Parser;
use haplovl::pipeline::Captioner;
use serde_json::json;

use pictures::Pictures;

/// Describes pictures: the text on stdout, everything else on stderr.
///
/// Several pictures are described one after the other, one line each. PNG, JPEG, WebP, GIF, BMP and TIFF are read.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:\n  \
    caption --model ./haplovl-7b --image cat.jpg\n  \
    caption --model ORGANISATION/NAME --image a.png --image b.png --json\n  \
    caption --model ./haplovl-7b --image cat.jpg --prompt \"Write a poem about this.\" --temperature 0.8 --seed 3")]
struct Arguments {
    #[command(flatten)]
    pictures: Pictures,
    /// What to ask for
    #[arg(long, default_value = Captioner::DEFAULT_PROMPT, value_name = "TEXT", value_parser = common::text)]
    prompt: String,
    #[command(flatten)]
    options: common::Options,
}

fn main() -> ExitCode {
    common::main(|arguments: Arguments| {
        let Arguments { pictures, prompt, options } = arguments;
        let pictures = pictures.open(options.seed)?;
        let model = options.load()?;
        common::tell_unknown(&model, &prompt)?;
        let captioner = Captioner::new(&model).with_prompt(prompt).with_generation(options.generation(&model)?);
        pictures.into_iter().try_for_each(|(path, picture)| {
            let mut stream = captioner.stream(picture)?;
            common::print_pieces(&mut stream, options.json)?;
            common::print_facts(&stream.finish()?, options.json, json!({ "image": path }))
        })
    })
}

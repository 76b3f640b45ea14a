//! Describes pictures.
//!
//! `cargo run --release --example caption -- --model DIR --image picture.jpg`

mod common;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use haplovl::data::shapes::{ShapesConfig, Split};
use haplovl::pipeline::Captioner;
use haplovl::processor::ImageDecoder;
use serde_json::json;

/// Side of a drawn picture, in pixels.
const SIDE: u32 = 336;

/// Describes pictures: the text on stdout, everything else on stderr.
///
/// Several pictures are described one after the other, one line each. PNG, JPEG, WebP, GIF, BMP and TIFF are read.
/// Without a picture one is drawn from the seed.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:\n  \
    caption --model ./haplovl-7b --image cat.jpg\n  \
    caption --model ORGANISATION/NAME --image a.png --image b.png --json\n  \
    caption --model ./haplovl-7b --image cat.jpg --prompt \"Write a poem about this.\" --temperature 0.8 --seed 3")]
struct Arguments {
    /// The picture; may be given several times
    #[arg(long = "image", value_name = "FILE")]
    images: Vec<PathBuf>,
    /// What to ask for
    #[arg(long, default_value = Captioner::DEFAULT_PROMPT, value_name = "TEXT")]
    prompt: String,
    #[command(flatten)]
    options: common::Options,
}

fn main() -> ExitCode {
    common::main(|arguments: Arguments| {
        let Arguments { mut images, prompt, options } = arguments;
        if images.is_empty() {
            images.push(draw(options.seed)?);
        }
        // All are opened before the model, which takes longer, so that a wrong name is told at once.
        let pictures = images.iter().map(|path| ImageDecoder::default().open(path));
        let pictures = pictures.collect::<haplovl::Result<Vec<_>>>()?;
        let model = options.load()?;
        let captioner = Captioner::new(&model).with_prompt(prompt).with_generation(options.generation(&model)?);
        images.iter().zip(pictures).try_for_each(|(path, picture)| {
            let mut stream = captioner.stream(picture)?;
            common::print_pieces(&mut stream, options.json)?;
            common::print_facts(&stream.finish()?, options.json, json!({ "image": path }))
        })
    })
}

/// Draws a scene of shapes that no model was trained on, and returns the file.
fn draw(seed: u64) -> Result<PathBuf> {
    // Under a name of its own: others may have one there.
    let file = tempfile::Builder::new().prefix("haplovl-shapes-").suffix(".png").tempfile()?;
    let (_, path) = file.keep()?;
    Split::Test.scene(seed, &ShapesConfig::default()).render(SIDE).save(&path)?;
    eprintln!("no --image is given, so here is one: {}", path.display());
    Ok(path)
}

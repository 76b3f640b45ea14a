//! Answers a question about pictures.
//!
//! `cargo run --release --example vqa -- --model DIR --image picture.jpg --question "How many cats are there?"`

mod common;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use haplovl::pipeline::VisualQuestionAnswerer;
use haplovl::processor::{Content, ImageDecoder};
use serde_json::json;

/// Answers a question about one or several pictures: the answer on stdout, everything else on stderr.
///
/// Pictures come before the question, unless it says <image> where each belongs.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:\n  \
    vqa --model ./haplovl-7b --image cat.jpg --question \"What is the cat looking at?\"\n  \
    vqa --model ./haplovl-7b --image a.png --image b.png --question \"What differs between <image> and <image>?\"")]
struct Arguments {
    /// A picture; may be given several times
    #[arg(long = "image", value_name = "FILE", required = true)]
    images: Vec<PathBuf>,
    /// What to ask
    #[arg(long, value_name = "TEXT")]
    question: String,
    #[command(flatten)]
    options: common::Options,
}

fn main() -> ExitCode {
    common::main(|arguments: Arguments| {
        let Arguments { images, question, options } = arguments;
        // Opened before the model, which takes longer, so that a wrong name is told at once.
        let pictures = images.iter().map(|path| ImageDecoder::default().open(path).map(Content::from));
        let pictures = pictures.collect::<haplovl::Result<Vec<_>>>()?;
        let model = options.load()?;
        let answerer = VisualQuestionAnswerer::new(&model).with_generation(options.generation(&model)?);
        let mut stream = answerer.stream(pictures, &question)?;
        common::print_pieces(&mut stream, options.json)?;
        common::print_facts(&stream.finish()?, options.json, json!({ "question": question }))
    })
}

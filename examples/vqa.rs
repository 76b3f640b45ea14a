//! Example: answers a question about images.
//!
//! `cargo run --release --example vqa -- --question "how many objects are there?"`, and with `--model DIR --image
//! cat.jpg` about an image file.

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
use haplovl::pipeline::VisualQuestionAnswerer;
use haplovl::processor::Content;
use serde_json::json;

use images::Images;

/// Answers a question about one or several images: the answer on stdout, everything else on stderr.
///
/// Images come before the question, unless it contains <image> where each belongs.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:\n  \
    vqa --question \"how many objects are there?\"\n  \
    vqa --model ./haplovl-7b --image cat.jpg --question \"What is the cat looking at?\"\n  \
    vqa --model ./haplovl-7b --image a.png --image b.png --question \"What differs between <image> and <image>?\"")]
struct Arguments {
    #[command(flatten)]
    images: Images,
    /// The question
    #[arg(long, value_name = "TEXT", value_parser = words::text)]
    question: String,
    #[command(flatten)]
    options: common::Options,
}

fn main() -> ExitCode {
    cli::main(|arguments: Arguments| {
        let Arguments { images, question, options } = arguments;
        let images = images.open(options.seed)?.into_iter().map(|(_, image)| Content::from(image));
        let model = options.load()?;
        words::note_unknown(&model, &question)?;
        let answerer = VisualQuestionAnswerer::new(&model).with_generation(options.generation(&model)?);
        let mut stream = answerer.stream(images, &question)?;
        common::print_pieces(&mut stream, options.json)?;
        common::print_facts(&stream.finish()?, options.json, json!({ "question": question }))
    })
}

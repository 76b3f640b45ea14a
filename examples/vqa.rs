//! Answers a question about pictures.
//!
//! `cargo run --release --example vqa -- --question "how many objects are there?"`, and with `--model DIR --image picture.jpg`
//! about a picture of yours.

mod common;
#[path = "common/pictures.rs"]
mod pictures;

use std::process::ExitCode;

use clap::Parser;
use haplovl::pipeline::VisualQuestionAnswerer;
use haplovl::processor::Content;
use serde_json::json;

use pictures::Pictures;

/// Answers a question about one or several pictures: the answer on stdout, everything else on stderr.
///
/// Pictures come before the question, unless it says <image> where each belongs.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:\n  \
    vqa --question \"how many objects are there?\"\n  \
    vqa --model ./haplovl-7b --image cat.jpg --question \"What is the cat looking at?\"\n  \
    vqa --model ./haplovl-7b --image a.png --image b.png --question \"What differs between <image> and <image>?\"")]
struct Arguments {
    #[command(flatten)]
    pictures: Pictures,
    /// What to ask
    #[arg(long, value_name = "TEXT", value_parser = common::text)]
    question: String,
    #[command(flatten)]
    options: common::Options,
}

fn main() -> ExitCode {
    common::main(|arguments: Arguments| {
        let Arguments { pictures, question, options } = arguments;
        let pictures = pictures.open(options.seed)?.into_iter().map(|(_, picture)| Content::from(picture));
        let model = options.load()?;
        common::tell_unknown(&model, &question)?;
        let answerer = VisualQuestionAnswerer::new(&model).with_generation(options.generation(&model)?);
        let mut stream = answerer.stream(pictures, &question)?;
        common::print_pieces(&mut stream, options.json)?;
        common::print_facts(&stream.finish()?, options.json, json!({ "question": question }))
    })
}

//! Example: answers questions about images.
//!
//! `cargo run --release --example vqa -- --question "how many objects are there?"`, and with `--model DIR cat.jpg` about
//! an image file.

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

use anyhow::{Result, ensure};
use clap::Parser;
use haplovl::pipeline::VisualQuestionAnswerer;
use haplovl::processor::Content;
use serde_json::json;

use batch::{Asked, BatchOptions};
use images::Images;

/// Answers questions about images: answers on stdout, everything else on stderr.
///
/// With --image, one question about one or several images, which come before the question unless it contains <image>
/// where each belongs. With names, folders and patterns, or with --input, a question about each image or record: name,
/// tab, answer, or with --json one line of JSON. A question that cannot be answered is reported and passed over, and the
/// exit code is 1 at the end.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:\n  \
    vqa --question \"how many objects are there?\"\n  \
    vqa --model ./haplovl-7b cat.jpg --question \"What is the cat looking at?\"\n  \
    vqa --model ./haplovl-7b --image a.png --image b.png --question \"What differs between <image> and <image>?\"\n  \
    vqa --model ./haplovl-7b images/ --question \"Is there a cat?\" --output answers.jsonl\n  \
    vqa --model ./haplovl-7b --input questions.jsonl --output answers.jsonl --resume")]
struct Arguments {
    #[command(flatten)]
    inputs: BatchOptions,
    #[command(flatten)]
    images: Images,
    /// The question; with --input, the one for records without a question of their own
    #[arg(long, value_name = "TEXT", value_parser = words::text, required_unless_present = "input")]
    question: Option<String>,
    #[command(flatten)]
    options: common::Options,
}

fn main() -> ExitCode {
    cli::main(|Arguments { inputs, mut images, question, options }: Arguments| {
        let question = question.unwrap_or_default();
        ensure!(
            images.images.is_empty() || !inputs.is_given(),
            "--image is for one question about all images: name the images without it for a question about each"
        );
        match inputs.only_image()? {
            None if inputs.is_given() => several(&inputs, &question, &options),
            one => {
                images.images.extend(one.map(Into::into));
                stream(images, &question, &options)
            }
        }
    })
}

/// Shows the answer to one question while it is generated.
fn stream(images: Images, question: &str, options: &common::Options) -> Result<()> {
    let images = images.open(options.sampling.seed)?.into_iter().map(|(_, image)| Content::from(image));
    let model = options.load()?;
    words::note_unknown(&model, question)?;
    let answerer = VisualQuestionAnswerer::new(&model).with_generation(options.generation(&model)?);
    let mut stream = answerer.stream(images, question)?;
    common::print_pieces(&mut stream, options.json)?;
    common::print_facts(&stream.finish()?, options.json, json!({ "question": question }))
}

fn several(options: &BatchOptions, question: &str, common: &common::Options) -> Result<()> {
    let settings = || settings::settings(&common.model, &common.sampling, true);
    let run = options.open(Asked { field: "question", text: question }, common.json, settings)?;
    let model = common.load()?;
    words::note_unknown(&model, question)?;
    run.answer(&model, common.generation(&model)?)
}

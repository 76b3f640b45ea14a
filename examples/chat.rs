//! Talks about pictures.
//!
//! `cargo run --release --example chat -- --model DIR --image picture.jpg`

mod common;

use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use haplovl::pipeline::{Chat, LoadedModel};
use haplovl::processor::{Content, Conversation, Message};
use serde_json::json;

/// Talks about pictures: each line of stdin is a turn, each reply goes to stdout.
///
/// Later turns compute only what is new. A turn that fails is reported, and the chat goes on without it.
#[derive(Debug, Parser)]
#[command(after_help = "In the chat:\n  \
    /image FILE  shows one more picture with the next turn\n  \
    /reset       starts over\n  \
    /quit        ends, as does the end of the input")]
struct Arguments {
    /// A picture of the first turn; may be given several times
    #[arg(long = "image", value_name = "FILE")]
    images: Vec<PathBuf>,
    /// Sets the tone, for example "You are a helpful assistant."
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    options: common::Options,
}

fn main() -> ExitCode {
    common::main(|arguments: Arguments| {
        let model = arguments.options.load()?;
        let mut pictures = open_all(&model, &arguments.images)?;
        let mut chat = new_chat(&arguments, &model)?;
        let mut lines = std::io::stdin().lock().lines();
        while let Some(line) = prompt(&mut lines)? {
            match line.trim().split_once(' ').unwrap_or((line.trim(), "")) {
                ("", _) => {}
                ("/quit", _) => break,
                ("/reset", _) => {
                    chat = new_chat(&arguments, &model)?;
                    pictures = open_all(&model, &arguments.images)?;
                }
                ("/image", path) => match open(&model, Path::new(path.trim())) {
                    Ok(picture) => pictures.push(picture),
                    Err(error) => eprintln!("error: {error}"),
                },
                _ => {
                    let content = pictures.iter().cloned().chain([line.as_str().into()]);
                    match turn(&mut chat, content, &line, arguments.options.json) {
                        Ok(()) => pictures.clear(),
                        Err(error) => eprintln!("error: {error}"),
                    }
                }
            }
        }
        Ok(())
    })
}

fn new_chat<'m>(arguments: &Arguments, model: &'m LoadedModel) -> Result<Chat<'m>> {
    let conversation = Conversation::from_iter(arguments.system.iter().map(Message::system));
    Ok(Chat::new(model).with_conversation(conversation).with_generation(arguments.options.generation(model)?))
}

fn open(model: &LoadedModel, path: &Path) -> Result<Content> {
    Ok(model.processor().decoder().open(path)?.into())
}

fn open_all(model: &LoadedModel, paths: &[PathBuf]) -> Result<Vec<Content>> {
    paths.iter().map(|path| open(model, path)).collect()
}

/// The next line of the input, asked for if somebody types it.
fn prompt(lines: &mut impl Iterator<Item = std::io::Result<String>>) -> Result<Option<String>> {
    if std::io::stdin().is_terminal() {
        eprint!("> ");
        std::io::stderr().flush()?;
    }
    Ok(lines.next().transpose()?)
}

fn turn(chat: &mut Chat<'_>, content: impl Iterator<Item = Content>, said: &str, json: bool) -> Result<()> {
    let mut reply = chat.say(content)?;
    common::print_pieces(&mut reply, json)?;
    common::print_facts(&reply.finish()?, json, json!({ "said": said }))
}

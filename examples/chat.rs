//! Example: chats about images.
//!
//! `cargo run --release --example chat -- --model DIR --image cat.jpg`

#[path = "common/cli.rs"]
mod cli;
mod common;
#[path = "common/download.rs"]
mod download;
#[path = "common/images.rs"]
mod images;
#[path = "common/lines.rs"]
mod lines;
#[path = "common/model.rs"]
mod model;
#[path = "common/sampling.rs"]
mod sampling;
#[path = "common/words.rs"]
mod words;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, anyhow, bail, ensure};
use clap::Parser;
use haplovl::pipeline::batch::typed_path;
use haplovl::pipeline::{Chat, LoadedModel};
use haplovl::processor::{Content, Conversation, Message};
use serde_json::json;

const COMMANDS: &str = "In the chat:\n  \
    /image FILE  adds an image to the next turn\n  \
    /reset       starts a new conversation\n  \
    /help        shows this\n  \
    /quit        ends, as does the end of the input";

const EXAMPLES: &str = "Examples:\n  \
    chat --model ./haplovl-7b --image cat.jpg\n  \
    chat --model ./haplovl-7b --system \"Answer in one word.\" --temperature 0.7\n  \
    printf 'what is this?\\nand its colour?\\n' | chat --image scene.png --json";

/// Chats about images: each line of stdin is a turn, each reply goes to stdout.
///
/// Later turns compute only their new tokens. On a terminal a failed turn is reported and the chat continues without
/// it; with any other input the program ends. A line may have at most 1 MiB.
#[derive(Debug, Parser)]
#[command(after_help = format!("{COMMANDS}\n\n{EXAMPLES}"))]
struct Arguments {
    /// An image of the first turn; may be given several times
    #[arg(long = "image", value_name = "FILE")]
    images: Vec<PathBuf>,
    /// System message, for example "You are a helpful assistant."
    #[arg(long, value_name = "TEXT", value_parser = words::text)]
    system: Option<String>,
    #[command(flatten)]
    options: common::Options,
}

fn main() -> ExitCode {
    cli::main(|arguments: Arguments| {
        let first_images = arguments.images.iter().map(|path| open(path)).collect::<Result<Vec<_>>>()?;
        let model = arguments.options.load()?;
        let mut images = first_images.clone();
        let mut chat = new_chat(&arguments, &model)?;
        let mut input = std::io::stdin().lock();
        prompt_for_input();
        while let Some(line) = lines::next_line(&mut input)? {
            let (first, rest) = line.trim_end().split_once(' ').unwrap_or((line.trim_end(), ""));
            let done = match first {
                _ if line.trim().is_empty() => Ok(()),
                "/quit" => break,
                "/reset" => {
                    images.clone_from(&first_images);
                    new_chat(&arguments, &model).map(|new| chat = new)
                }
                "/help" => {
                    cli::note(COMMANDS);
                    Ok(())
                }
                "/image" => named(rest).and_then(|path| open(&path)).map(|image| images.push(image)),
                command if command.starts_with('/') => Err(unknown(command)),
                _ => turn(&mut chat, &model, &images, line.trim(), arguments.options.json).map(|()| images.clear()),
            };
            match done {
                Err(error) if std::io::stdin().is_terminal() && !error.is::<cli::ReaderGone>() => {
                    cli::note_error(&error);
                }
                done => done?,
            }
            prompt_for_input();
        }
        Ok(())
    })
}

fn new_chat(arguments: &Arguments, model: &LoadedModel) -> Result<Chat> {
    let conversation = Conversation::from_iter(arguments.system.iter().map(Message::system));
    Ok(Chat::new(model).with_conversation(conversation).with_generation(arguments.options.generation(model)?))
}

fn open(path: &Path) -> Result<Content> {
    ensure!(path != Path::new("-"), "the lines of stdin are the chat, so it cannot hold an image: name a file");
    Ok(images::open(path)?.into())
}

fn named(path: &str) -> Result<PathBuf> {
    match path.trim() {
        "" => bail!("/image needs a file name"),
        path => Ok(typed_path(path)),
    }
}

fn unknown(command: &str) -> anyhow::Error {
    let command = command.chars().take(40).collect::<String>();
    anyhow!(
        "there is no command `{command}`: /help lists all commands; put a space before a text that begins with a slash"
    )
}

/// Prints the input prompt on a terminal.
fn prompt_for_input() {
    if std::io::stdin().is_terminal() {
        let mut stderr = std::io::stderr();
        let _ = write!(stderr, "> ").and_then(|()| stderr.flush());
    }
}

fn turn(chat: &mut Chat, model: &LoadedModel, images: &[Content], text: &str, json: bool) -> Result<()> {
    words::note_unknown(model, text)?;
    let mut reply = chat.say(images.iter().cloned().chain([text.into()]))?;
    common::print_pieces(&mut reply, json)?;
    common::print_facts(&reply.finish()?, json, json!({ "said": text }))
}

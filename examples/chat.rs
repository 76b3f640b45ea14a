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
use haplovl::processor::{Content, Conversation, ImageDecoder, Message};
use serde_json::json;

/// Talks about pictures: each line of stdin is a turn, each reply goes to stdout.
///
/// Later turns compute only what is new. Where somebody types, a turn that fails is reported and the chat goes on
/// without it; where the input comes from a file or another program, it ends.
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
        let first_pictures = arguments.images.iter().map(|path| open(path)).collect::<Result<Vec<_>>>()?;
        let model = arguments.options.load()?;
        let mut pictures = first_pictures.clone();
        let mut chat = new_chat(&arguments, &model)?;
        let mut lines = std::io::stdin().lock().lines();
        while let Some(line) = next_line(&mut lines)? {
            let done = match line.trim().split_once(' ').unwrap_or((line.trim(), "")) {
                ("", _) => Ok(()),
                ("/quit", _) => break,
                ("/reset", _) => {
                    pictures.clone_from(&first_pictures);
                    new_chat(&arguments, &model).map(|new| chat = new)
                }
                ("/image", path) => open(Path::new(path.trim())).map(|picture| pictures.push(picture)),
                _ => turn(&mut chat, &pictures, &line, arguments.options.json).map(|()| pictures.clear()),
            };
            match done {
                Err(error) if std::io::stdin().is_terminal() => eprintln!("error: {error}"),
                done => done?,
            }
        }
        Ok(())
    })
}

fn new_chat<'m>(arguments: &Arguments, model: &'m LoadedModel) -> Result<Chat<'m>> {
    let conversation = Conversation::from_iter(arguments.system.iter().map(Message::system));
    Ok(Chat::new(model).with_conversation(conversation).with_generation(arguments.options.generation(model)?))
}

fn open(path: &Path) -> Result<Content> {
    Ok(ImageDecoder::default().open(path)?.into())
}

/// The next line of the input, asked for if somebody types it.
fn next_line(lines: &mut impl Iterator<Item = std::io::Result<String>>) -> Result<Option<String>> {
    if std::io::stdin().is_terminal() {
        eprint!("> ");
        std::io::stderr().flush()?;
    }
    Ok(lines.next().transpose()?)
}

fn turn(chat: &mut Chat<'_>, pictures: &[Content], said: &str, json: bool) -> Result<()> {
    let mut reply = chat.say(pictures.iter().cloned().chain([said.into()]))?;
    common::print_pieces(&mut reply, json)?;
    common::print_facts(&reply.finish()?, json, json!({ "said": said }))
}

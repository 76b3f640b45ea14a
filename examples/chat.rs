//! Talks about pictures.
//!
//! `cargo run --release --example chat -- --model DIR --image picture.jpg`

mod common;

use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, anyhow, bail};
use clap::Parser;
use haplovl::pipeline::{Chat, LoadedModel};
use haplovl::processor::{Content, Conversation, ImageDecoder, Message};
use serde_json::json;

const COMMANDS: &str = "In the chat:\n  \
    /image FILE  shows one more picture with the next turn\n  \
    /reset       starts over\n  \
    /help        shows this\n  \
    /quit        ends, as does the end of the input";

/// Talks about pictures: each line of stdin is a turn, each reply goes to stdout.
///
/// Later turns compute only what is new. Where somebody types, a turn that fails is reported and the chat goes on
/// without it; where the input comes from a file or another program, it ends.
#[derive(Debug, Parser)]
#[command(after_help = COMMANDS)]
struct Arguments {
    /// A picture of the first turn; may be given several times
    #[arg(long = "image", value_name = "FILE")]
    images: Vec<PathBuf>,
    /// Sets the tone, for example "You are a helpful assistant."
    #[arg(long, value_name = "TEXT", value_parser = common::text)]
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
            let (first, rest) = line.trim_end().split_once(' ').unwrap_or((line.trim_end(), ""));
            let done = match first {
                _ if line.trim().is_empty() => Ok(()),
                "/quit" => break,
                "/reset" => {
                    pictures.clone_from(&first_pictures);
                    new_chat(&arguments, &model).map(|new| chat = new)
                }
                "/help" => {
                    eprintln!("{COMMANDS}");
                    Ok(())
                }
                "/image" => named(rest).and_then(open).map(|picture| pictures.push(picture)),
                command if command.starts_with('/') => Err(unknown(command)),
                _ => turn(&mut chat, &model, &pictures, line.trim(), arguments.options.json).map(|()| pictures.clear()),
            };
            match done {
                Err(error) if std::io::stdin().is_terminal() => eprintln!("error: {error}"),
                done => done?,
            }
        }
        Ok(())
    })
}

fn new_chat(arguments: &Arguments, model: &LoadedModel) -> Result<Chat> {
    let conversation = Conversation::from_iter(arguments.system.iter().map(Message::system));
    Ok(Chat::new(model).with_conversation(conversation).with_generation(arguments.options.generation(model)?))
}

fn open(path: &Path) -> Result<Content> {
    Ok(ImageDecoder::default().open(path)?.into())
}

fn named(path: &str) -> Result<&Path> {
    match path.trim() {
        "" => bail!("/image needs the name of a file behind it"),
        path => Ok(Path::new(path)),
    }
}

fn unknown(command: &str) -> anyhow::Error {
    anyhow!("there is no command `{command}`: /help lists them; words that begin with a slash need a space before it")
}

/// The next line of the input, asked for if somebody types it.
fn next_line(lines: &mut impl Iterator<Item = std::io::Result<String>>) -> Result<Option<String>> {
    if std::io::stdin().is_terminal() {
        eprint!("> ");
        std::io::stderr().flush()?;
    }
    Ok(lines.next().transpose()?)
}

fn turn(chat: &mut Chat, model: &LoadedModel, pictures: &[Content], said: &str, json: bool) -> Result<()> {
    common::tell_unknown(model, said)?;
    let mut reply = chat.say(pictures.iter().cloned().chain([said.into()]))?;
    common::print_pieces(&mut reply, json)?;
    common::print_facts(&reply.finish()?, json, json!({ "said": said }))
}

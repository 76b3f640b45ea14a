//! Command-line frame of every example: results on stdout, everything else on stderr.
//!
//! A closed or full output never causes a panic. If the reader of stdout has closed it (`evaluate | head`), the program
//! ends silently with exit code 0; any other write error on stdout is an error with exit code 1. Write errors on stderr
//! are ignored: a note must never cost an answer.
#![allow(dead_code, reason = "each example compiles this module and uses a part of it")]

use std::fmt;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::parser::ValueSource;
use clap::{CommandFactory, Parser};

/// Runs an example. An error is printed as one line on stderr, with exit code 1.
pub fn main<A: Parser>(run: impl FnOnce(A) -> Result<()>) -> ExitCode {
    let arguments = match A::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return print_usage(&error),
    };
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<ReaderGone>() => ExitCode::SUCCESS,
        Err(error) => {
            note_error(&error);
            ExitCode::FAILURE
        }
    }
}

/// Prints the output of clap: help and version on stdout, invalid options on stderr.
fn print_usage(error: &clap::Error) -> ExitCode {
    let printed = error.print();
    let unwritten = printed.is_err_and(|e| e.kind() != ErrorKind::BrokenPipe);
    if error.use_stderr() || unwritten { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Long names of the options that the command line has.
pub fn given<A: CommandFactory>() -> Vec<String> {
    let command = A::command();
    let Ok(matches) = command.clone().try_get_matches() else { return Vec::new() };
    let is_given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let given = command.get_arguments().filter(|argument| is_given(argument.get_id().as_str()));
    given.filter_map(|argument| argument.get_long().map(str::to_owned)).collect()
}

/// Writes text to stdout and flushes it.
///
/// # Errors
/// [`ReaderGone`] if the reader has closed stdout, and an error naming stdout for other failures.
pub fn write(text: impl fmt::Display) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match write!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Err(ReaderGone.into()),
        Err(e) => Err(anyhow::anyhow!("stdout: {e}")),
        Ok(()) => Ok(()),
    }
}

/// Writes a line to stdout.
///
/// # Errors
/// As [`write`].
pub fn print(line: impl fmt::Display) -> Result<()> {
    write(format_args!("{line}\n"))
}

/// Writes a line to stderr; errors are ignored.
pub fn note(line: impl fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Writes an error to stderr as one line without control characters.
pub fn note_error(error: &anyhow::Error) {
    note(format_args!("error: {}", escaped(&error.to_string().replace('\n', " "))));
}

/// A text with its control characters escaped.
pub fn escaped(text: &str) -> String {
    let mut line = String::new();
    for c in text.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

/// Error for a stdout that its reader has closed, which is not a failure of the program.
#[derive(Debug)]
pub struct ReaderGone;

impl fmt::Display for ReaderGone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stdout: closed by its reader")
    }
}

impl std::error::Error for ReaderGone {}

//! The frame of every example: options in, the answer on stdout, everything else on stderr.
//!
//! Nothing here panics when an output is closed or full. A reader of stdout that has gone (`evaluate | head`) ends the
//! program quietly with exit code 0, since the reader has all it wanted; any other failure to write stdout is an error with
//! exit code 1. What cannot be written to stderr is dropped: a note must never cost an answer.
#![allow(dead_code, reason = "each example compiles this module for itself and uses its own share")]

use std::fmt;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

/// Runs an example. A failure is one line on stderr and exit code 1.
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

/// Prints what clap has to say: help and version on stdout, wrong options on stderr.
fn print_usage(error: &clap::Error) -> ExitCode {
    let printed = error.print();
    let unwritten = printed.is_err_and(|e| e.kind() != ErrorKind::BrokenPipe);
    if error.use_stderr() || unwritten { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Writes text to stdout at once.
///
/// # Errors
/// [`ReaderGone`] if nobody reads stdout any more, and an error naming stdout if it cannot be written.
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

/// Writes a line to stderr, if that is possible.
pub fn note(line: impl fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Writes an error to stderr as one line without control characters.
pub fn note_error(error: &anyhow::Error) {
    let mut line = String::new();
    for c in error.to_string().chars() {
        match c {
            '\n' => line.push(' '),
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    note(format_args!("error: {line}"));
}

/// The reader of stdout has closed it, which is no failure of the program.
#[derive(Debug)]
pub struct ReaderGone;

impl fmt::Display for ReaderGone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stdout: nobody reads it any more")
    }
}

impl std::error::Error for ReaderGone {}

//! Input lines of bounded length.

use std::io::{BufRead, Read};

use anyhow::{Result, bail};

/// Longest line in bytes: far more than fits in a model's context, and little memory.
const MAX_LINE: usize = 1 << 20;

/// Reads the next line without its line break; `None` at the end of the input.
///
/// # Errors
/// If the line is longer than 1 MiB or not UTF-8, or the input cannot be read.
pub fn next_line(input: &mut impl BufRead) -> Result<Option<String>> {
    let mut line = Vec::new();
    input.by_ref().take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.len() > MAX_LINE {
        bail!("a line of the input is longer than {MAX_LINE} bytes: one line is one turn of the chat, so split it");
    }
    match String::from_utf8(line) {
        Ok(line) => Ok(Some(line.trim_end_matches(['\n', '\r']).to_string())),
        Err(_) => bail!("a line of the input is not UTF-8: convert the input to UTF-8"),
    }
}

//! Checks of prompts given on the command line.

use anyhow::{Result, bail};
use haplovl::pipeline::LoadedModel;

use crate::cli;

/// Longest prompt in bytes whose words are looked up.
const MAX_CHECKED: usize = 100_000;

/// Parses a text argument; an empty text is an error.
pub fn text(given: &str) -> Result<String> {
    if given.trim().is_empty() {
        bail!("is empty, expected a text");
    }
    Ok(given.to_string())
}

/// Prints words that the model's tokenizer does not know on stderr, since the answer is a guess then.
///
/// Image and video placeholders are not words. A prompt that is too long for any context is not tokenised.
pub fn note_unknown(model: &LoadedModel, prompt: &str) -> Result<()> {
    if prompt.len() > MAX_CHECKED {
        cli::note(format_args!("note: a prompt of {} bytes is not checked for unknown words", prompt.len()));
        return Ok(());
    }
    let text = prompt.replace("<image>", " ").replace("<video>", " ");
    let unknown = model.processor().tokenizer().unknown_words(&text)?;
    if !unknown.is_empty() {
        cli::note(format_args!("note: the model does not know these words and ignores them: {}", listed(&unknown)));
    }
    Ok(())
}

/// Lists the first words, quoted, and the number of further words.
fn listed(words: &[&str]) -> String {
    const MOST: usize = 10;
    let quoted = |word: &&str| format!("`{}`", word.chars().take(40).collect::<String>().escape_debug());
    let shown = Vec::from_iter(words.iter().take(MOST).map(quoted)).join(", ");
    match words.len().saturating_sub(MOST) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

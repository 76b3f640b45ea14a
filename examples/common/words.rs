//! Checks of prompts given on the command line.

use anyhow::{Result, bail};
use haplovl::pipeline::LoadedModel;

use crate::cli;

/// Most bytes of a prompt whose words are looked up.
const MAX_CHECKED: usize = 100_000;

/// Parses a text of the command line; one without words is an error.
pub fn text(given: &str) -> Result<String> {
    if given.trim().is_empty() {
        bail!("is empty, expected words");
    }
    Ok(given.to_string())
}

/// Notes on stderr which words the model's tokenizer does not know, since the answer is a guess then.
///
/// The markers that stand for images and videos are no words. A prompt that is too long for any context is not tokenised.
pub fn note_unknown(model: &LoadedModel, prompt: &str) -> Result<()> {
    if prompt.len() > MAX_CHECKED {
        cli::note(format_args!("note: unknown words are not looked for in a prompt of {} bytes", prompt.len()));
        return Ok(());
    }
    let text = prompt.replace("<image>", " ").replace("<video>", " ");
    let unknown = model.processor().tokenizer().unknown_words(&text)?;
    if !unknown.is_empty() {
        cli::note(format_args!("note: the model does not know these words and ignores them: {}", listed(&unknown)));
    }
    Ok(())
}

/// The first words, quoted, and the number of the rest.
fn listed(words: &[&str]) -> String {
    const MOST: usize = 10;
    let quoted = |word: &&str| format!("`{}`", word.chars().take(40).collect::<String>().escape_debug());
    let shown = Vec::from_iter(words.iter().take(MOST).map(quoted)).join(", ");
    match words.len().saturating_sub(MOST) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

//! What is said to a model must be in its words.

use anyhow::{Result, bail};
use haplovl::pipeline::LoadedModel;

/// A text of the command line; one without words is an error there.
pub fn text(given: &str) -> Result<String> {
    if given.trim().is_empty() {
        bail!("is empty, expected words");
    }
    Ok(given.to_string())
}

/// Tells on stderr which words the model cannot read: its answer is a guess then.
pub fn tell_unknown(model: &LoadedModel, said: &str) -> Result<()> {
    let unknown = model.processor().tokenizer().unknown_words(said)?;
    if !unknown.is_empty() {
        // What was said may be of any length and hold any characters.
        let shown =
            unknown.iter().take(10).map(|word| word.chars().take(40).collect::<String>().escape_debug().to_string());
        let more = if unknown.len() > 10 { format!(" and {} more", unknown.len() - 10) } else { String::new() };
        eprintln!("note: the model has no word for {}{more}, and reads over it", shown.collect::<Vec<_>>().join(", "));
    }
    Ok(())
}

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
        eprintln!("note: the model has no word for {}, and reads over it", unknown.join(", "));
    }
    Ok(())
}

//! Words of the training texts that are added to the vocabulary.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::coverage::Sample;
use crate::processor::{CoverageCheck, TextTokenizer};
use crate::train::recipe::Recipe;
use crate::weights::write_bytes_atomically;
use crate::{Error, Result, files};

/// File in the run's folder with the words that were chosen at its start.
const FILE: &str = "vocabulary.json";
/// Most samples whose words are counted, spread over all.
const SAMPLES: usize = 20_000;
/// Longest word in characters that is added; longer ones are no words.
const MAX_CHARS: usize = 64;
/// Most distinct words that are counted; rarer ones that come later are left out.
const MAX_DISTINCT: usize = 1 << 20;

/// Content of the file.
#[derive(Serialize, Deserialize)]
struct Chosen {
    words: Vec<String>,
}

/// The words that `add_missing` adds: those of the run's start if there are checkpoints, else the most frequent words of
/// the training texts that the vocabulary lacks, in the order of their number and then of the alphabet.
pub(super) fn chosen(recipe: &Recipe, tokenizer: &TextTokenizer, sample: &Sample<'_>) -> Result<Vec<String>> {
    let most = recipe.tokenizer.add_missing;
    if most == 0 {
        return Ok(Vec::new());
    }
    if let Some(words) = stored(&recipe.output_folder())? {
        return Ok(words);
    }
    // Words that are added anyway do not count.
    let (grown, _) = tokenizer.clone().with_tokens(&[], &recipe.tokenizer.add)?;
    let mut counts: Vec<_> = counts(&grown, sample)?.into_iter().collect();
    counts.sort_by_key(|(word, count)| (Reverse(*count), word.clone()));
    Ok(counts.into_iter().take(most).map(|(word, _)| word).collect())
}

/// How often each word occurs that the vocabulary lacks.
fn counts(tokenizer: &TextTokenizer, sample: &Sample<'_>) -> Result<HashMap<String, u64>> {
    let check = CoverageCheck::new(tokenizer);
    let mut counts = HashMap::new();
    if !check.can_lack() {
        return Ok(counts);
    }
    for record in sample.spread(SAMPLES) {
        for text in sample.all_texts(&record) {
            // A text that the tokenizer refuses becomes a bad sample later.
            let Ok(found) = check.of(&text) else { continue };
            for word in found.unknown.iter().chain(&found.bytes).filter(|word| word.chars().count() <= MAX_CHARS) {
                let key = check.key(word)?;
                if counts.len() < MAX_DISTINCT || counts.contains_key(&key) {
                    *counts.entry(key).or_default() += 1;
                }
            }
        }
    }
    Ok(counts)
}

/// The words of an earlier start of the run; `None` if it has no checkpoints, which depend on them.
fn stored(output: &Path) -> Result<Option<Vec<String>>> {
    let path = file(output);
    let checkpoints = std::fs::read_dir(output.join("checkpoints"));
    if checkpoints.is_ok_and(|mut entries| entries.next().is_some()) && files::exists(&path)? {
        return Ok(Some(files::read_json::<Chosen>(&path)?.words));
    }
    Ok(None)
}

/// Writes the chosen words to the run's folder; without any, nothing.
pub(in crate::train) fn write_chosen(output: &Path, words: &[String]) -> Result<()> {
    if words.is_empty() {
        return Ok(());
    }
    let path = file(output);
    let bytes = serde_json::to_vec_pretty(&Chosen { words: words.to_vec() })
        .map_err(|e| Error::format(&path, format!("cannot be serialised: {e}")).caused_by(e))?;
    write_bytes_atomically(path, &bytes)
}

fn file(output: &Path) -> PathBuf {
    output.join(FILE)
}

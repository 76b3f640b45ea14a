//! Coverage of the words to learn by the vocabulary, over a sample of the training data.

use std::fmt;
use std::time::{Duration, Instant};

use crate::data::{Dataset, IMAGE_MARKER, Record, Turn, VIDEO_MARKER, guarded};
use crate::processor::{CoverageCheck, Role, TextTokenizer};
use crate::train::collate::SampleForm;
use crate::train::recipe::Recipe;
use crate::{Error, Result};

/// Most samples that are looked at, spread over all.
const SAMPLES: usize = 2_000;
/// Longest time for it; a slow source is looked at in part.
const TIME: Duration = Duration::from_secs(5);
/// Words that are listed.
const LISTED: usize = 10;
/// Longest listed word in characters.
const LISTED_CHARS: usize = 16;

/// Training records, and what of them is learnt.
pub(super) struct Sample<'a> {
    pub samples: &'a dyn Dataset<Item = Record>,
    pub form: SampleForm,
}

impl Sample<'_> {
    /// At most `count` usable records, spread over all.
    pub fn spread(&self, count: usize) -> impl Iterator<Item = Record> {
        let (count, all) = (count.min(self.samples.len()), self.samples.len());
        let index = move |i: usize| (i as u128 * all as u128 / count.max(1) as u128) as usize;
        (0..count).filter_map(move |i| guarded(|| self.samples.get(index(i))).ok())
    }

    /// The texts of a record.
    pub fn all_texts(&self, record: &Record) -> Vec<String> {
        texts(record, |_| true)
    }

    /// The texts of a record that are learnt.
    fn learnt_texts(&self, record: &Record) -> Vec<String> {
        texts(record, |role| self.form == SampleForm::Words || role == Role::Assistant)
    }
}

fn texts(record: &Record, wanted: impl Fn(Role) -> bool) -> Vec<String> {
    let turns = record.turns.iter().filter(|turn| wanted(turn.role));
    let text = |turn: &Turn| match turn.role {
        // Markers are words there.
        Role::Assistant => turn.text.clone(),
        _ => turn.text.replace(IMAGE_MARKER, " ").replace(VIDEO_MARKER, " "),
    };
    turns.map(text).collect()
}

/// Share of the words to learn that the vocabulary lacks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct CoverageReport {
    samples: usize,
    words: usize,
    /// Words with an unknown part.
    unknown: usize,
    /// Words of characters that fall to bytes, which are learnt, but slowly.
    bytes: usize,
    /// First distinct words of either kind.
    first: Vec<String>,
}

impl CoverageReport {
    fn add(&mut self, check: &CoverageCheck<'_>, text: &str) {
        // A text that the tokenizer refuses becomes a bad sample later.
        let Ok(found) = check.of(text) else { return };
        self.words += found.words;
        self.unknown += found.unknown.len();
        self.bytes += found.bytes.len();
        for word in found.unknown.iter().chain(&found.bytes) {
            let word: String = word.chars().take(LISTED_CHARS).collect();
            if self.first.len() < LISTED && !self.first.contains(&word) {
                self.first.push(word);
            }
        }
    }

    fn share(&self, words: usize) -> f64 {
        if self.words == 0 { 0.0 } else { words as f64 / self.words as f64 }
    }
}

impl fmt::Display for CoverageReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unknown, bytes) = (self.share(self.unknown), self.share(self.bytes));
        write!(f, "words to learn: {} in {} samples, {:.2} % unknown", self.words, self.samples, 100.0 * unknown)?;
        if self.bytes > 0 {
            write!(f, ", {:.2} % in bytes", 100.0 * bytes)?;
        }
        if self.first.is_empty() { Ok(()) } else { write!(f, ": {}", self.first.join(" ")) }
    }
}

/// Looks for words to learn that the vocabulary lacks; `None` for a vocabulary that lacks none.
///
/// # Errors
/// [`Error::Data`] if the share of unknown words exceeds `data.max_unknown_share`.
pub(super) fn check_coverage(
    recipe: &Recipe,
    tokenizer: &TextTokenizer,
    sample: &Sample<'_>,
) -> Result<Option<CoverageReport>> {
    let (check, start) = (CoverageCheck::new(tokenizer), Instant::now());
    if !check.can_lack() {
        return Ok(None);
    }
    let mut report = CoverageReport::default();
    for record in sample.spread(SAMPLES).take_while(|_| start.elapsed() < TIME) {
        report.samples += 1;
        sample.learnt_texts(&record).iter().for_each(|text| report.add(&check, text));
    }
    let (share, most) = (report.share(report.unknown), recipe.data.max_unknown_share);
    if share > most {
        return Err(Error::data(format!(
            "the vocabulary lacks {:.1} % of the words to learn, more than data.max_unknown_share allows ({most:?}): {}; \
             set tokenizer.add_missing to a number of words, or list them in tokenizer.add",
            100.0 * share,
            report.first.join(" ")
        )));
    }
    Ok(Some(report))
}

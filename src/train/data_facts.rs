//! Facts about the training data: records by source, lengths in tokens, size of an epoch.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::collate::Limit;
use super::dataset::{TrainingData, ValidationData};
use super::recipe::{DataSource, Recipe, TrainSource};
use super::run_length::{EpochSize, RunLength};
use crate::data::{BadSample, Dataset, Records, SourceSummary, summarise};
use crate::error::one_line;

/// Number of records that are read first, to find out how long it takes.
const PROBED: usize = 64;
/// Time in which the records of all sources are read, about.
const READING: Duration = Duration::from_millis(600);
/// Samples that are prepared to learn their lengths, over all sources.
const MEASURED: usize = 512;
/// Time in which they are prepared, about.
const MEASURING: Duration = Duration::from_secs(2);
/// Samples that are prepared before the time is checked.
const CHUNK: usize = 32;
/// Most samples that are named for one reason.
const NAMED: usize = 5;

/// Most characters of a name in the table.
const NAME_CHARS: usize = 48;
/// Heads of the table; lengths are in tokens, and the last column is the share of samples over `data.max_length`.
const HEADS: [&str; 9] =
    ["source", "records", "with images", "text only", "bad so far", "median", "95 %", "longest", "too long"];

/// Facts about the training data before a run.
///
/// Images and texts are counted in the records that can be read in a moment, lengths in tokens on up to 512 samples; both
/// are spread over the sources.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct DataFacts {
    /// Facts of each source, in the order of the recipe.
    pub sources: Vec<SourceFacts>,
    /// Longest allowed sample in tokens.
    pub max_length: usize,
    /// Rows of a step, over all micro-batches.
    pub rows_per_step: usize,
    /// Samples of an epoch, good and bad; repeated ones count each time.
    pub samples_per_epoch: usize,
    /// Steps of an epoch if all samples are good; an estimate if rows are packed.
    pub steps_per_epoch: f64,
    /// Whether `steps_per_epoch` is estimated from the lengths.
    pub is_estimated: bool,
    /// Steps of the run.
    pub steps: u64,
    /// Number of validation samples.
    pub validation: usize,
    /// Validation samples that are skipped, each with the reason.
    pub skipped_validation: Vec<String>,
}

/// Facts about one source of training data.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct SourceFacts {
    /// Content of the records.
    pub summary: SourceSummary,
    /// Times that each sample comes per epoch.
    pub weight: f64,
    /// Lengths in tokens of the measured samples, ascending.
    pub lengths: Vec<usize>,
    /// Number of samples whose lengths were to be measured, those that cannot be used included.
    pub measured: usize,
    /// Measured samples longer than allowed, whose answers are not cut.
    pub too_long: usize,
    /// Measured samples whose last answer is cut to fit.
    pub cut: usize,
    /// Measured samples that cannot be used for another reason than their length.
    pub bad: usize,
    /// The first samples that cannot be used or are cut, each with the reason.
    pub named: Vec<String>,
}

impl DataFacts {
    /// Facts about the data of a recipe, and the length of the run.
    pub(super) fn new(recipe: &Recipe, data: &TrainingData, validation: &ValidationData) -> (Self, RunLength) {
        let parts = data.sources.len().max(1) as u32;
        let facts_of = |(source, train): (&Arc<Records>, &TrainSource)| {
            SourceFacts::new(name(&train.source), train.weight, &Source { data, records: source }, parts)
        };
        let sources = data.sources.iter().zip(&recipe.data.train).map(facts_of).collect();
        let mut facts = Self { max_length: data.limit.longest, sources, ..Self::default() };
        let config = data.loader_config(recipe);
        let samples = config.epoch_length(data.samples.len());
        let epoch = EpochSize::new(&config.grouping, samples, &facts.typical_lengths(data));
        let length = RunLength::new(&recipe.update, epoch);
        let batches = recipe.update.gradient_accumulation_steps;
        facts.rows_per_step = recipe.update.batch_size * batches;
        facts.samples_per_epoch = epoch.samples;
        facts.steps_per_epoch = epoch.batches / batches as f64;
        facts.is_estimated = recipe.data.layout == super::DataLayout::Packed;
        facts.steps = length.steps;
        (facts.validation, facts.skipped_validation) = (validation.samples, validation.skipped.clone());
        (facts, length)
    }

    /// Lengths of samples in the mixture of an epoch: every source has its share of a number of positions.
    fn typical_lengths(&self, data: &TrainingData) -> Vec<usize> {
        let shares = data.portions.iter().map(|portion| portion.samples as f64 * portion.weight);
        let total: f64 = shares.clone().sum::<f64>().max(1.0);
        let of_source = |(source, share): (&SourceFacts, f64)| {
            let fits = |length: &&usize| **length <= self.max_length;
            let usable: Vec<usize> = source.lengths.iter().filter(fits).copied().collect();
            let count = if usable.is_empty() { 0 } else { (MEASURED as f64 * share / total).round() as usize };
            (0..count).map(move |i| usable[i * usable.len() / count]).collect::<Vec<_>>()
        };
        self.sources.iter().zip(shares).flat_map(of_source).collect()
    }

    /// Epochs that the run takes, about.
    pub fn epochs(&self) -> f64 {
        self.steps as f64 / self.steps_per_epoch.max(f64::MIN_POSITIVE)
    }
}

impl SourceFacts {
    /// Facts about a source, which may take its part of the time, one of `parts`.
    fn new(name: String, weight: f64, source: &Source<'_>, parts: u32) -> Self {
        let mut facts = Self { summary: source.summary(name, READING / parts), weight, ..Self::default() };
        facts.measure(source, MEASURED.div_ceil(parts as usize), Instant::now() + MEASURING / parts);
        facts.lengths.sort_unstable();
        facts
    }

    /// Prepares `count` samples until `deadline`.
    fn measure(&mut self, source: &Source<'_>, count: usize, deadline: Instant) {
        for indices in shuffled(source.records.spread(count)).chunks(CHUNK) {
            if self.measured > 0 && Instant::now() > deadline {
                break;
            }
            let found: Vec<_> = indices.par_iter().map(|index| source.length(*index)).collect();
            indices.iter().zip(found).for_each(|(index, found)| self.add(&source.records.describe(*index), found));
        }
    }

    fn add(&mut self, name: &str, found: Result<Measured, BadSample>) {
        self.measured += 1;
        let reason = match found {
            Ok(Measured { length, fit }) => {
                self.lengths.push(length);
                match fit {
                    Fit::Whole => return,
                    Fit::Cut => {
                        self.cut += 1;
                        format!("{length} tokens long: the end of the last answer is cut")
                    }
                    Fit::TooLong => {
                        self.too_long += 1;
                        format!("{length} tokens long: skipped")
                    }
                }
            }
            Err(reason) => {
                self.bad += 1;
                reason.to_string()
            }
        };
        if self.named.len() < NAMED {
            self.named.push(one_line(&format!("{name}: {reason}")));
        }
    }

    /// Length that a share of the measured samples does not exceed.
    fn quantile(&self, share: f64) -> Option<usize> {
        let at = (share * self.lengths.len() as f64).ceil() as usize;
        self.lengths.get(at.saturating_sub(1)).copied()
    }
}

/// Length of a sample, and whether it fits.
struct Measured {
    length: usize,
    fit: Fit,
}

enum Fit {
    Whole,
    Cut,
    TooLong,
}

/// Source among all training data.
struct Source<'a> {
    data: &'a TrainingData,
    records: &'a Records,
}

impl Source<'_> {
    /// Content of as many records as can be read in `time`, but of some in any case.
    fn summary(&self, name: String, time: Duration) -> SourceSummary {
        let began = Instant::now();
        let probe = summarise(name.clone(), self.records, PROBED);
        let each = began.elapsed().as_secs_f64() / probe.sampled.max(1) as f64;
        let count = (time.as_secs_f64() / each.max(1e-9)) as usize;
        if probe.sampled == probe.records || count <= PROBED { probe } else { summarise(name, self.records, count) }
    }

    fn length(&self, index: usize) -> Result<Measured, BadSample> {
        let prepare = |limit| self.data.prepare(self.records, index, limit);
        let length = prepare(Limit::NONE)?.sequence.len();
        let fit = match self.data.limit {
            Limit { longest, .. } if length <= longest => Fit::Whole,
            limit if limit.truncates && prepare(limit).is_ok() => Fit::Cut,
            _ => Fit::TooLong,
        };
        Ok(Measured { length, fit })
    }
}

/// Indices in an order in which every beginning is spread over all of them.
fn shuffled(mut indices: Vec<usize>) -> Vec<usize> {
    use rand::seq::SliceRandom;
    indices.shuffle(&mut crate::data::random_stream(0, 0));
    indices
}

/// The end of a name that is too long for the table.
fn shortened(name: &str) -> String {
    let skipped = name.chars().count().saturating_sub(NAME_CHARS);
    if skipped == 0 {
        name.to_string()
    } else {
        name.chars().skip(skipped + 1).fold("…".into(), |all, c| all + c.encode_utf8(&mut [0; 4]))
    }
}

/// Name of a source for people.
fn name(source: &DataSource) -> String {
    match source {
        DataSource::Shapes(dataset) => {
            let split = serde_json::to_value(dataset.split).unwrap_or_default();
            format!("shapes {}", split.as_str().unwrap_or_default())
        }
        DataSource::Files(files) => {
            let paths = files.paths().iter().map(|path| path.display().to_string());
            one_line(&paths.collect::<Vec<_>>().join(", "))
        }
    }
}

impl fmt::Display for DataFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<_> =
            std::iter::once(HEADS.map(String::from)).chain(self.sources.iter().map(SourceFacts::row)).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..HEADS.len()).map(width).collect();
        for row in &rows {
            write!(f, "{:<1$}", row[0], widths[0])?;
            row.iter().zip(&widths).skip(1).try_for_each(|(cell, width)| write!(f, "  {cell:>width$}"))?;
            writeln!(f)?;
        }
        self.write_totals(f)?;
        self.sources.iter().try_for_each(|source| source.write_notes(f))?;
        self.write_length(f)?;
        if self.validation + self.skipped_validation.len() > 0 {
            write!(f, "\nvalidation: {} samples, {} skipped", self.validation, self.skipped_validation.len())?;
        }
        self.skipped_validation.iter().take(NAMED).try_for_each(|skipped| write!(f, "\n  {skipped}"))
    }
}

impl DataFacts {
    /// One line: records with and without images, and how the table was made.
    fn write_totals(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = |count: fn(&SourceFacts) -> usize| self.sources.iter().map(count).sum::<usize>();
        let about = if self.sources.iter().all(SourceFacts::is_counted) { "" } else { "about " };
        write!(
            f,
            "{} records, {about}{} with images, {about}{} text only; lengths in tokens of {} samples, at most {} allowed",
            sum(|source| source.summary.records),
            sum(|source| source.of_all(source.with_visuals())),
            sum(|source| source.of_all(source.summary.text_only)),
            sum(|source| source.measured),
            self.max_length,
        )
    }

    fn write_length(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (about, rows) = if self.is_estimated { ("about ", "rows") } else { ("", "samples") };
        let per_step = self.rows_per_step;
        write!(f, "\n{per_step} {rows} a step")?;
        if self.is_estimated {
            write!(
                f,
                ", about {:.1} samples",
                self.samples_per_epoch as f64 / self.steps_per_epoch.max(f64::MIN_POSITIVE)
            )?;
        }
        let (steps, epochs) = (self.steps, self.epochs());
        write!(f, "; {about}{:.1} steps an epoch; {steps} steps, {about}{epochs:.3} epochs", self.steps_per_epoch)
    }
}

impl SourceFacts {
    /// Whether every record was read.
    fn is_counted(&self) -> bool {
        self.summary.sampled == self.summary.records
    }

    /// Records with an image or a video among those that were read.
    fn with_visuals(&self) -> usize {
        self.summary.sampled.saturating_sub(self.summary.text_only + self.summary.bad)
    }

    /// Number among all records, in proportion to a number among those that were read.
    fn of_all(&self, read: usize) -> usize {
        (read as u128 * self.summary.records as u128 / self.summary.sampled.max(1) as u128) as usize
    }

    /// Bad records among those that were read, or samples that cannot be used among those that were measured.
    fn bad_so_far(&self) -> usize {
        self.summary.bad.max(self.bad)
    }

    /// Cells of the table, under [`HEADS`].
    fn row(&self) -> [String; HEADS.len()] {
        let SourceSummary { name, records, text_only, .. } = &self.summary;
        let about =
            |count: usize| if self.is_counted() { count.to_string() } else { format!("~{}", self.of_all(count)) };
        let tokens = |length: Option<usize>| length.map_or_else(|| "-".into(), |length| length.to_string());
        let long = (self.too_long + self.cut) as f64 / self.lengths.len().max(1) as f64;
        [
            if self.weight == 1.0 { shortened(name) } else { format!("{} x {}", shortened(name), self.weight) },
            records.to_string(),
            about(self.with_visuals()),
            about(*text_only),
            self.bad_so_far().to_string(),
            tokens(self.quantile(0.5)),
            tokens(self.quantile(0.95)),
            tokens(self.lengths.last().copied()),
            format!("{:.1} %", 100.0 * long),
        ]
    }

    fn write_notes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SourceSummary { name, left_out, bad_reasons, .. } = &self.summary;
        if left_out.files > 0 {
            write!(f, "\n{name}: {} files are left out", left_out.files)?;
            left_out.named.iter().take(NAMED).try_for_each(|file| write!(f, "\n  {file}"))?;
        }
        let (cut, too_long) = (self.cut, self.too_long);
        let unseen: Vec<&String> = bad_reasons.iter().filter(|bad| !self.named.contains(bad)).take(NAMED).collect();
        if self.bad_so_far() + cut + too_long > 0 {
            let (bad, measured) = (self.bad_so_far(), self.measured);
            write!(
                f,
                "\n{name}: {bad} bad, and of {measured} samples {too_long} too long, {cut} with a cut answer; such as"
            )?;
            self.named.iter().chain(unseen).try_for_each(|bad| write!(f, "\n  {bad}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> DataFacts {
        let summary = SourceSummary {
            name: "a.json".into(),
            records: 1000,
            sampled: 100,
            with_images: 80,
            text_only: 18,
            bad: 2,
            bad_reasons: vec!["a.json, record 9: no".into()],
            ..SourceSummary::default()
        };
        let mut source = SourceFacts { summary, weight: 2.0, lengths: (1..=100).collect(), ..SourceFacts::default() };
        (source.measured, source.too_long) = (100, 4);
        DataFacts {
            sources: vec![source],
            max_length: 96,
            rows_per_step: 8,
            samples_per_epoch: 2000,
            steps_per_epoch: 250.0,
            steps: 500,
            ..DataFacts::default()
        }
    }

    #[test]
    fn the_table_says_what_was_counted_and_what_is_estimated() {
        let text = facts().to_string();
        for expected in [
            "a.json x 2",
            "1000 records, about 800 with images, about 180 text only; lengths in tokens of 100 samples, at most 96",
            "1000         ~800       ~180           2      50    95      100     4.0 %",
            "8 samples a step; 250.0 steps an epoch; 500 steps, 2.000 epochs",
            "record 9: no",
        ] {
            assert!(text.contains(expected), "{expected} not in:\n{text}");
        }
        let packed = DataFacts { is_estimated: true, ..facts() }.to_string();
        assert!(packed.contains("8 rows a step, about 8.0 samples; about 250.0 steps an epoch"), "{packed}");
    }
}

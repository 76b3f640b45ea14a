//! Facts about the training data: records by source, lengths in tokens, size of an epoch.

mod measure;
mod table;

use std::sync::Arc;

use super::dataset::{TrainingData, ValidationData};
use super::recipe::{Recipe, TrainSource};
use super::run_length::{EpochSize, RunLength};
use crate::data::{Dataset, Records, SourceSummary};
use crate::train::DataLayout;
use measure::{MEASURED, Source};

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
            SourceFacts::new(train.weight, &Source { data, records: source }, &train.source, parts)
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
        facts.is_estimated = recipe.data.layout == DataLayout::Packed;
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

    /// Share of the samples that cannot be used, about.
    pub fn unusable_share(&self) -> f64 {
        let unusable = |source: &SourceFacts| {
            let share = (source.bad + source.too_long) as f64 / source.measured.max(1) as f64;
            share * source.summary.records as f64
        };
        let records: usize = self.sources.iter().map(|source| source.summary.records).sum();
        self.sources.iter().map(unusable).sum::<f64>() / records.max(1) as f64
    }

    /// Epochs that the run takes, about.
    pub fn epochs(&self) -> f64 {
        self.steps as f64 / self.steps_per_epoch.max(f64::MIN_POSITIVE)
    }
}

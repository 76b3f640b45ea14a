//! Data of a run: processor, training samples, loader and validation batches, as the recipe says.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use candle_core::Device;

use super::evaluation::EvalSample;
use super::observer::SkippedSample;
use super::recipe::{DataConfig, DataLayout, DataSource, Recipe, Stage};
use super::vocabulary::Vocabulary;
use crate::batch::{MultimodalBatch, Sequence, Visual};
use crate::config::HaploVlConfig;
use crate::data::{Concat, Dataset, Grouping, Loader, LoaderConfig, LoaderState, Records, guarded};
use crate::processor::Processor;
use crate::{Error, Result};

/// Number of samples whose images initialise the patch projection of a model that is trained from scratch.
const FIRST_IMAGES: usize = 128;
/// Number of samples that are tried to find a first valid one.
const FIRST_SAMPLES: usize = 100;
/// Number of batches in a window within which samples are sorted by length or packed.
const WINDOW: usize = 16;

/// Processor and training samples of a run.
pub(super) struct TrainingData {
    pub processor: Arc<Processor>,
    pub samples: Arc<Concat<Records>>,
    pub vocabulary: Vocabulary,
}

impl TrainingData {
    /// Opens the tokenizer and all training sources; large files are indexed, which takes a while.
    pub fn open(recipe: &Recipe, config: &HaploVlConfig) -> Result<Self> {
        let sources = recipe.data.train.iter().map(|source| open_source(recipe, source)).collect::<Result<_>>()?;
        let samples = Concat::new(sources);
        let vocabulary = Vocabulary::open(recipe, config, &samples)?;
        Ok(Self { processor: Arc::clone(&vocabulary.processor), samples: Arc::new(samples), vocabulary })
    }

    /// A loader that starts at `state`, and the samples that it skips.
    pub fn loader(
        &self,
        recipe: &Recipe,
        config: &HaploVlConfig,
        state: LoaderState,
    ) -> Result<(Loader<Sequence>, Receiver<SkippedSample>)> {
        let (form, longest) = (recipe.stage.sample_form(), longest(recipe, config));
        let processor = Arc::clone(&self.processor);
        let loader = Loader::new(Arc::clone(&self.samples), loader_config(recipe, longest), state, move |sample| {
            form.prepare(&processor, sample, longest)
        })?;
        let (skipped, receiver) = channel();
        let loader = loader.on_bad(move |bad| {
            let (sample, reason) = (bad.sample.to_string(), bad.reason.to_string());
            // The receiver is gone after the run has ended.
            let _ = skipped.send(SkippedSample { sample, reason, skipped: bad.bad, seen: bad.seen });
        });
        Ok((loader, receiver))
    }

    /// Images of the first samples.
    pub fn first_images(&self, recipe: &Recipe) -> Vec<Visual> {
        let first = 0..self.samples.len().min(FIRST_IMAGES);
        self.usable(recipe, first).flat_map(|sequence| sequence.visuals).collect()
    }

    /// `count` samples spread over all training data, without those that cannot be used.
    pub fn spread<'a>(&'a self, recipe: &'a Recipe, count: usize) -> impl Iterator<Item = Sequence> + 'a {
        let (count, all) = (count.min(self.samples.len()), self.samples.len());
        self.usable(recipe, (0..count).map(move |i| i * all / count))
    }

    fn usable<'a>(
        &'a self,
        recipe: &'a Recipe,
        indices: impl Iterator<Item = usize> + 'a,
    ) -> impl Iterator<Item = Sequence> + 'a {
        let form = recipe.stage.sample_form();
        let prepare = move |i| form.prepare(&self.processor, self.samples.get(i)?, recipe.data.max_length);
        indices.filter_map(move |i| guarded(|| prepare(i)).ok())
    }

    /// The first sample that can be used.
    ///
    /// # Errors
    /// [`Error::Data`] if none of the first samples can be used.
    pub fn first_sample(&self, recipe: &Recipe) -> Result<Sequence> {
        let form = recipe.stage.sample_form();
        let prepare = |index| form.prepare(&self.processor, self.samples.get(index)?, recipe.data.max_length);
        let mut refused = None;
        for index in 0..self.samples.len().min(FIRST_SAMPLES) {
            match guarded(|| prepare(index)) {
                Ok(sequence) => return Ok(sequence),
                Err(bad) => refused = refused.or_else(|| Some(format!("{}: {bad}", self.samples.describe(index)))),
            }
        }
        let refused = refused.unwrap_or_else(|| "there are no samples".into());
        Err(Error::data(format!("none of the first {FIRST_SAMPLES} samples can be used; the first: {refused}")))
    }
}

/// Validation samples in batches, and some of them as questions to answer.
#[derive(Default)]
pub(super) struct ValidationData {
    pub batches: Vec<MultimodalBatch>,
    pub questions: Vec<EvalSample>,
}

impl ValidationData {
    /// Prepares the validation samples; without a source there are none.
    ///
    /// # Errors
    /// [`Error::Data`] for a sample that cannot be used: a validation loss must always be over the same samples.
    pub fn open(recipe: &Recipe, config: &HaploVlConfig, processor: &Processor, device: &Device) -> Result<Self> {
        let Some(source) = &recipe.data.validation else { return Ok(Self::default()) };
        let source = open_source(recipe, source)?;
        let (form, longest) = (recipe.stage.sample_form(), longest(recipe, config));
        // Only a whole model can answer.
        let wanted = match recipe.stage {
            Stage::Align { .. } | Stage::Tune { .. } => recipe.run.num_eval_samples,
            Stage::Vision { .. } | Stage::Language | Stage::Distill { .. } => 0,
        };
        let (mut sequences, mut questions) = (Vec::new(), Vec::new());
        for index in 0..source.len().min(recipe.data.max_eval_samples) {
            let sequence = guarded(|| {
                let sample = source.get(index)?;
                if questions.len() < wanted {
                    questions.extend(EvalSample::of(processor, &sample)?);
                }
                form.prepare(processor, sample, longest)
            });
            let bad = |e| Error::data(format!("validation: {}: {e}", source.describe(index))).caused_by(e);
            sequences.push(sequence.map_err(bad)?);
        }
        let rows: Vec<Vec<Sequence>> = sequences.into_iter().map(|sequence| vec![sequence]).collect();
        let batches = rows.chunks(recipe.update.batch_size).map(|rows| form.collate(rows.to_vec(), config, device));
        Ok(Self { batches: batches.collect::<Result<_>>()?, questions })
    }
}

/// Number of prepared training samples that are in memory at a time, at most.
pub(super) fn samples_in_memory(recipe: &Recipe) -> usize {
    let windows = if recipe.data.layout == DataLayout::InOrder { 1 } else { WINDOW };
    (windows * recipe.update.batch_size).max(LoaderConfig::default().prefetch)
}

/// Longest sample that the recipe allows and the model can take, in tokens.
fn longest(recipe: &Recipe, config: &HaploVlConfig) -> usize {
    recipe.data.max_length.min(config.max_position_embeddings)
}

fn loader_config(recipe: &Recipe, row_length: usize) -> LoaderConfig {
    let DataConfig { layout, num_workers, max_bad_share, .. } = recipe.data;
    let rows = recipe.update.batch_size;
    let grouping = match layout {
        DataLayout::InOrder => Grouping::InOrder { rows },
        DataLayout::ByLength => Grouping::ByLength { rows, window: WINDOW },
        DataLayout::Packed => Grouping::Packed { rows, row_length, window: WINDOW * rows },
    };
    LoaderConfig { seed: recipe.seed, workers: num_workers, max_bad_share, grouping, ..LoaderConfig::default() }
}

/// Opens a source; files are indexed, not read.
fn open_source(recipe: &Recipe, source: &DataSource) -> Result<Records> {
    match source {
        DataSource::Shapes(dataset) => {
            dataset.validate()?;
            Ok(Box::new(dataset.clone()))
        }
        DataSource::Files(files) => files.resolved(|path| recipe.resolve(path)).open(),
    }
}

//! Data of a run: processor, training samples, loader and validation batches, as the recipe says.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use candle_core::Device;

use super::collate::{Limit, Prepared, SampleForm};
use super::evaluation::EvalSample;
use super::observer::SkippedSample;
use super::recipe::{DataConfig, DataLayout, DataSource, Recipe, Stage, TrainSource};
use super::vocabulary::Vocabulary;
use crate::batch::{MultimodalBatch, Sequence, Visual};
use crate::config::HaploVlConfig;
use crate::data::{
    Concat, Dataset, Grouping, Loader, LoaderConfig, LoaderState, Portion, Record, Records, SampleResult, guarded,
};
use crate::error::one_line;
use crate::processor::Processor;
use crate::{Error, Result};

/// Number of samples whose images initialise the patch projection of a model that is trained from scratch.
const FIRST_IMAGES: usize = 128;
/// Number of samples that are tried to find a first valid one.
const FIRST_SAMPLES: usize = 100;
/// Number of batches in a window within which samples are sorted by length or packed.
const WINDOW: usize = 16;
/// Longest sample that is tokenised whole, as a multiple of the longest allowed one: longer ones are bad, not cut.
const TOKENISED: usize = 16;

/// Processor and training samples of a run.
pub(super) struct TrainingData {
    pub processor: Arc<Processor>,
    pub samples: Arc<Concat<Arc<Records>>>,
    pub sources: Vec<Arc<Records>>,
    /// Number of samples and weight of each source.
    pub portions: Vec<Portion>,
    pub limit: Limit,
    pub vocabulary: Vocabulary,
    form: SampleForm,
}

impl TrainingData {
    /// Opens the tokenizer and all training sources; large files are indexed, which takes a while.
    pub fn open(recipe: &Recipe, config: &HaploVlConfig) -> Result<Self> {
        let (mut sources, mut portions) = (Vec::new(), Vec::new());
        for (number, TrainSource { source, weight }) in recipe.data.train.iter().enumerate() {
            let opened =
                open_source(recipe, source).map_err(|e| recipe.in_field(&format!("data.train[{number}]"), e))?;
            let portion = Portion { samples: opened.len(), weight: *weight };
            portion.check(&format!("data.train[{number}].weight"))?;
            portions.push(portion);
            sources.push(Arc::new(opened));
        }
        let samples = Concat::new(sources.clone());
        let vocabulary = Vocabulary::open(recipe, config, &samples).map_err(|e| recipe.in_field("tokenizer", e))?;
        let limit = Limit { longest: longest(recipe, &vocabulary.config), truncates: recipe.data.truncate_answers };
        let processor = (*vocabulary.processor).clone().with_max_length(limit.longest.saturating_mul(TOKENISED));
        let form = recipe.stage.sample_form();
        Ok(Self {
            processor: Arc::new(processor),
            samples: Arc::new(samples),
            sources,
            portions,
            limit,
            vocabulary,
            form,
        })
    }

    /// A loader that starts at `state`, and the samples that it skips.
    pub fn loader(&self, recipe: &Recipe, state: LoaderState) -> Result<(Loader<Prepared>, Receiver<SkippedSample>)> {
        let (form, limit, processor) = (self.form, self.limit, Arc::clone(&self.processor));
        let prepare = move |sample| form.prepare(&processor, sample, limit);
        let loader = Loader::new(Arc::clone(&self.samples), self.loader_config(recipe), state, prepare)?;
        let (skipped, receiver) = channel();
        let loader = loader.on_bad(move |bad| {
            let (sample, reason) = (bad.sample.to_string(), bad.reason.to_string());
            // The receiver is gone after the run has ended.
            let _ = skipped.send(SkippedSample { sample, reason, skipped: bad.bad, seen: bad.seen });
        });
        Ok((loader, receiver))
    }

    /// Order and grouping of the samples.
    pub fn loader_config(&self, recipe: &Recipe) -> LoaderConfig {
        let DataConfig { layout, num_workers, max_bad_share, .. } = recipe.data;
        let rows = recipe.update.batch_size;
        let grouping = match layout {
            DataLayout::InOrder => Grouping::InOrder { rows },
            DataLayout::ByLength => Grouping::ByLength { rows, window: WINDOW },
            DataLayout::Packed => Grouping::Packed { rows, row_length: self.limit.longest, window: WINDOW * rows },
        };
        let portions = self.portions.clone();
        LoaderConfig {
            seed: recipe.seed,
            workers: num_workers,
            max_bad_share,
            grouping,
            portions,
            ..Default::default()
        }
    }

    /// Images of the first samples.
    pub fn first_images(&self) -> Vec<Visual> {
        let first = 0..self.samples.len().min(FIRST_IMAGES);
        self.usable(first).flat_map(|sequence| sequence.visuals).collect()
    }

    /// `count` samples spread over all training data, without those that cannot be used.
    pub fn spread(&self, count: usize) -> impl Iterator<Item = Sequence> + '_ {
        let (count, all) = (count.min(self.samples.len()), self.samples.len());
        self.usable((0..count).map(move |i| i * all / count))
    }

    fn usable<'a>(&'a self, indices: impl Iterator<Item = usize> + 'a) -> impl Iterator<Item = Sequence> + 'a {
        let prepare = |i| self.prepare(&*self.samples, i, self.limit).ok();
        indices.filter_map(prepare).map(|prepared| prepared.sequence)
    }

    /// Sample number `index` of some of the data, ready for batching.
    pub fn prepare(&self, samples: &dyn Dataset<Item = Record>, index: usize, limit: Limit) -> SampleResult<Prepared> {
        guarded(|| self.form.prepare(&self.processor, samples.get(index)?, limit))
    }

    /// The first sample that can be used.
    ///
    /// # Errors
    /// [`Error::Data`] if none of the first samples can be used.
    pub fn first_sample(&self) -> Result<Sequence> {
        let mut refused = None;
        for index in 0..self.samples.len().min(FIRST_SAMPLES) {
            match self.prepare(&*self.samples, index, self.limit) {
                Ok(prepared) => return Ok(prepared.sequence),
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
    /// Number of samples in the batches.
    pub samples: usize,
    /// Samples that cannot be used, each with the reason.
    pub skipped: Vec<String>,
}

impl ValidationData {
    /// Prepares the validation samples; without a source there are none. Samples that cannot be used are skipped, so
    /// that every validation loss is over the same good ones.
    ///
    /// # Errors
    /// [`Error::Data`] if no sample can be used.
    pub fn open(recipe: &Recipe, config: &HaploVlConfig, data: &TrainingData, device: &Device) -> Result<Self> {
        let Some(source) = &recipe.data.validation else { return Ok(Self::default()) };
        let source = open_source(recipe, source).map_err(|e| recipe.in_field("data.validation", e))?;
        // Only a whole model can answer.
        let wanted = match recipe.stage {
            Stage::Align { .. } | Stage::Tune { .. } => recipe.run.num_eval_samples,
            Stage::Vision { .. } | Stage::Language | Stage::Distill { .. } => 0,
        };
        let (mut rows, mut questions, mut skipped) = (Vec::new(), Vec::new(), Vec::new());
        for index in 0..source.len().min(recipe.data.max_eval_samples) {
            let prepared = guarded(|| {
                let sample = source.get(index)?;
                let question = if questions.len() < wanted { EvalSample::of(&data.processor, &sample)? } else { None };
                Ok((data.form.prepare(&data.processor, sample, data.limit)?.sequence, question))
            });
            match prepared {
                Ok((sequence, question)) => {
                    rows.push(vec![sequence]);
                    questions.extend(question);
                }
                Err(reason) => {
                    let sample = source.describe(index);
                    tracing::warn!(%sample, %reason, "validation sample skipped");
                    skipped.push(one_line(&format!("{sample}: {reason}")));
                }
            }
        }
        if let (true, Some(first)) = (rows.is_empty(), skipped.first()) {
            let message = format!("none of the {} validation samples can be used; the first: {first}", skipped.len());
            return Err(Error::data(message));
        }
        let samples = rows.len();
        let batches = rows.chunks(recipe.update.batch_size);
        let batches = batches.map(|rows| data.form.collate(rows.to_vec(), config, device)).collect::<Result<_>>()?;
        Ok(Self { batches, questions, samples, skipped })
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

//! Results of one entry: the test, and what training it took.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use haplovl::config::HaploVlConfig;
use haplovl::data::shapes::Split;
use haplovl::model::HaploVl;
use haplovl::processor::Processor;
use haplovl::train::Recipe;
use haplovl::train::metrics::{Record, SAMPLES_PER_SECOND, TOKENS_PER_SECOND, VALIDATION_LOSS, read_metrics};
use haplovl::weights::{open_weights, source_var_builder, write_bytes_atomically};
use serde::{Deserialize, Serialize};

use super::correctness::Correctness;
use super::cost::Cost;
use super::exam::{Answered, Exam};
use super::model::ModelKind;
use super::named;
use super::plan::Entry;
use super::stages::{RECIPE, Trained, Trainer};

/// Metric of the accuracy on validation questions.
pub const ACCURACY: &str = "validation/accuracy";
/// File of the results, which is written last.
pub const RESULTS: &str = "results.json";
/// File of the answers, for people: what the page needs is in the results.
const ANSWERS: &str = "answers.jsonl";

/// Contents of `results.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Results {
    /// Version of the crate.
    pub version: String,
    /// Setting.
    pub setting: String,
    /// Name of the design.
    pub design: String,
    /// Name of the size; `None` for the full one.
    pub size: Option<String>,
    /// Different images in stage 2; `None` for more than there are steps.
    pub scenes: Option<usize>,
    /// Seed.
    pub seed: u64,
    /// Parameters at inference, frozen ones included.
    pub parameters: usize,
    /// Frozen parameters among them.
    pub frozen: usize,
    /// FLOPs to read an image and a question.
    pub flops_question: f64,
    /// FLOPs of forward and backward pass of one sample of stage 2, of its mean length.
    pub flops_sample: f64,
    /// Stages, the last one being stage 2.
    pub stages: Vec<StageFacts>,
    /// Evaluations during stage 2.
    pub curve: Vec<Point>,
    /// Which answers on the test split are right.
    pub correctness: Correctness,
    /// [`Plan::provenance`](super::Plan::provenance) of the entry.
    pub provenance: String,
}

/// What a stage took.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StageFacts {
    /// Name of the stage.
    pub name: String,
    /// Optimizer steps.
    pub steps: u64,
    /// Samples, repeated ones too.
    pub samples: u64,
    /// Tokens, patches included.
    pub tokens: f64,
    /// Seconds of the steps by their median, so that halts do not count; evaluations and checkpoints do not, either.
    pub seconds: f64,
}

/// An evaluation during stage 2.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Point {
    /// Samples trained on.
    pub samples: u64,
    /// Validation loss.
    pub loss: f64,
    /// Accuracy on validation questions.
    pub accuracy: f64,
}

impl Results {
    /// Tests a trained entry and writes `answers.jsonl` and `results.json` in its folder.
    pub fn make(trainer: &Trainer<'_>, entry: &Entry, provenance: &str, trained: &Trained) -> Result<Self> {
        let design = trainer.plan.design(&entry.design)?;
        let folder = trainer.entry_folder(entry);
        let answers = test(trainer, design.image_last, trained)?;
        let stages = trained.stages.iter().map(|(name, folder)| StageFacts::read(name, folder));
        let stages: Vec<StageFacts> = stages.collect::<Result<_>>()?;
        let last = stages.last().context("a design without stages")?;
        let cost = Cost::of(trained.model, &trained.config)?;
        let text = last.tokens / last.samples.max(1) as f64 - trained.config.vision.patches_per_tile() as f64;
        let results = Self {
            version: env!("CARGO_PKG_VERSION").into(),
            setting: trainer.options.setting.clone(),
            design: design.name.clone(),
            size: entry.size.clone(),
            scenes: entry.scenes,
            seed: entry.seed,
            parameters: cost.parameters,
            frozen: cost.frozen,
            flops_question: cost.question(),
            flops_sample: cost.flops(text.max(0.0)).training(),
            curve: curve(trained)?,
            stages,
            correctness: Correctness::new(&answers, trainer.setting.test_scenes),
            provenance: provenance.to_owned(),
        };
        let lines = answers.iter().map(serde_json::to_string).collect::<serde_json::Result<Vec<_>>>()?;
        write_bytes_atomically(folder.join(ANSWERS), (lines.join("\n") + "\n").as_bytes())?;
        write_bytes_atomically(folder.join(RESULTS), &serde_json::to_vec_pretty(&results)?)?;
        Ok(results)
    }

    /// Reads the results in a folder; `None` if there are none yet.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(RESULTS);
        if !path.is_file() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&path).map_err(|e| named(&path, e))?;
        let unreadable = |e| named(&path, format_args!("{e}: remove it, and `compare` tests the model again"));
        Ok(Some(serde_json::from_str(&text).map_err(unreadable)?))
    }

    /// The entry that the results are of.
    pub fn entry(&self) -> Entry {
        Entry { seed: self.seed, design: self.design.clone(), size: self.size.clone(), scenes: self.scenes }
    }

    /// Name of the entry, without its seed.
    pub fn name(&self) -> String {
        self.entry().name()
    }

    /// Bytes of parameters and, of the trained ones, a gradient, two moments and an EMA.
    pub fn static_bytes(&self) -> usize {
        4 * self.parameters + 16 * self.parameters.saturating_sub(self.frozen)
    }

    /// Different images in stage 2.
    pub fn images(&self) -> u64 {
        let samples = self.stages.last().map_or(0, |stage| stage.samples);
        self.scenes.map_or(samples, |scenes| samples.min(scenes as u64))
    }

    /// Validation loss after the last step of stage 2.
    pub fn loss(&self) -> Option<f64> {
        self.curve.last().map(|point| point.loss)
    }
}

/// Answers of the exported model to the questions of the test split.
fn test(trainer: &Trainer<'_>, image_last: bool, trained: &Trained) -> Result<Vec<Answered>> {
    let (_, stage) = trained.stages.last().context("a design without stages")?;
    let export = stage.join("export");
    let config = HaploVlConfig::from_file(export.join("config.json"))?;
    let processor = Arc::new(Processor::from_folder(&export, &config)?);
    let exam = Exam::new(Split::Test, trainer.setting.test_scenes, trainer.setting, image_last)?;
    let weights = open_weights(&export)?;
    match trained.model {
        ModelKind::Haplovl => {
            exam.answers(HaploVl::from_source(&config, weights, None, DType::F32, &Device::Cpu)?, &processor)
        }
        model => {
            let vb = source_var_builder(weights, Default::default(), DType::F32, &Device::Cpu);
            let teacher = model.teacher(&trained.teacher)?;
            exam.answers(model.baseline(&config, teacher.as_ref(), vb)?, &processor)
        }
    }
}

fn metrics(folder: &Path) -> Result<Vec<Record>> {
    Ok(read_metrics(folder.join("metrics.jsonl"))?)
}

/// Samples of a step of the run in a folder.
fn step_samples(folder: &Path) -> Result<u64> {
    let recipe = Recipe::read(folder.join(RECIPE), &[])?;
    Ok((recipe.update.batch_size * recipe.update.gradient_accumulation_steps) as u64)
}

fn curve(trained: &Trained) -> Result<Vec<Point>> {
    let (_, folder) = trained.stages.last().context("a design without stages")?;
    let samples = step_samples(folder)?;
    let point = |record: Record| {
        let (loss, accuracy) = (record.get(VALIDATION_LOSS)?, record.get(ACCURACY)?);
        Some(Point { samples: record.step * samples, loss, accuracy })
    };
    Ok(metrics(folder)?.into_iter().filter_map(point).collect())
}

impl StageFacts {
    fn read(name: &str, folder: &Path) -> Result<Self> {
        let (samples, records) = (step_samples(folder)?, metrics(folder)?);
        let seconds = |record: &Record| Some(samples as f64 / record.get(SAMPLES_PER_SECOND)?);
        let tokens = |record: &Record| Some(record.get(TOKENS_PER_SECOND)? * seconds(record)?);
        let mut of_steps: Vec<f64> = records.iter().filter_map(seconds).collect();
        of_steps.sort_by(f64::total_cmp);
        let median = of_steps.get(of_steps.len() / 2).copied().unwrap_or(0.0);
        Ok(Self {
            name: name.into(),
            steps: records.len() as u64,
            samples: samples * records.len() as u64,
            tokens: records.iter().filter_map(tokens).sum(),
            seconds: median * of_steps.len() as f64,
        })
    }
}

/// Results of all entries of a comparison by name, each with its seeds in order.
///
/// # Errors
/// If a file is not in the folder that its seed and name say: it would be counted beside that of its own folder.
pub fn read_all(folder: &Path) -> Result<BTreeMap<String, Vec<Results>>> {
    let mut all: BTreeMap<String, Vec<Results>> = BTreeMap::new();
    for entry in subfolders(folder)?.iter().map(|seed| subfolders(seed)).collect::<Result<Vec<_>>>()?.concat() {
        let Some(results) = Results::read(&entry)? else { continue };
        let own = folder.join(format!("seed-{}", results.seed)).join(results.name());
        if entry != own {
            let (path, own) = (entry.join(RESULTS), own.strip_prefix(folder).unwrap_or(&own).to_owned());
            bail!("{} is of {}: move its folder there, or out of {}", path.display(), own.display(), folder.display());
        }
        all.entry(results.name()).or_default().push(results);
    }
    all.values_mut().for_each(|seeds| seeds.sort_by_key(|results| results.seed));
    Ok(all)
}

fn subfolders(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|e| named(folder, e))?;
    let mut folders = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| named(folder, e))?.path();
        folders.extend(path.is_dir().then_some(path));
    }
    folders.sort();
    Ok(folders)
}

//! A whole training run: loader, steps, evaluation, checkpoints, and everything that people look at.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device, Var};
use serde::{Deserialize, Serialize};

use super::checkpoint::{Checkpoint, CheckpointManager, Contents};
use super::collate::SampleForm;
use super::eval_samples::{EvalSample, EvalSampleLog, listing};
use super::metrics::{
    GRAD_NORM, LEARNING_RATE, LOSS, MetricsLog, Record, SAMPLES_PER_SECOND, TOKENS_PER_SECOND, read_metrics,
};
use super::plot::{Plot, Series};
use super::progress::Progress;
use super::recipe::{DataConfig, DataLayout, DataSource, Recipe, RunConfig, Stage};
use super::stage::{BuiltStage, build, connector, export};
use super::tensorboard::TensorBoardWriter;
use super::{Objective, StepReport, Trainer, UpdateRule};
use crate::batch::{MultimodalBatch, Sequence, Visual};
use crate::config::{GenerationConfig, HaploVlConfig};
use crate::data::shapes::tokenizer;
use crate::data::{Concat, Dataset, Grouping, Loader, LoaderConfig, LoaderState, Records, guarded, open};
use crate::generation::Generator;
use crate::model::HaploVl;
use crate::optim::{AdamW, AdamWConfig, ParamGroup, glob_matches, undecayed_groups};
use crate::processor::{ChatTemplate, Processor, ProcessorSettings, TextTokenizer};
use crate::weights::{Parameters, check_tensors, write_bytes_atomically};
use crate::{Error, Result};

/// Key of the validation loss in metrics.
const VALIDATION_LOSS: &str = "validation/loss";
/// Most tokens of an answer that is shown during training.
const SHOWN_TOKENS: usize = 48;
/// Samples whose pictures tell how pictures are, to a model that starts from nothing.
const FIRST_PICTURES: usize = 128;
/// Samples whose texts tell how the pre-decoder gives back embeddings.
const SOME_SAMPLES: usize = 512;

/// A training run, built and ready to go.
pub struct Run {
    recipe: Recipe,
    config: HaploVlConfig,
    device: Device,
    processor: Arc<Processor>,
    samples: Arc<Concat<Records>>,
    parameters: Parameters,
    trainer: Trainer<Box<dyn Objective>>,
    validation: Vec<MultimodalBatch>,
    shown: Vec<EvalSample>,
    facts: Facts,
    stop_after: Option<u64>,
    hook: Option<Hook>,
}

/// What [`Run::on_evaluation`] was given.
type Hook = Box<dyn FnMut(&Evaluation<'_>) -> Result<Vec<(String, f64)>> + Send>;

/// A run at the moment of an evaluation on its validation samples.
pub struct Evaluation<'a> {
    /// Steps done.
    pub step: u64,
    /// Mean loss over the validation samples.
    pub loss: f64,
    /// The model's configuration.
    pub config: &'a HaploVlConfig,
    /// All parameters, trained or not; models built over `var_builder_where(.., |_| false)` track no gradients. Where the
    /// optimizer keeps running means, these are in their place.
    pub parameters: &'a Parameters,
    /// The processor of the run.
    pub processor: &'a Processor,
}

/// What a run is about to do, for people to check before it does.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Parameters of each part of the model: all, and trained.
    pub parts: BTreeMap<String, (usize, usize)>,
    /// What was inherited, in words.
    pub inheritance: Option<String>,
    /// Bytes of parameters, gradients, optimizer moments and running means; activations come on top.
    pub static_bytes: usize,
    /// One sample as the model sees it, learnt words in brackets.
    pub sample: String,
}

/// What a resumed run needs beside parameters and moments.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct RunState {
    loader: LoaderState,
    /// Bits of the lowest validation loss so far; exact, unlike a decimal.
    best: Option<u64>,
    /// Evaluations since then.
    stale: u64,
}

impl Run {
    /// Builds everything that a recipe names: model, teachers, data.
    ///
    /// # Errors
    /// Whatever is missing or does not fit, by name.
    pub fn new(recipe: Recipe, device: Device) -> Result<Self> {
        recipe.validate()?;
        let config = recipe.model_config()?;
        let processor = Arc::new(open_processor(&recipe, &config)?);
        // Opened once: the index of a large file takes a while.
        let sources = recipe.data.train.iter().map(DataSource::open).collect::<Result<_>>()?;
        let samples = Arc::new(Concat::new(sources));
        let pictures = || first_pictures(&recipe, &processor, &samples);
        let BuiltStage { objective, parameters, trained, report } = build(&recipe, &config, &device, pictures)?;
        let vars: BTreeMap<String, Var> =
            trained.iter().filter_map(|name| Some((name.clone(), parameters.get(name)?))).collect();
        // The recipe's own groups come later, and so have the last word; those that only freeze have had it.
        let mut groups = undecayed_groups(vars.keys());
        let matters = |group: &&ParamGroup| vars.keys().any(|name| glob_matches(&group.pattern, name));
        groups.extend(recipe.optimizer.groups.iter().filter(matters).cloned());
        let optimizer = AdamW::new(&vars, AdamWConfig { groups, ..recipe.optimizer.clone() })?;
        let rule = UpdateRule {
            learning_rate: recipe.update.learning_rate,
            schedule: recipe.schedule,
            total_steps: recipe.update.steps,
            max_grad_norm: recipe.update.max_grad_norm,
        };
        let (validation, shown) = validation(&recipe, &config, &processor, &device)?;
        let sample = describe(&first_sample(&recipe, &processor, &samples)?, &processor)?;
        let averaged = recipe.optimizer.ema_decay.is_some();
        let facts = Facts::new(&parameters, &vars, averaged, report.map(|report| report.to_string()), sample);
        let trainer = Trainer::new(objective, vars, optimizer, rule).with_parallel(recipe.update.parallel)?;
        Ok(Self {
            recipe,
            config,
            device,
            processor,
            samples,
            parameters,
            trainer,
            validation,
            shown,
            facts,
            stop_after: None,
            hook: None,
        })
    }

    /// What the run is about to do.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Makes [`Self::train`] end with an error once this many steps are done, as if the process had been killed: for a
    /// time limit of a job scheduler, and for tests.
    pub fn stop_after(&mut self, steps: u64) {
        self.stop_after = Some(steps);
    }

    /// Calls `hook` at every evaluation, to measure what else matters to you. The values it returns go into the metrics
    /// of the step under their names; an error of it ends the run.
    pub fn on_evaluation(&mut self, hook: impl FnMut(&Evaluation<'_>) -> Result<Vec<(String, f64)>> + Send + 'static) {
        self.hook = Some(Box::new(hook));
    }

    /// The hook's measures at this moment.
    fn measures(&mut self, step: u64, loss: f64) -> Result<Vec<(String, f64)>> {
        let Self { config, parameters, processor, hook, .. } = self;
        let evaluation = Evaluation { step, loss, config, parameters, processor };
        hook.as_mut().map_or(Ok(Vec::new()), |hook| hook(&evaluation))
    }

    /// Trains to the end and returns the folder of the exported model.
    ///
    /// With `resume` it goes on from the newest whole checkpoint of the same run; otherwise a folder that holds
    /// checkpoints already is refused.
    ///
    /// # Errors
    /// [`Error::Training`] for a step that had to be refused, [`Error::Data`] for too many bad samples, and what
    /// checkpoints and files may give.
    pub fn train(&mut self, resume: bool) -> Result<PathBuf> {
        self.recipe.check_device(&self.device)?;
        let _alone = lock(&self.recipe.output)?;
        let checkpoints =
            CheckpointManager::open(self.checkpoints(), self.recipe.identity()?, self.recipe.run.keep_last)?;
        let state = self.start(&checkpoints, resume)?;
        self.echo()?;
        let mut session = Session::open(self, checkpoints, state)?;
        while self.trainer.optimizer().steps() < self.recipe.update.steps && !session.gave_up(&self.recipe.run) {
            if self.stop_after.is_some_and(|steps| self.trainer.optimizer().steps() >= steps) {
                return Err(Error::training("stopped as asked; go on with `--resume`"));
            }
            session.step(self)?;
        }
        if session.gave_up(&self.recipe.run) {
            session.progress.println("the validation loss no longer falls: ending early, with the best parameters");
            if let Some(best) = session.checkpoints.best()? {
                self.load(&session.checkpoints.load(best)?)?;
            }
        }
        session.finish(self)
    }

    /// Writes the model of the newest whole checkpoint to `folder`, as [`Self::train`] writes it at the end, and returns the
    /// checkpoint's step: for a look at a run that another process may be training.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if there is none, and as [`Self::train`] for reading and writing files.
    pub fn export_checkpoint(&mut self, folder: impl AsRef<Path>) -> Result<u64> {
        let path = self.checkpoints();
        let checkpoints = CheckpointManager::view(&path, self.recipe.identity()?);
        let newest = if path.is_dir() { newest(&checkpoints)? } else { None };
        let Some(checkpoint) = newest else {
            let message = "there is none of this recipe yet: wait for the first, or train";
            return Err(Error::checkpoint(path, message));
        };
        self.load(&checkpoint)?;
        self.write_export(folder.as_ref())?;
        Ok(checkpoint.step())
    }

    fn write_export(&mut self, folder: &Path) -> Result<()> {
        self.averaged(|run| {
            let Self { recipe, config, parameters, processor, device, .. } = &*run;
            let connector = connector(&recipe.stage, config, parameters, device, run.some_batches())?;
            export(recipe, folder, config, parameters, connector, processor)
        })
    }

    /// Samples from all over the training data, as far as they can be used, one after the other.
    fn some_batches(&self) -> impl Iterator<Item = MultimodalBatch> {
        let form = self.recipe.stage.sample_form();
        let (count, all) = (SOME_SAMPLES.min(self.samples.len()), self.samples.len());
        let indices = (0..count).map(move |i| i * all / count);
        let samples = usable_samples(&self.recipe, &self.processor, &self.samples, indices);
        samples.filter_map(move |sample| form.collate(vec![vec![sample]], &self.config, &self.device).ok())
    }

    fn checkpoints(&self) -> PathBuf {
        self.recipe.output.join("checkpoints")
    }

    fn start(&mut self, checkpoints: &CheckpointManager, resume: bool) -> Result<RunState> {
        if !resume {
            return match checkpoints.steps()?.last() {
                None => Ok(RunState::default()),
                Some(step) => Err(Error::checkpoint(
                    checkpoints.path(*step),
                    "this run was begun already: go on with `--resume`, or choose another `output`",
                )),
            };
        }
        match newest(checkpoints)? {
            Some(checkpoint) => {
                eprintln!("going on from {}", checkpoint.path().display());
                self.load(&checkpoint)?;
                checkpoint.state()
            }
            None => Ok(RunState::default()),
        }
    }

    /// Takes over all parameters of a checkpoint, and the optimizer's state.
    fn load(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let saved = checkpoint.parameters(&self.device)?;
        let found = saved.iter().map(|(name, values)| (name.clone(), values.dims().to_vec())).collect();
        check_tensors(&checkpoint.path().display().to_string(), &self.parameters.shapes(), &found)?;
        saved.iter().try_for_each(|(name, values)| self.parameters.set(name, values))?;
        self.trainer.optimizer_mut().load_state(&checkpoint.optimizer(&self.device)?)
    }

    /// `f` with the running means of the parameters in their place, if the optimizer keeps any.
    fn averaged<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.trainer.optimizer_mut().swap_averages()?;
        let result = f(self);
        self.trainer.optimizer_mut().swap_averages()?;
        result
    }

    /// The recipe as it is run, defaults and overrides included.
    fn echo(&self) -> Result<()> {
        let text = toml::to_string(&self.recipe).map_err(|e| Error::training(format!("recipe: {e}")))?;
        write_bytes_atomically(self.recipe.output.join("recipe.toml"), text.as_bytes())
    }

    /// Answers some validation questions as users would see them; only a whole model can.
    fn answers(&self) -> Result<Vec<String>> {
        if !matches!(self.recipe.stage, Stage::Align { .. } | Stage::Tune { .. }) || self.shown.is_empty() {
            return Ok(Vec::new());
        }
        // Detached parameters share memory with the trained ones, and build no graph.
        let vb = self.parameters.var_builder_where(self.recipe.seed, DType::F32, &self.device, |_| false);
        let model = HaploVl::new(&self.config, vb)?;
        let processor = Arc::clone(&self.processor);
        let generator = Generator::new(Arc::new(model), move |ids| processor.tokenizer().decode(ids, true));
        let generation = GenerationConfig {
            eos_token_id: self.processor.eos_ids(),
            max_new_tokens: Some(SHOWN_TOKENS),
            ..GenerationConfig::default()
        };
        let answer = |shown: &EvalSample| {
            let batch = self.processor.batch(std::slice::from_ref(&shown.prompt), &self.device)?;
            let answer = generator.generate(&batch, &generation)?;
            Ok(answer.sequences.first().map_or_else(String::new, |sequence| sequence.text.trim().to_string()))
        };
        self.shown.iter().map(answer).collect()
    }
}

/// The newest checkpoint that can be taken up, if there is any.
fn newest(checkpoints: &CheckpointManager) -> Result<Option<Checkpoint>> {
    let latest = checkpoints.latest_valid()?;
    latest.refused.iter().for_each(|why| eprintln!("passed over: {why}"));
    match (latest.checkpoint, latest.refused.into_iter().next()) {
        (None, Some(Error::Checkpoint { path, message, source })) => Err(Error::Checkpoint {
            path,
            message: format!("{message}; nor can any other be resumed from: begin anew with another `output`"),
            source,
        }),
        (None, Some(other)) => Err(other),
        (checkpoint, _) => Ok(checkpoint),
    }
}

/// Makes a run's folder if need be, and keeps other processes from training in it for as long as the file is open.
fn lock(folder: &Path) -> Result<File> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let path = folder.join("lock");
    let file = File::create(&path).map_err(|e| Error::io(&path, e))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            let folder = folder.display();
            Err(Error::training(format!(
                "another process is training in {folder}: wait for it, or set another `output`"
            )))
        }
        // Where the file system knows no locks, there is nothing to keep anybody away with.
        _ => Ok(file),
    }
}

/// Where a running loop keeps its things.
struct Session {
    checkpoints: CheckpointManager,
    loader: Loader<Sequence>,
    metrics: MetricsLog,
    tensorboard: TensorBoardWriter,
    progress: Progress,
    samples: EvalSampleLog,
    state: RunState,
}

impl Session {
    fn open(run: &Run, checkpoints: CheckpointManager, state: RunState) -> Result<Self> {
        let (recipe, done) = (&run.recipe, run.trainer.optimizer().steps());
        let resumed = (done > 0).then_some(done);
        let form = recipe.stage.sample_form();
        let processor = Arc::clone(&run.processor);
        let longest = longest(recipe, &run.config);
        let samples = Arc::clone(&run.samples);
        let loader = Loader::new(samples, loader_config(recipe, longest), state.loader, move |sample| {
            form.prepare(&processor, sample, longest)
        })?;
        Ok(Self {
            checkpoints,
            loader: loader.on_bad(|bad| eprintln!("skipped {}: {}", bad.sample, bad.reason)),
            metrics: MetricsLog::open(recipe.output.join("metrics.jsonl"), resumed)?,
            tensorboard: TensorBoardWriter::create(recipe.output.join("tensorboard"), resumed)?,
            samples: EvalSampleLog::open(&recipe.output, resumed, &run.shown)?,
            progress: Progress::new(recipe.stage.name(), recipe.update.steps, done, recipe.run.log_every),
            state,
        })
    }

    /// Whether the validation loss has not fallen for as long as the recipe has patience.
    fn gave_up(&self, settings: &RunConfig) -> bool {
        settings.patience.is_some_and(|patience| self.state.stale >= patience)
    }

    /// One step and what is due after it.
    fn step(&mut self, run: &mut Run) -> Result<()> {
        let began = Instant::now();
        let batches = self.next_batches(run)?;
        let report = run.trainer.step(&batches)?;
        // With the time that was spent waiting for samples.
        let report = StepReport { seconds: began.elapsed().as_secs_f64(), ..report };
        let step = report.step;
        let (settings, last) = (&run.recipe.run.clone(), step == run.recipe.update.steps);
        let evaluate = !run.validation.is_empty() && (step.is_multiple_of(settings.evaluate_every) || last);
        let mut record = record(&report);
        let (mut score, mut improved) = (None, false);
        if evaluate {
            let (loss, measures) = run.averaged(|run| self.evaluate(run, step))?;
            score = Some(loss);
            record = record.with(VALIDATION_LOSS, loss);
            record = measures.into_iter().fold(record, |record, (name, value)| record.with(name, value));
            improved = loss.is_finite() && self.state.best.is_none_or(|best| loss < f64::from_bits(best));
            self.state.best = if improved { Some(loss.to_bits()) } else { self.state.best };
            self.state.stale = if improved { 0 } else { self.state.stale + 1 };
        }
        self.metrics.write(&record)?;
        self.tensorboard.write(&record)?;
        self.progress.update(step, &record);
        if let Some(loss) = score {
            self.progress.println(&format!("step {step}: validation loss {loss:.4}"));
        }
        if step.is_multiple_of(settings.checkpoint_every) || improved || last || self.gave_up(settings) {
            self.save(run, score)?;
        }
        Ok(())
    }

    /// The validation loss, what the hook measures, and answers for people to read.
    fn evaluate(&mut self, run: &mut Run, step: u64) -> Result<(f64, Vec<(String, f64)>)> {
        let loss = run.trainer.evaluate(&run.validation)?;
        let measures = run.measures(step, loss)?;
        match run.answers() {
            Ok(answers) if answers.is_empty() => {}
            Ok(answers) => {
                self.samples.write(step, &run.shown, &answers)?;
                self.progress.println(&listing(&run.shown, &answers, false));
            }
            // A prompt that does not fit is no reason to lose a run.
            Err(error) => self.progress.println(&format!("no answers are shown: {error}")),
        }
        Ok((loss, measures))
    }

    fn next_batches(&mut self, run: &Run) -> Result<Vec<MultimodalBatch>> {
        let form = run.recipe.stage.sample_form();
        let mut batches = Vec::with_capacity(run.recipe.update.accumulation);
        for _ in 0..run.recipe.update.accumulation {
            let group = self.loader.next().ok_or_else(|| Error::data("there are no samples left"))??;
            self.state.loader = group.state;
            batches.push(form.collate(group.rows, &run.config, &run.device)?);
        }
        Ok(batches)
    }

    fn save(&self, run: &Run, score: Option<f64>) -> Result<()> {
        self.checkpoints.save(&Contents {
            step: run.trainer.optimizer().steps(),
            parameters: &run.parameters.tensors(),
            optimizer: &run.trainer.optimizer().state()?,
            state: &self.state,
            score,
        })?;
        // A picture is no reason to lose a run.
        write_plot(run).unwrap_or_else(|error| self.progress.println(&format!("no curve is drawn: {error}")));
        Ok(())
    }

    fn finish(self, run: &mut Run) -> Result<PathBuf> {
        self.progress.finish();
        let folder = run.recipe.output.join("export");
        run.write_export(&folder)?;
        Ok(folder)
    }
}

fn record(report: &StepReport) -> Record {
    let record = Record::new(report.step)
        .with(LOSS, report.loss)
        .with(LEARNING_RATE, report.learning_rate)
        .with(GRAD_NORM, report.grad_norm)
        .with(SAMPLES_PER_SECOND, report.counts.samples as f64 / report.seconds)
        .with(TOKENS_PER_SECOND, report.counts.tokens as f64 / report.seconds);
    report.parts.iter().fold(record, |record, (name, value)| record.with(format!("{LOSS}/{name}"), *value))
}

fn write_plot(run: &Run) -> Result<()> {
    let records = read_metrics(run.recipe.output.join("metrics.jsonl"))?;
    let validation: Vec<Record> = records.iter().filter(|r| r.get(VALIDATION_LOSS).is_some()).cloned().collect();
    let mut series = vec![Series::of_records("training", &records, LOSS)];
    if !validation.is_empty() {
        series.push(Series::of_records("validation", &validation, VALIDATION_LOSS));
    }
    let name = run.recipe.stage.name();
    Plot::losses(format!("{name}: loss"), series).write_svg(run.recipe.output.join("loss.svg"))
}

impl DataSource {
    /// Opens the source; files are indexed, not read.
    fn open(&self) -> Result<Records> {
        match self {
            Self::Shapes(dataset) => {
                dataset.validate()?;
                Ok(Box::new(dataset.clone()))
            }
            Self::Files { path, images } => open(path, images.as_deref()),
        }
    }
}

/// The longest sample that the recipe allows and the model can take.
fn longest(recipe: &Recipe, config: &HaploVlConfig) -> usize {
    recipe.data.max_length.min(config.max_position_embeddings)
}

fn loader_config(recipe: &Recipe, row_length: usize) -> LoaderConfig {
    let DataConfig { layout, workers, max_bad_share, .. } = recipe.data;
    let rows = recipe.update.rows;
    let grouping = match layout {
        DataLayout::InOrder => Grouping::InOrder { rows },
        DataLayout::ByLength => Grouping::ByLength { rows, window: 16 },
        DataLayout::Packed => Grouping::Packed { rows, row_length, window: 16 * rows },
    };
    LoaderConfig { seed: recipe.seed, workers, max_bad_share, grouping, ..LoaderConfig::default() }
}

fn open_processor(recipe: &Recipe, config: &HaploVlConfig) -> Result<Processor> {
    if recipe.tokenizer == "shapes" {
        return Processor::new(config, ProcessorSettings::new(config), tokenizer()?, None);
    }
    let folder = crate::weights::resolve_model(&recipe.tokenizer, None)?;
    let template = ChatTemplate::from_folder(&folder)?;
    Processor::new(config, ProcessorSettings::new(config), TextTokenizer::from_folder(&folder)?, template)
}

/// The validation samples in batches, and some of them as questions to show.
fn validation(
    recipe: &Recipe,
    config: &HaploVlConfig,
    processor: &Processor,
    device: &Device,
) -> Result<(Vec<MultimodalBatch>, Vec<EvalSample>)> {
    let Some(source) = &recipe.data.validation else { return Ok((vec![], vec![])) };
    let source = source.open()?;
    let form = recipe.stage.sample_form();
    let longest = longest(recipe, config);
    let (mut sequences, mut shown) = (Vec::new(), Vec::new());
    for index in 0..source.len().min(recipe.data.validation_samples) {
        let sequence = guarded(|| {
            let sample = source.get(index)?;
            if shown.len() < recipe.run.show && form == SampleForm::Dialogue {
                shown.extend(EvalSample::of(processor, &sample)?);
            }
            form.prepare(processor, sample, longest)
        });
        let bad = |e| Error::data(format!("validation: {}: {e}", source.describe(index)));
        sequences.push(sequence.map_err(bad)?);
    }
    let rows: Vec<Vec<Sequence>> = sequences.into_iter().map(|sequence| vec![sequence]).collect();
    let batches = rows.chunks(recipe.update.rows).map(|rows| form.collate(rows.to_vec(), config, device));
    Ok((batches.collect::<Result<_>>()?, shown))
}

/// Pictures of the first samples.
fn first_pictures(recipe: &Recipe, processor: &Processor, source: &Concat<Records>) -> Vec<Visual> {
    let first = 0..source.len().min(FIRST_PICTURES);
    usable_samples(recipe, processor, source, first).flat_map(|sequence| sequence.visuals).collect()
}

/// Those of the samples that can be used.
fn usable_samples<'a>(
    recipe: &'a Recipe,
    processor: &'a Processor,
    source: &'a Concat<Records>,
    indices: impl Iterator<Item = usize> + 'a,
) -> impl Iterator<Item = Sequence> + 'a {
    let form = recipe.stage.sample_form();
    indices.filter_map(move |i| guarded(|| form.prepare(processor, source.get(i)?, recipe.data.max_length)).ok())
}

/// The first sample that can be used.
fn first_sample(recipe: &Recipe, processor: &Processor, source: &Concat<Records>) -> Result<Sequence> {
    let form = recipe.stage.sample_form();
    let mut refused = None;
    for index in 0..source.len().min(100) {
        match guarded(|| form.prepare(processor, source.get(index)?, recipe.data.max_length)) {
            Ok(sequence) => return Ok(sequence),
            Err(bad) => refused = refused.or_else(|| Some(format!("{}: {bad}", source.describe(index)))),
        }
    }
    let refused = refused.unwrap_or_else(|| "there is none".into());
    Err(Error::data(format!("none of the first 100 samples can be used, for a start {refused}")))
}

/// A sample decoded again, with learnt stretches in brackets.
fn describe(sequence: &Sequence, processor: &Processor) -> Result<String> {
    let labels = sequence.labels.clone().unwrap_or_else(|| vec![crate::batch::IGNORE_INDEX; sequence.len()]);
    let learnt = |i: &usize| labels[*i] != crate::batch::IGNORE_INDEX;
    let mut text = String::new();
    let positions: Vec<usize> = (0..sequence.len()).collect();
    for stretch in positions.chunk_by(|a, b| learnt(a) == learnt(b)) {
        let ids: Vec<u32> = stretch.iter().map(|&i| sequence.input_ids[i]).collect();
        let words = without_runs(&processor.tokenizer().decode(&ids, false)?);
        text.push_str(&if learnt(&stretch[0]) { format!("[{words}]") } else { words });
    }
    Ok(text)
}

/// Repeated words once, with their number: a picture is hundreds of placeholders.
fn without_runs(text: &str) -> String {
    let words: Vec<&str> = text.split(' ').collect();
    let run = |run: &[&str]| match run {
        [word] => (*word).to_string(),
        run => format!("{} x {}", run[0], run.len()),
    };
    words.chunk_by(|a, b| a == b).map(run).collect::<Vec<_>>().join(" ")
}

impl Facts {
    fn new(
        parameters: &Parameters,
        trained: &BTreeMap<String, Var>,
        averaged: bool,
        inheritance: Option<String>,
        sample: String,
    ) -> Self {
        let mut parts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for (name, var) in parameters.iter() {
            let part = name.split('.').take(2).collect::<Vec<_>>().join(".");
            let (all, learnt) = parts.entry(part).or_default();
            *all += var.elem_count();
            *learnt += if trained.contains_key(&name) { var.elem_count() } else { 0 };
        }
        let (all, learnt) = parts.values().fold((0, 0), |(a, t), (all, learnt)| (a + all, t + learnt));
        // f32 parameters; for the trained ones also a gradient, two moments and perhaps a mean.
        let static_bytes = 4 * all + (12 + 4 * usize::from(averaged)) * learnt;
        Self { parts, inheritance, static_bytes, sample }
    }
}

impl std::fmt::Display for Facts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{:<32} {:>14} {:>14}", "part", "parameters", "trained")?;
        for (part, (all, trained)) in &self.parts {
            writeln!(f, "{part:<32} {all:>14} {trained:>14}")?;
        }
        let (all, trained) = self.parts.values().fold((0, 0), |(a, t), (all, trained)| (a + all, t + trained));
        writeln!(f, "{:<32} {all:>14} {trained:>14}", "in all")?;
        let megabytes = self.static_bytes as f64 / 1e6;
        writeln!(f, "parameters, gradients and moments: {megabytes:.0} MB; activations come on top")?;
        if let Some(inheritance) = &self.inheritance {
            writeln!(f, "{inheritance}")?;
        }
        write!(f, "first sample, learnt words in brackets:\n{}", self.sample)
    }
}

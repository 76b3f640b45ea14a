//! A training run: model, data and optimizer of a recipe.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Var};
use candle_nn::VarBuilder;

use super::adapted::{Frozen, export_adapter};
use super::checkpoint::CheckpointManager;
use super::data_facts::DataFacts;
use super::dataset::{TrainingData, ValidationData};
use super::facts::{Facts, describe};
use super::memory::MemoryNeeds;
use super::observer::{Observers, RunStart};
use super::parameter_groups::parameter_groups;
use super::recipe::Recipe;
use super::run_folder::lock;
use super::run_length::RunLength;
use super::stage::{BuiltStage, OwnObjective, build, connector, export};
use super::training_loop::TrainingLoop;
use super::vocabulary::write_chosen;
use super::{
    CheckpointChoice, DataReport, Objective, Outcome, TrainObserver, Trainer, UpdateRule, observers, on_large_stack,
};
use crate::batch::MultimodalBatch;
use crate::config::HaploVlConfig;
use crate::distributed::World;
use crate::generation::CancelToken;
use crate::optim::{AdamWConfig, ParamGroup, glob_matches, undecayed_groups};
use crate::weights::{Parameters, check_new_folder, write_bytes_atomically};
use crate::{Error, Result};

/// Number of samples on whose text the connector is fitted.
const CONNECTOR_SAMPLES: usize = 512;
/// Environment variable for the number of threads of candle's element-wise operations.
const CANDLE_THREADS: &str = "CANDLE_NUM_THREADS";

/// Training run, built and ready to train.
///
/// A run writes checkpoints, `recipe.toml` and the export to its folder, and nothing else: progress, metrics and plots
/// come from [observers](Self::with_observer).
pub struct Run {
    pub(super) recipe: Recipe,
    pub(super) config: HaploVlConfig,
    pub(super) device: Device,
    pub(super) data: TrainingData,
    pub(super) parameters: Parameters,
    /// The frozen part of a run that trains an adapter.
    pub(super) frozen: Option<Frozen>,
    pub(super) trainer: Trainer<Box<dyn Objective>>,
    pub(super) validation: ValidationData,
    pub(super) observers: Observers,
    pub(super) length: RunLength,
    pub(super) report: DataReport,
    pub(super) facts: Facts,
    /// Whether the objective is not the stage's.
    is_own: bool,
    /// Micro-batches of a step on each rank, as the recipe said; that of the run has those of all ranks.
    pub(super) per_rank: usize,
    stop_after: Option<u64>,
    cancel: CancelToken,
}

impl Run {
    /// Builds the model, the teachers and the data of a recipe.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field if the recipe is invalid or needs more memory than there is, and an error
    /// naming the file or tensor for a source that is missing or does not fit.
    pub fn new(recipe: Recipe, device: Device) -> Result<Self> {
        Self::build(recipe, device, None, World::default())
    }

    /// As [`Self::new`], for one of the ranks of `world`, which all build the same recipe.
    ///
    /// Each rank takes `update.gradient_accumulation_steps` micro-batches of a step: the run equals one in one process with
    /// as many micro-batches as all ranks have together, but for the order of sums in f32. A rank holds the whole model, and
    /// the moments and EMA of its share of the parameters. Rank 0 alone evaluates, exports, and has the
    /// [default observers](Self::with_default_observers). All ranks need the files of the recipe and one `output`. A run
    /// that is resumed on another number of ranks keeps the micro-batches of its steps. On GPUs, tensors go as
    /// [`World::for_device`] says.
    ///
    /// # Errors
    /// As [`Self::new`] and [`World::for_device`], and [`Error::Config`] if the ranks cannot share the micro-batches of a
    /// resumed run equally.
    pub fn in_world(recipe: Recipe, device: Device, world: World) -> Result<Self> {
        Self::build(recipe, device, None, world)
    }

    /// Builds a run of stage `tune` whose model is your own: `objective` builds its loss over the parameters of a
    /// builder, as often as it is called, and gets the recipe's configuration with the vocabulary of the run.
    ///
    /// Data, optimizer, schedule, validation loss, checkpoints and observers are those of the recipe.
    /// `stage.init_from.stage` copies parameters of equal name, and a parameter `model.patch_embed.proj.weight` or
    /// `model.pre_pos_embed` begins as that of a HaploVL without pretrained weights. The export holds the parameters,
    /// except those below [`DistillationHeads::PREFIX`](crate::model::DistillationHeads::PREFIX), the configuration and
    /// the tokenizer. No validation questions are answered: an observer can.
    ///
    /// # Errors
    /// As [`Self::new`], [`Error::Config`] for another stage and for `stage.init_from.clip` and `.llm`, and errors of
    /// `objective`.
    pub fn with_objective(
        recipe: Recipe,
        device: Device,
        objective: impl Fn(&HaploVlConfig, VarBuilder) -> Result<Box<dyn Objective>>,
    ) -> Result<Self> {
        Self::build(recipe, device, Some(&objective), World::default())
    }

    fn build(recipe: Recipe, device: Device, own: Option<OwnObjective<'_>>, world: World) -> Result<Self> {
        recipe.validate()?;
        let world = world.for_device(&device)?;
        let (recipe, per_rank) = recipe.on_ranks(world.size())?;
        let config = recipe.model_config().map_err(|e| recipe.in_field("config", e))?;
        let data = TrainingData::open(&recipe, &config)?;
        let config = data.vocabulary.config.clone();
        let first = data.first_sample()?;
        let needs = MemoryNeeds::new(&recipe, &config, &first, world.size());
        needs.check_data(&device)?;
        let images = || data.first_images();
        let BuiltStage { objective, parameters, trained, report, frozen } =
            build(own, &recipe, &config, data.processor.tokenizer(), &device, &needs, images)?;
        let vars: BTreeMap<String, Var> =
            trained.iter().filter_map(|name| Some((name.clone(), parameters.get(name)?))).collect();
        let averaged = recipe.optimizer.ema_decay.is_some();
        let sample = describe(&first, &data.processor)?;
        let mut validation = ValidationData::open(&recipe, &config, &data, &device)?;
        if own.is_some() {
            // Only a HaploVL can be built to answer them.
            validation.questions.clear();
        }
        let (data_facts, length) = DataFacts::new(&recipe, &data, &validation);
        let inheritance = report.map(|report| report.to_string());
        let facts =
            Facts::new(&parameters, &vars, averaged, world.size(), inheritance, data.vocabulary.to_string(), sample)
                .with_frozen(frozen.as_ref(), &config)?
                .with_data(data_facts, &recipe, &config, &data.processor);
        let (settings, rule) = (adamw_config(&recipe, &config, &vars), update_rule(&recipe, length));
        let trainer = Trainer::in_world(objective, vars, settings, rule, world)?;
        Ok(Self {
            trainer: trainer.with_seed(recipe.seed).with_parallel(recipe.update.parallel_micro_batches)?,
            validation,
            length,
            report: DataReport::default(),
            recipe,
            config,
            device,
            data,
            parameters,
            frozen,
            observers: Observers::default(),
            facts,
            is_own: own.is_some(),
            per_rank,
            stop_after: None,
            cancel: CancelToken::default(),
        })
    }

    /// Adds an observer of the run. On several ranks it observes one of them; evaluations are on rank 0 alone.
    #[must_use]
    pub fn with_observer(mut self, observer: Box<dyn TrainObserver>) -> Self {
        self.observers.push(observer);
        self
    }

    /// Adds all [observers of this crate](observers): progress on stderr, `metrics.jsonl`, TensorBoard, `loss.svg` and
    /// `samples.md`. On other ranks than 0 it adds none.
    #[must_use]
    pub fn with_default_observers(self) -> Self {
        if !self.trainer.world().is_first() {
            return self;
        }
        observers::all().into_iter().fold(self, Self::with_observer)
    }

    /// Facts to check before training.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Bytes of the optimizer's moments and EMA that this rank holds.
    pub fn state_bytes(&self) -> usize {
        self.trainer.optimizer().state_bytes()
    }

    /// Training samples that the last [`Self::train`] skipped or changed, counted over the whole run.
    pub fn data_report(&self) -> &DataReport {
        &self.report
    }

    /// Makes [`Self::train`] stop once this many steps are done: for the time limit of a job scheduler, and for tests.
    pub fn stop_after(&mut self, steps: u64) {
        self.stop_after = Some(steps);
    }

    /// Handle for stopping [`Self::train`] from another thread, a signal handler or an observer: the run finishes the
    /// current step, writes a checkpoint and returns [`Outcome::Stopped`].
    pub fn cancel_token(&self) -> CancelToken {
        self.cancel.clone()
    }

    /// Trains until all steps are done, early stopping ends the run, or a stop is requested.
    ///
    /// With `resume` the run continues from its newest valid checkpoint, if it has any; without, a folder with
    /// checkpoints is rejected. A finished run goes on if the recipe has more steps or epochs now: the learning rate
    /// schedule then spans all of them.
    ///
    /// The run trains on a thread with a large stack and holds a lock on its folder. With
    /// [`parallel_micro_batches`](super::UpdateConfig::parallel_micro_batches) above 1, set `CANDLE_NUM_THREADS=1`
    /// before the process starts: candle's pool for element-wise operations serves one caller at a time, so
    /// micro-batches would wait for each other. candle reads the variable once and has no other setting, and a library
    /// cannot safely set it.
    ///
    /// # Errors
    /// [`Error::Training`] for a step that was rejected, [`Error::Data`] for too many bad samples, an error of a
    /// required observer, and errors of checkpoints and files. On several ranks an error of any rank ends the run on all,
    /// and names the rank.
    pub fn train(&mut self, resume: bool) -> Result<Outcome> {
        let result = on_large_stack(|| self.train_on_this_thread(resume));
        if let Err(error) = &result {
            self.trainer.world().fail(error);
        }
        let ended = self.observers.end(result.as_ref());
        result.and_then(|outcome| ended.map(|()| outcome))
    }

    fn train_on_this_thread(&mut self, resume: bool) -> Result<Outcome> {
        self.recipe.check_device(&self.device)?;
        let output = self.recipe.output_folder();
        let world = self.trainer.world().clone();
        // Rank 0 holds the lock of all.
        let _lock = world.agree(world.is_first().then(|| lock(&output)).transpose())?;
        let checkpoints = world.agree(self.open_checkpoints())?;
        let state = self.starting_state(&checkpoints, resume);
        let state = world.agree(state)?;
        world.from_first(|| {
            self.write_recipe(&output)?;
            write_chosen(&output, &self.data.vocabulary.chosen)
        })?;
        self.trainer.share_parameters()?;
        let done = self.trainer.optimizer().steps();
        let Self { recipe, facts, validation, observers, length, .. } = self;
        let resumed = (done > 0).then_some(done);
        let (eval_samples, steps) = (&*validation.questions, length.steps);
        observers.start(&RunStart { recipe, output: &output, resumed, steps, facts, eval_samples })?;
        self.warn_of_threads();
        self.say_dealt();
        let outcome = TrainingLoop::new(self, checkpoints, state)?.run(self)?;
        world.finish()?;
        Ok(outcome)
    }

    /// The checkpoints of the run, which rank 0 manages and the others read.
    fn open_checkpoints(&self) -> Result<CheckpointManager> {
        let identity = self.recipe.identity()?;
        match self.trainer.world().is_first() {
            true => CheckpointManager::open(self.checkpoints(), identity, self.recipe.run.save_total_limit),
            false => Ok(CheckpointManager::view(self.checkpoints(), identity)),
        }
    }

    /// Whether a stop was requested or `done` steps reach the limit of [`Self::stop_after`].
    pub(super) fn should_stop(&self, done: u64) -> bool {
        self.cancel.is_cancelled() || self.stop_after.is_some_and(|steps| done >= steps)
    }

    /// Says so if the ranks take other numbers of micro-batches than the recipe says, to keep the steps of a resumed run.
    fn say_dealt(&mut self) {
        let (all, ranks) = (self.recipe.update.gradient_accumulation_steps, self.trainer.world().size());
        if all != ranks * self.per_rank {
            self.observers.notice(&format!(
                "a step keeps the {all} micro-batches that it began with: each of {ranks} ranks takes {}, not {} as the \
                 recipe says",
                all / ranks,
                self.per_rank
            ));
        }
    }

    fn warn_of_threads(&mut self) {
        let one = std::env::var(CANDLE_THREADS).is_ok_and(|threads| threads == "1");
        if self.device.is_cpu() && self.recipe.update.parallel_micro_batches > 1 && !one {
            tracing::warn!("{CANDLE_THREADS} is not 1");
            self.observers.notice(&format!(
                "{CANDLE_THREADS} is not 1, so parallel micro-batches wait for each other: set it before the process starts"
            ));
        }
    }

    /// Exports the model of a checkpoint to `folder`, which must not be in use, and returns the checkpoint's step;
    /// another process may be training in the run's folder meanwhile.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if there is no such valid checkpoint, [`Error::Io`] for a folder in use (see
    /// [`check_new_folder`]), and errors of reading and writing files.
    pub fn export_checkpoint(&mut self, folder: impl AsRef<Path>, choice: CheckpointChoice) -> Result<u64> {
        let folder = folder.as_ref();
        check_new_folder(folder)?;
        on_large_stack(|| {
            let checkpoints = CheckpointManager::view(self.checkpoints(), self.recipe.identity()?);
            let checkpoint = self.chosen_checkpoint(&checkpoints, choice)?;
            self.load(&checkpoint)?;
            self.export_to(folder)?;
            Ok(checkpoint.step())
        })
    }

    /// Exports the model to the run's folder and returns the folder of the export.
    pub(super) fn export(&mut self) -> Result<PathBuf> {
        let folder = self.recipe.output_folder().join("export");
        self.export_to(&folder)?;
        tracing::info!(path = %folder.display(), "export");
        Ok(folder)
    }

    fn export_to(&mut self, folder: &Path) -> Result<()> {
        let world = self.trainer.world().clone();
        self.averaged(|run| world.from_first(|| run.export_parameters(folder)))
    }

    /// Writes the parameters as they are.
    fn export_parameters(&self, folder: &Path) -> Result<()> {
        if let Some(frozen) = &self.frozen {
            return export_adapter(&self.recipe, folder, &self.config, frozen, &self.data.processor);
        }
        let Self { recipe, config, parameters, data, device, .. } = self;
        let tokenizer = data.processor.tokenizer();
        let connector = connector(recipe, config, tokenizer, parameters, device, self.connector_batches())?;
        export(self.is_own, recipe, folder, config, parameters, connector, &data.processor)
    }

    /// Samples spread over the training data, one per batch.
    fn connector_batches(&self) -> impl Iterator<Item = MultimodalBatch> {
        let form = self.recipe.stage.sample_form();
        let samples = self.data.spread(CONNECTOR_SAMPLES);
        samples.filter_map(move |sample| form.collate(vec![vec![sample]], &self.config, &self.device).ok())
    }

    fn checkpoints(&self) -> PathBuf {
        self.recipe.output_folder().join("checkpoints")
    }

    /// Calls `f` with the parameters replaced by their EMA, if the optimizer keeps one.
    pub(super) fn averaged<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.trainer.swap_averages()?;
        let result = f(self);
        self.trainer.swap_averages()?;
        result
    }

    /// Writes the recipe with defaults and overrides applied, and with the number of steps in place of epochs.
    fn write_recipe(&self, folder: &Path) -> Result<()> {
        let mut recipe = self.recipe.clone();
        (recipe.update.steps, recipe.update.epochs) = (Some(self.length.steps), None);
        recipe.update.gradient_accumulation_steps = self.per_rank;
        let text = toml::to_string(&recipe)
            .map_err(|e| Error::training(format!("the recipe cannot be serialised: {e}")).caused_by(e))?;
        write_bytes_atomically(folder.join("recipe.toml"), text.as_bytes())
    }
}

/// The recipe's optimizer settings, with no weight decay on biases, norms and position embeddings. The recipe's groups
/// come last and take precedence; groups that only freeze parameters have been applied already.
fn adamw_config(recipe: &Recipe, config: &HaploVlConfig, vars: &BTreeMap<String, Var>) -> AdamWConfig {
    let mut groups = undecayed_groups(vars.keys());
    let matters = |group: &&ParamGroup| vars.keys().any(|name| glob_matches(&group.pattern, name));
    groups.extend(parameter_groups(recipe, config, vars.keys()).into_iter().filter(|group| matters(&group)));
    AdamWConfig { groups, ..recipe.optimizer.clone() }
}

fn update_rule(recipe: &Recipe, length: RunLength) -> UpdateRule {
    UpdateRule {
        learning_rate: recipe.update.learning_rate,
        schedule: recipe.schedule,
        total_steps: length.steps,
        max_grad_norm: recipe.update.max_grad_norm,
    }
}

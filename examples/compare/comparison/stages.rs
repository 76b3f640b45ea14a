//! Training of the stages of an entry, each once: a finished one is found in its folder, a stopped one goes on.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use haplovl::config::HaploVlConfig;
use haplovl::data::shapes::{QuestionKind, ShapesContent, ShapesDataset, Split};
use haplovl::generation::CancelToken;
use haplovl::model::{ClipTeacher, HaploVl};
use haplovl::train::metrics::Record;
use haplovl::train::{
    CheckpointChoice, DataSource, Evaluation, Measures, Outcome, Recipe, Run, RunStart, StepReport, TrainObserver,
    TrainSource,
};
use haplovl::weights::{SafetensorsFiles, write_bytes_atomically};
use serde_json::Value;

use super::Options;
use super::exam::{Answered, Exam};
use super::model::ModelKind;
use super::named;
use super::plan::{Design, Entry, Plan, Setting, Stage};
use super::results::ACCURACY;

/// Seed of the shared teacher and language model.
const SHARED_SEED: u64 = 1;
/// File of the recipe in the folder of a run.
pub const RECIPE: &str = "recipe.toml";

/// Trains the stages of a comparison in one setting.
pub struct Trainer<'a> {
    pub options: &'a Options,
    pub plan: &'a Plan,
    pub setting: &'a Setting,
    /// Whether to stop after the current step.
    pub stop: Arc<dyn Fn() -> bool + Send + Sync>,
}

/// A stage of an entry, with everything that its recipe depends on.
struct Job<'a> {
    design: Option<&'a Design>,
    model: ModelKind,
    stage: Stage,
    /// Folder of the run.
    folder: PathBuf,
    seed: u64,
    /// Images in all sources together; `None` for all there are.
    scenes: Option<usize>,
    config: HaploVlConfig,
    /// Exports that the recipe may name.
    exports: Exports,
    is_last: bool,
}

/// Exports of other runs.
#[derive(Debug, Clone)]
struct Exports {
    vision: PathBuf,
    language: PathBuf,
    previous: PathBuf,
}

impl Exports {
    /// An override with the placeholders replaced.
    fn fill(&self, setting: &str) -> String {
        [("{vision}", &self.vision), ("{language}", &self.language), ("{previous}", &self.previous)]
            .iter()
            .fold(setting.to_owned(), |text, (name, path)| text.replace(name, &path.to_string_lossy()))
    }
}

/// A trained entry.
pub struct Trained {
    /// Folders of its stages, without those that only export again.
    pub stages: Vec<(String, PathBuf)>,
    /// Its model kind.
    pub model: ModelKind,
    /// Configuration of its last stage.
    pub config: HaploVlConfig,
    /// Folder of the vision teacher.
    pub teacher: PathBuf,
}

impl Trainer<'_> {
    /// Folder of everything in this setting.
    pub fn folder(&self) -> PathBuf {
        self.options.out.join(&self.options.setting)
    }

    /// Folder of an entry.
    pub fn entry_folder(&self, entry: &Entry) -> PathBuf {
        self.folder().join(format!("seed-{}", entry.seed)).join(entry.name())
    }

    /// Configuration of an entry's model.
    pub fn config(&self, design: &Design, size: Option<&str>) -> Result<HaploVlConfig> {
        let base = self.plan.config(&self.options.recipes, self.setting, size)?;
        let mut config = design.model.config(&base)?;
        if design.causal {
            config.image_attention = haplovl::config::ImageAttention::Causal;
        }
        design.changed(config)
    }

    /// Trains what an entry still lacks; `None` if it was stopped.
    pub fn train(&self, entry: &Entry) -> Result<Option<Trained>> {
        let design = self.plan.design(&entry.design)?;
        let config = self.config(design, entry.size.as_deref())?;
        let Some((vision, language)) = self.train_shared(design, entry.size.as_deref())? else {
            return Ok(None);
        };
        let mut exports = Exports { previous: language.clone(), language, vision };
        let stages = self.plan.stages(design)?;
        let mut folders = Vec::new();
        for (n, (owner, stage)) in stages.iter().enumerate() {
            let is_last = n + 1 == stages.len();
            let scenes = entry.scenes.filter(|_| is_last);
            let home = Entry { design: owner.name.clone(), scenes, ..entry.clone() };
            let job = Job {
                design: Some(owner),
                model: design.model,
                stage: (*stage).clone(),
                folder: self.entry_folder(&home).join(&stage.name),
                seed: entry.seed,
                scenes,
                config: self.config(owner, entry.size.as_deref())?,
                exports: exports.clone(),
                is_last,
            };
            if !self.run(&job)? {
                return Ok(None);
            }
            exports.previous = job.folder.join("export");
            if stage.export_of.is_none() {
                folders.push((stage.name.clone(), job.folder));
            }
        }
        Ok(Some(Trained { stages: folders, model: design.model, config, teacher: exports.vision }))
    }

    /// Trains the vision teacher and the language model of a size, and returns their exports.
    fn train_shared(&self, design: &Design, size: Option<&str>) -> Result<Option<(PathBuf, PathBuf)>> {
        let folder = self.folder().join(size.map_or("shared".into(), |size| format!("shared-{size}")));
        let language = if design.model.is_deeper() { "language-deeper" } else { "language" };
        let mut exports = Vec::new();
        // The vision teacher of all designs is the same run.
        let base = self.plan.config(&self.options.recipes, self.setting, size)?;
        for (recipe, name, config) in
            [("vision", "vision", &base), ("language", language, &design.model.config(&base)?)]
        {
            let stage =
                Stage { name: name.into(), recipe: recipe.into(), export_of: None, share: 1.0, set: Vec::new() };
            let none = PathBuf::new();
            let job = Job {
                design: None,
                model: ModelKind::Haplovl,
                stage,
                folder: folder.join(name),
                seed: SHARED_SEED,
                scenes: None,
                // Both are read with a mask of their own.
                config: HaploVlConfig { image_attention: Default::default(), ..config.clone() },
                exports: Exports { vision: none.clone(), language: none.clone(), previous: none },
                is_last: false,
            };
            if !self.run(&job)? {
                return Ok(None);
            }
            exports.push(job.folder.join("export"));
        }
        Ok(exports.pop().zip(exports.pop()).map(|(language, vision)| (vision, language)))
    }

    /// Does a job unless it is done, and returns whether it is now.
    fn run(&self, job: &Job<'_>) -> Result<bool> {
        let recipe = self.recipe(job)?;
        job.check_unchanged(&recipe)?;
        self.write_config(job)?;
        if let Some(of) = &job.stage.export_of {
            return self.export_again(job, recipe, of);
        }
        if recipe.finished_run()?.is_some() {
            return Ok(true);
        }
        if (self.stop)() {
            return Ok(false);
        }
        let teacher = if job.model.is_baseline() { job.model.teacher(&job.exports.vision)? } else { None };
        let run = match job.model {
            ModelKind::Haplovl => Run::new(recipe, Device::Cpu)?,
            model => {
                Run::with_objective(recipe, Device::Cpu, |config, vb| model.objective(config, teacher.as_ref(), vb))?
            }
        };
        let stop = Stop { stop: Arc::clone(&self.stop), run: run.cancel_token() };
        let mut run = run.with_default_observers().with_observer(Box::new(stop));
        if job.is_last {
            let exam = Exam::new(Split::Validation, self.setting.curve_scenes, self.setting, job.image_last())?;
            run = run.with_observer(Box::new(Curve { exam, model: job.model, teacher }));
        }
        Ok(!matches!(run.train(true)?, Outcome::Stopped { .. }))
    }

    /// Exports the last checkpoint of an earlier stage again, by a recipe that says otherwise how.
    fn export_again(&self, job: &Job<'_>, mut recipe: Recipe, of: &str) -> Result<bool> {
        let export = job.folder.join("export");
        // Weights are written last.
        if SafetensorsFiles::open(&export).is_ok() {
            return Ok(true);
        }
        if export.exists() {
            std::fs::remove_dir_all(&export).map_err(|e| named(&export, e))?;
        }
        // As a run does.
        std::fs::create_dir_all(&job.folder).map_err(|e| named(&job.folder, e))?;
        write_bytes_atomically(job.folder.join(RECIPE), toml::to_string(&recipe)?.as_bytes())?;
        recipe.output = job.folder.with_file_name(of);
        Run::new(recipe, Device::Cpu)?.export_checkpoint(&export, CheckpointChoice::Newest)?;
        Ok(true)
    }

    /// The recipe of a job.
    fn recipe(&self, job: &Job<'_>) -> Result<Recipe> {
        let name = &job.stage.recipe;
        let of_recipe = self.plan.recipes.get(name).with_context(|| format!("plan.toml has no recipe `{name}`"))?;
        let of_setting = self.setting.set.get(name).into_iter().flatten();
        let sets = of_recipe.iter().chain(&job.stage.set).chain(of_setting).map(|set| job.exports.fill(set));
        let path = self.options.recipes.join(format!("{name}.toml"));
        let mut recipe = Recipe::read(&path, &sets.collect::<Vec<_>>())?;
        let steps = recipe.update.steps.map(|steps| (steps as f64 * job.stage.share).round().max(1.0));
        recipe.update.steps = steps.map(|steps| steps as u64);
        recipe.output = job.folder.clone();
        recipe.seed = job.seed;
        recipe.config = job.config_path().to_string_lossy().into_owned();
        let whole: f64 = recipe.data.train.iter().map(|source| source.weight).sum();
        for source in &mut recipe.data.train {
            if let Some(scenes) = job.scenes {
                limit(source, (scenes as f64 * source.weight / whole).round() as usize);
            }
            self.draw(&mut source.source, job.image_last());
        }
        recipe.data.validation.iter_mut().for_each(|source| self.draw(source, job.image_last()));
        Ok(recipe)
    }

    /// Makes a source one of this setting's world.
    fn draw(&self, source: &mut DataSource, image_last: bool) {
        let DataSource::Shapes(ShapesDataset { scenes, side, config, kinds, content, image_last: last, .. }) = source
        else {
            return;
        };
        *scenes = self.setting.scenes.map_or(*scenes, |most| most.min(*scenes));
        *side = self.setting.side;
        *config = self.setting.shapes.clone();
        kinds.retain(|kind| self.setting.relations || *kind != QuestionKind::Relation);
        *last = image_last && *content != ShapesContent::Text;
    }

    /// Writes the configuration of a job's model beside the run, in whose checkpoints its path is.
    fn write_config(&self, job: &Job<'_>) -> Result<()> {
        let path = job.config_path();
        let folder = path.parent().unwrap_or(Path::new(""));
        std::fs::create_dir_all(folder).map_err(|e| named(folder, e))?;
        Ok(write_bytes_atomically(&path, &serde_json::to_vec_pretty(&job.config)?)?)
    }
}

impl Job<'_> {
    fn image_last(&self) -> bool {
        self.design.is_some_and(|design| design.image_last)
    }

    fn config_path(&self) -> PathBuf {
        let run = self.stage.export_of.as_ref().unwrap_or(&self.stage.name);
        self.folder.with_file_name(format!("{run}.json"))
    }

    /// Refuses a run that began with another recipe or configuration, and would be taken for one of the present ones.
    fn check_unchanged(&self, recipe: &Recipe) -> Result<()> {
        let path = self.folder.join(RECIPE);
        let then = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            then => then.map_err(|e| named(&path, e))?,
        };
        let then: Value = toml::from_str(&then).map_err(|e| named(&path, e.message()))?;
        let now: Value = toml::from_str(&toml::to_string(recipe)?)?;
        let path = self.config_path();
        let config = std::fs::read_to_string(&path).map_err(|e| named(&path, e))?;
        let config: Value = serde_json::from_str(&config).map_err(|e| named(&path, e))?;
        let changed = difference("", &then, &now).or_else(|| difference("", &config, &serde_json::json!(self.config)));
        if let Some(changed) = changed {
            bail!("{}: {changed}: move it away to train it again, or choose another --out", self.folder.display());
        }
        Ok(())
    }
}

/// The first field in which what a run began with differs from what it would begin with now.
fn difference(field: &str, then: &Value, now: &Value) -> Option<String> {
    match (then, now) {
        (Value::Object(then), Value::Object(now)) => then.keys().chain(now.keys()).find_map(|name| {
            let dot = if field.is_empty() { "" } else { "." };
            let [then, now] = [then, now].map(|fields| fields.get(name).unwrap_or(&Value::Null));
            difference(&format!("{field}{dot}{name}"), then, now)
        }),
        _ if then == now => None,
        _ => {
            let [then, now] = [then, now].map(|value| value.to_string().chars().take(60).collect::<String>());
            Some(format!("`{field}` was {then} when it began and is {now} now"))
        }
    }
}

/// Limits a source to so many scenes, each with weight 1.
fn limit(source: &mut TrainSource, limit: usize) {
    if let DataSource::Shapes(dataset) = &mut source.source {
        dataset.scenes = limit.max(1);
        source.weight = 1.0;
    }
}

/// Observer that ends a run on request.
struct Stop {
    stop: Arc<dyn Fn() -> bool + Send + Sync>,
    run: CancelToken,
}

impl TrainObserver for Stop {
    fn on_start(&mut self, _: &RunStart<'_>) -> haplovl::Result<()> {
        if (self.stop)() {
            self.run.cancel();
        }
        Ok(())
    }

    fn on_step(&mut self, _: &StepReport, _: &Record) -> haplovl::Result<()> {
        if (self.stop)() {
            self.run.cancel();
        }
        Ok(())
    }
}

/// Observer that asks the model questions at each evaluation.
struct Curve {
    exam: Exam,
    model: ModelKind,
    teacher: Option<ClipTeacher>,
}

impl TrainObserver for Curve {
    fn on_evaluation(&mut self, evaluation: &Evaluation<'_>) -> haplovl::Result<Measures> {
        let vb = evaluation.parameters.var_builder_where(0, DType::F32, evaluation.device, |_| false);
        let answers = match self.model {
            ModelKind::Haplovl => self.exam.answers(HaploVl::new(evaluation.config, vb)?, evaluation.processor),
            model => {
                let model = model.baseline(evaluation.config, self.teacher.as_ref(), vb)?;
                self.exam.answers(model, evaluation.processor)
            }
        };
        let answers: Vec<Answered> = answers.map_err(|e| haplovl::Error::training(format!("{e:#}")))?;
        let right = answers.iter().filter(|answered| answered.right).count();
        Ok(Measures::default().with(ACCURACY, right as f64 / answers.len().max(1) as f64))
    }
}

//! Recipes: one file says all of a training run.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};

use super::DistillationWeights;
use crate::config::HaploVlConfig;
use crate::config::validate::{at_least_one, at_most, positive};
use crate::data::shapes::ShapesDataset;
use crate::optim::{AdamWConfig, Schedule};
use crate::options::Precision;
use crate::weights::TextInit;
use crate::{Error, Result};

/// A training run; unknown fields are errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Folder of the run: checkpoints, metrics, plots, and the trained model under `export/`.
    pub output: PathBuf,
    /// The model: a JSON file in either form, or a preset (`haplovl_7b_pro`, `haplovl_8b`, `haplovl_7b`, `tiny`).
    pub config: String,
    /// Folder or hub id to take the tokenizer (and chat template) from, or `shapes` for that of shapes world.
    pub tokenizer: String,
    /// Decides every random draw.
    #[serde(default)]
    pub seed: u64,
    /// What is trained, from what, and how it is judged.
    pub stage: Stage,
    /// Samples.
    pub data: DataConfig,
    /// Steps and their size.
    pub update: UpdateConfig,
    /// The optimizer.
    #[serde(default)]
    pub optimizer: AdamWConfig,
    /// Course of the learning rate.
    #[serde(default)]
    pub schedule: Schedule,
    /// Checkpoints and evaluation.
    #[serde(default)]
    pub run: RunConfig,
}

/// What is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Stage {
    /// A vision transformer of the pre-decoder's shape, by contrast with what is said of pictures: a teacher for stage 1.
    Vision {
        /// Width of the common space of patches and texts.
        projection_dim: usize,
    },
    /// A language model of the post-decoder's shape, on the words of the samples alone.
    Language,
    /// Stage 1: embeddings and pre-decoder learn from a CLIP and from a language model's embedding table.
    Distill {
        /// What the student starts from.
        #[serde(default)]
        inherit: Inherit,
        /// CLIP folder or hub id that teaches vision.
        vision_teacher: String,
        /// Its hidden state that is taught; -1 is the last.
        #[serde(default = "last_layer")]
        teacher_layer: isize,
        /// Language model whose embedding table teaches text.
        text_teacher: String,
        /// Factors on the losses.
        #[serde(default)]
        weights: DistillationWeights,
        /// What the export gives the connector to start from.
        #[serde(default)]
        connector: ConnectorStart,
    },
    /// Between the stages: the connector alone.
    Align {
        /// What the model starts from.
        #[serde(default)]
        inherit: Inherit,
    },
    /// Stage 2: everything, on the assistant's words.
    Tune {
        /// What the model starts from.
        #[serde(default)]
        inherit: Inherit,
    },
}

/// What the connector starts from after stage 1, in which it has no part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConnectorStart {
    /// The linear map that takes hidden states of text nearest to the text teacher's embeddings, fitted on some of the training
    /// data. Stage 2 begins better with it; small models were better without it some thousand steps later.
    #[default]
    Text,
    /// Nothing: it begins as `inherit.text` of the next stage says.
    Random,
}

fn last_layer() -> isize {
    -1
}

impl Stage {
    /// Its name in logs and checkpoints.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Vision { .. } => "vision",
            Self::Language => "language",
            Self::Distill { .. } => "distill",
            Self::Align { .. } => "align",
            Self::Tune { .. } => "tune",
        }
    }

    /// What its model starts from; nothing is inherited by the stages that make small models to inherit from.
    pub fn inherit(&self) -> Option<&Inherit> {
        match self {
            Self::Vision { .. } | Self::Language => None,
            Self::Distill { inherit, .. } | Self::Align { inherit } | Self::Tune { inherit } => Some(inherit),
        }
    }
}

/// What a model starts from; later entries overwrite earlier ones. What none of them sets starts at random.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Inherit {
    /// CLIP for the patch projection, positions and pre-decoder.
    pub clip: Option<String>,
    /// Language model for the text embedding, post-decoder and head: a folder, a GGUF file or a hub id.
    pub llm: Option<String>,
    /// How the text embedding comes to the pre-decoder's width.
    pub text: TextInit,
    /// The `export/` of an earlier stage.
    pub stage: Option<PathBuf>,
}

/// Where samples come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum DataSource {
    /// Generated pictures.
    Shapes(ShapesDataset),
    /// LLaVA records, JSON array or JSON lines, or a folder of pictures with texts.
    Files {
        /// The file or folder.
        path: PathBuf,
        /// Folder that image paths are relative to; the file's own if absent.
        #[serde(default)]
        images: Option<PathBuf>,
    },
}

/// Samples and how they are put together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Sources, one behind the other; their samples are shuffled together.
    pub train: Vec<DataSource>,
    /// Samples that the model never learns from.
    #[serde(default)]
    pub validation: Option<DataSource>,
    /// How many of them are used, from the first on.
    #[serde(default = "validation_samples")]
    pub validation_samples: usize,
    /// How samples are grouped: `in_order`, `by_length` or `packed`.
    #[serde(default)]
    pub layout: DataLayout,
    /// Longest row in tokens; a longer sample is a bad one.
    pub max_length: usize,
    /// Threads that prepare samples ahead.
    #[serde(default = "workers")]
    pub workers: usize,
    /// Share of bad samples above which the run stops.
    #[serde(default = "max_bad_share")]
    pub max_bad_share: f64,
}

fn validation_samples() -> usize {
    256
}

fn workers() -> usize {
    1
}

fn max_bad_share() -> f64 {
    0.01
}

/// How samples are put into rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataLayout {
    /// One a row, as they come.
    #[default]
    InOrder,
    /// One a row, those of like length together.
    ByLength,
    /// Several a row, up to `max_length`.
    Packed,
}

/// A floating-point type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FloatType {
    /// 32-bit floats.
    #[default]
    F32,
    /// 16-bit floats; to export in only, since gradients leave their range.
    F16,
    /// bfloat16; also to compute in, over f32 parameters. On a CPU that means products of matrices only, and
    /// AVX512-BF16 is needed.
    Bf16,
}

impl FloatType {
    pub(super) fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }

    /// The number type of activations on a device, and how exact products are there.
    pub(super) fn on(self, device: &Device) -> (DType, Precision) {
        match self {
            Self::Bf16 if device.is_cpu() => (DType::F32, Precision::Bf16),
            _ => (self.dtype(), Precision::Full),
        }
    }
}

/// Steps and their size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateConfig {
    /// Number of steps.
    pub steps: u64,
    /// Rows of one forward and backward pass.
    pub rows: usize,
    /// Passes whose gradients make one step.
    #[serde(default = "one")]
    pub accumulation: usize,
    /// Of these, how many are computed at a time, each on one thread: fastest for small models on a CPU.
    #[serde(default = "one")]
    pub parallel: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Gradients with a larger global norm are scaled down to it.
    #[serde(default = "max_grad_norm")]
    pub max_grad_norm: f64,
    /// Compute activations again in the backward pass instead of keeping them.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// Number type to compute in.
    #[serde(default)]
    pub compute: FloatType,
}

fn one() -> usize {
    1
}

/// More rows, passes or threads than this are a typing error.
const MAX_COUNT: usize = 1 << 16;

fn max_grad_norm() -> f64 {
    1.0
}

/// Checkpoints and evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Checkpoints that are kept, beside the best one.
    pub keep_last: usize,
    /// Steps between evaluations on the validation samples.
    pub evaluate_every: u64,
    /// Evaluations without improvement after which the run ends early; never if absent.
    pub patience: Option<u64>,
    /// Validation samples that the model answers at each evaluation, for people to read.
    pub show: usize,
    /// Steps between lines of progress where there is no terminal.
    pub log_every: u64,
    /// Number type of the exported weights.
    pub export: FloatType,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            checkpoint_every: 500,
            keep_last: 2,
            evaluate_every: 500,
            patience: None,
            show: 4,
            log_every: 20,
            export: FloatType::F32,
        }
    }
}

impl Recipe {
    /// Reads a recipe and applies `overrides` of the form `update.steps=100`.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Format`] naming the field that is missing, unknown or of another type.
    pub fn read(path: impl AsRef<Path>, overrides: &[String]) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let fail = |message: String| Error::format(path, message);
        let mut table: toml::Table = text.parse().map_err(|e: toml::de::Error| fail(e.to_string()))?;
        for setting in overrides {
            set(&mut table, setting).map_err(fail)?;
        }
        let recipe: Self = table.try_into().map_err(|e: toml::de::Error| fail(e.to_string()))?;
        recipe.validate()?;
        Ok(recipe)
    }

    /// Checks that a device computes as the recipe asks.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn check_device(&self, device: &Device) -> Result<()> {
        let rounds = self.update.compute != FloatType::F32;
        if device.is_cpu() && rounds && !Precision::has_fast_bf16() {
            let message =
                "is half precision, for which this processor has no instructions: set it to f32, or take a GPU";
            return Err(Error::config("update.compute", message));
        }
        Ok(())
    }

    /// Checks what can be checked without opening anything.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let sizes = [
            ("update.steps", self.update.steps as usize),
            ("update.rows", self.update.rows),
            ("update.accumulation", self.update.accumulation),
            ("update.parallel", self.update.parallel),
            ("data.max_length", self.data.max_length),
            ("data.workers", self.data.workers),
            ("run.checkpoint_every", self.run.checkpoint_every as usize),
            ("run.evaluate_every", self.run.evaluate_every as usize),
        ];
        sizes.into_iter().try_for_each(|(field, value)| at_least_one(field, value))?;
        at_most("update.rows", self.update.rows, MAX_COUNT)?;
        at_most("update.accumulation", self.update.accumulation, MAX_COUNT)?;
        at_most("data.workers", self.data.workers, MAX_COUNT)?;
        if self.data.train.is_empty() {
            return Err(Error::config("data.train", "is empty, expected at least one source"));
        }
        if !(0.0..1.0).contains(&self.data.max_bad_share) {
            let message = format!("is {}, expected 0 to below 1", self.data.max_bad_share);
            return Err(Error::config("data.max_bad_share", message));
        }
        if let Some(patience) = self.run.patience {
            let evaluated = self.data.validation.is_some() && self.data.validation_samples > 0;
            if patience == 0 || !evaluated {
                let message = "needs at least 1, and `data.validation` with samples to lose it over";
                return Err(Error::config("run.patience", format!("is {patience}: it {message}")));
            }
        }
        positive("update.learning_rate", self.update.learning_rate)?;
        positive("update.max_grad_norm", self.update.max_grad_norm)?;
        let from_scratch = matches!(self.stage, Stage::Vision { .. } | Stage::Language);
        if from_scratch && (self.update.gradient_checkpointing || self.update.compute != FloatType::F32) {
            return Err(Error::config(
                "update",
                format!(
                    "the stage `{}` keeps all activations, in f32: leave out compute and gradient_checkpointing",
                    self.stage.name()
                ),
            ));
        }
        if self.update.compute == FloatType::F16 {
            return Err(Error::config("update.compute", "is f16, in which gradients overflow: use bf16 or f32"));
        }
        if self.update.parallel > self.update.accumulation {
            let message = format!(
                "is {}, but a step has only {} passes: set `update.accumulation` to as many or more",
                self.update.parallel, self.update.accumulation
            );
            return Err(Error::config("update.parallel", message));
        }
        if matches!(self.stage, Stage::Vision { .. }) && self.data.layout == DataLayout::Packed {
            let message = "is packed, but the stage `vision` compares one picture a row: use in_order or by_length";
            return Err(Error::config("data.layout", message));
        }
        if let Stage::Distill { weights, .. } = &self.stage {
            weights.validate()?;
        }
        self.schedule.validate()?;
        self.optimizer.validate()
    }

    /// The model's configuration; a relative path is taken from the current folder.
    ///
    /// # Errors
    /// [`Error::Config`] or [`Error::Io`] if there is no such preset and no such file.
    pub fn model_config(&self) -> Result<HaploVlConfig> {
        match self.config.as_str() {
            "haplovl_7b_pro" => Ok(HaploVlConfig::haplovl_7b_pro()),
            "haplovl_8b" => Ok(HaploVlConfig::haplovl_8b()),
            "haplovl_7b" => Ok(HaploVlConfig::haplovl_7b()),
            "tiny" => Ok(HaploVlConfig::tiny()),
            path => HaploVlConfig::from_file(path),
        }
    }

    /// What a checkpoint must be of to be resumed from: with other samples, or in other batches, its position among
    /// them would mean nothing.
    ///
    /// # Errors
    /// [`Error::Training`] if the recipe cannot be written down.
    pub(super) fn identity(&self) -> Result<String> {
        let UpdateConfig { rows, accumulation, .. } = self.update;
        // These may change from one start to the next.
        let data =
            DataConfig { validation: None, validation_samples: 0, workers: 1, max_bad_share: 0.0, ..self.data.clone() };
        let data = toml::to_string(&data).map_err(|e| Error::training(format!("recipe: {e}")))?;
        let samples = crc32fast::hash(data.as_bytes());
        Ok(format!(
            "{} of {} with seed {}, {accumulation} x {rows} rows a step, samples {samples:08x}",
            self.stage.name(),
            self.config,
            self.seed
        ))
    }
}

/// Applies `a.b.c=value`; the value is TOML, or else a plain string.
fn set(table: &mut toml::Table, setting: &str) -> std::result::Result<(), String> {
    let (path, value) = setting
        .split_once('=')
        .ok_or_else(|| format!("--set {setting}: expected KEY=VALUE, such as update.steps=100"))?;
    let value = match format!("value = {value}").parse::<toml::Table>() {
        Ok(mut parsed) => parsed.remove("value").unwrap_or_else(|| toml::Value::String(value.into())),
        Err(_) => toml::Value::String(value.into()),
    };
    let mut keys: Vec<&str> = path.split('.').collect();
    let last = keys.pop().unwrap_or_default();
    let mut table = table;
    for key in keys {
        let entry = table.entry(key).or_insert_with(|| toml::Table::new().into());
        table = entry.as_table_mut().ok_or_else(|| format!("--set {setting}: `{key}` is not a table"))?;
    }
    table.insert(last.into(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: &str = r#"
        output = "runs/x"
        config = "tiny"
        tokenizer = "shapes"
        [stage]
        kind = "tune"
        inherit.llm = "runs/llm"
        [data]
        max_length = 100
        train = [{ kind = "shapes", split = "train", scenes = 10, side = 28, content = "mixed" }]
        [update]
        steps = 10
        rows = 2
        learning_rate = 1e-3
    "#;

    const VALIDATION: &str =
        r#"data.validation={ kind = "shapes", split = "validation", scenes = 4, side = 28, content = "mixed" }"#;

    fn read(text: &str, overrides: &[&str]) -> Result<Recipe> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Recipe::read(file.path(), &overrides.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn what_cannot_work_together_is_refused_by_name() {
        for (setting, field) in [
            ("run.patience=0", "run.patience"),
            ("run.patience=1", "run.patience"),
            ("data.max_bad_share=2", "data.max_bad_share"),
            ("update.parallel=2", "update.parallel"),
            ("update.accumulation=1000000000000000000", "update.accumulation"),
            (
                r#"stage={ kind = "distill", vision_teacher = "v", text_teacher = "t", weights = { vision = -1.0 } }"#,
                "stage.weights.vision",
            ),
        ] {
            let error = read(RECIPE, &[setting]).unwrap_err().to_string();
            assert!(error.contains(&format!("`{field}`")), "{setting}: {error}");
        }
    }

    #[test]
    fn a_run_stays_the_same_when_what_it_is_judged_by_changes() {
        let identity = |settings: &[&str]| read(RECIPE, settings).unwrap().identity().unwrap();
        let same = identity(&[VALIDATION, "data.max_bad_share=0.5", "data.workers=7", "run.patience=2"]);
        assert_eq!(identity(&[]), same);
        assert_ne!(identity(&[]), identity(&["data.max_length=99"]));
    }

    #[test]
    fn defaults_overrides_and_the_way_back() {
        let recipe = read(RECIPE, &["update.steps=7", "run.patience=3", "output=elsewhere", VALIDATION]).unwrap();
        assert_eq!((recipe.update.steps, recipe.run.patience), (7, Some(3)));
        assert_eq!(recipe.output, Path::new("elsewhere"));
        let echoed = toml::to_string(&recipe).unwrap();
        assert_eq!(read(&echoed, &[]).unwrap(), recipe);
    }

    #[test]
    fn mistakes_are_named() {
        let message = |overrides: &[&str]| read(RECIPE, overrides).unwrap_err().to_string();
        assert!(message(&["update.stepz=7"]).contains("stepz"));
        assert!(message(&["stage.kind=tuna"]).contains("tuna"));
        assert!(message(&["stage.inherit.lmm=x"]).contains("lmm"));
        assert!(message(&["update.rows=0"]).contains("update.rows"));
        assert!(message(&["update.learning_rate=-1.0"]).contains("learning_rate"));
        let vision = ["stage={ kind = 'vision', projection_dim = 8 }", "update.compute=bf16"];
        assert!(message(&vision).contains("in f32"));
        assert!(message(&["update.compute=f16"]).contains("use bf16"));
        assert!(message(&["steps"]).contains("KEY=VALUE"));
    }
}

//! Recipes: one TOML file describes a whole training run.
//!
//! Fields are called as in Hugging Face's trainer and configurations where those have them. The names of the first
//! version of recipes, such as `update.rows`, are still read, in files and in overrides.

mod adapter;
mod data;
mod names;
mod overrides;
mod paths;
mod root;
mod run_config;
mod stage;
#[cfg(test)]
mod tests;
mod tokenizer;
mod update;

use std::path::{Path, PathBuf};

use candle_core::Device;
use serde::{Deserialize, Serialize};

pub(in crate::train) use adapter::in_recipe;
pub use adapter::{AdapterConfig, Targets};
pub use data::{DataConfig, DataLayout, DataSource, TrainSource};
pub use run_config::RunConfig;
pub use stage::{ConnectorStart, InitFrom, Stage};
pub use tokenizer::TokenizerConfig;
pub use update::{FloatType, UpdateConfig};

use super::checkpoint::CheckpointManager;
use super::resume::RunState;
use crate::config::HaploVlConfig;
use crate::optim::{AdamWConfig, Schedule};
use crate::{Error, Result};

/// Training run; unknown fields are errors.
///
/// Relative paths (`output`, `config`, `tokenizer`, data, teachers, `init_from`) are relative to [`root`](Self::root).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Recipe {
    /// Folder that relative paths of the recipe are relative to. In a recipe file `root` is itself relative to the
    /// folder of that file: `root = "."` means the recipe's own folder. [`Recipe::read`] makes it absolute. If the file
    /// has none, it is the file's folder, or the current folder if only that has an input of the recipe or the checkpoints
    /// of its run; then a [notice](Self::notice) says so. For a recipe that was not read from a file, an absent `root`
    /// means the current folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<PathBuf>,
    /// Folder of the run: checkpoints, metrics, plots, and the trained model under `export/`.
    pub output: PathBuf,
    /// Model configuration: a preset (`haplovl_7b_pro`, `haplovl_8b`, `haplovl_7b`, `tiny`), a JSON file in the format of
    /// this crate or of the released models, or the model whose configuration is used, as a
    /// [`ModelSource`](crate::weights::ModelSource).
    pub config: String,
    /// Tokenizer and chat template, and the words that are added to the vocabulary.
    pub tokenizer: TokenizerConfig,
    /// Seed of every random draw.
    #[serde(default)]
    pub seed: u64,
    /// Training stage: the parameters to train, their initial values and the loss.
    pub stage: Stage,
    /// LoRA adapter to train instead of the model's own parameters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterConfig>,
    /// Training and validation samples.
    pub data: DataConfig,
    /// Number and size of optimizer steps.
    pub update: UpdateConfig,
    /// AdamW settings.
    #[serde(default)]
    pub optimizer: AdamWConfig,
    /// Learning rate schedule.
    #[serde(default)]
    pub schedule: Schedule,
    /// Checkpoints, evaluation and export.
    #[serde(default)]
    pub run: RunConfig,
    /// How `root` was chosen, where that may surprise.
    #[serde(skip)]
    notice: Option<String>,
}

impl Recipe {
    /// A recipe without `root`, with seed 0 and default optimizer, schedule and run settings.
    pub fn new(
        output: impl Into<PathBuf>,
        config: impl Into<String>,
        tokenizer: impl Into<TokenizerConfig>,
        stage: Stage,
        data: DataConfig,
        update: UpdateConfig,
    ) -> Self {
        Self {
            root: None,
            output: output.into(),
            config: config.into(),
            tokenizer: tokenizer.into(),
            seed: 0,
            stage,
            adapter: None,
            data,
            update,
            optimizer: AdamWConfig::default(),
            schedule: Schedule::default(),
            run: RunConfig::default(),
            notice: None,
        }
    }

    /// Reads a recipe file and applies `overrides` of the form `update.steps=100`; values are TOML, or else plain
    /// strings.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read; [`Error::Format`] naming the file and field, or [`Error::Config`]
    /// naming the override, for a field that is missing, unknown, of another type or out of range.
    pub fn read(path: impl AsRef<Path>, overrides: &[String]) -> Result<Self> {
        let path = path.as_ref();
        let mut recipe = overrides::read(path, overrides)?;
        (recipe.root, recipe.notice) = root::choose(&recipe, path)?;
        Ok(recipe)
    }

    /// Says which folder paths are relative to if the recipe file has no [`root`](Self::root) and this is not the
    /// file's folder.
    pub fn notice(&self) -> Option<&str> {
        self.notice.as_deref()
    }

    /// Checks that a device supports [`UpdateConfig::compute_dtype`].
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn check_device(&self, device: &Device) -> Result<()> {
        self.update.check_device(device)
    }

    /// Checks what can be checked without opening a file.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        for (field, path) in [("output", &*self.output.to_string_lossy()), ("config", &self.config)] {
            stage::not_empty(field, path)?;
        }
        self.tokenizer.validate()?;
        self.update.validate()?;
        self.data.validate()?;
        self.run.validate(self.data.is_evaluated())?;
        self.stage.validate()?;
        self.adapter.as_ref().map_or(Ok(()), AdapterConfig::validate)?;
        self.check_stage_support()?;
        self.schedule.validate()?;
        self.optimizer.validate()
    }

    /// Rejects settings that the stage does not support.
    fn check_stage_support(&self) -> Result<()> {
        let UpdateConfig { gradient_checkpointing, compute_dtype, .. } = self.update;
        let name = self.stage.name();
        if self.adapter.is_some() && !matches!(self.stage, Stage::Align { .. } | Stage::Tune { .. }) {
            let message =
                format!("is not supported by stage `{name}`, which trains a part of a model: use stage `tune`");
            return Err(Error::config("adapter", message));
        }
        if matches!(self.stage, Stage::Vision { .. } | Stage::Language) {
            let demand = |field: &str, expected: &str| {
                let message = format!("is not supported by stage `{name}`: leave it out, or set it to {expected}");
                Err(Error::config(field, message))
            };
            if gradient_checkpointing {
                return demand("update.gradient_checkpointing", "false");
            }
            if compute_dtype != FloatType::F32 {
                return demand("update.compute_dtype", "f32");
            }
        }
        if matches!(self.stage, Stage::Vision { .. }) && self.data.layout == DataLayout::Packed {
            let message = "is packed, but stage `vision` takes one image per row: use in_order or by_length";
            return Err(Error::config("data.layout", message));
        }
        if matches!(self.stage, Stage::Vision { .. }) && self.data.truncate_answers {
            let message = "is not supported by stage `vision`, whose captions are short: leave it out";
            return Err(Error::config("data.truncate_answers", message));
        }
        Ok(())
    }

    /// Configuration of the model.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::Format`] or [`Error::Io`] if there is no such preset and no such valid file.
    pub fn model_config(&self) -> Result<HaploVlConfig> {
        if let Some(preset) = HaploVlConfig::preset(&self.config) {
            return Ok(preset);
        }
        let model = self.open_model_source("config", &self.config)?;
        let path = model.path();
        HaploVlConfig::from_file(if path.is_dir() { path.join("config.json") } else { path.to_path_buf() })
    }

    /// The recipe with the micro-batches of all ranks in a step, which a run has from here on; and those of one rank, as the
    /// recipe says.
    ///
    /// A run that is resumed on another number of ranks keeps its steps: if its newest checkpoint was made by this recipe,
    /// the number of micro-batches is that of the checkpoint.
    ///
    /// # Errors
    /// [`Error::Config`] if the ranks cannot share the micro-batches equally.
    pub(super) fn on_ranks(mut self, ranks: usize) -> Result<(Self, usize)> {
        let own = self.update.gradient_accumulation_steps;
        let checkpoints = CheckpointManager::view(self.output_folder().join("checkpoints"), String::new());
        let all = match checkpoints.newest_of_any_run::<RunState>()? {
            Some((_, RunState { dealt: Some(dealt), .. })) if dealt.per_rank == own => dealt.all,
            Some((run, RunState { dealt: None, .. })) if run == self.identity()? => own,
            _ => own.saturating_mul(ranks),
        };
        if all % ranks.max(1) != 0 {
            let message = format!(
                "makes {all} micro-batches a step, as the run began, which {ranks} ranks cannot share equally: use a number of                  ranks that divides {all}, or set another `output`"
            );
            return Err(Error::config("update.gradient_accumulation_steps", message));
        }
        self.update.gradient_accumulation_steps = all;
        Ok((self, own))
    }

    /// Identity of the run in its checkpoints, given the recipe with the micro-batches of all ranks: with other samples or other batches, a checkpoint's position in the data
    /// would mean nothing. Paths are as written in the recipe, independent of `root`.
    ///
    /// # Errors
    /// [`Error::Training`] if the recipe cannot be serialised.
    pub(super) fn identity(&self) -> Result<String> {
        let UpdateConfig { batch_size, gradient_accumulation_steps, .. } = self.update;
        let samples = crc32fast::hash(self.data.identity()?.as_bytes());
        let words = self.tokenizer.identity().map_or_else(String::new, |words| format!(", added words {words}"));
        let adapter = self.adapter.as_ref().map_or_else(String::new, |adapter| {
            let lora = adapter.lora("").to_json().to_string();
            format!(", adapter {:08x}", crc32fast::hash(lora.as_bytes()))
        });
        Ok(format!(
            "{} of {} with seed {}, {gradient_accumulation_steps} x {batch_size} rows a step, samples {samples:08x}{words}{adapter}",
            self.stage.name(),
            self.config,
            self.seed
        ))
    }
}

//! The models that are compared. A HaploVL is the crate's own; the others are built here from its public parts.

mod baseline;
mod front;
mod objective;

use std::path::Path;

use anyhow::Result;
use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use haplovl::config::{DecoderConfig, HaploVlConfig, ImageAttention, Rope};
use haplovl::model::{ClipTeacher, ClipVision};
use haplovl::train::Objective;
use haplovl::weights::{ClipConfig, ClipSource, VisionFamily};
use serde::{Deserialize, Serialize};

use super::cost::Cost;

pub use baseline::Baseline;
use front::Front;
use objective::BaselineObjective;

/// Widths of MLPs are multiples of this.
const UNIT: usize = 8;

/// Kind of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModelKind {
    /// The crate's own model.
    Haplovl,
    /// Frozen vision teacher, two-layer MLP, language model.
    Llava,
    /// Patch layer into a deeper language model, with a loss that aligns its patches with the vision teacher.
    Eve,
    /// The same without that loss.
    EvePlain,
}

impl ModelKind {
    /// Whether the model is one of those that are built here.
    pub fn is_baseline(self) -> bool {
        self != Self::Haplovl
    }

    /// Whether the model needs another language model than a HaploVL of the same size.
    pub fn is_deeper(self) -> bool {
        matches!(self, Self::Eve | Self::EvePlain)
    }

    /// Whether training needs the vision teacher.
    fn needs_teacher(self) -> bool {
        matches!(self, Self::Llava | Self::Eve)
    }

    /// Configuration of a model of this kind with as many parameters as the HaploVL of `config`: the language models of
    /// the others are causal, and that of an EVE has one layer more, and the MLP width that comes closest.
    pub fn config(self, config: &HaploVlConfig) -> Result<HaploVlConfig> {
        if self == Self::Haplovl {
            return Ok(config.clone());
        }
        let mut own = HaploVlConfig { image_attention: ImageAttention::Causal, ..config.clone() };
        if self.is_deeper() {
            own.post_decoder.num_hidden_layers += 1;
            let target = Cost::of(Self::Haplovl, config)?.parameters;
            // Each layer's MLP has three matrices of this width, without biases.
            let per_unit = 3 * own.post_decoder.hidden_size * own.post_decoder.num_hidden_layers;
            own.post_decoder.intermediate_size = UNIT;
            let least = Cost::of(self, &own)?.parameters;
            own.post_decoder.intermediate_size += UNIT * (target.saturating_sub(least) / (UNIT * per_unit));
        }
        Ok(own)
    }

    /// The vision teacher in `folder`, if the model needs it.
    pub fn teacher(self, folder: &Path) -> Result<Option<ClipTeacher>> {
        let open = || {
            let source = ClipSource::open(folder)?;
            // The layer that stage 1 distils, too.
            ClipTeacher::new(ClipVision::new(source.config(), source.var_builder(DType::F32, &Device::Cpu))?, -1)
        };
        Ok(self.needs_teacher().then(open).transpose()?)
    }

    /// Builds a baseline over the tensors of `vb`. A LLaVA embeds images with its teacher.
    pub fn baseline(
        self,
        config: &HaploVlConfig,
        teacher: Option<&ClipTeacher>,
        vb: VarBuilder,
    ) -> haplovl::Result<Baseline> {
        match self {
            Self::Llava => Baseline::new(config, Front::llava(config, teacher.cloned(), vb.clone())?, vb),
            _ => Baseline::new(config, Front::eve(config, vb.clone())?, vb),
        }
    }

    /// Builds the objective of a baseline over the tensors of `vb`.
    pub fn objective(
        self,
        config: &HaploVlConfig,
        teacher: Option<&ClipTeacher>,
        vb: VarBuilder,
    ) -> haplovl::Result<Box<dyn Objective>> {
        let model = self.baseline(config, teacher, vb.clone())?;
        Ok(Box::new(match (self, teacher) {
            (Self::Eve, Some(teacher)) => BaselineObjective::aligned(model, teacher.clone(), vb)?,
            _ => BaselineObjective::new(model),
        }))
    }
}

/// Configuration of the vision teacher of a HaploVL: its pre-decoder without RoPE.
pub fn teacher_config(config: &HaploVlConfig) -> ClipConfig {
    let decoder = DecoderConfig { rope: Rope::None, ..config.pre_decoder.clone() };
    let (image_size, patch_size) = (config.vision.image_size, config.vision.patch_size);
    ClipConfig { family: VisionFamily::Clip, decoder, image_size, patch_size }
}

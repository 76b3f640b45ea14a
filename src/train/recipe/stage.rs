//! Training stages: what each trains, and what its model starts from.

use serde::{Deserialize, Serialize};

use crate::config::validate::{at_least_one, at_most, not_negative};
use crate::train::DistillationWeights;
use crate::weights::TextInit;
use crate::{Error, Result};

/// Largest width of the common space of image patches and texts; CLIP has 768.
const MAX_PROJECTION_DIM: usize = 1 << 16;

/// Training stage: the parameters to train and the loss to minimise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Stage {
    /// Contrastive training of a vision transformer with the pre-decoder's shape: a teacher for stage 1.
    Vision {
        /// Width of the common embedding space of patches and texts.
        projection_dim: usize,
    },
    /// Next-token training of a language model with the post-decoder's shape, on the text of the samples alone.
    Language,
    /// Stage 1: the embeddings and the pre-decoder learn from a CLIP and from a language model's embedding table.
    Distill {
        /// Pretrained weights that the student starts from.
        #[serde(default, alias = "inherit")]
        init_from: InitFrom,
        /// The vision teacher, a CLIP or SigLIP.
        vision_teacher: String,
        /// Layer of the vision teacher whose hidden states are the target; -1 is the last.
        #[serde(default = "last_layer")]
        teacher_layer: isize,
        /// Language model whose embedding table is the text teacher.
        text_teacher: String,
        /// Weights of the losses.
        #[serde(default)]
        weights: DistillationWeights,
        /// Connector weights in the export.
        #[serde(default)]
        connector: ConnectorStart,
    },
    /// Connector training between the stages: every other parameter is frozen.
    Align {
        /// Pretrained weights that the model starts from.
        #[serde(default, alias = "inherit")]
        init_from: InitFrom,
    },
    /// Stage 2: next-token training of all parameters on the assistant's turns.
    Tune {
        /// Pretrained weights that the model starts from.
        #[serde(default, alias = "inherit")]
        init_from: InitFrom,
        /// Factor on the learning rate of the pre-decoder: its layers, the patch projection, position embeddings and the
        /// norm before the layers. A pre-decoder that is inherited keeps what its teacher knows better with 0.1; 0 freezes
        /// it. Groups of the optimizer take precedence.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        pre_decoder_lr_scale: f64,
    },
}

/// Connector weights in the export of stage 1, which does not train the connector.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ConnectorStart {
    /// Linear map from hidden states of text to the text teacher's embeddings, by least squares over some training
    /// samples. Stage 2 starts at a lower loss with this map; small models were better without it some thousand steps
    /// later.
    #[default]
    Text,
    /// No weights: the next stage initialises the connector as its `init_from.text` says.
    Random,
}

fn last_layer() -> isize {
    -1
}

fn one() -> f64 {
    1.0
}

fn is_one(scale: &f64) -> bool {
    *scale == 1.0
}

impl Stage {
    /// Name of the stage in logs and checkpoints.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Vision { .. } => "vision",
            Self::Language => "language",
            Self::Distill { .. } => "distill",
            Self::Align { .. } => "align",
            Self::Tune { .. } => "tune",
        }
    }

    /// Pretrained weights that the model starts from; `None` for the stages that train small teachers from scratch.
    pub fn init_from(&self) -> Option<&InitFrom> {
        match self {
            Self::Vision { .. } | Self::Language => None,
            Self::Distill { init_from, .. } | Self::Align { init_from } | Self::Tune { init_from, .. } => {
                Some(init_from)
            }
        }
    }

    /// Checks the ranges of the stage's fields.
    pub(super) fn validate(&self) -> Result<()> {
        match self {
            Self::Vision { projection_dim } => {
                at_least_one("stage.projection_dim", *projection_dim)?;
                at_most("stage.projection_dim", *projection_dim, MAX_PROJECTION_DIM)?;
            }
            Self::Distill { vision_teacher, text_teacher, weights, .. } => {
                not_empty("stage.vision_teacher", vision_teacher)?;
                not_empty("stage.text_teacher", text_teacher)?;
                weights.validate()?;
            }
            Self::Tune { pre_decoder_lr_scale, .. } => {
                not_negative("stage.pre_decoder_lr_scale", *pre_decoder_lr_scale)?;
            }
            Self::Language | Self::Align { .. } => {}
        }
        self.init_from().map_or(Ok(()), InitFrom::validate)
    }
}

/// Pretrained weights that a model starts from, each as a [`ModelSource`](crate::weights::ModelSource). Sources are applied in the order `llm`, `clip`, `stage`, and a later
/// source overwrites an earlier one; parameters that no source holds are initialised at random.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct InitFrom {
    /// CLIP or SigLIP for the patch projection, position embeddings and pre-decoder.
    pub clip: Option<String>,
    /// Language model for the text embedding, post-decoder and head.
    pub llm: Option<String>,
    /// Projection of the text embedding to the pre-decoder's width.
    pub text: TextInit,
    /// A HaploVL: `builtin`, a released model, or the `export` folder of an earlier stage.
    pub stage: Option<String>,
}

impl InitFrom {
    fn validate(&self) -> Result<()> {
        let sources = [
            ("stage.init_from.clip", &self.clip),
            ("stage.init_from.llm", &self.llm),
            ("stage.init_from.stage", &self.stage),
        ];
        sources.iter().try_for_each(|(field, source)| source.as_deref().map_or(Ok(()), |path| not_empty(field, path)))
    }
}

/// Rejects an empty path, which would mean the current folder.
pub(super) fn not_empty(field: &str, path: &str) -> Result<()> {
    if path.trim().is_empty() { Err(Error::config(field, "is empty, expected a path")) } else { Ok(()) }
}

//! Objective of stage 1: the pre-decoder learns the image features of a CLIP and the text embeddings of a language
//! model.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{Counts, Loss, Objective, common_counts, only_for_pictures};
use crate::batch::MultimodalBatch;
use crate::config::validate::not_negative;
use crate::config::{HaploVlConfig, VisionConfig};
use crate::loss::{LossSum, current_token_prediction, feature_distillation, vision_distillation};
use crate::model::{DistillationHeads, PreDecoderModel, VisionTeacher, patches_in_order};
use crate::{Error, Result};

/// Weights of the losses of stage 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DistillationWeights {
    /// Weight of the cosine loss of image patches.
    pub vision: f64,
    /// Weight of the feature loss of text tokens.
    pub feature: f64,
    /// Weight of current-token prediction.
    pub current_token: f64,
}

impl Default for DistillationWeights {
    fn default() -> Self {
        Self { vision: 1.0, feature: 1.0, current_token: 1.0 }
    }
}

impl DistillationWeights {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let weights = [("vision", self.vision), ("feature", self.feature), ("current_token", self.current_token)];
        for (name, weight) in weights {
            not_negative(&format!("stage.weights.{name}"), weight)?;
        }
        if weights.iter().all(|(_, weight)| *weight == 0.0) {
            return Err(Error::config("stage.weights", "are all 0: leave at least one loss"));
        }
        Ok(())
    }

    /// Whether a parameter belongs to a head whose losses all have weight 0, and so gets no gradient.
    fn leaves_out(&self, parameter: &str) -> bool {
        let head =
            |name: &str| parameter.strip_prefix(DistillationHeads::PREFIX).is_some_and(|rest| rest.starts_with(name));
        let no_text = self.feature == 0.0 && self.current_token == 0.0;
        (self.vision == 0.0 && head(".vision."))
            || (no_text && head(".text."))
            || (self.current_token == 0.0 && head(".logit_scale"))
    }
}

/// Losses of stage 1 with their frozen teachers.
pub struct Distillation {
    model: PreDecoderModel,
    heads: DistillationHeads,
    vision_teacher: Box<dyn VisionTeacher>,
    /// The language model's embedding table, (vocab_size, LLM width), detached.
    text_teacher: Tensor,
    weights: DistillationWeights,
    vision: VisionConfig,
}

impl Distillation {
    /// The objective of a student with its heads and teachers.
    ///
    /// # Errors
    /// [`Error::Config`] if the vision teacher reads other tiles or patches than the student.
    pub fn new(
        config: &HaploVlConfig,
        model: PreDecoderModel,
        heads: DistillationHeads,
        vision_teacher: Box<dyn VisionTeacher>,
        text_teacher: Tensor,
        weights: DistillationWeights,
    ) -> Result<Self> {
        let (tile, patch) = vision_teacher.tile_and_patch();
        let vision = config.vision.clone();
        if (tile, patch) != (vision.image_size, vision.patch_size) {
            return Err(Error::config(
                "vision.image_size",
                format!(
                    "is {} with patches of {}, but the teacher reads tiles of {tile} with patches of {patch}: use equal ones",
                    vision.image_size, vision.patch_size
                ),
            ));
        }
        Ok(Self { model, heads, vision_teacher, text_teacher: text_teacher.detach(), weights, vision })
    }

    fn vision_loss(&self, batch: &MultimodalBatch, hidden: &Tensor) -> Result<LossSum> {
        if batch.visuals.is_empty() {
            return LossSum::zero(hidden.device());
        }
        let features = self.vision_teacher.features(&batch.pixel_values()?)?.flatten_to(1)?;
        let (positions, teacher) = patches_in_order(batch, &self.vision, &features)?;
        let student = self.heads.vision(&select(hidden, positions)?)?;
        vision_distillation(&student, &teacher)
    }

    fn text_losses(&self, batch: &MultimodalBatch, hidden: &Tensor) -> Result<[LossSum; 2]> {
        let positions = batch.text_positions();
        if positions.is_empty() {
            return Ok([LossSum::zero(hidden.device())?, LossSum::zero(hidden.device())?]);
        }
        let ids = select(&batch.input_ids.flatten_all()?, positions.clone())?;
        let student = self.heads.text(&select(hidden, positions)?)?;
        let teacher = self.text_teacher.index_select(&ids, 0)?;
        Ok([
            feature_distillation(&student, &teacher)?,
            current_token_prediction(&student, &self.text_teacher, &ids, &self.heads.logit_scale()?)?,
        ])
    }
}

/// Rows of `x` at `positions`.
pub fn select(x: &Tensor, positions: Vec<u32>) -> Result<Tensor> {
    let index = Tensor::from_vec(positions.clone(), positions.len(), x.device())?;
    Ok(x.index_select(&index, 0)?)
}

impl Objective for Distillation {
    fn name(&self) -> &'static str {
        "distillation"
    }

    fn counts(&self, batch: &MultimodalBatch) -> Result<Counts> {
        let mut patches = 0;
        for visual in &batch.visuals {
            patches += visual.patches(&self.vision)?;
        }
        Ok(Counts { patches, ..common_counts(batch)? })
    }

    fn loss(&self, batch: &MultimodalBatch, step: &Counts) -> Result<Loss> {
        let hidden = self.model.hidden_states(batch)?.flatten_to(1)?;
        let vision = self.vision_loss(batch, &hidden)?;
        let [feature, current_token] = self.text_losses(batch, &hidden)?;
        let share = |loss: &LossSum, count: usize, weight: f64| -> Result<Tensor> {
            Ok((&loss.sum * (weight / count.max(1) as f64))?)
        };
        let shares = [
            ("vision", share(&vision, step.patches, self.weights.vision)?),
            ("feature", share(&feature, step.text_tokens, self.weights.feature)?),
            ("current_token", share(&current_token, step.text_tokens, self.weights.current_token)?),
        ];
        let mut parts = Vec::with_capacity(shares.len());
        for (name, share) in &shares {
            parts.push((*name, f64::from(share.to_scalar::<f32>()?)));
        }
        let [(_, vision), (_, feature), (_, current_token)] = shares;
        Ok(Loss { total: ((vision + feature)? + current_token)?, parts })
    }

    fn may_lack_gradient(&self, parameter: &str, step: &Counts) -> bool {
        (step.visuals == 0 && only_for_pictures(parameter)) || self.weights.leaves_out(parameter)
    }
}

//! CLIP's own objective, for making a small vision teacher: pictures and their captions find each other.

use candle_core::{D, Tensor};
use candle_nn::VarBuilder;

use super::objective::{Counts, Loss, Objective, common_counts};
use crate::batch::MultimodalBatch;
use crate::loss::linear_cross_entropy;
use crate::model::{ClipVision, LanguageModel};
use crate::nn::{Linear, LogitScale};
use crate::weights::{ClipConfig, LlmConfig};
use crate::{Error, Result};

/// A vision and a text tower with projections into one space.
///
/// Unlike CLIP, a picture is the mean of its patches and not its class token: what a student learns from this teacher is
/// its patches, and those of the last layer have no part in the class token.
///
/// A batch holds one caption a row and as many pictures as rows, which stand beside the text and not inside it. Every
/// caption is a wrong answer for every other picture of the same micro-batch, and for none of another.
#[derive(Debug)]
pub struct Contrastive {
    vision: ClipVision,
    text: LanguageModel,
    visual_projection: Linear,
    text_projection: Linear,
    logit_scale: LogitScale,
}

impl Contrastive {
    /// Builds both towers: `vision_model.*`, `text_model.*`, `visual_projection`, `text_projection`, `logit_scale`.
    ///
    /// # Errors
    /// If the store holds a tensor of another shape.
    pub fn new(vision: &ClipConfig, text: &LlmConfig, projection_dim: usize, vb: VarBuilder) -> Result<Self> {
        let projection = |width, name: &str| Linear::new(width, projection_dim, false, vb.pp(name));
        // A tower has no use for a language head; tied, it has none.
        let text = &LlmConfig { tie_word_embeddings: true, ..text.clone() };
        Ok(Self {
            visual_projection: projection(vision.decoder.hidden_size, "visual_projection")?,
            text_projection: projection(text.decoder.hidden_size, "text_projection")?,
            logit_scale: LogitScale::new(vb.clone())?,
            vision: ClipVision::new(vision, vb.clone())?,
            text: LanguageModel::new(text, vb.pp("text_model"))?,
        })
    }

    /// Unit vectors of the last token of each row, (batch, projection_dim).
    fn captions(&self, batch: &MultimodalBatch) -> Result<Tensor> {
        let hidden = self.text.hidden_states(&self.text.embed(&batch.input_ids)?, &batch.layout)?.flatten_to(1)?;
        let last = |(row, samples): (usize, &Vec<crate::batch::Sample>)| {
            let end = samples.last().map_or(1, |sample| sample.range.end);
            (row * batch.layout.seq_len + end - 1) as u32
        };
        let index: Vec<u32> = batch.layout.rows.iter().enumerate().map(last).collect();
        let index = Tensor::from_vec(index, batch.batch_size(), hidden.device())?;
        unit(&self.text_projection.forward(&hidden.index_select(&index, 0)?)?)
    }

    fn similarities(&self, a: &Tensor, b: &Tensor, scale: &Tensor) -> Result<Tensor> {
        let own: Vec<u32> = (0..a.dim(0)? as u32).collect();
        let labels = Tensor::from_vec(own, a.dim(0)?, a.device())?;
        linear_cross_entropy(&a.broadcast_mul(scale)?, b, &labels)?.mean()
    }
}

/// Rows scaled to length 1.
fn unit(x: &Tensor) -> Result<Tensor> {
    Ok(x.broadcast_div(&(x.sqr()?.sum_keepdim(D::Minus1)? + 1e-12)?.sqrt()?)?)
}

impl Objective for Contrastive {
    fn name(&self) -> &'static str {
        "contrastive"
    }

    fn counts(&self, batch: &MultimodalBatch) -> Result<Counts> {
        common_counts(batch)
    }

    fn loss(&self, batch: &MultimodalBatch, step: &Counts) -> Result<Loss> {
        let images = unit(&self.visual_projection.forward(&self.vision.mean_of_patches(&batch.pixel_values()?)?)?)?;
        let captions = self.captions(batch)?;
        let (tiles, rows) = (images.dim(0)?, captions.dim(0)?);
        if tiles != rows {
            return Err(Error::Batch(format!(
                "holds {tiles} tiles for {rows} captions: contrast needs one tile a caption"
            )));
        }
        let scale = self.logit_scale.value()?;
        let to_text = self.similarities(&images, &captions, &scale)?;
        let to_image = self.similarities(&captions, &images, &scale)?;
        let share = 0.5 * rows as f64 / step.samples.max(1) as f64;
        Ok(Loss { total: ((to_text + to_image)? * share)?, parts: vec![] })
    }

    fn may_lack_gradient(&self, _parameter: &str, _step: &Counts) -> bool {
        false
    }
}

//! Objective of the stage `vision`: contrastive image-text training over patches, for a small vision teacher.

use std::collections::HashMap;

use candle_core::{D, Tensor};
use candle_nn::VarBuilder;
use candle_nn::loss::cross_entropy;
use candle_nn::ops::softmax;

use super::{Counts, Loss, Objective, common_counts};
use crate::batch::MultimodalBatch;
use crate::model::{ClipVision, LanguageModel};
use crate::nn::{Linear, LogitScale};
use crate::weights::{ClipConfig, LlmConfig};
use crate::{Error, Result};

/// Offset that excludes a candidate from the softmax: it is subtracted from the logits of further right answers.
const EXCLUDED: f32 = 1e4;

/// A vision and a text tower with projections into one space.
///
/// Unlike CLIP's, a picture has no vector of its own. A text looks for its patches, by a softmax over all of a picture's,
/// and is as similar to the picture as it is to those. What a student learns from this teacher is its patches, and
/// CLIP's class token tells them nothing of what is where.
///
/// A batch holds one picture a row, which stands beside the texts and not inside them, and one or several texts, each a
/// sample of its row. A text is a wrong answer for every picture of the same micro-batch that has no text like it, and
/// for none of another.
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

    /// Unit vectors of different texts, those of their last tokens, (texts, projection_dim).
    fn texts(&self, batch: &MultimodalBatch, texts: &Texts) -> Result<Tensor> {
        let hidden = self.text.hidden_states(&self.text.embed(&batch.input_ids)?, &batch.layout)?.flatten_to(1)?;
        let ends = Tensor::new(texts.ends.as_slice(), hidden.device())?;
        unit(&self.text_projection.forward(&hidden.index_select(&ends, 0)?)?)
    }

    /// How similar each text (texts, dim) is to each picture (pictures, patches, dim): (texts, pictures).
    fn similarities(texts: &Tensor, pictures: &Tensor, scale: &Tensor) -> Result<Tensor> {
        let (tiles, patches, dim) = pictures.dims3()?;
        let to_patches = texts.matmul(&pictures.reshape((tiles * patches, dim))?.t()?)?;
        let to_patches = to_patches.reshape((texts.dim(0)?, tiles, patches))?;
        let weights = softmax(&to_patches.broadcast_mul(&scale.detach())?, D::Minus1)?;
        Ok((weights * to_patches)?.sum(D::Minus1)?)
    }
}

/// Texts of a batch, those of the same words taken as one.
struct Texts {
    /// Where each ends, positions counted over all rows.
    ends: Vec<u32>,
    /// Each text with each of the pictures it is said of.
    pairs: Vec<[usize; 2]>,
}

impl Texts {
    fn new(batch: &MultimodalBatch) -> Result<Self> {
        let ids = batch.input_ids.to_vec2::<u32>()?;
        let mut numbers = HashMap::new();
        let (mut ends, mut pairs) = (Vec::new(), Vec::new());
        for (row, samples) in batch.layout.rows.iter().enumerate() {
            for range in samples.iter().map(|sample| sample.range.clone()) {
                let end = row * batch.layout.seq_len + range.end - 1;
                let number = *numbers.entry(&ids[row][range]).or_insert(ends.len());
                if number == ends.len() {
                    ends.push(end as u32);
                }
                if !pairs.contains(&[number, row]) {
                    pairs.push([number, row]);
                }
            }
        }
        Ok(Self { ends, pairs })
    }

    /// Cross-entropy of finding the partner of each pair, by the logits (texts, pictures), among all that are none of
    /// the other partners; `side` 0 finds the text of a picture, 1 the picture of a text.
    fn finding(&self, logits: &Tensor, side: usize) -> Result<Tensor> {
        let logits = if side == 0 { logits.t()?.contiguous()? } else { logits.clone() };
        let candidates = logits.dim(1)?;
        let mut excluded = vec![0f32; self.pairs.len() * candidates];
        for (pair, row) in self.pairs.iter().zip(excluded.chunks_exact_mut(candidates)) {
            for other in self.pairs.iter().filter(|other| other[1 - side] == pair[1 - side] && *other != pair) {
                row[other[side]] = -EXCLUDED;
            }
        }
        let device = logits.device();
        let pick = |side: usize| {
            let indices: Vec<u32> = self.pairs.iter().map(|pair| pair[side] as u32).collect();
            Tensor::from_vec(indices, self.pairs.len(), device)
        };
        let excluded = Tensor::from_vec(excluded, (self.pairs.len(), candidates), device)?;
        let logits = (logits.index_select(&pick(1 - side)?, 0)? + excluded)?;
        Ok(cross_entropy(&logits, &pick(side)?)?)
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
        let pictures = unit(&self.visual_projection.forward(&self.vision.patches(&batch.pixel_values()?)?)?)?;
        let (tiles, rows) = (pictures.dim(0)?, batch.batch_size());
        if tiles != rows {
            return Err(Error::batch(format!(
                "holds {tiles} tiles for {rows} rows of texts: contrast needs one tile a row"
            )));
        }
        let texts = Texts::new(batch)?;
        let scale = self.logit_scale.value()?;
        let logits = Self::similarities(&self.texts(batch, &texts)?, &pictures, &scale)?.broadcast_mul(&scale)?;
        let share = 0.5 * common_counts(batch)?.samples as f64 / step.samples.max(1) as f64;
        Ok(Loss { total: ((texts.finding(&logits, 0)? + texts.finding(&logits, 1)?)? * share)?, parts: vec![] })
    }

    fn may_lack_gradient(&self, _parameter: &str, _step: &Counts) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::batch::{Sample, SequenceLayout};
    use crate::nn::ops::testing::max_diff;

    /// Two pictures: one said to be `1 2` and `3`, the other `3` alone.
    fn batch() -> MultimodalBatch {
        let sample = |range| Sample { range, visual_blocks: vec![], visuals: vec![] };
        MultimodalBatch {
            input_ids: Tensor::new(&[[1u32, 2, 3], [3, 0, 0]], &Device::Cpu).unwrap(),
            labels: None,
            layout: SequenceLayout { seq_len: 3, rows: vec![vec![sample(0..2), sample(2..3)], vec![sample(0..1)]] },
            visuals: vec![],
        }
    }

    #[test]
    fn texts_of_the_same_words_are_one_text_of_several_pictures() {
        let texts = Texts::new(&batch()).unwrap();
        assert_eq!((texts.ends, texts.pairs), (vec![1, 2], vec![[0, 0], [1, 0], [1, 1]]));
    }

    #[test]
    fn what_is_said_of_a_picture_too_is_no_wrong_answer() {
        let texts = Texts::new(&batch()).unwrap();
        let logits = Var::from_tensor(&Tensor::new(&[[0.5f32, 2.0], [7.0, -3.0]], &Device::Cpu).unwrap()).unwrap();
        let found = |side| texts.finding(&logits, side).unwrap();
        // Pictures: only text 0 has a wrong one. Texts: text 0 alone is right for picture 0 beside text 1, and is wrong
        // for picture 1.
        let wrong = |gap: f32| (1.0 + (-gap).exp()).ln() / 3.0;
        assert!((found(1).to_scalar::<f32>().unwrap() - wrong(0.5 - 2.0)).abs() < 1e-5);
        assert!((found(0).to_scalar::<f32>().unwrap() - wrong(-3.0 - 2.0)).abs() < 1e-5);
        let grads = found(0).backward().unwrap().get(&logits).unwrap().to_vec2::<f32>().unwrap();
        assert!(grads[0][0].abs() < 1e-6 && grads[1][0].abs() < 1e-6 && grads[0][1] > 0.1, "{grads:?}");
    }

    #[test]
    fn a_text_looks_at_the_patch_that_it_is_like() {
        let texts = Tensor::new(&[[1f32, 0.0], [0.0, 1.0]], &Device::Cpu).unwrap();
        let pictures = Tensor::new(&[[[1f32, 0.0], [0.0, -1.0]], [[0.0, 1.0], [0.0, 1.0]]], &Device::Cpu).unwrap();
        let sharp = Tensor::new(&[100f32], &Device::Cpu).unwrap();
        let found = Contrastive::similarities(&texts, &pictures, &sharp).unwrap();
        assert!(max_diff(&found, &Tensor::new(&[[1f32, 0.0], [0.0, 1.0]], &Device::Cpu).unwrap()) < 1e-6);
    }
}

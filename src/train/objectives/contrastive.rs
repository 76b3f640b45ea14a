//! Objective of the stage `vision`: contrastive image-text training over patches, for a small vision teacher.

use std::collections::HashMap;

use candle_core::{D, Tensor};
use candle_nn::VarBuilder;
use candle_nn::loss::cross_entropy;
use candle_nn::ops::softmax;

use super::{Counts, Loss, Objective, common_counts};
use crate::batch::{MultimodalBatch, Sample, SequenceLayout};
use crate::model::{ClipVision, LanguageModel};
use crate::nn::{Linear, LogitScale};
use crate::weights::{ClipConfig, LlmConfig};
use crate::{Error, Result};

/// Offset subtracted from the logits of further positives, which excludes them from the softmax.
const EXCLUDED: f32 = 1e4;

/// A vision tower and a text tower with projections into a common space.
///
/// Unlike in CLIP, an image has no embedding of its own. A text attends to the patches of an image by a softmax, and
/// its similarity to the image is its similarity to those patches. The student is distilled from patch features, which
/// CLIP's loss on the class token does not localise.
///
/// A row of a batch holds one image, separate from the texts, and one or several texts, each a sample of the row. A
/// text is a negative for every image of the same micro-batch that has no equal text; images of other micro-batches are
/// not compared.
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
        // The text tower needs no language head; with tied embeddings it has none.
        let text = &LlmConfig { tie_word_embeddings: true, ..text.clone() };
        Ok(Self {
            visual_projection: projection(vision.decoder.hidden_size, "visual_projection")?,
            text_projection: projection(text.decoder.hidden_size, "text_projection")?,
            logit_scale: LogitScale::new(vb.clone())?,
            vision: ClipVision::new(vision, vb.clone())?,
            text: LanguageModel::new(text, vb.pp("text_model"))?,
        })
    }

    /// Normalised embeddings of the distinct texts, from their last tokens, (texts, projection_dim).
    fn texts(&self, batch: &MultimodalBatch, texts: &Texts) -> Result<Tensor> {
        let seq_len = texts.layout.seq_len;
        let ids = Tensor::from_slice(&texts.ids, (texts.layout.rows.len(), seq_len), batch.input_ids.device())?;
        let hidden = self.text.hidden_states(&self.text.embed(&ids)?, &texts.layout)?.flatten_to(1)?;
        let rows = texts.layout.rows.iter().enumerate();
        let ends =
            rows.flat_map(|(row, texts)| texts.iter().map(move |text| (row * seq_len + text.range.end - 1) as u32));
        let ends = Tensor::new(Vec::from_iter(ends), hidden.device())?;
        unit(&self.text_projection.forward(&hidden.index_select(&ends, 0)?)?)
    }

    /// Similarity of each text (texts, dim) to each image (images, patches, dim): (texts, images).
    fn similarities(texts: &Tensor, pictures: &Tensor, scale: &Tensor) -> Result<Tensor> {
        let (tiles, patches, dim) = pictures.dims3()?;
        let to_patches = texts.matmul(&pictures.reshape((tiles * patches, dim))?.t()?)?;
        let to_patches = to_patches.reshape((texts.dim(0)?, tiles, patches))?;
        let weights = softmax(&to_patches.broadcast_mul(&scale.detach())?, D::Minus1)?;
        Ok((weights * to_patches)?.sum(D::Minus1)?)
    }
}

/// Distinct texts of a batch: equal texts are merged, and computed once.
struct Texts {
    /// Ids of the texts, packed into rows of `layout`.
    ids: Vec<u32>,
    /// Places of the texts in `ids`, in rows no longer than those of the batch.
    layout: SequenceLayout,
    /// Positive pairs of a text and an image.
    pairs: Vec<[usize; 2]>,
}

impl Texts {
    fn new(batch: &MultimodalBatch) -> Result<Self> {
        let ids = batch.input_ids.to_vec2::<u32>()?;
        let (mut numbers, mut texts) = (HashMap::new(), Vec::new());
        let mut pairs = Vec::new();
        for (row, samples) in batch.layout.rows.iter().enumerate() {
            for range in samples.iter().map(|sample| sample.range.clone()) {
                let text = &ids[row][range];
                let number = *numbers.entry(text).or_insert(texts.len());
                if number == texts.len() {
                    texts.push(text);
                }
                if !pairs.contains(&[number, row]) {
                    pairs.push([number, row]);
                }
            }
        }
        let (ids, layout) = packed(&texts, batch.layout.seq_len);
        Ok(Self { ids, layout, pairs })
    }

    /// Cross-entropy of each positive pair against all negatives, from the logits (texts, images), with other positives
    /// excluded; `side` 0 retrieves the text of an image, 1 the image of a text.
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

/// Packs texts in their order into rows of `seq_len`, which none of them exceeds.
fn packed(texts: &[&[u32]], seq_len: usize) -> (Vec<u32>, SequenceLayout) {
    let (mut ids, mut rows, mut free) = (Vec::new(), Vec::<Vec<Sample>>::new(), 0);
    for text in texts {
        if text.len() > free {
            ids.resize(rows.len() * seq_len, 0);
            rows.push(Vec::new());
            free = seq_len;
        }
        let start = seq_len - free;
        let sample = Sample { range: start..start + text.len(), visual_blocks: vec![], visuals: vec![] };
        if let Some(row) = rows.last_mut() {
            row.push(sample);
        }
        ids.extend_from_slice(text);
        free -= text.len();
    }
    ids.resize(rows.len() * seq_len, 0);
    (ids, SequenceLayout { seq_len, rows })
}

/// Rows normalised to unit length.
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
                "has {tiles} tiles for {rows} rows of texts: the contrastive loss needs one tile per row"
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
    use crate::nn::ops::testing::max_diff;

    /// Two images: the first with the texts `1 2` and `3`, the second with `3` only.
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
    fn equal_texts_are_merged_over_images() {
        let texts = Texts::new(&batch()).unwrap();
        let ranges = texts.layout.rows.iter().map(|row| Vec::from_iter(row.iter().map(|text| text.range.clone())));
        assert_eq!((texts.ids, texts.pairs), (vec![1, 2, 3], vec![[0, 0], [1, 0], [1, 1]]));
        assert_eq!(Vec::from_iter(ranges), [[0..2, 2..3]]);
    }

    #[test]
    fn texts_are_packed_into_rows() {
        let (ids, layout) = packed(&[&[1, 2], &[3, 4], &[5], &[6, 7, 8]], 3);
        assert_eq!(ids, [1, 2, 0, 3, 4, 5, 6, 7, 8]);
        let rows = layout.rows.iter().enumerate();
        let places = rows.flat_map(|(row, texts)| texts.iter().map(move |text| (row, text.range.clone())));
        assert_eq!(Vec::from_iter(places), [(0, 0..2), (1, 0..2), (1, 2..3), (2, 0..3)]);
        layout.validate().unwrap();
        assert_eq!(packed(&[], 3).1.rows.len(), 0);
    }

    #[test]
    fn further_positives_are_not_negatives() {
        let texts = Texts::new(&batch()).unwrap();
        let logits = Var::from_tensor(&Tensor::new(&[[0.5f32, 2.0], [7.0, -3.0]], &Device::Cpu).unwrap()).unwrap();
        let found = |side| texts.finding(&logits, side).unwrap();
        // Image retrieval: only text 0 has a negative (image 1). Text retrieval: text 0 is a positive of image 0, like
        // text 1, and a negative of image 1.
        let wrong = |gap: f32| (1.0 + (-gap).exp()).ln() / 3.0;
        assert!((found(1).to_scalar::<f32>().unwrap() - wrong(0.5 - 2.0)).abs() < 1e-5);
        assert!((found(0).to_scalar::<f32>().unwrap() - wrong(-3.0 - 2.0)).abs() < 1e-5);
        let grads = found(0).backward().unwrap().get(&logits).unwrap().to_vec2::<f32>().unwrap();
        assert!(grads[0][0].abs() < 1e-6 && grads[1][0].abs() < 1e-6 && grads[0][1] > 0.1, "{grads:?}");
    }

    #[test]
    fn a_text_attends_to_its_most_similar_patch() {
        let texts = Tensor::new(&[[1f32, 0.0], [0.0, 1.0]], &Device::Cpu).unwrap();
        let pictures = Tensor::new(&[[[1f32, 0.0], [0.0, -1.0]], [[0.0, 1.0], [0.0, 1.0]]], &Device::Cpu).unwrap();
        let sharp = Tensor::new(&[100f32], &Device::Cpu).unwrap();
        let found = Contrastive::similarities(&texts, &pictures, &sharp).unwrap();
        assert!(max_diff(&found, &Tensor::new(&[[1f32, 0.0], [0.0, 1.0]], &Device::Cpu).unwrap()) < 1e-6);
    }
}

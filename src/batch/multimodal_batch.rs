//! Multimodal batch: sequences of equal length with their images, the input of a model.

use std::ops::Range;

use candle_core::{Device, Tensor};

use super::{BatchSpec, IGNORE_INDEX, PaddingSide, Sample, Sequence, SequenceLayout, Visual, too_long};
use crate::{Error, Result};

/// Multimodal batch on one device: token ids, labels, layout, images and videos.
#[derive(Debug, Clone)]
pub struct MultimodalBatch {
    /// Token ids, `(batch, seq_len)`, u32. Padding holds 0.
    pub input_ids: Tensor,
    /// Labels, `(batch, seq_len)`, u32, aligned with `input_ids` (not shifted); [`IGNORE_INDEX`] at positions without a
    /// label.
    pub labels: Option<Tensor>,
    /// Samples, visual blocks and padding.
    pub layout: SequenceLayout,
    /// Images and videos, row by row, in order of appearance.
    pub visuals: Vec<Visual>,
}

impl MultimodalBatch {
    /// Builds a batch of one sequence per row; shorter sequences are padded on `side`.
    ///
    /// # Errors
    /// [`Error::Prompt`] where placeholders and images disagree or a sequence is too long, and [`Error::Batch`]
    /// for an empty batch or sequence, or labels of another length than the ids.
    pub fn new(sequences: &[Sequence], spec: BatchSpec<'_>, side: PaddingSide, device: &Device) -> Result<Self> {
        let seq_len = sequences.iter().map(|s| s.input_ids.len()).max().unwrap_or(0);
        let rows = sequences
            .iter()
            .map(|s| {
                let pad = if side == PaddingSide::Left { seq_len - s.input_ids.len() } else { 0 };
                vec![(pad, s)]
            })
            .collect();
        Self::from_placed(rows, seq_len, spec, device)
    }

    /// Builds a batch of several packed sequences per row; each attends only to itself.
    ///
    /// # Errors
    /// The errors of [`Self::new`]; the length limit holds for a whole row.
    pub fn packed(rows: &[Vec<Sequence>], spec: BatchSpec<'_>, device: &Device) -> Result<Self> {
        let row_len = |row: &Vec<Sequence>| row.iter().map(|s| s.input_ids.len()).sum::<usize>();
        let seq_len = rows.iter().map(row_len).max().unwrap_or(0);
        let place = |row| {
            let mut at = 0;
            let next = |s| {
                let start: usize = at;
                at += Sequence::len(s);
                (start, s)
            };
            Vec::from_iter(<&Vec<Sequence>>::into_iter(row).map(next))
        };
        Self::from_placed(rows.iter().map(place).collect(), seq_len, spec, device)
    }

    fn from_placed(
        rows: Vec<Vec<(usize, &Sequence)>>,
        seq_len: usize,
        spec: BatchSpec<'_>,
        device: &Device,
    ) -> Result<Self> {
        if rows.is_empty() || seq_len == 0 {
            return Err(Error::batch("is empty, expected at least one sequence of one token"));
        }
        if seq_len > spec.max_len {
            return Err(too_long(seq_len, spec.max_len));
        }
        let batch = rows.len();
        let mut input_ids = vec![0u32; batch * seq_len];
        let mut labels = vec![IGNORE_INDEX; batch * seq_len];
        let mut any_labels = false;
        let mut visuals = Vec::new();
        let mut layout = SequenceLayout { seq_len, rows: Vec::with_capacity(batch) };
        for (r, row) in rows.into_iter().enumerate() {
            let mut samples = Vec::with_capacity(row.len());
            for (start, sequence) in row {
                let range = start..start + sequence.input_ids.len();
                let flat = r * seq_len + range.start..r * seq_len + range.end;
                input_ids[flat.clone()].copy_from_slice(&sequence.input_ids);
                if let Some(sequence_labels) = &sequence.labels {
                    check_labels(sequence_labels.len(), range.len())?;
                    labels[flat].copy_from_slice(sequence_labels);
                    any_labels = true;
                }
                samples.push(sequence.sample(start, spec)?);
                visuals.extend(sequence.visuals.iter().cloned());
            }
            layout.rows.push(samples);
        }
        let visuals = visuals.into_iter().map(|v| v.to_device(device)).collect::<Result<_>>()?;
        let labels = any_labels.then(|| Tensor::from_vec(labels, (batch, seq_len), device)).transpose()?;
        let input_ids = Tensor::from_vec(input_ids, (batch, seq_len), device)?;
        Ok(Self { input_ids, labels, layout, visuals })
    }

    /// Checks that the layout is valid and describes `input_ids` and `labels`.
    ///
    /// # Errors
    /// [`Error::Batch`] naming what does not fit.
    pub fn validate(&self) -> Result<()> {
        let expected = [self.layout.rows.len(), self.layout.seq_len];
        let labels = self.labels.as_ref().map_or(expected.as_slice(), |labels| labels.dims());
        if self.input_ids.dims() != expected || labels != expected {
            return Err(Error::batch(format!(
                "has ids of shape {:?} and labels of shape {labels:?}, its layout says {expected:?} (rows, positions)",
                self.input_ids.dims()
            )));
        }
        self.layout.validate()
    }

    /// Some rows, without the padding on the left that all of them have.
    ///
    /// # Errors
    /// Errors of candle, if there are no such rows.
    pub fn rows(&self, rows: Range<usize>) -> Result<Self> {
        let layouts = self.layout.rows.get(rows.clone()).unwrap_or_default();
        let padding = layouts.iter().map(|row| row.first().map_or(0, |sample| sample.range.start)).min().unwrap_or(0);
        let seq_len = self.layout.seq_len - padding;
        let count = |rows: &[Vec<Sample>]| rows.iter().flatten().map(|sample| sample.visuals.len()).sum::<usize>();
        let before = count(self.layout.rows.get(..rows.start).unwrap_or_default());
        let part = |ids: &Tensor| ids.narrow(0, rows.start, rows.len())?.narrow(1, padding, seq_len)?.contiguous();
        let moved = |row: &Vec<Sample>| row.iter().map(|sample| sample.moved_left(padding)).collect();
        Ok(Self {
            input_ids: part(&self.input_ids)?,
            labels: self.labels.as_ref().map(part).transpose()?,
            layout: SequenceLayout { seq_len, rows: layouts.iter().map(moved).collect() },
            visuals: self.visuals.iter().skip(before).take(count(layouts)).cloned().collect(),
        })
    }

    /// Number of rows.
    pub fn batch_size(&self) -> usize {
        self.layout.rows.len()
    }

    /// For each position, counted over all rows, the label that its logits are to predict: that of the next position
    /// of the same sample, or [`IGNORE_INDEX`]. `(batch * seq_len)`.
    ///
    /// # Errors
    /// [`Error::Batch`] if there are no labels, and the errors of [`Self::validate`].
    pub fn next_token_labels(&self) -> Result<Vec<u32>> {
        self.validate()?;
        let labels = self.labels.as_ref().ok_or_else(|| Error::batch("has no labels"))?.to_vec2::<u32>()?;
        let mut next = vec![IGNORE_INDEX; self.batch_size() * self.layout.seq_len];
        for ((row, samples), labels) in self.layout.rows.iter().enumerate().zip(&labels) {
            for Range { start, end } in samples.iter().map(|sample| sample.range.clone()) {
                let at = row * self.layout.seq_len;
                next[at + start..at + end - 1].copy_from_slice(&labels[start + 1..end]);
            }
        }
        Ok(next)
    }

    /// Positions, counted over all rows, that hold text: neither padding nor images. The batch must be valid.
    pub fn text_positions(&self) -> Vec<u32> {
        let mut text = Vec::new();
        for (row, samples) in self.layout.rows.iter().enumerate() {
            for sample in samples {
                let in_visual = |i: &usize| sample.visuals.iter().any(|span| span.contains(i));
                let at = row * self.layout.seq_len;
                text.extend(sample.range.clone().filter(|i| !in_visual(i)).map(|i| (at + i) as u32));
            }
        }
        text
    }

    /// The pixels of all images and videos one after the other, `(tiles and frames, 3, image_size, image_size)`.
    ///
    /// # Errors
    /// Errors of candle, if there is no image, or they differ in size.
    pub fn pixel_values(&self) -> Result<Tensor> {
        let pixels: Vec<&Tensor> = self.visuals.iter().map(Visual::pixel_values).collect();
        Ok(Tensor::cat(&pixels, 0)?)
    }

    /// Padding mask `(batch, seq_len)`, f32: one for tokens and zero for padding.
    ///
    /// # Errors
    /// The errors of [`Self::validate`].
    pub fn attention_mask(&self) -> Result<Tensor> {
        self.validate()?;
        let mut mask = vec![0f32; self.batch_size() * self.layout.seq_len];
        for (r, row) in self.layout.rows.iter().enumerate() {
            for sample in row {
                let at = r * self.layout.seq_len;
                mask[at + sample.range.start..at + sample.range.end].fill(1.0);
            }
        }
        Ok(Tensor::from_vec(mask, (self.batch_size(), self.layout.seq_len), self.input_ids.device())?)
    }
}

fn check_labels(labels: usize, tokens: usize) -> Result<()> {
    if labels == tokens {
        return Ok(());
    }
    Err(Error::batch(format!("{labels} labels for {tokens} tokens: give one label per token")))
}

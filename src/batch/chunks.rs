//! Chunks of a prompt: its unit of prefilling and of sharing keys and values with other prompts.

use std::ops::Range;

use super::{MultimodalBatch, Sample, SequenceLayout};
use crate::{Error, Result};

/// Text positions after which a prompt is cut.
const CHUNK_TEXT: usize = 128;

impl MultimodalBatch {
    /// Cuts a prompt, a batch of one row without padding, into chunks.
    ///
    /// Cuts lie after each image or video and after every 128 text positions since the previous cut, except at the end
    /// of the prompt. They depend only on the positions before them, so prompts with a common beginning have common
    /// chunks.
    ///
    /// # Errors
    /// [`Error::Batch`] unless the batch is one sequence without padding.
    pub fn chunks(&self) -> Result<Vec<Self>> {
        let sample = self.only_sequence()?;
        let mut starts = vec![0];
        let (mut at, mut text) = (0, 0);
        let mut visuals = sample.visuals.iter().peekable();
        while at < self.layout.seq_len {
            let visual = visuals.next_if(|visual| visual.start == at);
            (at, text) = visual.map_or((at + 1, text + 1), |visual| (visual.end, 0));
            if text % CHUNK_TEXT == 0 && at < self.layout.seq_len {
                starts.push(at);
                text = 0;
            }
        }
        let ends = starts.iter().skip(1).copied().chain([self.layout.seq_len]);
        starts.iter().zip(ends).map(|(&start, end)| self.positions(start..end)).collect()
    }

    /// The only sequence of a batch of one row without padding.
    ///
    /// # Errors
    /// [`Error::Batch`] for other batches.
    pub(crate) fn only_sequence(&self) -> Result<&Sample> {
        self.validate()?;
        match self.layout.rows.as_slice() {
            [row] if matches!(row.as_slice(), [one] if one.range == (0..self.layout.seq_len)) => Ok(&row[0]),
            rows => {
                Err(Error::batch(format!("of {} rows, expected one row of one sequence without padding", rows.len())))
            }
        }
    }

    /// The error of a layout with another number of images than there are.
    pub(crate) fn visual_count_error(&self) -> Error {
        let laid_out: usize = self.layout.rows.iter().flatten().map(|sample| sample.visuals.len()).sum();
        Error::batch(format!("holds {} images, but its layout has {laid_out}", self.visuals.len()))
    }

    /// Some positions of a batch of one sequence.
    ///
    /// # Errors
    /// [`Error::Batch`] for another batch, or if a bound lies in an image; errors of candle, if there are no such
    /// positions.
    pub(crate) fn positions(&self, positions: Range<usize>) -> Result<Self> {
        let sample = self.only_sequence()?;
        let cuts = |range: &&Range<usize>| {
            [positions.start, positions.end].iter().any(|bound| range.start < *bound && *bound < range.end)
        };
        if let Some(image) = sample.visuals.iter().chain(&sample.visual_blocks).find(cuts) {
            return Err(Error::batch(format!("cannot be cut at {positions:?}: an image is at {image:?}")));
        }
        if sample.visuals.len() != self.visuals.len() {
            return Err(self.visual_count_error());
        }
        let within = |range: &&Range<usize>| positions.start <= range.start && range.end <= positions.end;
        let part = |ids: &candle_core::Tensor| ids.narrow(1, positions.start, positions.len())?.contiguous();
        let inside = Sample {
            range: positions.clone(),
            visual_blocks: sample.visual_blocks.iter().filter(within).cloned().collect(),
            visuals: sample.visuals.iter().filter(within).cloned().collect(),
        };
        let visuals = sample.visuals.iter().zip(&self.visuals).filter(|(range, _)| within(range));
        Ok(Self {
            input_ids: part(&self.input_ids)?,
            labels: self.labels.as_ref().map(part).transpose()?,
            visuals: visuals.map(|(_, visual)| visual.clone()).collect(),
            layout: SequenceLayout { seq_len: positions.len(), rows: vec![vec![inside.moved_left(positions.start)]] },
        })
    }
}

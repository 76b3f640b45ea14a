//! Positions of samples, images and padding in a batch.

use std::ops::Range;

use crate::{Error, Result};

/// Sample of a row: the positions of one conversation or document, which attend to nothing outside it.
///
/// Positions of a row without a sample are padding, on either side; several samples in a row are packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Positions in the row.
    pub range: Range<usize>,
    /// Bidirectional attention blocks (positions in the row), which also attend to everything before: an image, a
    /// frame.
    pub visual_blocks: Vec<Range<usize>>,
    /// Positions (in the row) of each image or video, in the order of
    /// [`MultimodalBatch::visuals`](super::MultimodalBatch::visuals).
    pub visuals: Vec<Range<usize>>,
}

impl Sample {
    /// The sample `by` positions further left in its row.
    pub(super) fn moved_left(&self, by: usize) -> Self {
        let moved = |range: &Range<usize>| range.start - by..range.end - by;
        let all = |ranges: &[Range<usize>]| ranges.iter().map(moved).collect();
        Self { range: moved(&self.range), visual_blocks: all(&self.visual_blocks), visuals: all(&self.visuals) }
    }
}

/// Layout of a batch: the position of every sample, image and video in sequences of equal length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceLayout {
    /// Length of every row, padding included.
    pub seq_len: usize,
    /// Samples of each row, in order of position.
    pub rows: Vec<Vec<Sample>>,
}

impl SequenceLayout {
    /// A layout of text: every row is one sample without padding.
    pub fn text(batch: usize, seq_len: usize) -> Self {
        let sample = Sample { range: 0..seq_len, visual_blocks: vec![], visuals: vec![] };
        Self { seq_len, rows: vec![vec![sample]; batch] }
    }

    /// Checks that samples follow each other inside their rows, and images and blocks inside their samples.
    ///
    /// Layouts of [`MultimodalBatch::new`](super::MultimodalBatch::new) always pass; models check other layouts.
    ///
    /// # Errors
    /// [`Error::Batch`] naming the row and the range.
    pub fn validate(&self) -> Result<()> {
        for (row, samples) in self.rows.iter().enumerate() {
            let wrong = |what: &str, range: &Range<usize>, within: Range<usize>| {
                Err(Error::batch(format!(
                    "row {row}: {what} at {range:?}, expected a non-empty range after the previous one and \
                     inside {within:?}"
                )))
            };
            let mut free = 0;
            for Sample { range, visual_blocks, visuals } in samples {
                if range.is_empty() || range.start < free || range.end > self.seq_len {
                    return wrong("a sample", range, free..self.seq_len);
                }
                free = range.end;
                for (what, parts) in [("an attention block", visual_blocks), ("an image", visuals)] {
                    let mut from = range.start;
                    for part in parts {
                        if part.is_empty() || part.start < from || part.end > range.end {
                            return wrong(what, part, from..range.end);
                        }
                        from = part.end;
                    }
                }
            }
        }
        Ok(())
    }

    /// Position of every token inside its own sample, row by row; 0 for padding. The layout must be valid.
    pub fn positions(&self) -> Vec<Vec<u32>> {
        let row_positions = |row: &Vec<Sample>| {
            let mut positions = vec![0; self.seq_len];
            for sample in row {
                for (p, i) in sample.range.clone().enumerate() {
                    positions[i] = p as u32;
                }
            }
            positions
        };
        self.rows.iter().map(row_positions).collect()
    }
}

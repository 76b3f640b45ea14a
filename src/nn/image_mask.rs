//! Attention mask of a batch: causal for text, bidirectional within images.

use std::ops::Range;

use super::ops::KeyRanges;
use crate::batch::{Sample, SequenceLayout};
use crate::config::ImageAttention;

/// Key range of each position of a batch: the keys of the same sample, up to the position itself for text, and up to
/// the end of the image for image tokens.
pub fn key_ranges(layout: &SequenceLayout, attention: ImageAttention) -> KeyRanges {
    KeyRanges::new(layout.rows.iter().map(|row| row_ranges(row, layout.seq_len, attention)).collect())
}

fn row_ranges(row: &[Sample], seq_len: usize, attention: ImageAttention) -> Vec<Range<usize>> {
    let mut ranges = vec![0..0; seq_len];
    for sample in row {
        for i in sample.range.clone() {
            ranges[i] = sample.range.start..i + 1;
        }
        if attention == ImageAttention::Bidirectional {
            for block in &sample.visual_blocks {
                ranges[block.clone()].fill(sample.range.start..block.end);
            }
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> SequenceLayout {
        let sample = |range, image: Option<Range<usize>>| {
            let visuals = Vec::from_iter(image);
            Sample { range, visual_blocks: visuals.clone(), visuals }
        };
        SequenceLayout {
            seq_len: 5,
            rows: vec![vec![sample(1..5, Some(2..4))], vec![sample(0..2, None), sample(2..4, None)]],
        }
    }

    #[test]
    fn image_tokens_see_their_whole_image_and_samples_only_themselves() {
        let ranges = key_ranges(&layout(), ImageAttention::Bidirectional);
        assert_eq!(ranges.rows()[0], [0..0, 1..2, 1..4, 1..4, 1..5]);
        assert_eq!(ranges.rows()[1], [0..1, 0..2, 2..3, 2..4, 0..0]);
    }

    #[test]
    fn causal_image_tokens_see_earlier_keys() {
        let ranges = key_ranges(&layout(), ImageAttention::Causal);
        assert_eq!(ranges.rows()[0], [0..0, 1..2, 1..3, 1..4, 1..5]);
    }
}

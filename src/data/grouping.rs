//! Grouping of samples into rows and batches.

use rand::Rng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::batch::Sequence;
use crate::{Error, Result};

/// Length of a sample, for padding and packing.
pub trait Length {
    /// Length in tokens.
    fn length(&self) -> usize;
}

impl Length for Sequence {
    fn length(&self) -> usize {
        self.len()
    }
}

/// Grouping of the samples of a window into groups of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Grouping {
    /// One sample per row, in loading order.
    InOrder {
        /// Rows per group.
        rows: usize,
    },
    /// One sample per row, samples of similar length together to reduce padding; the groups of a window are in random
    /// order.
    ByLength {
        /// Rows per group.
        rows: usize,
        /// Number of groups whose samples are sorted together; all of them are prepared and held in memory.
        window: usize,
    },
    /// Several samples per row, up to a length.
    Packed {
        /// Rows per group.
        rows: usize,
        /// Longest row in tokens; longer samples are bad samples.
        row_length: usize,
        /// Number of samples that are packed together; all of them are prepared and held in memory.
        window: usize,
    },
}

impl Grouping {
    /// Checks that no field is zero.
    ///
    /// # Errors
    /// [`Error::Config`], naming the field.
    pub fn validate(&self) -> Result<()> {
        let fields = match *self {
            Self::InOrder { rows } => vec![("rows", rows)],
            Self::ByLength { rows, window } => vec![("rows", rows), ("window", window)],
            Self::Packed { rows, row_length, window } => {
                vec![("rows", rows), ("row_length", row_length), ("window", window)]
            }
        };
        match fields.into_iter().find(|(_, value)| *value == 0) {
            Some((name, _)) => Err(Error::config(format!("loader.grouping.{name}"), "is 0, expected at least 1")),
            None => Ok(()),
        }
    }

    /// Number of samples in a window.
    pub(super) fn window(&self) -> usize {
        match *self {
            Self::InOrder { rows } => rows,
            Self::ByLength { rows, window } => rows.saturating_mul(window),
            Self::Packed { window, .. } => window,
        }
    }

    /// Longest allowed sample in tokens; `None` without a limit.
    pub(super) fn longest(&self) -> Option<usize> {
        match *self {
            Self::Packed { row_length, .. } => Some(row_length),
            Self::InOrder { .. } | Self::ByLength { .. } => None,
        }
    }

    /// Arranges the samples of one window in groups of rows; the last group may have fewer rows.
    pub(crate) fn arrange<T: Length>(&self, mut items: Vec<T>, rng: &mut impl Rng) -> Vec<Vec<Vec<T>>> {
        match *self {
            Self::InOrder { rows } => chunks(items.into_iter().map(|item| vec![item]), rows),
            Self::ByLength { rows, .. } => {
                items.sort_by_key(Length::length);
                let mut groups = chunks(items.into_iter().map(|item| vec![item]), rows);
                groups.shuffle(rng);
                groups
            }
            Self::Packed { rows, row_length, .. } => {
                let mut packed = pack(items, row_length);
                packed.shuffle(rng);
                chunks(packed.into_iter(), rows)
            }
        }
    }
}

/// First-fit decreasing bin packing: items by descending length, each in the first row with enough space.
fn pack<T: Length>(mut items: Vec<T>, row_length: usize) -> Vec<Vec<T>> {
    items.sort_by_key(|item| std::cmp::Reverse(item.length()));
    let mut rows: Vec<(usize, Vec<T>)> = Vec::new();
    for item in items {
        let length = item.length();
        match rows.iter_mut().find(|(room, _)| *room >= length) {
            Some((room, row)) => {
                *room -= length;
                row.push(item);
            }
            None => rows.push((row_length.saturating_sub(length), vec![item])),
        }
    }
    rows.into_iter().map(|(_, row)| row).collect()
}

fn chunks<T>(mut items: impl Iterator<Item = T>, size: usize) -> Vec<Vec<T>> {
    let chunk = || Some(Vec::from_iter(items.by_ref().take(size))).filter(|chunk| !chunk.is_empty());
    std::iter::from_fn(chunk).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Length for usize {
        fn length(&self) -> usize {
            *self
        }
    }

    #[test]
    fn packing_fills_rows_and_keeps_every_sample() {
        let rows = pack(vec![3, 7, 2, 5, 10, 3], 10);
        assert_eq!(rows, [vec![10], vec![7, 3], vec![5, 3, 2]]);
    }

    #[test]
    fn by_length_groups_samples_of_similar_length() {
        let grouping = Grouping::ByLength { rows: 2, window: 3 };
        let mut groups = grouping.arrange(vec![9, 1, 5, 2, 8], &mut crate::data::random_stream(1, 0));
        groups.sort();
        assert_eq!(groups, [vec![vec![1], vec![2]], vec![vec![5], vec![8]], vec![vec![9]]]);
    }

    #[test]
    fn zeros_are_rejected() {
        let message = Grouping::Packed { rows: 1, row_length: 0, window: 4 }.validate().unwrap_err().to_string();
        assert!(message.contains("loader.grouping.row_length") && message.contains("at least 1"), "{message}");
    }
}

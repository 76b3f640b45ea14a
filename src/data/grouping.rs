//! Which samples share a batch, and which share a row of it.

use rand::Rng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::batch::Sequence;
use crate::{Error, Result};

/// Something of a length that padding and packing depend on.
pub trait Length {
    /// Length in tokens.
    fn length(&self) -> usize;
}

impl Length for Sequence {
    fn length(&self) -> usize {
        self.len()
    }
}

/// How the samples of a window, in the order in which they come, are made into groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Grouping {
    /// As they come, one sample a row.
    InOrder {
        /// Rows in a group.
        rows: usize,
    },
    /// Samples of like length together, so that little is padded; the groups of a window come in random order.
    ByLength {
        /// Rows in a group.
        rows: usize,
        /// Groups whose samples are sorted at once; all of them are held prepared in memory.
        window: usize,
    },
    /// Several samples a row, up to a length.
    Packed {
        /// Rows in a group.
        rows: usize,
        /// Longest row, in tokens; longer samples are bad ones.
        row_length: usize,
        /// Samples that are packed at once; all of them are held prepared in memory.
        window: usize,
    },
}

impl Grouping {
    /// Checks that nothing is zero.
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

    /// Samples that are looked at together.
    pub(super) fn window(&self) -> usize {
        match *self {
            Self::InOrder { rows } => rows,
            Self::ByLength { rows, window } => rows.saturating_mul(window),
            Self::Packed { window, .. } => window,
        }
    }

    /// The longest sample that fits.
    pub(super) fn longest(&self) -> Option<usize> {
        match *self {
            Self::Packed { row_length, .. } => Some(row_length),
            Self::InOrder { .. } | Self::ByLength { .. } => None,
        }
    }

    /// Makes the samples of one window into groups of rows; the last made may have fewer rows.
    pub(super) fn arrange<T: Length>(&self, mut items: Vec<T>, rng: &mut impl Rng) -> Vec<Vec<Vec<T>>> {
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

/// First fit, longest first: every item goes into the first row with room for it.
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
    fn packing_fills_rows_and_loses_nothing() {
        let rows = pack(vec![3, 7, 2, 5, 10, 3], 10);
        assert_eq!(rows, [vec![10], vec![7, 3], vec![5, 3, 2]]);
    }

    #[test]
    fn by_length_puts_like_with_like() {
        let grouping = Grouping::ByLength { rows: 2, window: 3 };
        let mut groups = grouping.arrange(vec![9, 1, 5, 2, 8], &mut crate::data::random_stream(1, 0));
        groups.sort();
        assert_eq!(groups, [vec![vec![1], vec![2]], vec![vec![5], vec![8]], vec![vec![9]]]);
    }

    #[test]
    fn zeros_are_refused() {
        let message = Grouping::Packed { rows: 1, row_length: 0, window: 4 }.validate().unwrap_err().to_string();
        assert!(message.contains("loader.grouping.row_length") && message.contains("at least 1"), "{message}");
    }
}

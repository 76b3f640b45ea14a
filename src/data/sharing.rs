//! Sharing of samples among ranks: each prepares its part of a window, all learn the lengths, and each gets its groups.

use super::SampleResult;
use super::grouping::{Grouping, Length};
use crate::Result;
use crate::distributed::World;

/// Which samples and groups belong to this rank.
///
/// Groups are dealt to the ranks in turn. Without sorting, a window is a group, and the rank that gets it prepares it. The
/// samples of larger windows are prepared in turn by all ranks; when their lengths have put them into groups, a rank
/// prepares those of its groups that another one has prepared once more.
#[derive(Debug)]
pub(super) struct Sharing {
    pub world: World,
    /// Samples of a window and of an epoch.
    window: usize,
    epoch: usize,
    /// Whether a window is one group.
    is_whole: bool,
    /// Position in the epoch of the next sample to queue, and the number of its window.
    position: usize,
    windows: usize,
    /// Number of groups so far.
    pub groups: usize,
}

impl Sharing {
    /// Sharing of samples from `position` of an epoch on, which is the start of a window.
    pub fn new(world: World, grouping: &Grouping, epoch: usize, position: usize) -> Self {
        let is_whole = matches!(grouping, Grouping::InOrder { .. });
        Self { world, window: grouping.window(), epoch, is_whole, position, windows: 0, groups: 0 }
    }

    /// Whether this rank prepares the next sample of the order.
    pub fn takes_next(&mut self) -> bool {
        if self.position == self.epoch {
            self.position = 0;
        }
        let within = self.position % self.window.max(1);
        self.windows += usize::from(within == 0);
        self.position += 1;
        let turn = if self.is_whole { self.windows - 1 } else { within };
        turn % self.world.size() == self.world.rank()
    }

    /// Whether this rank gets the group of a number.
    pub fn gets(&self, group: usize) -> bool {
        group % self.world.size() == self.world.rank()
    }

    /// Completes the findings of this rank about the samples of a window, `None` for those of others, by theirs.
    ///
    /// # Errors
    /// If another rank has failed.
    pub fn exchange<T: Length>(&self, own: Vec<Option<SampleResult<T>>>) -> Result<Vec<Finding<T>>> {
        let say = |found: &Option<SampleResult<T>>| match found {
            None => Said::Nothing,
            Some(Ok(item)) => Said::Length(item.length()),
            Some(Err(reason)) => Said::Bad(reason.to_string()),
        };
        let said: Vec<Vec<Said>> = self.world.gather_all(own.iter().map(say).collect())?;
        let finding = |(at, found): (usize, Option<SampleResult<T>>)| match found {
            Some(found) => Finding::Own(found),
            None => said.iter().find_map(|said| said.get(at)?.finding()).unwrap_or(Finding::Unknown),
        };
        Ok(own.into_iter().enumerate().map(finding).collect())
    }
}

/// What is known of a sample.
pub(super) enum Finding<T> {
    /// This rank has prepared it.
    Own(SampleResult<T>),
    /// Another rank has, and it has this length.
    Length(usize),
    /// Another rank has found it bad, for this reason.
    Bad(String),
    /// No rank has prepared it, which is a bug.
    Unknown,
}

/// What a rank tells the others of a sample.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
enum Said {
    Nothing,
    Length(usize),
    Bad(String),
}

impl Said {
    fn finding<T>(&self) -> Option<Finding<T>> {
        match self {
            Self::Nothing => None,
            Self::Length(length) => Some(Finding::Length(*length)),
            Self::Bad(reason) => Some(Finding::Bad(reason.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_is_prepared_by_one_rank() {
        for grouping in [Grouping::InOrder { rows: 2 }, Grouping::ByLength { rows: 2, window: 3 }] {
            let worlds = World::threads(3);
            let mut ranks: Vec<_> = worlds.into_iter().map(|world| Sharing::new(world, &grouping, 7, 0)).collect();
            for sample in 0..30 {
                let takers = ranks.iter_mut().map(|rank| rank.takes_next()).filter(|takes| *takes).count();
                assert_eq!(takers, 1, "{grouping:?} sample {sample}");
            }
        }
    }
}

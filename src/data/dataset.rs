//! The data set trait of the loader, and concatenation of data sets.

use std::sync::Arc;

use super::{BadSample, LeftOut, Record, SampleResult};

/// Most parts of a data set whose records are searched for fields that are not read.
const SEARCHED_PARTS: usize = 8;

/// A data set with random access from any thread.
pub trait Dataset: Send + Sync {
    /// Type of a sample.
    type Item;

    /// Number of samples, good and bad.
    fn len(&self) -> usize;

    /// Whether there are no samples.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sample number `index`, deterministically.
    ///
    /// # Errors
    /// [`BadSample`] if this sample cannot be used; other samples may be valid.
    fn get(&self, index: usize) -> SampleResult<Self::Item>;

    /// Name of sample number `index` for logs: its file and position.
    fn describe(&self, index: usize) -> String {
        format!("sample {index}")
    }

    /// Files of the source that are not read.
    fn left_out(&self) -> LeftOut {
        LeftOut::default()
    }

    /// Names of the fields of records that are not read, of the first records.
    fn unread_fields(&self) -> Vec<String> {
        Vec::new()
    }

    /// Indices of at most `count` samples spread over the data set.
    fn spread(&self, count: usize) -> Vec<usize> {
        let (len, count) = (self.len(), count.min(self.len()));
        self.cheapest((0..count).map(|i| (i as u128 * len as u128 / count as u128) as usize).collect())
    }

    /// As many indices as these, near them, of samples that are cheap to read together: by default the same. A source
    /// that reads blocks of samples at once returns several of each of a few blocks.
    fn cheapest(&self, indices: Vec<usize>) -> Vec<usize> {
        indices
    }
}

/// A data set of conversations.
pub type Records = Box<dyn Dataset<Item = Record>>;

impl<D: Dataset + ?Sized> Dataset for Box<D> {
    type Item = D::Item;

    fn len(&self) -> usize {
        (**self).len()
    }

    fn get(&self, index: usize) -> SampleResult<Self::Item> {
        (**self).get(index)
    }

    fn describe(&self, index: usize) -> String {
        (**self).describe(index)
    }

    fn left_out(&self) -> LeftOut {
        (**self).left_out()
    }

    fn unread_fields(&self) -> Vec<String> {
        (**self).unread_fields()
    }

    fn cheapest(&self, indices: Vec<usize>) -> Vec<usize> {
        (**self).cheapest(indices)
    }
}

impl<D: Dataset + ?Sized> Dataset for Arc<D> {
    type Item = D::Item;

    fn len(&self) -> usize {
        (**self).len()
    }

    fn get(&self, index: usize) -> SampleResult<Self::Item> {
        (**self).get(index)
    }

    fn describe(&self, index: usize) -> String {
        (**self).describe(index)
    }

    fn left_out(&self) -> LeftOut {
        (**self).left_out()
    }

    fn unread_fields(&self) -> Vec<String> {
        (**self).unread_fields()
    }

    fn cheapest(&self, indices: Vec<usize>) -> Vec<usize> {
        (**self).cheapest(indices)
    }
}

/// Concatenation of data sets.
pub struct Concat<D>(Vec<D>);

impl<D: Dataset> Concat<D> {
    /// Concatenates `parts` in order.
    pub fn new(parts: Vec<D>) -> Self {
        Self(parts)
    }

    /// The part that contains sample number `index`, and the index within the part.
    fn locate(&self, mut index: usize) -> Option<(&D, usize)> {
        for part in &self.0 {
            match index.checked_sub(part.len()) {
                None => return Some((part, index)),
                Some(rest) => index = rest,
            }
        }
        None
    }
}

impl<D: Dataset> Dataset for Concat<D> {
    type Item = D::Item;

    fn len(&self) -> usize {
        self.0.iter().map(Dataset::len).sum()
    }

    fn get(&self, index: usize) -> SampleResult<Self::Item> {
        let (part, index) = self.locate(index).ok_or_else(|| out_of_range(index, self.len()))?;
        part.get(index)
    }

    fn describe(&self, index: usize) -> String {
        self.locate(index).map_or_else(|| format!("sample {index}"), |(part, index)| part.describe(index))
    }

    fn left_out(&self) -> LeftOut {
        let mut all = LeftOut::default();
        self.0.iter().for_each(|part| all.merge(&part.left_out()));
        all
    }

    fn unread_fields(&self) -> Vec<String> {
        let mut all = Vec::new();
        self.0.iter().take(SEARCHED_PARTS).for_each(|part| all.extend(part.unread_fields()));
        all.sort();
        all.dedup();
        all
    }

    fn cheapest(&self, indices: Vec<usize>) -> Vec<usize> {
        let mut start = 0;
        let of_part = |part: &D| {
            let range = start..start + part.len();
            start = range.end;
            let inside = indices.iter().filter(|index| range.contains(index)).map(|index| index - range.start);
            let chosen = part.cheapest(inside.collect());
            chosen.into_iter().map(move |index| range.start + index)
        };
        self.0.iter().flat_map(of_part).collect()
    }
}

/// The error for an index beyond the data set.
pub(super) fn out_of_range(index: usize, len: usize) -> BadSample {
    BadSample::BrokenRecord(format!("index {index} is out of range for a data set of {len} samples"))
}

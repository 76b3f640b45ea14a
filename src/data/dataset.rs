//! What a data set is to the loader, and several of them as one.

use std::sync::Arc;

use super::{BadSample, Record, SampleResult};

/// Samples that can be had in any order and from any thread.
pub trait Dataset: Send + Sync {
    /// What a sample is.
    type Item;

    /// Number of samples, good and bad.
    fn len(&self) -> usize;

    /// Whether there is no sample.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sample number `index`; the same one every time.
    ///
    /// # Errors
    /// Why this sample cannot be used; the others may be fine.
    fn get(&self, index: usize) -> SampleResult<Self::Item>;

    /// A name for sample number `index`, for logs: file and place in it.
    fn describe(&self, index: usize) -> String {
        format!("sample {index}")
    }
}

/// A data set of any kind that yields conversations.
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
}

/// Several data sets, one behind the other.
pub struct Concat<D>(Vec<D>);

impl<D: Dataset> Concat<D> {
    /// All samples of the first, then all of the second, and so on.
    pub fn new(parts: Vec<D>) -> Self {
        Self(parts)
    }

    /// The part that holds sample number `index`, and the sample's number there.
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
}

/// There is no such sample.
pub(super) fn out_of_range(index: usize, len: usize) -> BadSample {
    BadSample::BrokenRecord(format!("number {index} of a data set of {len}: numbers start at 0"))
}

//! The data set trait of the loader, and concatenation of data sets.

use std::sync::Arc;

use super::{BadSample, Record, SampleResult};

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
}

/// The error for an index beyond the data set.
pub(super) fn out_of_range(index: usize, len: usize) -> BadSample {
    BadSample::BrokenRecord(format!("index {index} is out of range for a data set of {len} samples"))
}

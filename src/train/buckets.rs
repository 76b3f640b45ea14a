//! Buckets: the order and the portions in which ranks exchange gradients and parameters.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{DType, Tensor};

use crate::Result;
use crate::nn::tensor_data::{is_host_f32, with_slice, with_slice_mut};
use crate::optim::Shards;

/// Elements of a bucket, at most: large enough that the latency of a message does not matter, small enough that the first
/// buckets leave early in the backward pass. 32 MiB in f32.
pub(super) const BUCKET: usize = 8 << 20;

/// A range of the elements of a parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub name: String,
    pub range: Range<usize>,
    /// Number of elements of the whole parameter.
    pub elements: usize,
}

impl Piece {
    /// Whether it is the last one of the parameter.
    pub fn is_last(&self) -> bool {
        self.range.end == self.elements
    }
}

/// Pieces that are exchanged together, by the rank that owns them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Bucket {
    pieces: BTreeMap<usize, Vec<Piece>>,
}

impl Bucket {
    /// The pieces that a rank owns.
    pub fn of(&self, rank: usize) -> &[Piece] {
        self.pieces.get(&rank).map_or(&[], Vec::as_slice)
    }

    /// Number of elements that a rank owns.
    pub fn elements(&self, rank: usize) -> usize {
        self.of(rank).iter().map(|piece| piece.range.len()).sum()
    }

    /// Names of all parameters in the bucket.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.pieces.values().flatten().map(|piece| piece.name.as_str())
    }
}

/// Cuts parameters, given in the order in which they will be ready, into buckets of at most `limit` elements.
pub(super) fn buckets(parameters: &[(String, usize)], shards: &Shards, limit: usize) -> Vec<Bucket> {
    let (mut all, mut bucket, mut filled) = (Vec::new(), Bucket::default(), 0);
    for (name, elements) in parameters {
        let mut start = 0;
        while start < *elements {
            let end = (*elements).min(start + limit - filled);
            let piece = Piece { name: name.clone(), range: start..end, elements: *elements };
            bucket.pieces.entry(shards.owner(name)).or_default().push(piece);
            (filled, start) = (filled + end - start, end);
            if filled == limit {
                all.push(std::mem::take(&mut bucket));
                filled = 0;
            }
        }
    }
    all.extend((filled > 0).then_some(bucket));
    all
}

/// Appends the elements of a range of a tensor.
pub(super) fn append(values: &mut Vec<f32>, tensor: &Tensor, range: &Range<usize>) -> Result<()> {
    if is_host_f32(tensor) {
        return Ok(with_slice(tensor, |all| values.extend_from_slice(&all[range.clone()]))?);
    }
    let piece = tensor.detach().flatten_all()?.narrow(0, range.start, range.len())?.to_dtype(DType::F32)?;
    values.extend(piece.to_vec1::<f32>()?);
    Ok(())
}

/// Overwrites a range of the elements of a tensor, in place.
pub(super) fn overwrite(tensor: &Tensor, range: &Range<usize>, values: &[f32]) -> Result<()> {
    if is_host_f32(tensor) {
        return Ok(with_slice_mut(tensor, |all| all[range.clone()].copy_from_slice(values))?);
    }
    let values = Tensor::from_slice(values, values.len(), tensor.device())?.to_dtype(tensor.dtype())?;
    Ok(tensor.flatten_all()?.slice_set(&values, 0, range.start)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_every_element_once_in_order() {
        let parameters = [("a", 5), ("b", 0), ("c", 12), ("d", 1)].map(|(name, count)| (name.to_string(), count));
        let shards = Shards::new(parameters.clone(), 2);
        let buckets = buckets(&parameters, &shards, 4);
        assert_eq!(buckets.len(), 5);
        for (name, count) in &parameters {
            let pieces =
                buckets.iter().flat_map(|bucket| bucket.of(shards.owner(name))).filter(|piece| piece.name == *name);
            let covered: Vec<usize> = pieces.clone().flat_map(|piece| piece.range.clone()).collect();
            assert_eq!(covered, (0..*count).collect::<Vec<_>>(), "{name}");
            assert_eq!(pieces.filter(|piece| piece.is_last()).count(), usize::from(*count > 0));
        }
        assert!(buckets.iter().all(|bucket| bucket.elements(0) + bucket.elements(1) <= 4));
    }
}

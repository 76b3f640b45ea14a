//! Buckets: the order and the portions in which ranks exchange gradients and parameters.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{DType, Device, Tensor};

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

/// Pieces with their tensors; a missing one stands for zeros.
pub(super) type Pieces<'a> = [(&'a Piece, Option<&'a Tensor>)];

/// The `flags`, then the elements of pieces, as an f32 tensor of one dimension on `device`.
pub(super) fn packed(device: &Device, flags: Vec<f32>, pieces: &Pieces) -> Result<Tensor> {
    if device.is_cpu() { packed_on_host(flags, pieces) } else { packed_on_device(device, flags, pieces) }
}

fn packed_on_host(flags: Vec<f32>, pieces: &Pieces) -> Result<Tensor> {
    let mut values = flags;
    values.reserve(pieces.iter().map(|(piece, _)| piece.range.len()).sum());
    for (piece, tensor) in pieces {
        match tensor {
            Some(tensor) => append(&mut values, tensor, &piece.range)?,
            None => values.resize(values.len() + piece.range.len(), 0.0),
        }
    }
    let count = values.len();
    Ok(Tensor::from_vec(values, count, &Device::Cpu)?)
}

/// As [`packed_on_host`], without a copy through the host.
fn packed_on_device(device: &Device, flags: Vec<f32>, pieces: &Pieces) -> Result<Tensor> {
    let count = flags.len();
    let mut parts = vec![Tensor::from_vec(flags, count, device)?];
    for (piece, tensor) in pieces {
        parts.push(match tensor {
            Some(tensor) => elements(tensor, &piece.range)?,
            None => Tensor::zeros(piece.range.len(), DType::F32, device)?,
        });
    }
    parts.retain(|part| part.elem_count() > 0);
    if parts.is_empty() { Ok(Tensor::zeros(0, DType::F32, device)?) } else { Ok(Tensor::cat(&parts, 0)?) }
}

/// A range of the elements of a tensor, in f32.
fn elements(tensor: &Tensor, range: &Range<usize>) -> Result<Tensor> {
    Ok(tensor.detach().flatten_all()?.narrow(0, range.start, range.len())?.to_dtype(DType::F32)?)
}

/// Appends the elements of a range of a tensor.
fn append(values: &mut Vec<f32>, tensor: &Tensor, range: &Range<usize>) -> Result<()> {
    if is_host_f32(tensor) {
        return Ok(with_slice(tensor, |all| values.extend_from_slice(&all[range.clone()]))?);
    }
    values.extend(elements(tensor, range)?.to_vec1::<f32>()?);
    Ok(())
}

/// Overwrites a range of the elements of a tensor, in place.
pub(super) fn overwrite(tensor: &Tensor, range: &Range<usize>, values: &Tensor) -> Result<()> {
    if is_host_f32(tensor) && is_host_f32(values) {
        let copy = |all: &mut [f32]| with_slice(values, |values| all[range.clone()].copy_from_slice(values));
        return Ok(with_slice_mut(tensor, copy)??);
    }
    let values = values.to_device(tensor.device())?.to_dtype(tensor.dtype())?;
    Ok(tensor.flatten_all()?.slice_set(&values, 0, range.start)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_packed_alike_on_host_and_device() -> Result<()> {
        let tensor = Tensor::arange(0f32, 12.0, &Device::Cpu)?.reshape((3, 4))?;
        let whole = Piece { name: "a".into(), range: 0..12, elements: 12 };
        let part = Piece { range: 5..8, ..whole.clone() };
        let transposed = tensor.t()?;
        let bf16 = tensor.to_dtype(DType::BF16)?;
        let pieces = [(&part, Some(&tensor)), (&part, None), (&whole, Some(&transposed)), (&part, Some(&bf16))];
        for (flags, pieces) in [(vec![1.0, 0.0, 1.0, 1.0], &pieces[..]), (vec![], &pieces[..1]), (vec![], &[])] {
            let both = [packed_on_host(flags.clone(), pieces)?, packed_on_device(&Device::Cpu, flags, pieces)?];
            let [host, device] = both.map(|packed| packed.to_vec1::<f32>());
            assert_eq!(host?, device?);
        }
        let packed = packed(&Device::Cpu, vec![1.0], &pieces[..2])?;
        assert_eq!(packed.to_vec1::<f32>()?, [1.0, 5.0, 6.0, 7.0, 0.0, 0.0, 0.0]);
        let target = Tensor::zeros((3, 4), DType::F32, &Device::Cpu)?;
        overwrite(&target, &(5..8), &packed.narrow(0, 1, 3)?)?;
        assert_eq!(target.flatten_all()?.to_vec1::<f32>()?, [0., 0., 0., 0., 0., 5., 6., 7., 0., 0., 0., 0.]);
        Ok(())
    }

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

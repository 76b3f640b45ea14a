//! KV cache of one layer of one sequence: segments shared with other sequences, then a tail of its own.

use candle_core::{DType, Device, Tensor};

use super::LayerCache;
use super::ops::{KvSegment, cast_for_cache};
use crate::{Error, Result};

/// KV cache of one layer of one sequence.
///
/// Segments are immutable and may be shared with other sequences; the tail grows, with memory allocated on demand.
#[derive(Debug)]
pub struct SequenceLayer {
    shared: Vec<KvSegment>,
    /// Number of positions in the shared segments.
    shared_len: usize,
    tail: LayerCache,
    /// Capacity in positions, kv_heads and head_dim.
    shape: (usize, usize, usize),
}

impl SequenceLayer {
    /// Creates an empty cache for (capacity, kv_heads, head_dim), to whose `dtype` keys and values are cast.
    ///
    /// # Errors
    /// Errors of candle only.
    pub fn new(shape: (usize, usize, usize), dtype: DType, device: &Device) -> Result<Self> {
        Ok(Self { shared: vec![], shared_len: 0, tail: tail(shape, dtype, device)?, shape })
    }

    /// Number of cached positions.
    pub fn len(&self) -> usize {
        self.shared_len + self.tail.len()
    }

    /// Whether no position is cached.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends keys and values (1, new, kv_heads, head_dim) to the tail.
    ///
    /// # Errors
    /// [`Error::Generation`] if the capacity is exceeded.
    pub fn append(&mut self, keys: &Tensor, values: &Tensor) -> Result<()> {
        self.tail.write(keys, values)
    }

    /// Appends a shared segment.
    ///
    /// # Errors
    /// [`Error::Generation`] if the tail is not empty, or the capacity is exceeded.
    pub fn push(&mut self, segment: KvSegment) -> Result<()> {
        let new = segment.keys.dim(1)?;
        if !self.tail.is_empty() || self.len() + new > self.shape.0 {
            return Err(Error::generation(format!(
                "a chunk of {new} positions does not fit a KV cache with {} of {} positions, {} of them not frozen",
                self.len(),
                self.shape.0,
                self.tail.len()
            )));
        }
        self.shared_len += new;
        self.tail = self.empty_tail(segment.keys.device())?;
        self.shared.push(segment);
        Ok(())
    }

    /// Makes a shared segment of the tail and returns it. Keys and values are copied only if their buffers have room
    /// for more.
    ///
    /// # Errors
    /// Errors of candle only.
    pub fn freeze(&mut self, device: &Device) -> Result<KvSegment> {
        self.shared_len += self.tail.len();
        let empty = self.empty_tail(device)?;
        let segment = std::mem::replace(&mut self.tail, empty).into_segment()?;
        self.shared.push(segment.clone());
        Ok(segment)
    }

    /// Keys and values of all positions so far.
    ///
    /// # Errors
    /// Errors of candle only.
    pub fn held(&self) -> Result<Vec<KvSegment>> {
        let tail = if self.tail.is_empty() { None } else { Some(self.tail.held()?) };
        Ok(self.shared.iter().cloned().chain(tail).collect())
    }

    /// Drops the positions of the tail from position `len` of the sequence on.
    pub fn truncate(&mut self, len: usize) {
        self.tail.truncate(len.saturating_sub(self.shared_len));
    }

    /// An empty tail for the positions that are not in shared segments.
    fn empty_tail(&self, device: &Device) -> Result<LayerCache> {
        let (capacity, heads, head_dim) = self.shape;
        tail((capacity.saturating_sub(self.shared_len), heads, head_dim), self.tail.dtype(), device)
    }
}

/// A tail without memory: its first append allocates just what it needs, so that a chunk can be frozen without a copy.
fn tail((capacity, heads, head_dim): (usize, usize, usize), dtype: DType, device: &Device) -> Result<LayerCache> {
    LayerCache::with_room((1, capacity, heads, head_dim), 0, dtype, device)
}

/// Where attention keeps the keys and values of a pass.
#[derive(Debug)]
pub enum KvStore<'a> {
    /// Nowhere: each row attends to the pass alone.
    None,
    /// In a cache of all rows, which have equal lengths.
    Cache(&'a mut LayerCache),
    /// In a cache of its own for each row.
    Sequences(Vec<&'a mut SequenceLayer>),
}

/// The keys and values of a pass together with those that a cache held before.
#[derive(Debug, Clone)]
pub enum HeldKv {
    /// Keys and values of all rows, each (batch, positions, kv_heads, head_dim).
    Batch(Tensor, Tensor),
    /// Consecutive segments of each row.
    Rows(Vec<Vec<KvSegment>>),
}

impl KvStore<'_> {
    /// Appends keys and values (batch, new, kv_heads, head_dim) and returns all that are now held.
    ///
    /// # Errors
    /// [`Error::Generation`] if a capacity is exceeded, and [`Error::Batch`] for another number of rows.
    pub fn append(self, keys: Tensor, values: Tensor) -> Result<HeldKv> {
        match self {
            Self::None => Ok(HeldKv::Batch(keys, values)),
            Self::Cache(cache) => cache.append(&keys, &values).map(|(keys, values)| HeldKv::Batch(keys, values)),
            Self::Sequences(rows) => append_rows(rows, &keys, &values),
        }
    }
}

fn append_rows(rows: Vec<&mut SequenceLayer>, keys: &Tensor, values: &Tensor) -> Result<HeldKv> {
    if rows.len() != keys.dim(0)? {
        return Err(Error::batch(format!("has {} rows for the KV caches of {} sequences", keys.dim(0)?, rows.len())));
    }
    let dtype = rows.first().map_or(keys.dtype(), |row| row.tail.dtype());
    let (keys, values) = (cast_for_cache(keys, dtype)?, cast_for_cache(values, dtype)?);
    let append = |(i, row): (usize, &mut SequenceLayer)| {
        row.append(&keys.narrow(0, i, 1)?, &values.narrow(0, i, 1)?)?;
        row.held()
    };
    Ok(HeldKv::Rows(rows.into_iter().enumerate().map(append).collect::<Result<_>>()?))
}

#[cfg(test)]
mod tests {
    use super::super::ops::testing::{max_diff, values};
    use super::super::tensor_data::with_slice;
    use super::*;

    fn layer(capacity: usize) -> SequenceLayer {
        SequenceLayer::new((capacity, 2, 4), DType::F32, &Device::Cpu).unwrap()
    }

    /// The address of the elements of keys (1, positions, kv_heads, head_dim), which lie in the order of the heads.
    fn address(segment: &KvSegment) -> *const f32 {
        with_slice(&segment.keys.transpose(1, 2).unwrap(), |keys| keys.as_ptr()).unwrap()
    }

    #[test]
    fn a_chunk_is_moved_when_frozen_and_shared_when_pushed() {
        let mut first = layer(100);
        let chunk = values(&[1, 20, 2, 4], 0.1);
        first.append(&chunk, &chunk).unwrap();
        let before = with_slice(&first.tail.held().unwrap().keys.transpose(1, 2).unwrap(), |k| k.as_ptr()).unwrap();
        let segment = first.freeze(&Device::Cpu).unwrap();
        assert_eq!(address(&segment), before);
        let mut second = layer(100);
        second.push(segment).unwrap();
        assert_eq!((address(&second.held().unwrap()[0]), second.len()), (before, 20));
        assert_eq!(max_diff(&second.held().unwrap()[0].keys, &chunk), 0.0);
    }

    #[test]
    fn a_tail_with_room_is_copied_when_frozen_so_that_no_unused_memory_is_kept() {
        let mut layer = layer(100);
        let chunk = values(&[1, 21, 2, 4], 0.1);
        for (start, len) in [(0, 20), (20, 1)] {
            let part = chunk.narrow(1, start, len).unwrap();
            layer.append(&part, &part).unwrap();
        }
        let segment = layer.freeze(&Device::Cpu).unwrap();
        assert_eq!(max_diff(&segment.keys, &chunk), 0.0);
        let (storage, _) = segment.keys.storage_and_layout();
        let candle_core::Storage::Cpu(storage) = &*storage else { panic!("a tensor on the CPU") };
        assert_eq!(storage.as_slice::<f32>().unwrap().len(), chunk.elem_count());
    }

    #[test]
    fn positions_beyond_the_capacity_are_refused() {
        let mut layer = layer(30);
        let chunk = values(&[1, 20, 2, 4], 0.1);
        layer.append(&chunk, &chunk).unwrap();
        let segment = layer.freeze(&Device::Cpu).unwrap();
        assert!(layer.push(segment).is_err());
        assert!(layer.append(&chunk, &chunk).unwrap_err().to_string().contains("capacity"));
        let part = chunk.narrow(1, 0, 10).unwrap();
        layer.append(&part, &part).unwrap();
        assert_eq!(layer.held().unwrap().len(), 2);
        layer.truncate(20);
        assert_eq!((layer.len(), layer.held().unwrap().len()), (20, 1));
    }
}

//! KV cache of a layer: keys and values of the tokens so far, in buffers that grow by doubling.

use candle_core::{DType, Device, Tensor};

use super::ops::{KvSegment, cast_for_cache};
use crate::{Error, Result};

/// Initial capacity of an empty cache, in positions.
const FIRST_ROOM: usize = 1024;

/// KV cache of one layer: keys and values, each (batch, kv_heads, allocated positions, head_dim), so that the keys of a
/// head are consecutive.
///
/// Buffers start small and double when they are full, up to the capacity: an answer that stays short of its limit takes
/// no memory for the rest.
#[derive(Debug)]
pub struct LayerCache {
    keys: Tensor,
    values: Tensor,
    len: usize,
    capacity: usize,
}

impl LayerCache {
    /// Creates an empty cache for (batch, capacity, kv_heads, head_dim), to whose `dtype` keys and values are cast.
    ///
    /// # Errors
    /// Errors of candle, if there is not enough memory on the device.
    pub fn new(shape: (usize, usize, usize, usize), dtype: DType, device: &Device) -> Result<Self> {
        Self::with_room(shape, FIRST_ROOM, dtype, device)
    }

    /// [`Self::new`] with buffers of `room` positions, or the capacity if that is less.
    ///
    /// # Errors
    /// The errors of [`Self::new`].
    pub fn with_room(shape: (usize, usize, usize, usize), room: usize, dtype: DType, device: &Device) -> Result<Self> {
        let (batch, capacity, heads, head_dim) = shape;
        let empty = || Tensor::zeros((batch, heads, capacity.min(room), head_dim), dtype, device);
        Ok(Self { keys: empty()?, values: empty()?, len: 0, capacity })
    }

    /// Dtype of keys and values.
    pub fn dtype(&self) -> DType {
        self.keys.dtype()
    }

    /// Number of cached positions.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position is cached.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends keys and values (batch, new, kv_heads, head_dim) and returns views of all keys and values so far.
    ///
    /// # Errors
    /// [`Error::Generation`] if the capacity is exceeded.
    pub fn append(&mut self, keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)> {
        self.write(keys, values)?;
        let KvSegment { keys, values } = self.held()?;
        Ok((keys, values))
    }

    /// Views of all keys and values so far, (batch, positions, kv_heads, head_dim).
    ///
    /// # Errors
    /// Errors of candle only.
    pub(super) fn held(&self) -> Result<KvSegment> {
        let held = |buffer: &Tensor| buffer.narrow(2, 0, self.len)?.transpose(1, 2);
        Ok(KvSegment { keys: held(&self.keys)?, values: held(&self.values)? })
    }

    /// All keys and values; moved if they fill their buffers, else copied, so that no unused memory is kept.
    ///
    /// # Errors
    /// Errors of candle, if there is not enough memory on the device.
    pub(super) fn into_segment(self) -> Result<KvSegment> {
        let exact = |buffer: &Tensor| buffer.narrow(2, 0, self.len)?.contiguous()?.transpose(1, 2);
        Ok(KvSegment { keys: exact(&self.keys)?, values: exact(&self.values)? })
    }

    /// Appends keys and values (batch, new, kv_heads, head_dim).
    ///
    /// # Errors
    /// [`Error::Generation`] if the capacity is exceeded.
    pub(super) fn write(&mut self, keys: &Tensor, values: &Tensor) -> Result<()> {
        let new = keys.dim(1)?;
        self.reserve(self.len + new)?;
        for (buffer, new) in [(&self.keys, keys), (&self.values, values)] {
            buffer.slice_set(&cast_for_cache(new, buffer.dtype())?.transpose(1, 2)?.contiguous()?, 2, self.len)?;
        }
        self.len += new;
        Ok(())
    }

    /// Drops all positions from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Fills the rows from `first` on with those of another cache, so that they end at position `len`, which becomes the
    /// length of this cache. Positions before them keep what they had, which no query may attend to.
    ///
    /// # Errors
    /// [`Error::Generation`] if the capacity is exceeded, and errors of candle, if shapes do not fit.
    pub fn set_rows(&mut self, first: usize, other: &Self, len: usize) -> Result<()> {
        self.reserve(len)?;
        for (buffer, other_buffer) in [(&self.keys, &other.keys), (&self.values, &other.values)] {
            let rows = other_buffer.narrow(2, 0, other.len)?.force_contiguous()?;
            buffer.narrow(0, first, rows.dim(0)?)?.slice_set(&rows, 2, len - other.len)?;
        }
        self.len = len;
        Ok(())
    }

    /// Makes room for `len` positions in all.
    fn reserve(&mut self, len: usize) -> Result<()> {
        if len > self.capacity {
            return Err(Error::generation(format!(
                "the cache holds {} of at most {} positions and cannot take {} more: make it with a larger capacity",
                self.len,
                self.capacity,
                len - self.len
            )));
        }
        let room = self.keys.dim(2)?;
        if len > room {
            let room = len.max(2 * room).min(self.capacity);
            self.keys = enlarged(&self.keys, self.len, room)?;
            self.values = enlarged(&self.values, self.len, room)?;
        }
        Ok(())
    }

    /// Removes a row; the last row takes its place. No memory is freed.
    ///
    /// # Errors
    /// Errors of candle, if there is no such row.
    pub fn swap_remove_row(&mut self, row: usize) -> Result<()> {
        for buffer in [&mut self.keys, &mut self.values] {
            let last = buffer.dim(0)?.saturating_sub(1);
            if row != last && self.len > 0 {
                let moved = buffer.narrow(0, last, 1)?.narrow(2, 0, self.len)?.force_contiguous()?;
                buffer.narrow(0, row, 1)?.slice_set(&moved, 2, 0)?;
            }
            *buffer = buffer.narrow(0, 0, last)?;
        }
        Ok(())
    }

    /// Copies the cache into new buffers; candle's `clone` would share them, and an append would overwrite the
    /// original's.
    ///
    /// # Errors
    /// Errors of candle, if there is not enough memory on the device.
    pub fn deep_clone(&self) -> Result<Self> {
        Ok(Self { keys: self.keys.copy()?, values: self.values.copy()?, ..*self })
    }
}

/// A buffer with `room` positions, the first `len` of them copied.
fn enlarged(buffer: &Tensor, len: usize, room: usize) -> Result<Tensor> {
    let (batch, heads, _, head_dim) = buffer.dims4()?;
    let larger = Tensor::zeros((batch, heads, room, head_dim), buffer.dtype(), buffer.device())?;
    if len > 0 {
        larger.slice_set(&buffer.narrow(2, 0, len)?.contiguous()?, 2, 0)?;
    }
    Ok(larger)
}

#[cfg(test)]
mod tests {
    use super::super::ops::testing::{max_diff, values};
    use super::*;

    #[test]
    fn growing_keeps_positions_and_ends_at_the_capacity() {
        let capacity = FIRST_ROOM + 100;
        let mut cache = LayerCache::new((2, capacity, 1, 4), DType::F32, &Device::Cpu).unwrap();
        let all = values(&[2, capacity, 1, 4], 0.3);
        for (start, len) in [(0, FIRST_ROOM - 1), (FIRST_ROOM - 1, 90), (FIRST_ROOM + 89, 11)] {
            let piece = all.narrow(1, start, len).unwrap();
            let (keys, _) = cache.append(&piece, &piece).unwrap();
            assert_eq!(max_diff(&keys, &all.narrow(1, 0, start + len).unwrap()), 0.0);
        }
        let one = all.narrow(1, 0, 1).unwrap();
        assert!(cache.append(&one, &one).unwrap_err().to_string().contains("capacity"));
    }

    #[test]
    fn the_last_row_takes_the_place_of_a_removed_one() {
        // With buffers that are full, and with room to spare.
        for len in [FIRST_ROOM, 90] {
            let mut cache = LayerCache::new((3, 2 * FIRST_ROOM, 2, 4), DType::F32, &Device::Cpu).unwrap();
            let all = values(&[3, len, 2, 4], 0.3);
            cache.append(&all, &all).unwrap();
            cache.swap_remove_row(0).unwrap();
            let new = values(&[2, 1, 2, 4], 0.7);
            let (keys, stored) = cache.append(&new, &new).unwrap();
            let rows = [2, 1].map(|row| all.narrow(0, row, 1).unwrap());
            let expected = Tensor::cat(&[&Tensor::cat(&rows, 0).unwrap(), &new], 1).unwrap();
            assert_eq!((max_diff(&keys, &expected), max_diff(&stored, &expected)), (0.0, 0.0));
            cache.swap_remove_row(1).unwrap();
            let (keys, _) = cache.append(&new.narrow(0, 0, 1).unwrap(), &new.narrow(0, 0, 1).unwrap()).unwrap();
            assert_eq!(max_diff(&keys.narrow(1, 0, len + 1).unwrap(), &expected.narrow(0, 0, 1).unwrap()), 0.0);
            assert!(cache.swap_remove_row(1).is_err());
        }
    }
}

//! Keys and values of the tokens so far, in buffers allocated once.

use candle_core::{DType, Device, Tensor};

use crate::{Error, Result};

/// The cache of one layer: keys and values, each (batch, capacity, kv_heads, head_dim).
#[derive(Debug)]
pub struct LayerCache {
    keys: Tensor,
    values: Tensor,
    len: usize,
}

impl LayerCache {
    /// An empty cache for `capacity` positions.
    ///
    /// # Errors
    /// From candle, if there is not enough memory on the device.
    pub fn new(shape: (usize, usize, usize, usize), dtype: DType, device: &Device) -> Result<Self> {
        Ok(Self { keys: Tensor::zeros(shape, dtype, device)?, values: Tensor::zeros(shape, dtype, device)?, len: 0 })
    }

    /// Number of positions held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends keys and values (batch, new, kv_heads, head_dim) and returns views of all so far.
    ///
    /// # Errors
    /// [`Error::Generation`] if the capacity does not suffice.
    pub fn append(&mut self, keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)> {
        let (new, capacity) = (keys.dim(1)?, self.keys.dim(1)?);
        if self.len + new > capacity {
            return Err(Error::Generation(format!(
                "the cache holds {} of at most {capacity} positions and cannot take {new} more: make it with a larger \
                 capacity",
                self.len
            )));
        }
        self.keys.slice_set(&keys.contiguous()?, 1, self.len)?;
        self.values.slice_set(&values.contiguous()?, 1, self.len)?;
        self.len += new;
        Ok((self.keys.narrow(1, 0, self.len)?, self.values.narrow(1, 0, self.len)?))
    }

    /// Forgets all positions from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// A cache with buffers of its own; candle's `clone` would share them, and an append overwrite the original's.
    ///
    /// # Errors
    /// From candle, if there is not enough memory on the device.
    pub fn deep_clone(&self) -> Result<Self> {
        Ok(Self { keys: self.keys.copy()?, values: self.values.copy()?, len: self.len })
    }
}

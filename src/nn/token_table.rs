//! Table of token embeddings: in memory, or looked up in a mapped file.

use candle_core::quantized::GgmlDType;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::{DType, Device, Tensor};

use crate::files::MappedBytes;
use crate::{Error, Result};

/// Rows of a matrix in a mapped GGUF file, in the order of the file.
#[derive(Debug, Clone)]
pub struct MappedRows {
    bytes: MappedBytes,
    dtype: GgmlDType,
    rows: usize,
    /// Values of a row, with padding.
    width: usize,
}

impl MappedRows {
    /// Rows of `width` values; `None` unless the bytes are exactly these.
    pub(crate) fn new(bytes: MappedBytes, dtype: GgmlDType, (rows, width): (usize, usize)) -> Option<Self> {
        let whole = width.is_multiple_of(dtype.block_size()) && width > 0;
        let row_bytes = (width / dtype.block_size()).checked_mul(dtype.type_size())?;
        (whole && rows.checked_mul(row_bytes) == Some(bytes.len())).then_some(Self { bytes, dtype, rows, width })
    }

    /// Numbers of rows and of the values of each.
    pub fn dims2(&self) -> (usize, usize) {
        (self.rows, self.width)
    }

    /// The rows with these numbers in f32, (ids, width).
    ///
    /// # Errors
    /// [`Error::Batch`] for a row that is not there.
    pub fn lookup(&self, ids: &[u32]) -> Result<Tensor> {
        let row_bytes = self.width / self.dtype.block_size() * self.dtype.type_size();
        let mut rows = Vec::with_capacity(ids.len() * row_bytes);
        for id in ids {
            let row = self.bytes.chunks_exact(row_bytes).nth(*id as usize);
            rows.extend_from_slice(row.ok_or_else(|| outside(*id, self.rows))?);
        }
        let shape = vec![ids.len(), self.width];
        Ok(qtensor_from_ggml(self.dtype, &rows, shape, &Device::Cpu)?.dequantize(&Device::Cpu)?)
    }
}

/// The error for an id beyond a table.
fn outside(id: u32, rows: usize) -> Error {
    Error::batch(format!("token id {id} is outside the model's table of {rows}"))
}

/// Table of token embeddings, (vocab_size, width).
#[derive(Debug, Clone)]
pub enum TokenTable {
    /// A tensor.
    Tensor(Tensor),
    /// Rows that are read when they are looked up, on the CPU; no gradient reaches them.
    Mapped(MappedRows),
}

impl TokenTable {
    /// The table as a tensor.
    ///
    /// # Errors
    /// [`Error::Weights`] if it is not in memory.
    pub fn tensor(&self) -> Result<&Tensor> {
        match self {
            Self::Tensor(tensor) => Ok(tensor),
            Self::Mapped(_) => Err(Error::weights(
                "the embedding table is read from its file row by row, and this needs it in memory: load the model from \
                 safetensors",
            )),
        }
    }

    /// The device of the embeddings.
    pub fn device(&self) -> &Device {
        match self {
            Self::Tensor(tensor) => tensor.device(),
            Self::Mapped(_) => &Device::Cpu,
        }
    }

    /// Dtype of the embeddings.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Tensor(tensor) => tensor.dtype(),
            Self::Mapped(_) => DType::F32,
        }
    }

    /// Embeddings (count, width) of ids (count), u32.
    ///
    /// # Errors
    /// [`Error::Batch`] for an id outside the table; on a GPU it is candle's error.
    pub fn lookup(&self, ids: &Tensor) -> Result<Tensor> {
        match self {
            // Ids on a GPU are not checked: that would cost a transfer, and the processor has checked every id.
            Self::Tensor(table) if !ids.device().is_cpu() => Ok(table.index_select(ids, 0)?),
            Self::Tensor(table) => {
                let rows = table.dim(0)?;
                match ids.to_vec1::<u32>()?.into_iter().find(|&id| id as usize >= rows) {
                    Some(id) => Err(outside(id, rows)),
                    None => Ok(table.index_select(ids, 0)?),
                }
            }
            Self::Mapped(rows) => rows.lookup(&ids.to_vec1::<u32>()?),
        }
    }
}

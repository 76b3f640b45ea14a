//! The form in which a tensor of a source is written to a GGUF file.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Tensor};

use super::write::{GgufTensor, WriteBytes};
use crate::Result;
use crate::nn::interleaved::interleave;
use crate::nn::ops::{quantize_blocks, quantize_padded};
use crate::options::Quantization;
use crate::weights::{TensorSource, for_each_unpadded};

/// The form in which a tensor is written.
#[derive(Debug, Clone, Copy)]
pub(crate) enum StoredAs {
    /// Floats.
    Plain(GgmlDType),
    /// Quantised rows of a matrix, in the order that all readers of GGUF know. Rows must be whole blocks.
    Blocks(Quantization),
    /// Quantised rows of a matrix, [interleaved](crate::nn::interleaved).
    Interleaved(Quantization),
}

impl StoredAs {
    /// The tensor `name` of a source in this form, under the same name. `shape` is that of the model.
    pub(crate) fn tensor<'a>(self, source: &'a dyn TensorSource, name: &'a str, shape: &'a [usize]) -> GgufTensor<'a> {
        let mut padded = shape.to_vec();
        if let (Self::Interleaved(kind), [_, width]) = (self, padded.as_mut_slice()) {
            *width = kind.padded(*width);
        }
        let (dtype, is_interleaved) = match self {
            Self::Plain(dtype) => (dtype, false),
            Self::Blocks(kind) => (kind.ggml_dtype(), false),
            Self::Interleaved(kind) => (kind.ggml_dtype(), true),
        };
        let parts = move |write: &mut WriteBytes<'_>| {
            for_each_unpadded(source, name, shape, DType::F32, &mut |part| write(&self.bytes(&part)?))
        };
        GgufTensor { name: name.into(), shape: padded, dtype, is_interleaved, parts: Box::new(parts) }
    }

    /// The bytes of some rows.
    fn bytes(self, rows: &Tensor) -> Result<Vec<u8>> {
        Ok(match self {
            Self::Plain(dtype) => QTensor::quantize(rows, dtype)?.data()?.into_owned(),
            Self::Blocks(kind) => quantize_padded(rows, kind, rows.dim(1)?)?.data()?.into_owned(),
            Self::Interleaved(kind) => {
                let blocks = quantize_blocks(rows, kind)?;
                interleave(kind, &blocks.data()?, blocks.shape().dims2()?.1)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::Device;

    use super::super::{GgufFile, save_gguf};
    use super::*;
    use crate::nn::ops::testing::values;

    struct One(Tensor);

    impl TensorSource for One {
        fn path(&self) -> &Path {
            Path::new("one")
        }
        fn tensor_names(&self) -> Vec<String> {
            vec!["w".into()]
        }
        fn tensor_shape(&self, _: &str) -> Option<&[usize]> {
            Some(self.0.dims())
        }
        fn load_tensor(&self, _: &str, dtype: DType, _: &Device) -> Result<Tensor> {
            Ok(self.0.to_dtype(dtype)?)
        }
    }

    fn saved(stored: StoredAs, weight: &One, path: &Path) -> GgufFile {
        save_gguf(path, &[], &[stored.tensor(weight, "w", weight.0.dims())]).unwrap();
        GgufFile::open(path).unwrap()
    }

    fn floats(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn interleaved_files_hold_the_blocks_of_files_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let [plain, interleaved] = ["plain.gguf", "interleaved.gguf"].map(|name| folder.path().join(name));
        for (kind, rows) in Quantization::ALL.into_iter().flat_map(|kind| [1, 16, 37].map(|rows| (kind, rows))) {
            let weight = One(values(&[rows, 512], 0.2));
            let plain = saved(StoredAs::Blocks(kind), &weight, &plain);
            let interleaved = saved(StoredAs::Interleaved(kind), &weight, &interleaved);
            let load = |file: &GgufFile| floats(&file.load_tensor("w", DType::F32, &Device::Cpu).unwrap());
            assert_eq!(load(&plain), load(&interleaved), "{kind} {rows}");
            for file in [&plain, &interleaved] {
                file.check_finite("w").unwrap();
                let quantized = file.load_quantized("w", 512).unwrap().unwrap();
                assert_eq!(floats(&quantized.dequantize().unwrap()), load(&plain), "{kind} {rows}");
                let mut parts = Vec::new();
                let mut collect = |part: Tensor| {
                    parts.extend(floats(&part));
                    Ok(())
                };
                file.for_each_part("w", DType::F32, 20, &mut collect).unwrap();
                assert_eq!(parts, load(&plain), "{kind} {rows}");
            }
        }
    }

    #[test]
    fn tables_are_looked_up_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let weight = One(values(&[9, 64], 0.2));
        let file = saved(StoredAs::Plain(GgmlDType::F16), &weight, &folder.path().join("table.gguf"));
        let rows = file.mapped_rows("w").unwrap();
        assert_eq!(rows.dims2(), (9, 64));
        let found = rows.lookup(&[8, 0, 8]).unwrap();
        let halves = weight.0.to_dtype(DType::F16).unwrap().to_dtype(DType::F32).unwrap();
        let expected = halves.index_select(&Tensor::new(&[8u32, 0, 8], &Device::Cpu).unwrap(), 0).unwrap();
        assert_eq!(floats(&found), floats(&expected));
        assert!(rows.lookup(&[9]).unwrap_err().to_string().contains("token id 9 is outside the model's table of 9"));
    }

    #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
    #[test]
    fn interleaved_weights_are_used_where_they_are_mapped() {
        use crate::nn::interleaved::InterleavedWeight;

        let folder = tempfile::tempdir().unwrap();
        let weight = One(values(&[20, 256], 0.2));
        let file = saved(StoredAs::Interleaved(Quantization::Q4K), &weight, &folder.path().join("w.gguf"));
        let (_, bytes) = file.entry("w").unwrap();
        let place = bytes.as_ptr();
        let weight = InterleavedWeight::mapped(Quantization::Q4K, bytes.clone(), (20, 256)).unwrap();
        assert_eq!((weight.as_ptr(), weight.len()), (place, 32 * 144));
        for dims in [(33, 256), (16, 256), (20, 512), (20, 255), (usize::MAX, 256)] {
            assert!(InterleavedWeight::mapped(Quantization::Q4K, bytes.clone(), dims).is_none(), "{dims:?}");
        }
    }
}

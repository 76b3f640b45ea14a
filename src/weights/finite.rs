//! Checks for NaN and infinity in stored weights, on their bytes before conversion.

use candle_core::DType;
use candle_core::quantized::GgmlDType;
use rayon::prelude::*;

use crate::{Error, Result};

/// Bytes checked by one task; a multiple of the size of every float dtype.
const CHUNK: usize = 1 << 20;

/// Rejects a tensor that contains NaN or infinity. `name` is the name of the tensor, `source` its file or folder.
///
/// # Errors
/// [`Error::Weights`] naming the tensor and its first element that is not finite.
pub(super) fn check_floats(source: &str, name: &str, bytes: &[u8], dtype: DType) -> Result<()> {
    let first = match dtype {
        DType::F64 => find(bytes, |b: &[u8; 8]| !f64::from_le_bytes(*b).is_finite()),
        DType::F32 => find(bytes, |b: &[u8; 4]| !f32::from_le_bytes(*b).is_finite()),
        DType::F16 => find(bytes, is_infinite_f16),
        DType::BF16 => find(bytes, |b: &[u8; 2]| u16::from_le_bytes(*b) & 0x7F80 == 0x7F80),
        _ => None,
    };
    first.map_or(Ok(()), |n| Err(not_finite(source, name, "element", n)))
}

/// As [`check_floats`] for GGML types; in quantised types, the scales of each block are checked.
///
/// # Errors
/// [`Error::Weights`] naming the tensor and its first block (or element) that is not finite.
pub(super) fn check_ggml(source: &str, name: &str, bytes: &[u8], dtype: GgmlDType) -> Result<()> {
    let scales: &[usize] = match dtype {
        GgmlDType::F32 => return check_floats(source, name, bytes, DType::F32),
        GgmlDType::F16 => return check_floats(source, name, bytes, DType::F16),
        GgmlDType::BF16 => return check_floats(source, name, bytes, DType::BF16),
        GgmlDType::Q4_0 | GgmlDType::Q5_0 | GgmlDType::Q8_0 => &[0],
        GgmlDType::Q4_1 | GgmlDType::Q5_1 | GgmlDType::Q4K | GgmlDType::Q5K => &[0, 2],
        GgmlDType::Q2K => &[80, 82],
        GgmlDType::Q3K => &[108],
        GgmlDType::Q6K => &[208],
        _ => return Ok(()),
    };
    let bad = |block: &[u8]| {
        scales.iter().any(|&at| block.get(at..).and_then(|b| b.first_chunk()).is_some_and(is_infinite_f16))
    };
    let first = bytes.chunks_exact(dtype.type_size()).position(bad);
    first.map_or(Ok(()), |n| Err(not_finite(source, name, "block", n)))
}

/// Index of the first element that is `bad`. Each chunk is first tested as a whole, a loop that the compiler
/// vectorises.
fn find<const N: usize>(bytes: &[u8], bad: impl Fn(&[u8; N]) -> bool + Sync) -> Option<usize> {
    let any = |chunk: &[u8]| chunk.as_chunks::<N>().0.iter().fold(false, |found, element| found | bad(element));
    let chunk = bytes.par_chunks(CHUNK).position_first(any)?;
    let elements = bytes[chunk * CHUNK..].as_chunks::<N>().0;
    Some(chunk * (CHUNK / N) + elements.iter().position(bad)?)
}

fn is_infinite_f16(bytes: &[u8; 2]) -> bool {
    u16::from_le_bytes(*bytes) & 0x7C00 == 0x7C00
}

fn not_finite(source: &str, name: &str, what: &str, n: usize) -> Error {
    Error::weights(format!(
        "{source}: tensor `{name}` is NaN or infinite from {what} {n} on: the file is damaged, or its training diverged; \
         use an earlier checkpoint"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_non_finite_element_is_named() {
        let mut values = vec![1f32; 3 * CHUNK / 4];
        let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        check_floats("s", "w", &bytes(&values), DType::F32).unwrap();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN] {
            for at in [0, CHUNK / 4 + 7, values.len() - 1] {
                values[at] = bad;
                let message = check_floats("s", "w", &bytes(&values), DType::F32).unwrap_err().to_string();
                assert!(message.contains(&format!("tensor `w` is NaN or infinite from element {at} on")), "{message}");
                values[at] = f32::MAX;
            }
        }
    }

    #[test]
    fn every_float_dtype_is_checked_and_integers_are_not() {
        let half = [half::f16::MAX, half::f16::NAN].map(|v| v.to_le_bytes()).concat();
        assert!(
            check_floats("s", "w", &half, DType::F16).is_err()
                && check_floats("s", "w", &half[..2], DType::F16).is_ok()
        );
        let brain = [half::bf16::MAX, half::bf16::INFINITY].map(|v| v.to_le_bytes()).concat();
        assert!(
            check_floats("s", "w", &brain, DType::BF16).is_err()
                && check_floats("s", "w", &brain[..2], DType::BF16).is_ok()
        );
        let double = [f64::MAX, f64::NAN].map(|v| v.to_le_bytes()).concat();
        assert!(
            check_floats("s", "w", &double, DType::F64).is_err()
                && check_floats("s", "w", &double[..8], DType::F64).is_ok()
        );
        assert!(check_floats("s", "w", &[255; 16], DType::I64).is_ok());
    }

    #[test]
    fn scales_of_every_block_type_are_checked() {
        use candle_core::quantized::QTensor;
        use candle_core::{Device, Tensor};
        let values: Vec<f32> = (0..512).map(|i| (i as f32).sin()).collect();
        let tensor = Tensor::new(values, &Device::Cpu).unwrap();
        for dtype in [
            GgmlDType::Q4_0,
            GgmlDType::Q4_1,
            GgmlDType::Q5_0,
            GgmlDType::Q5_1,
            GgmlDType::Q8_0,
            GgmlDType::Q2K,
            GgmlDType::Q3K,
            GgmlDType::Q4K,
            GgmlDType::Q5K,
            GgmlDType::Q6K,
        ] {
            let mut bytes = QTensor::quantize(&tensor, dtype).unwrap().data().unwrap().to_vec();
            check_ggml("s", "w", &bytes, dtype).unwrap();
            // A NaN in any scale of a block makes its values NaN, so every scale must be checked.
            let block = dtype.type_size();
            let found = (0..block - 1).filter(|&at| {
                let kept = [bytes[block + at], bytes[block + at + 1]];
                bytes[block + at..block + at + 2].copy_from_slice(&half::f16::NAN.to_le_bytes());
                let error = check_ggml("s", "w", &bytes, dtype).is_err();
                let decoded =
                    candle_core::quantized::ggml_file::qtensor_from_ggml(dtype, &bytes, vec![512], &Device::Cpu);
                let decoded = decoded.unwrap().dequantize(&Device::Cpu).unwrap().to_vec1::<f32>().unwrap();
                bytes[block + at..block + at + 2].copy_from_slice(&kept);
                assert_eq!(decoded.iter().any(|v| v.is_nan()), error, "{dtype:?} at {at}");
                error
            });
            assert!(found.count() > 0, "{dtype:?}");
        }
    }
}

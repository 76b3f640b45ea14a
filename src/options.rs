//! User options: device, dtype, quantisation of weights, precision of matmuls, dtype of the KV cache.
//!
//! Each option is an enum that parses from the listed names, which the examples take on their command lines.

use std::fmt;
use std::str::FromStr;

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device};

use crate::{Error, Result};

/// The device of tensors: `auto`, `cpu`, `cuda`, `cuda:N` or `metal`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceChoice {
    /// CUDA if it was compiled in and a GPU answers, else Metal under the same conditions, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The NVIDIA GPU of this index.
    Cuda(usize),
    /// The Apple GPU.
    Metal,
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "metal" => Ok(Self::Metal),
            _ => {
                s.strip_prefix("cuda:").and_then(|n| n.parse().ok()).map(Self::Cuda).ok_or_else(|| {
                    Error::config("device", format!("is `{s}`, expected auto, cpu, cuda, cuda:N or metal"))
                })
            }
        }
    }
}

impl DeviceChoice {
    /// Opens the device.
    ///
    /// # Errors
    /// [`Error::Device`] if support was not compiled in (the message names the feature) or the device does not answer.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(n) => open_cuda(n),
            Self::Metal => open_metal(),
            Self::Auto => Ok(open_cuda(0).or_else(|_| open_metal()).unwrap_or(Device::Cpu)),
        }
    }
}

fn open_cuda(n: usize) -> Result<Device> {
    if !candle_core::utils::cuda_is_available() {
        return Err(not_compiled_in("cuda"));
    }
    Device::new_cuda(n).map_err(|e| Error::device(format!("cuda:{n} does not answer: {e}")).caused_by(e))
}

fn open_metal() -> Result<Device> {
    if !candle_core::utils::metal_is_available() {
        return Err(not_compiled_in("metal"));
    }
    Device::new_metal(0).map_err(|e| Error::device(format!("metal does not answer: {e}")).caused_by(e))
}

fn not_compiled_in(feature: &str) -> Error {
    Error::device(format!(
        "{feature} support is not compiled in: build with the feature `{feature}`, or choose the device `cpu`"
    ))
}

/// The dtype of activations and weights: `auto`, `f32`, `f16` or `bf16`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DtypeChoice {
    /// bf16 on a GPU, f32 on the CPU.
    #[default]
    Auto,
    /// f32.
    F32,
    /// f16; on a GPU only.
    F16,
    /// bf16; on the CPU in matmuls only, and only with AVX512-BF16.
    Bf16,
}

impl FromStr for DtypeChoice {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::Bf16),
            _ => Err(Error::config("dtype", format!("is `{s}`, expected auto, f32, f16 or bf16"))),
        }
    }
}

impl DtypeChoice {
    /// The candle dtype on `device`. For bf16 on the CPU that is f32, since only [matmuls](Self::precision) use bf16
    /// there.
    ///
    /// # Errors
    /// [`Error::Device`] for f16 on a CPU, and for bf16 on a CPU without AVX512-BF16: both are slower than f32 there
    /// and lose digits in sums.
    pub fn resolve(self, device: &Device) -> Result<DType> {
        match self {
            Self::Auto if device.is_cpu() => Ok(DType::F32),
            Self::Bf16 if device.is_cpu() && Precision::has_fast_bf16() => Ok(DType::F32),
            Self::Auto | Self::Bf16 if !device.is_cpu() => Ok(DType::BF16),
            Self::F16 if !device.is_cpu() => Ok(DType::F16),
            Self::F32 => Ok(DType::F32),
            _ => Err(Error::device(if Precision::has_fast_bf16() {
                "dtype f16 on the CPU is slower and less exact than f32: choose the dtype `f32` or `bf16`, or a GPU"
            } else {
                "dtypes f16 and bf16 on this CPU are slower and less exact than f32: choose the dtype `f32`, or a GPU"
            })),
        }
    }

    /// The precision of matmuls on the CPU; `None` keeps the model's precision.
    pub fn precision(self) -> Option<Precision> {
        match self {
            Self::Auto => None,
            Self::Bf16 => Some(Precision::Bf16),
            Self::F32 | Self::F16 => Some(Precision::Full),
        }
    }
}

/// The precision of the factors of a matmul on the CPU; sums are f32 in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Precision {
    /// The dtype of the tensors.
    #[default]
    Full,
    /// bf16: f32 tensors on the CPU are rounded (8 bits of mantissa instead of 24), forward and backward.
    Bf16,
}

impl Precision {
    /// Whether this CPU has AVX512-BF16. Without it [`Precision::Bf16`] computes as [`Precision::Full`] does.
    pub fn has_fast_bf16() -> bool {
        #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
        return std::is_x86_feature_detected!("avx512bw") && std::is_x86_feature_detected!("avx512bf16");
        #[cfg(not(all(target_arch = "x86_64", not(haplovl_portable))))]
        return false;
    }
}

/// The dtype of keys and values in the KV cache: `auto`, `full` or `half`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum KvCacheDtype {
    /// `half` with quantised weights, else `full`.
    #[default]
    Auto,
    /// The dtype of activations.
    Full,
    /// 16 bits: f16, or bf16 where activations are bf16. Half the memory, and on the CPU half the memory traffic.
    Half,
}

impl FromStr for KvCacheDtype {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "auto" => Ok(Self::Auto),
            "full" => Ok(Self::Full),
            "half" => Ok(Self::Half),
            _ => Err(Error::config("kv_cache_dtype", format!("is `{s}`, expected auto, full or half"))),
        }
    }
}

impl KvCacheDtype {
    /// The candle dtype for activations of `dtype`; `None` keeps the model's cache dtype.
    pub fn resolve(self, dtype: DType) -> Option<DType> {
        match self {
            Self::Auto => None,
            Self::Full => Some(dtype),
            Self::Half if dtype == DType::BF16 => Some(dtype),
            Self::Half => Some(DType::F16),
        }
    }
}

/// The block format of quantised weights; bits per weight include a share of the block's scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Quantization {
    /// 8.5 bits per weight, close to f32 in quality.
    Q8_0,
    /// 6.6 bits per weight.
    Q6K,
    /// 4.5 bits per weight, the smallest.
    Q4K,
}

impl Quantization {
    /// All formats, largest first.
    pub const ALL: [Self; 3] = [Self::Q8_0, Self::Q6K, Self::Q4K];

    /// The GGML dtype.
    pub fn ggml_dtype(self) -> GgmlDType {
        match self {
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q6K => GgmlDType::Q6K,
            Self::Q4K => GgmlDType::Q4K,
        }
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Q8_0 => "q8_0",
            Self::Q6K => "q6_k",
            Self::Q4K => "q4_k",
        })
    }
}

impl FromStr for Quantization {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|kind| kind.to_string().eq_ignore_ascii_case(s));
        found.ok_or_else(|| Error::config("quantization", format!("is `{s}`, expected q8_0, q6_k or q4_k")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kv_cache_dtypes_parse_and_half_of_bf16_is_bf16() {
        for (name, f32, bf16) in [
            ("auto", None, None),
            ("full", Some(DType::F32), Some(DType::BF16)),
            ("half", Some(DType::F16), Some(DType::BF16)),
        ] {
            let choice: KvCacheDtype = name.parse().unwrap();
            assert_eq!([choice.resolve(DType::F32), choice.resolve(DType::BF16)], [f32, bf16], "{name}");
        }
        assert!("q8_0".parse::<KvCacheDtype>().unwrap_err().to_string().contains("expected auto, full or half"));
    }
}

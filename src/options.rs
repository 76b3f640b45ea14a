//! What a user may choose: device, dtype, quantisation of weights, precision of matmuls, dtype of the KV cache.

use std::fmt;
use std::str::FromStr;

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device};

use crate::{Error, Result};

/// Where tensors live and are computed: `auto`, `cpu`, `cuda`, `cuda:N` or `metal`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// CUDA if it was compiled in and a card answers, else Metal likewise, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The NVIDIA card of this index.
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
    /// [`Error::Device`] if support was not compiled in (with the flag to build with) or no such device answers.
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
    Device::new_cuda(n).map_err(|e| Error::device(format!("cuda:{n} does not answer: {e}")))
}

fn open_metal() -> Result<Device> {
    if !candle_core::utils::metal_is_available() {
        return Err(not_compiled_in("metal"));
    }
    Device::new_metal(0).map_err(|e| Error::device(format!("metal does not answer: {e}")))
}

fn not_compiled_in(feature: &str) -> Error {
    Error::device(format!("{feature} support is not compiled in: build with `--features {feature}`, or choose `cpu`"))
}

/// The number type of activations and weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DtypeChoice {
    /// bf16 on a GPU, f32 on the CPU.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// 16-bit floats; GPU only.
    F16,
    /// bfloat16; on a CPU with AVX512-BF16 products of matrices only.
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
    /// The candle type for `device`. With bf16 on the CPU that is f32: all but [products](Self::precision) stays exact.
    ///
    /// # Errors
    /// [`Error::Device`] for half precision on the CPU, where it is slower than f32 and sums lose digits, but for bf16 on
    /// processors that have instructions for it.
    pub fn resolve(self, device: &Device) -> Result<DType> {
        match self {
            Self::Auto if device.is_cpu() => Ok(DType::F32),
            Self::Bf16 if device.is_cpu() && Precision::has_fast_bf16() => Ok(DType::F32),
            Self::Auto | Self::Bf16 if !device.is_cpu() => Ok(DType::BF16),
            Self::F16 if !device.is_cpu() => Ok(DType::F16),
            Self::F32 => Ok(DType::F32),
            _ => Err(Error::device(if Precision::has_fast_bf16() {
                "f16 on the CPU is slower and less exact than f32: use `--dtype f32` or `bf16`, or a GPU"
            } else {
                "half precision on this CPU is slower and less exact than f32: use `--dtype f32`, or a GPU"
            })),
        }
    }

    /// How exact products of matrices are on the CPU; `None` leaves it to the model.
    pub fn precision(self) -> Option<Precision> {
        match self {
            Self::Auto => None,
            Self::Bf16 => Some(Precision::Bf16),
            Self::F32 | Self::F16 => Some(Precision::Full),
        }
    }
}

/// How exactly numbers are multiplied; sums are f32 in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Precision {
    /// As they are.
    #[default]
    Full,
    /// Of f32 tensors on the CPU, rounded to bf16 (8 bits instead of 24), forward and backward; other tensors as they are.
    Bf16,
}

impl Precision {
    /// Whether this processor rounds faster than it multiplies floats; it does with AVX512-BF16. Elsewhere
    /// [`Precision::Bf16`] computes as [`Precision::Full`] does.
    pub fn has_fast_bf16() -> bool {
        #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
        return std::is_x86_feature_detected!("avx512bw") && std::is_x86_feature_detected!("avx512bf16");
        #[cfg(not(all(target_arch = "x86_64", not(haplovl_portable))))]
        return false;
    }
}

/// The number type of the keys and values that generation keeps: `auto`, `full` or `half`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CacheChoice {
    /// Half beside quantised weights, else full.
    #[default]
    Auto,
    /// That of activations.
    Full,
    /// 16-bit floats: half the memory. On the CPU they are read as they are, which is half the reading as well.
    Half,
}

impl FromStr for CacheChoice {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "auto" => Ok(Self::Auto),
            "full" => Ok(Self::Full),
            "half" => Ok(Self::Half),
            _ => Err(Error::config("cache", format!("is `{s}`, expected auto, full or half"))),
        }
    }
}

impl CacheChoice {
    /// The candle type that is asked for beside activations of `dtype`, if any is.
    pub fn resolve(self, dtype: DType) -> Option<DType> {
        match self {
            Self::Auto => None,
            Self::Full => Some(dtype),
            // Either half precision is one already.
            Self::Half if dtype == DType::BF16 => Some(dtype),
            Self::Half => Some(DType::F16),
        }
    }
}

/// How weights are stored: bits a weight, its share of a block's scale included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Quantization {
    /// 8.5 bits, hardly to be told from floats.
    Q8_0,
    /// 6.6 bits.
    Q6K,
    /// 4.5 bits, the smallest.
    Q4K,
}

impl Quantization {
    /// All of them, largest first.
    pub const ALL: [Self; 3] = [Self::Q8_0, Self::Q6K, Self::Q4K];

    /// Its name in GGUF.
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
    fn caches_are_named_and_beside_bf16_half_is_bf16() {
        for (name, f32, bf16) in [
            ("auto", None, None),
            ("full", Some(DType::F32), Some(DType::BF16)),
            ("half", Some(DType::F16), Some(DType::BF16)),
        ] {
            let choice: CacheChoice = name.parse().unwrap();
            assert_eq!([choice.resolve(DType::F32), choice.resolve(DType::BF16)], [f32, bf16], "{name}");
        }
        assert!("q8_0".parse::<CacheChoice>().unwrap_err().to_string().contains("expected auto, full or half"));
    }
}

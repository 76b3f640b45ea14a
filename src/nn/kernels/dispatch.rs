//! Choice of a kernel by rows, weight type and CPU features: the code of the table in [`super`].

#[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
use pulp::x86::V3;

use crate::options::{Precision, Quantization};

/// Number of rows up to which reading the weights dominates, so that a GEMV for several rows beats a GEMM.
pub const GEMV_MAX_ROWS: usize = 8;

/// Number of rows from which packing quantised weights pays.
#[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
const QUANT_GEMM_MIN_ROWS: usize = 4;

/// Kernel of a matmul with float weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatmulBackend {
    /// [`super::gemv`]: one pass over the weights for all rows.
    Gemv,
    /// The `gemm` crate, in f32.
    GemmF32,
    /// [`super::matmul_bf16_avx512`]: operands rounded to bf16, f32 sums.
    #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
    GemmBf16Avx512,
}

impl MatmulBackend {
    /// Backend of a linear layer's forward pass.
    pub fn for_linear(rows: usize, precision: Precision) -> Self {
        if (1..=GEMV_MAX_ROWS).contains(&rows) { Self::Gemv } else { Self::for_gemm(precision) }
    }

    /// Backend of a matmul whose left matrix has `rows` rows, on one thread, such as a tile of attention.
    pub fn for_tile(rows: usize, precision: Precision) -> Self {
        // Packing the right matrix pays for several rows only.
        if rows <= GEMV_MAX_ROWS { Self::GemmF32 } else { Self::for_gemm(precision) }
    }

    /// Backend of a matmul of large matrices.
    pub fn for_gemm(precision: Precision) -> Self {
        #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
        if precision == Precision::Bf16 && Precision::has_fast_bf16() {
            return Self::GemmBf16Avx512;
        }
        let _ = precision;
        Self::GemmF32
    }
}

/// Kernel of a matmul with quantised weights.
#[derive(Debug, Clone, Copy)]
pub enum QuantBackend {
    /// A kernel of [`super::qmatmul`], with the proof that the CPU has AVX2.
    #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
    Kernel(QuantKernel, V3),
    /// candle's kernels, which also quantise the activations.
    Candle,
    /// A GEMM in f32 with dequantised weights.
    Dequantize,
}

impl QuantBackend {
    /// The fastest backend for `rows` of activations and a weight (outputs, inputs); `kind` is `None` for other block
    /// types.
    pub fn new(kind: Option<Quantization>, rows: usize, (outputs, inputs): (usize, usize)) -> Self {
        #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
        if let (Some(_), Some(simd)) = (kind, V3::try_new()) {
            return Self::Kernel(QuantKernel::for_rows(rows), simd);
        }
        let _ = kind;
        let tiled = outputs.is_multiple_of(16) && inputs.is_multiple_of(CANDLE_TILE_WIDTH) && candle_has_tiles();
        if tiled || rows <= GEMV_MAX_ROWS { Self::Candle } else { Self::Dequantize }
    }
}

/// Inputs of a quantised weight must be a multiple of this for candle's tiled kernels.
pub const CANDLE_TILE_WIDTH: usize = 256;

/// Whether candle's tiled kernels, for several rows and outputs at once, use the CPU's integer dot products.
pub fn candle_has_tiles() -> bool {
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("dotprod");
    #[cfg(not(target_arch = "aarch64"))]
    return false;
}

/// Kernels of [`super::qmatmul`]. Each quantises the activations in different blocks.
#[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuantKernel {
    /// GEMV over unpacked weights. Activations: 8 bits, blocks of 32 for `Q8_0` and of 256 for K-quants.
    GemvAvx2,
    /// GEMV with 64 weights of K-quants at a time (AVX-512 VNNI).
    GemvAvx512Vnni,
    /// GEMM over weights packed for 8 outputs. Activations: as above, but 16 bits for `Q8_0`.
    GemmAvx2,
    /// GEMM over weights packed for 16 outputs (AVX-512 VNNI). Activations: 8 bits, blocks of 32.
    GemmAvx512Vnni,
}

#[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
impl QuantKernel {
    /// The fastest kernel for `rows` of activations on this CPU.
    pub fn for_rows(rows: usize) -> Self {
        match (rows < QUANT_GEMM_MIN_ROWS, has_avx512_vnni()) {
            (true, true) => Self::GemvAvx512Vnni,
            (true, false) => Self::GemvAvx2,
            (false, true) => Self::GemmAvx512Vnni,
            (false, false) => Self::GemmAvx2,
        }
    }
}

/// Whether the CPU has AVX-512 with integer dot products.
#[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
pub fn has_avx512_vnni() -> bool {
    std::is_x86_feature_detected!("avx512bw") && std::is_x86_feature_detected!("avx512vnni")
}

/// Kernel of attention for a single query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeAttentionKernel {
    /// [`super::decode_attention`]: the widest instructions that pulp finds; f16 keys and values are widened first.
    Portable,
    /// [`super::decode_attention_avx512`]: reads f16 keys and values directly.
    #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
    Avx512,
}

impl DecodeAttentionKernel {
    /// The kernel for heads of this size.
    pub fn for_head_dim(head_dim: usize) -> Self {
        #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
        if super::decode_attention_avx512::is_supported(head_dim) {
            return Self::Avx512;
        }
        let _ = head_dim;
        Self::Portable
    }
}

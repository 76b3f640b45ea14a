//! Choice of a kernel by rows, weight type and CPU features: the code of the table in [`super`].

#[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
use pulp::x86::V3;

#[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
use super::avx512::has_full_rate;
#[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
use super::qmatmul::Avx512Vnni;
use crate::options::Precision;

/// Number of rows up to which the GEMV computes f32 matmuls, so that a row's result does not depend on the number of
/// rows.
pub const GEMV_MAX_ROWS: usize = 32;

/// Number of columns of the right matrix from which packing the left one for AVX-512 in f32 pays.
#[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
const PACKING_MIN_COLUMNS: usize = 32;

/// Number of rows of the left matrix from which packing the right one for a GEMM in bf16 pays.
const PACKING_MIN_ROWS: usize = 9;

/// Kernel of a matmul with float weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatmulBackend {
    /// [`super::gemv`]: one pass over the weights for all rows.
    Gemv,
    /// The `gemm` crate, in f32.
    GemmF32,
    /// [`super::matmul_avx512`] in f32.
    #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
    GemmF32Avx512,
    /// [`super::matmul_avx512`] with operands rounded to bf16, f32 sums.
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
        // In f32 the number of rows chooses nothing, so that a query's result does not depend on its block.
        Self::for_gemm(if rows < PACKING_MIN_ROWS { Precision::Full } else { precision })
    }

    /// Backend of a matmul of large matrices, the right one of which has `columns` columns.
    pub fn for_matmul(columns: usize, precision: Precision) -> Self {
        let backend = Self::for_gemm(precision);
        #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
        if backend == Self::GemmF32Avx512 && columns < PACKING_MIN_COLUMNS {
            return Self::GemmF32;
        }
        let _ = columns;
        backend
    }

    /// Backend of a GEMM of any size.
    pub fn for_gemm(precision: Precision) -> Self {
        #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
        match precision {
            Precision::Bf16 if Precision::has_fast_bf16() => return Self::GemmBf16Avx512,
            _ if has_full_rate() => return Self::GemmF32Avx512,
            _ => {}
        }
        let _ = precision;
        Self::GemmF32
    }
}

/// Number of rows up to which candle's kernels without tiles beat dequantising the weight.
const CANDLE_MAX_ROWS: usize = 8;

/// Matmul with quantised weights on a CPU for which this crate has no kernel, or with a block type that it has none for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuantBackend {
    /// candle's kernels, which also quantise the activations.
    Candle,
    /// A GEMM in f32 with dequantised weights.
    Dequantize,
}

impl QuantBackend {
    /// The fastest backend for `rows` of activations and a weight (outputs, inputs).
    pub fn new(rows: usize, (outputs, inputs): (usize, usize)) -> Self {
        let tiled = outputs.is_multiple_of(16) && inputs.is_multiple_of(CANDLE_TILE_WIDTH) && candle_has_tiles();
        if tiled || rows <= CANDLE_MAX_ROWS { Self::Candle } else { Self::Dequantize }
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

/// Instruction sets of the kernels of [`super::qmatmul`]. Each quantises the activations in different blocks.
#[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
#[derive(Debug, Clone, Copy)]
pub enum QuantKernel {
    /// AVX2. Activations: 16 bits in blocks of 32 for `Q8_0`, 8 bits in blocks of 256 for K-quants.
    Avx2(V3),
    /// AVX-512 VNNI. Activations: 8 bits, blocks of 32.
    Avx512Vnni(V3, Avx512Vnni),
}

#[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
impl QuantKernel {
    /// The fastest kernel on this CPU, if it has AVX2.
    pub fn fastest() -> Option<Self> {
        let simd = V3::try_new()?;
        Some(Avx512Vnni::try_new().map_or(Self::Avx2(simd), |vnni| Self::Avx512Vnni(simd, vnni)))
    }
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

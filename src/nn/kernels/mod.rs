//! CPU kernels without candle types, named by technique and instruction set.

#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod decode_attention;
#[cfg(target_arch = "x86_64")]
pub mod decode_attention_avx512;
pub mod gemv;
pub mod kv_view;
pub mod matmul;
#[cfg(target_arch = "x86_64")]
mod matmul_bf16_avx512;
mod parallel;
mod prefetch;
#[cfg(target_arch = "x86_64")]
pub mod qmatmul;
pub mod shared_mut;
pub mod simd_math;

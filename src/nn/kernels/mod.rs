//! CPU kernels without candle types, named by technique and instruction set.
//!
//! Which kernel runs when, as [`dispatch`] decides it (x86-64 features are detected at run time; "any" includes other
//! architectures):
//!
//! | operation | rows | weight type | CPU | kernel | file |
//! |---|---|---|---|---|---|
//! | linear, forward | 1 to 32 | f32 | AVX-512 | GEMV | `gemv_avx512.rs` |
//! | linear, forward | 1 to 32 | f32 | others | GEMV, SIMD by pulp | `gemv.rs` |
//! | linear, forward and gradients | from 33; gradients: any | f32, `Precision::Full` | AVX-512 at full rate | GEMM | `matmul_avx512.rs` |
//! | linear, forward and gradients | from 33; gradients: any | f32, `Precision::Full` | others | the `gemm` crate | `matmul.rs` |
//! | linear, forward and gradients | from 33; gradients: any | f32, `Precision::Bf16` | AVX512-BF16 | GEMM in bf16 | `matmul_avx512.rs` |
//! | quantised linear | any | `Q8_0` | AVX2 | over interleaved weights | `qmatmul/gemm.rs`, `qmatmul/gemm_q8_0_avx2.rs` |
//! | quantised linear | any | `Q4_K`, `Q6_K` | AVX2 | over interleaved weights | `qmatmul/gemm.rs`, `qmatmul/gemm_kquant_avx2.rs` |
//! | quantised linear | 1 to 16 | `Q8_0`, `Q4_K` | AVX-512 VNNI | GEMV over interleaved weights | `qmatmul/gemv_avx512vnni.rs` |
//! | quantised linear | from 17; `Q6_K`: any | all three | AVX-512 VNNI | over interleaved weights | `qmatmul/gemm.rs`, `qmatmul/gemm_avx512vnni.rs` |
//! | quantised linear | 1 to 8, or tiled (aarch64 with dotprod) | all three | others | candle's | `../ops/quantized_linear.rs` |
//! | quantised linear | from 9 | all three | others | f32 GEMM with dequantised weights | `matmul.rs` |
//! | quantised linear, input gradient | any | all three | any | f32 GEMM over tiles of weights widened in the cache | `widened.rs` |
//! | LoRA update, adapter from a file | 1 to 32 | f32; f16 over quantised weights | AVX-512 | narrow panels | `narrow_avx512.rs` |
//! | LoRA update, adapter from a file | 1 to 32 | f32 | others | narrow panels | `narrow.rs` |
//! | linear, frozen weights | any | bf16, f16 | any | GEMV or f32 GEMM over widened tiles | `widened.rs` |
//! | attention | one query | f32 or f16 keys, whole registers a head | AVX-512 | decode attention | `decode_attention_avx512.rs` |
//! | attention | one query | f32 or f16 keys | any | decode attention, SIMD by pulp | `decode_attention.rs` |
//! | attention | blocks of 64 queries | f32 or f16 keys | as linear from 33 rows | two GEMMs and a softmax | `matmul.rs` |
//!
//! A block of up to eight queries multiplies in f32 also with `Precision::Bf16`. Shared parts: views of matrices in
//! `mat.rs` and `kv_view.rs`, interleaved weights in `interleaved.rs`, their quantisation in `quantize_q4k.rs`, parallel
//! tasks in `parallel.rs`, scalar functions in `simd_math.rs`.

#[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
mod avx512;
pub mod decode_attention;
#[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
pub mod decode_attention_avx512;
pub mod dispatch;
pub mod gemv;
#[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
mod gemv_avx512;
#[cfg_attr(
    any(not(target_arch = "x86_64"), haplovl_portable),
    allow(dead_code, reason = "other CPUs undo the interleaving and need no more")
)]
pub mod interleaved;
pub mod kv_view;
pub mod mat;
pub mod matmul;
#[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
mod matmul_avx512;
pub mod narrow;
#[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
mod narrow_avx512;
mod parallel;
mod prefetch;
#[cfg(test)]
mod property_tests;
#[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
pub mod qmatmul;
pub mod quantize_q4k;
pub mod simd_math;
pub mod widened;

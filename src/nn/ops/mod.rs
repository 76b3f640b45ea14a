//! Differentiable operations that layers call, each with its backward pass; the only module that knows which candle
//! operations lose a gradient.
//!
//! candle's own fused normalisation, rotary and softmax kernels have no backward pass and report no error: a parameter
//! before one of them gets no gradient. Every function here is differentiable in every tensor argument, except the cast
//! for a KV cache. For f32 on the CPU it is one fused pass with a hand-written derivative; for other devices and dtypes
//! it is composed of differentiable tensor operations while a gradient is tracked, and may use candle's fused kernels
//! otherwise.

mod activation;
mod attention;
mod cache_cast;
mod dora;
mod dropout;
mod half_linear;
mod last_positions;
mod linear;
mod low_rank;
mod norm;
mod quantized_linear;
mod residual;
mod rope;

pub(crate) use crate::nn::kernels::simd_math::vectorised;
pub use activation::{activation, gated_activation};
pub use attention::{KeyRanges, KvSegment, attention, attention_over, attention_weights, attention_with};
pub(crate) use cache_cast::cast_for_cache;
pub(crate) use dora::{LowRank, RowScale, row_factors};
pub use dropout::dropout;
pub(crate) use dropout::{dropout_rest, with_dropout};
pub use half_linear::half_linear_as;
pub use last_positions::last_positions;
pub use linear::{linear, linear_as, linear_with};
pub use low_rank::low_rank_update;
pub(crate) use low_rank::{FixedLora, low_rank_update_of_fresh};
pub use norm::{layer_norm, rms_norm};
pub(crate) use quantized_linear::quantize_padded;
pub use quantized_linear::{QuantizedWeight, quantize_blocks, quantized_linear, quantized_linear_as};
pub use residual::residual;
pub use rope::rope;

use candle_core::{DType, Device, Tensor};

use super::tensor_data::{contiguous_slice, with_slice, with_slices};

/// Runs `f` on a thread of the pool that CPU kernels use; for another device, on the current thread.
///
/// From a thread outside the pool, every kernel would hand its work to the pool and sleep until it is done. That takes
/// as long as a small kernel, and decoding a token takes some hundred kernels.
pub(crate) fn on_pool<R: Send>(device: &Device, f: impl FnOnce() -> R + Send) -> R {
    if device.is_cpu() { rayon::scope(|_| f()) } else { f() }
}

/// Whether the hand-written f32 CPU kernels apply.
fn is_cpu_f32(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|t| t.device().is_cpu() && t.dtype() == DType::F32)
}

/// Whether any of the tensors is tracked for gradients.
fn is_tracked(tensors: &[&Tensor]) -> bool {
    tensors.iter().any(|t| t.track_op())
}

#[cfg(test)]
pub(crate) mod testing {
    //! Finite-difference checks of every hand-written backward pass.

    use candle_core::{Device, Result, Tensor, Var};

    /// Smooth pseudo-random values in about [-1, 1], the same on every machine.
    pub fn values(shape: &[usize], seed: f32) -> Tensor {
        let n: usize = shape.iter().product();
        let data: Vec<f32> = (0..n).map(|i| ((i as f32 * 0.7311 + seed) * 1.9).sin() * 0.9).collect();
        Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
    }

    /// Compares the gradient of `sum(f(inputs) * weights)` in every input with central differences.
    ///
    /// f32 differences with step 1e-2 are good to about 1e-3 for these smooth functions.
    pub fn check_gradients(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
        let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
        let tracked: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let out = f(&tracked).unwrap();
        let weights = values(out.dims(), 5.0);
        let objective = |t: &Tensor| (t * &weights).unwrap().sum_all().unwrap();
        let grads = objective(&out).backward().unwrap();
        let step = 1e-2f32;
        for (which, var) in vars.iter().enumerate() {
            let grad = grads.get(var).unwrap_or_else(|| panic!("input {which} got no gradient"));
            let grad: Vec<f32> = grad.flatten_all().unwrap().to_vec1().unwrap();
            let base: Vec<f32> = inputs[which].flatten_all().unwrap().to_vec1().unwrap();
            for i in 0..base.len() {
                let moved = |delta: f32| {
                    let mut data = base.clone();
                    data[i] += delta;
                    let mut all: Vec<Tensor> = inputs.to_vec();
                    all[which] = Tensor::from_vec(data, inputs[which].shape(), &Device::Cpu).unwrap();
                    objective(&f(&all).unwrap()).to_scalar::<f32>().unwrap() as f64
                };
                let expected = (moved(step) - moved(-step)) / (2.0 * step as f64);
                let error = (grad[i] as f64 - expected).abs();
                assert!(
                    error < 4e-3 * (1.0 + expected.abs()),
                    "input {which}, element {i}: gradient {} but finite difference {expected}",
                    grad[i]
                );
            }
        }
    }

    /// Largest absolute difference of two tensors of the same shape.
    pub fn max_diff(a: &Tensor, b: &Tensor) -> f32 {
        assert_eq!(a.dims(), b.dims());
        let diff = (a - b).unwrap().abs().unwrap().flatten_all().unwrap();
        diff.to_vec1::<f32>().unwrap().into_iter().fold(0.0, f32::max)
    }
}

//! RMS and layer normalisation over the last dimension.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, D, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{contiguous_slice, is_cpu_f32, is_tracked, with_slices};
use crate::nn::kernels::simd_math::vectorised;
use crate::nn::tape::{apply2, apply3};

/// Total number of elements below which a second thread does not pay.
const PARALLEL_FROM: usize = 1 << 14;

/// RMSNorm `x / sqrt(mean(x^2) + eps) * weight` over the last dimension, accumulated in f32 for every dtype of `x`.
///
/// # Errors
/// Errors of candle, if `weight` is not as long as the last dimension of `x`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    check_width(x, weight)?;
    if is_cpu_f32(&[x, weight]) {
        return apply2(&x.contiguous()?, weight, RmsNorm { eps: eps as f32 });
    }
    if !is_tracked(&[x, weight]) && !x.device().is_cpu() {
        return candle_nn::ops::rms_norm(&x.contiguous()?, &weight.to_dtype(x.dtype())?, eps as f32);
    }
    let wide = x.to_dtype(DType::F32)?;
    let mean_square = wide.sqr()?.mean_keepdim(D::Minus1)?;
    let y = wide.broadcast_div(&(mean_square + eps)?.sqrt()?)?;
    y.broadcast_mul(&weight.to_dtype(DType::F32)?)?.to_dtype(x.dtype())
}

/// Layer norm `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias` over the last dimension, accumulated in f32.
///
/// # Errors
/// Errors of candle, if `weight` or `bias` is not as long as the last dimension of `x`.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    check_width(x, weight)?;
    check_width(x, bias)?;
    if is_cpu_f32(&[x, weight, bias]) {
        return apply3(&x.contiguous()?, weight, bias, LayerNorm { eps: eps as f32 });
    }
    if !is_tracked(&[x, weight, bias]) && !x.device().is_cpu() {
        let (weight, bias) = (weight.to_dtype(x.dtype())?, bias.to_dtype(x.dtype())?);
        return candle_nn::ops::layer_norm(&x.contiguous()?, &weight, &bias, eps as f32);
    }
    let wide = x.to_dtype(DType::F32)?;
    let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let y = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
    let y = y.broadcast_mul(&weight.to_dtype(DType::F32)?)?.broadcast_add(&bias.to_dtype(DType::F32)?)?;
    y.to_dtype(x.dtype())
}

fn check_width(x: &Tensor, weight: &Tensor) -> Result<()> {
    if weight.dims1()? != x.dim(D::Minus1)? {
        candle_core::bail!("normalisation of width {} on a tensor of shape {:?}", weight.dims1()?, x.dims());
    }
    Ok(())
}

/// Runs `f(row of x, row of out)` over all rows, on several threads if there are enough elements.
pub(super) fn map_rows(x: &[f32], width: usize, f: impl Fn(&[f32], &mut [f32]) + Sync + Send) -> Vec<f32> {
    let mut out = vec![0f32; x.len()];
    let rows = if x.len() >= PARALLEL_FROM { PARALLEL_FROM.div_ceil(2 * width) } else { x.len() / width };
    let rows_at_once = |(out, x): (&mut [f32], &[f32])| {
        vectorised(
            #[inline(always)]
            || out.chunks_mut(width).zip(x.chunks(width)).for_each(|(out, x)| f(x, out)),
        );
    };
    out.par_chunks_mut(rows.max(1) * width).zip(x.par_chunks(rows.max(1) * width)).for_each(rows_at_once);
    out
}

/// Sums in eight lanes, so that the compiler can vectorise the loop.
#[inline(always)]
fn sum_by(x: &[f32], f: impl Fn(usize, f32) -> f32) -> f32 {
    let mut lanes = [0f32; 8];
    let mut chunks = x.chunks_exact(8);
    let mut at = 0;
    for chunk in &mut chunks {
        for (l, lane) in lanes.iter_mut().enumerate() {
            *lane += f(at + l, chunk[l]);
        }
        at += 8;
    }
    let tail: f32 = chunks.remainder().iter().enumerate().map(|(i, &v)| f(at + i, v)).sum();
    lanes.iter().sum::<f32>() + tail
}

struct RmsNorm {
    eps: f32,
}

impl RmsNorm {
    #[inline(always)]
    fn inverse(&self, row: &[f32]) -> f32 {
        (sum_by(row, |_, v| v * v) / row.len() as f32 + self.eps).sqrt().recip()
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (contiguous_slice(x, lx)?, contiguous_slice(w, lw)?);
        let y = map_rows(x, w.len(), |x, y| {
            let inverse = self.inverse(x);
            for ((y, &x), &w) in y.iter_mut().zip(x).zip(w) {
                *y = x * inverse * w;
            }
        });
        Ok((CpuStorage::F32(y), lx.shape().clone()))
    }

    /// With `n = x * inverse` and `h = g * w`: `dx = inverse * (h - n * mean(h * n))`, `dw = sum over rows of g * n`.
    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let (dx, dw) = with_slices([x, w, &g], |[x, w, g]| {
            let rows = |x: &[f32], g: &[f32], dx: &mut [f32], dw: &mut [f32]| {
                let inverse = self.inverse(x);
                let mean = sum_by(x, |i, x| g[i] * w[i] * x) * inverse / w.len() as f32;
                for i in 0..w.len() {
                    let n = x[i] * inverse;
                    dx[i] = inverse * (g[i] * w[i] - n * mean);
                    dw[i] += g[i] * n;
                }
            };
            gradient_rows(x, g, w.len(), 1, rows)
        })?;
        let dw = w.track_op().then(|| Tensor::from_vec(dw, w.shape(), w.device())).transpose()?;
        Ok((Some(Tensor::from_vec(dx, x.shape(), x.device())?), dw))
    }
}

struct LayerNorm {
    eps: f32,
}

impl LayerNorm {
    #[inline(always)]
    fn mean_and_inverse(&self, row: &[f32]) -> (f32, f32) {
        let mean = sum_by(row, |_, v| v) / row.len() as f32;
        let variance = sum_by(row, |_, v| (v - mean) * (v - mean)) / row.len() as f32;
        (mean, (variance + self.eps).sqrt().recip())
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w, b) = (contiguous_slice(x, lx)?, contiguous_slice(w, lw)?, contiguous_slice(b, lb)?);
        let y = map_rows(x, w.len(), |x, y| {
            let (mean, inverse) = self.mean_and_inverse(x);
            for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(w).zip(b) {
                *y = (x - mean) * inverse * w + b;
            }
        });
        Ok((CpuStorage::F32(y), lx.shape().clone()))
    }

    /// With `n` the normalised row and `h = g * w`: `dx = inverse * (h - mean(h) - n * mean(h * n))`.
    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let (dx, dwb) = with_slices([x, w, &g], |[x, w, g]| {
            let width = w.len();
            let rows = |x: &[f32], g: &[f32], dx: &mut [f32], dwb: &mut [f32]| {
                let (mean, inverse) = self.mean_and_inverse(x);
                let mean_h = sum_by(x, |i, _| g[i] * w[i]) / width as f32;
                let mean_hn = sum_by(x, |i, x| g[i] * w[i] * (x - mean)) * inverse / width as f32;
                let (dw, db) = dwb.split_at_mut(width);
                for i in 0..width {
                    let n = (x[i] - mean) * inverse;
                    dx[i] = inverse * (g[i] * w[i] - mean_h - n * mean_hn);
                    dw[i] += g[i] * n;
                    db[i] += g[i];
                }
            };
            gradient_rows(x, g, width, 2, rows)
        })?;
        let dwb = Tensor::from_vec(dwb, (2, w.dims1()?), w.device())?;
        let (dw, db) = (w.track_op().then(|| dwb.get(0)).transpose()?, b.track_op().then(|| dwb.get(1)).transpose()?);
        Ok((Some(Tensor::from_vec(dx, x.shape(), x.device())?), dw, db))
    }
}

/// Runs `f(x, g, dx, sums)` over rows; `sums`, `vectors * width` long, accumulates over all rows.
///
/// Rows are split into a fixed number of groups, whatever the number of threads, so that the sums do not depend on it.
fn gradient_rows(
    x: &[f32],
    g: &[f32],
    width: usize,
    vectors: usize,
    f: impl Fn(&[f32], &[f32], &mut [f32], &mut [f32]) + Sync,
) -> (Vec<f32>, Vec<f32>) {
    const GROUPS: usize = 16;
    let mut dx = vec![0f32; x.len()];
    let group = (x.len() / width).div_ceil(GROUPS).max(1) * width;
    let one_group = |((dx, x), g): ((&mut [f32], &[f32]), &[f32])| {
        let mut sums = vec![0f32; vectors * width];
        vectorised(
            #[inline(always)]
            || {
                for ((dx, x), g) in dx.chunks_mut(width).zip(x.chunks(width)).zip(g.chunks(width)) {
                    f(x, g, dx, &mut sums);
                }
            },
        );
        sums
    };
    let partial: Vec<Vec<f32>> =
        dx.par_chunks_mut(group).zip(x.par_chunks(group)).zip(g.par_chunks(group)).map(one_group).collect();
    let mut sums = vec![0f32; vectors * width];
    for part in partial {
        sums.iter_mut().zip(part).for_each(|(s, p)| *s += p);
    }
    (dx, sums)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check_gradients, max_diff, values};
    use super::*;

    fn inputs() -> [Tensor; 3] {
        [values(&[2, 3, 11], 0.3), values(&[11], 1.3), values(&[11], 2.1)]
    }

    #[test]
    fn gradients_match_finite_differences() {
        check_gradients(&inputs()[..2], |t| rms_norm(&t[0], &t[1], 1e-5));
        check_gradients(&inputs(), |t| layer_norm(&t[0], &t[1], &t[2], 1e-5));
    }

    #[test]
    fn kernels_equal_the_composed_form_in_f64() -> Result<()> {
        let [x, w, b] = inputs();
        let [x64, w64, b64] = [&x, &w, &b].map(|t| t.to_dtype(DType::F64));
        let (x64, w64, b64) = (x64?, w64?, b64?);
        let rms = rms_norm(&x64, &w64, 1e-5)?.to_dtype(DType::F32)?;
        assert!(max_diff(&rms_norm(&x, &w, 1e-5)?, &rms) < 1e-6);
        let layer = layer_norm(&x64, &w64, &b64, 1e-5)?.to_dtype(DType::F32)?;
        assert!(max_diff(&layer_norm(&x, &w, &b, 1e-5)?, &layer) < 1e-6);
        Ok(())
    }

    #[test]
    fn rms_norm_of_bf16_accumulates_in_f32() -> Result<()> {
        // 4096 ones: a bf16 sum saturates at 256 and would give 4 instead of 1.
        let x = Tensor::ones((1, 4096), DType::BF16, &candle_core::Device::Cpu)?;
        let w = Tensor::ones(4096, DType::BF16, &candle_core::Device::Cpu)?;
        let y = rms_norm(&x, &w, 1e-6)?.to_dtype(DType::F32)?;
        assert!(max_diff(&y, &y.ones_like()?) < 1e-2);
        Ok(())
    }

    #[test]
    fn many_rows_on_threads_equal_few_rows_alone() -> Result<()> {
        let (x, w, b) = (values(&[600, 64], 0.3), values(&[64], 1.3), values(&[64], 2.1));
        let all = layer_norm(&x, &w, &b, 1e-5)?.narrow(0, 577, 3)?;
        assert_eq!(max_diff(&all, &layer_norm(&x.narrow(0, 577, 3)?, &w, &b, 1e-5)?), 0.0);
        Ok(())
    }
}

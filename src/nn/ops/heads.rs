//! Queries, keys and values in memory, head by head, and keys and values of half precision.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, WithDType};
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::math::Matrix;
#[cfg(target_arch = "x86_64")]
use super::wide_query::Rows;
use super::{contiguous_slice, is_cpu_f32};

/// Numbers that one thread rounds at a time.
const CHUNK: usize = 1 << 14;

/// `x` as a cache of `dtype` holds it; without a gradient. What is too large for a half, from 65,520 on, becomes the largest.
///
/// # Errors
/// From candle only.
pub(crate) fn held_as(x: &Tensor, dtype: DType) -> Result<Tensor> {
    match dtype {
        DType::F16 if is_cpu_f32(&[x]) => x.detach().contiguous()?.apply_op1_no_bwd(&Round),
        _ => x.detach().to_dtype(dtype),
    }
}

/// Floats to halves; candle does it on one thread, and makes large ones infinite.
struct Round;

impl CustomOp1 for Round {
    fn name(&self) -> &'static str {
        "round-to-half"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous_slice(x, layout)?;
        let mut halves = vec![f16::ZERO; x.len()];
        let parts = halves.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK));
        parts.for_each(|(halves, x)| {
            halves.convert_from_f32_slice(x);
            for half in halves.iter_mut().filter(|half| half.is_infinite()) {
                *half = if half.is_sign_negative() { f16::MIN } else { f16::MAX };
            }
        });
        Ok((CpuStorage::F16(halves), layout.shape().clone()))
    }
}

/// A 4-dimensional tensor (batch, position, head, head_dim) in memory, its last dimension consecutive.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a, T = f32> {
    data: &'a [T],
    strides: [usize; 3],
}

impl<'a, T: WithDType> Heads<'a, T> {
    pub fn new(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let data = &storage.as_slice::<T>()?[layout.start_offset()..];
        let &[batch, position, head, 1] = layout.stride() else {
            // A dimension of one element may have any stride.
            if layout.is_contiguous() && layout.dims().len() == 4 {
                let d = layout.dims();
                return Ok(Self { data, strides: [d[1] * d[2] * d[3], d[2] * d[3], d[3]] });
            }
            candle_core::bail!("attention expects consecutive heads, found strides {:?}", layout.stride());
        };
        Ok(Self { data, strides: [batch, position, head] })
    }
}

impl<'a, T> Heads<'a, T> {
    /// The elements of one head, beginning with those at `position`.
    fn elements(&self, batch: usize, position: usize, head: usize) -> &'a [T] {
        let [b, p, h] = self.strides;
        &self.data[batch * b + position * p + head * h..]
    }

    /// The rows (positions from `position` on, width) of one head.
    #[cfg(target_arch = "x86_64")]
    pub fn rows(&self, batch: usize, position: usize, head: usize, width: usize) -> Rows<'a, T> {
        Rows { data: self.elements(batch, position, head), stride: self.strides[1], width }
    }

    /// The rows (heads from `head` on, width) of one position.
    #[cfg(target_arch = "x86_64")]
    pub fn rows_across(&self, batch: usize, position: usize, head: usize, width: usize) -> Rows<'a, T> {
        Rows { data: self.elements(batch, position, head), stride: self.strides[2], width }
    }
}

impl<'a> Heads<'a> {
    pub fn contiguous(data: &'a [f32], positions: usize, heads: usize, head_dim: usize) -> Self {
        Self { data, strides: [positions * heads * head_dim, heads * head_dim, head_dim] }
    }

    /// The matrix (positions from `position` on, head_dim) of one head.
    pub fn matrix(&self, batch: usize, position: usize, head: usize) -> Matrix {
        Matrix::rows(self.elements(batch, position, head).as_ptr(), self.strides[1])
    }

    /// The matrix (heads from `head` on, head_dim) of one position.
    pub fn across(&self, batch: usize, position: usize, head: usize) -> Matrix {
        Matrix::rows(self.elements(batch, position, head).as_ptr(), self.strides[2])
    }
}

/// Keys or values, as a cache may hold them.
#[derive(Clone, Copy)]
pub(super) enum Held<'a> {
    Floats(Heads<'a>),
    /// Half as much to read, which is what decoding behind a long text waits for.
    Halves(Heads<'a, f16>),
}

impl<'a> Held<'a> {
    pub fn new(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        Ok(match storage {
            CpuStorage::F16(_) => Self::Halves(Heads::new(storage, layout)?),
            _ => Self::Floats(Heads::new(storage, layout)?),
        })
    }

    /// The matrix (positions, width) of one head in floats; where it is none yet, it is made in `scratch`.
    ///
    /// It lies in the tensor or in `scratch`, and is good as long as both are left alone.
    pub fn matrix(
        &self,
        batch: usize,
        positions: Range<usize>,
        head: usize,
        width: usize,
        scratch: &mut Vec<f32>,
    ) -> Matrix {
        match self {
            Self::Floats(heads) => heads.matrix(batch, positions.start, head),
            Self::Halves(heads) => {
                scratch.resize(positions.len() * width, 0.0);
                widen(heads.elements(batch, positions.start, head), heads.strides[1], width, scratch);
                Matrix::rows(scratch.as_ptr(), width)
            }
        }
    }
}

/// Rows of `width` halves, `stride` apart, as floats without gaps.
fn widen(from: &[f16], stride: usize, width: usize, to: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx") && std::is_x86_feature_detected!("f16c") {
        // SAFETY: the processor was just asked for these instructions.
        return unsafe { widen_by_eights(from, stride, width, to) };
    }
    for (row, to) in to.chunks_exact_mut(width).enumerate() {
        from[row * stride..][..width].convert_to_f32_slice(to);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx,f16c")]
fn widen_by_eights(from: &[f16], stride: usize, width: usize, to: &mut [f32]) {
    let from: &[u16] = from.reinterpret_cast();
    for (row, to) in to.chunks_exact_mut(width).enumerate() {
        let (from, rest) = from[row * stride..][..width].as_chunks::<8>();
        let (to, rest_to) = to.as_chunks_mut::<8>();
        for (to, from) in to.iter_mut().zip(from) {
            *to = pulp::cast(std::arch::x86_64::_mm256_cvtph_ps(pulp::cast(*from)));
        }
        for (to, from) in rest_to.iter_mut().zip(rest) {
            *to = f16::from_bits(*from).to_f32();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_rounded_as_candle_does() -> Result<()> {
        let x = super::super::testing::values(&[3, 7, 2000], 0.1).transpose(0, 1)?;
        let found = held_as(&x, DType::F16)?;
        let bits = |x: &Tensor| x.flatten_all()?.to_vec1::<f16>();
        assert_eq!((found.dims(), bits(&found)?), (x.dims(), bits(&x.to_dtype(DType::F16)?)?));
        let extremes = [1e6, -1e6, f32::INFINITY, 65_519.0, 1e-7, f32::NAN];
        let found = bits(&held_as(&Tensor::new(&extremes, x.device())?, DType::F16)?)?;
        assert_eq!(found[..5], [f16::MAX, f16::MIN, f16::MAX, f16::MAX, f16::from_f32(1e-7)]);
        assert!(found[5].is_nan());
        Ok(())
    }

    #[test]
    fn every_half_becomes_its_float() {
        let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        for (stride, width) in [(64, 64), (64, 13), (32, 8), (16, 3), (0, 9), (2, 8)] {
            let rows = (halves.len() - width).checked_div(stride).map_or(5, |most| most + 1);
            let mut floats = vec![0f32; rows * width];
            widen(&halves, stride, width, &mut floats);
            let expected = (0..rows).flat_map(|row| &halves[row * stride..][..width]);
            assert!(floats.iter().zip(expected).all(|(found, half)| {
                found.to_bits() == half.to_f32().to_bits() || found.is_nan() && half.is_nan()
            }));
        }
    }
}

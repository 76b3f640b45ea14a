//! Strided views of queries, keys and values, head by head; keys and values may be f16.

use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;

#[cfg(target_arch = "x86_64")]
use super::decode_attention_avx512::Rows;
use super::matmul::Matrix;

/// A 4-dimensional tensor (batch, position, head, head_dim) in memory, its last dimension consecutive.
#[derive(Clone, Copy)]
pub struct HeadView<'a, T = f32> {
    data: &'a [T],
    strides: [usize; 3],
}

impl<'a, T> HeadView<'a, T> {
    /// A view of `data` whose batches, positions and heads are `strides` elements apart.
    pub fn new(data: &'a [T], strides: [usize; 3]) -> Self {
        Self { data, strides }
    }

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

impl<'a> HeadView<'a> {
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
pub enum KvView<'a> {
    F32(HeadView<'a>),
    /// Half as much to read, which is what decoding behind a long text waits for.
    F16(HeadView<'a, f16>),
}

impl<'a> KvView<'a> {
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
            Self::F32(heads) => heads.matrix(batch, positions.start, head),
            Self::F16(heads) => {
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

//! Strided views of queries, keys and values, head by head; keys and values may be f16.

use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::mat::MatRef;

/// A tensor (batch, position, head, head_dim) in memory, its last dimension consecutive.
#[derive(Clone, Copy)]
pub struct HeadView<'a, T = f32> {
    data: &'a [T],
    strides: [usize; 3],
}

impl<'a, T> HeadView<'a, T> {
    /// A view of `data` whose batch rows, positions and heads are `strides` elements apart.
    pub fn new(data: &'a [T], strides: [usize; 3]) -> Self {
        Self { data, strides }
    }

    /// A view of a contiguous tensor.
    pub fn contiguous(data: &'a [T], positions: usize, heads: usize, head_dim: usize) -> Self {
        Self { data, strides: [positions * heads * head_dim, heads * head_dim, head_dim] }
    }

    fn elements(&self, batch: usize, position: usize, head: usize) -> &'a [T] {
        let [b, p, h] = self.strides;
        &self.data[batch * b + position * p + head * h..]
    }

    /// The matrix (positions, head_dim) of one head.
    pub fn head(&self, batch: usize, positions: Range<usize>, head: usize, head_dim: usize) -> MatRef<'a, T> {
        MatRef::new(self.elements(batch, positions.start, head), (positions.len(), head_dim), self.strides[1])
    }

    /// The matrix (heads, head_dim) of one position.
    pub fn position(&self, batch: usize, position: usize, heads: Range<usize>, head_dim: usize) -> MatRef<'a, T> {
        MatRef::new(self.elements(batch, position, heads.start), (heads.len(), head_dim), self.strides[2])
    }
}

/// Keys or values, of the dtypes that a KV cache may have.
#[derive(Clone, Copy)]
pub enum KvView<'a> {
    /// f32, as activations.
    F32(HeadView<'a>),
    /// f16: half the bytes to read, which bounds decoding after a long prompt.
    F16(HeadView<'a, f16>),
}

impl KvView<'_> {
    /// The f32 matrix (positions, head_dim) of one head; f16 elements are widened into `scratch`.
    pub fn head<'s>(
        &'s self,
        batch: usize,
        positions: Range<usize>,
        head: usize,
        head_dim: usize,
        scratch: &'s mut Vec<f32>,
    ) -> MatRef<'s> {
        match self {
            Self::F32(view) => view.head(batch, positions, head, head_dim),
            Self::F16(view) => {
                scratch.resize(positions.len() * head_dim, 0.0);
                let rows = positions.len();
                widen(view.head(batch, positions, head, head_dim), scratch);
                MatRef::contiguous(scratch, (rows, head_dim))
            }
        }
    }
}

/// Widens f16 rows to contiguous f32 rows.
fn widen(from: MatRef<f16>, to: &mut [f32]) {
    #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
    if std::is_x86_feature_detected!("avx") && std::is_x86_feature_detected!("f16c") {
        // SAFETY: the CPU has AVX and F16C, as just detected.
        return unsafe { widen_f16c(from, to) };
    }
    for (row, to) in to.chunks_exact_mut(from.columns().max(1)).enumerate() {
        from.row(row).convert_to_f32_slice(to);
    }
}

#[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
#[target_feature(enable = "avx,f16c")]
fn widen_f16c(from: MatRef<f16>, to: &mut [f32]) {
    for (row, to) in to.chunks_exact_mut(from.columns().max(1)).enumerate() {
        let from: &[u16] = from.row(row).reinterpret_cast();
        let (from, rest) = from.as_chunks::<8>();
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
    fn every_f16_widens_exactly() {
        let elements: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        for (stride, width) in [(64, 64), (64, 13), (32, 8), (16, 3), (0, 9), (2, 8)] {
            let rows = (elements.len() - width).checked_div(stride).map_or(5, |most| most + 1);
            let mut floats = vec![0f32; rows * width];
            widen(MatRef::new(&elements, (rows, width), stride), &mut floats);
            let expected = (0..rows).flat_map(|row| &elements[row * stride..][..width]);
            assert!(floats.iter().zip(expected).all(|(found, element)| {
                found.to_bits() == element.to_f32().to_bits() || found.is_nan() && element.is_nan()
            }));
        }
    }
}

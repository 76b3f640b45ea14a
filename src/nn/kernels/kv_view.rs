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

    /// The view of one batch row.
    pub fn row(self, batch: usize) -> Self {
        Self { data: self.data.get(batch * self.strides[0]..).unwrap_or_default(), ..self }
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

/// Keys or values of one sequence, in consecutive segments of memory.
pub struct Segments<'a, T> {
    /// Views whose first batch row is the sequence, with their numbers of positions.
    parts: Vec<(HeadView<'a, T>, usize)>,
}

impl<'a, T> Segments<'a, T> {
    /// Segments one after the other, each with its number of positions.
    pub fn new(parts: Vec<(HeadView<'a, T>, usize)>) -> Self {
        Self { parts }
    }

    /// The matrices (positions, head_dim) of one head at some positions, one for each segment that has any of them.
    fn head(&self, positions: Range<usize>, head: usize, head_dim: usize) -> Vec<MatRef<'a, T>> {
        let mut first = 0;
        let part = |(view, len): &(HeadView<'a, T>, usize)| {
            let within = positions.start.max(first) - first..positions.end.min(first + len).saturating_sub(first);
            first += len;
            (!within.is_empty()).then(|| view.head(0, within, head, head_dim))
        };
        self.parts.iter().filter_map(part).collect()
    }
}

/// Keys or values of one sequence, of the dtypes that a KV cache may have.
pub enum KvView<'a> {
    /// f32, as activations.
    F32(Segments<'a, f32>),
    /// f16: half the bytes to read, which bounds decoding after a long prompt.
    F16(Segments<'a, f16>),
}

impl<'a> KvView<'a> {
    /// Keys or values of one head at some positions.
    pub fn head(&self, positions: Range<usize>, head: usize, head_dim: usize) -> KvHead<'a> {
        match self {
            Self::F32(segments) => KvHead::F32(segments.head(positions, head, head_dim)),
            Self::F16(segments) => KvHead::F16(segments.head(positions, head, head_dim)),
        }
    }
}

/// Keys or values of one head: matrices (positions, head_dim), one for each segment.
pub enum KvHead<'a> {
    F32(Vec<MatRef<'a>>),
    F16(Vec<MatRef<'a, f16>>),
}

impl KvHead<'_> {
    /// Number of positions.
    pub fn positions(&self) -> usize {
        match self {
            Self::F32(parts) => parts.iter().map(MatRef::rows).sum(),
            Self::F16(parts) => parts.iter().map(MatRef::rows).sum(),
        }
    }

    /// One f32 matrix (positions, head_dim); several segments and f16 elements are gathered in `scratch`.
    pub fn gather<'s>(&'s self, head_dim: usize, scratch: &'s mut Vec<f32>) -> MatRef<'s> {
        if let Self::F32(parts) = self
            && let [one] = parts.as_slice()
        {
            return *one;
        }
        let positions = self.positions();
        scratch.resize(positions * head_dim, 0.0);
        match self {
            Self::F32(parts) => fill(parts, scratch, |part, to| {
                to.chunks_exact_mut(head_dim.max(1))
                    .enumerate()
                    .for_each(|(row, to)| to.copy_from_slice(part.row(row)));
            }),
            Self::F16(parts) => fill(parts, scratch, |part, to| widen(*part, to)),
        }
        MatRef::contiguous(scratch, (positions, head_dim))
    }

    /// Calls `f` with up to `tile` consecutive positions at a time, and the index of their first one; f16 elements are
    /// widened into `scratch`.
    pub fn for_each_tile(&self, tile: usize, scratch: &mut Vec<f32>, mut f: impl FnMut(usize, MatRef)) {
        match self {
            Self::F32(parts) => tiles(parts, tile).for_each(|(first, part)| f(first, part)),
            Self::F16(parts) => tiles(parts, tile).for_each(|(first, part)| {
                let dims = (part.rows(), part.columns());
                scratch.resize(dims.0 * dims.1, 0.0);
                widen(part, scratch);
                f(first, MatRef::contiguous(scratch, dims));
            }),
        }
    }
}

/// Up to `tile` consecutive rows of a part at a time, and the index of their first one among all rows.
pub fn tiles<'a, T: Copy>(parts: &[MatRef<'a, T>], tile: usize) -> impl Iterator<Item = (usize, MatRef<'a, T>)> {
    let mut before = 0;
    parts.iter().flat_map(move |part| {
        let first = before;
        before += part.rows();
        let (part, rows) = (*part, part.rows());
        (0..rows).step_by(tile).map(move |at| (first + at, part.rows_in(at..rows.min(at + tile))))
    })
}

/// Fills consecutive rows of `to` with each part.
fn fill<T>(parts: &[MatRef<T>], mut to: &mut [f32], write: impl Fn(&MatRef<T>, &mut [f32])) {
    for part in parts {
        let (rows, rest) = to.split_at_mut(part.rows() * part.columns());
        write(part, rows);
        to = rest;
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

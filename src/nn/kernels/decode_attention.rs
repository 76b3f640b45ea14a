//! Attention of one query, as in decoding, on any processor (with AVX-512 see `wide_query`): the heads that share keys pass
//! over keys and values together.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::gemv::dots;
use super::matmul::Matrix;
use super::parallel::OUTPUTS;

/// Vectors of a value's row that are summed side by side.
const SIDE_BY_SIDE: usize = 8;

/// Keys that are gone over together: values of 64 numbers stay in the first-level cache for the other heads of the group,
/// and so do floats that were made of halves.
const KEYS: usize = 64;

/// The heads of a group, and the keys and values that they share.
pub struct SingleQuery<K, V> {
    /// (heads, head_dim).
    pub q: Matrix,
    /// Of a range of keys, (keys, head_dim), for which a buffer may be used.
    pub k: K,
    /// The same of values.
    pub v: V,
    pub heads: usize,
    pub keys: Range<usize>,
    pub head_dim: usize,
    pub scale: f32,
}

impl<K, V> SingleQuery<K, V>
where
    K: Fn(Range<usize>, &mut Vec<f32>) -> Matrix,
    V: Fn(Range<usize>, &mut Vec<f32>) -> Matrix,
{
    /// `softmax(scale q k^T) v` into `out` (heads, head_dim), which holds zeros; `softmax` works on the scores of one
    /// head.
    ///
    /// # Safety
    /// All matrices must lie in live buffers, each row of consecutive elements; those of `k` and `v` must have a row for
    /// every key of the range, and be good until the buffer is next used.
    pub unsafe fn run(
        &self,
        scores: &mut Vec<f32>,
        scratch: &mut Vec<f32>,
        out: &mut [f32],
        softmax: impl Fn(&mut [f32]),
    ) {
        let (keys, width) = (self.keys.len(), self.head_dim);
        scores.resize(self.heads * keys, 0.0);
        for first in (0..keys).step_by(KEYS) {
            let count = KEYS.min(keys - first);
            let range = self.keys.start + first..self.keys.start + first + count;
            // SAFETY: the caller vouches for the matrices.
            let (q, k) = unsafe { (Rows::new(self.q, width), Rows::new((self.k)(range, scratch), width)) };
            let (heads, scale) = (self.heads, self.scale);
            Arch::new().dispatch(Scores { q, k, heads, first, count, keys, scale, scores });
        }
        scores.chunks_exact_mut(keys).for_each(softmax);
        for first in (0..keys).step_by(KEYS) {
            let count = KEYS.min(keys - first);
            let range = self.keys.start + first..self.keys.start + first + count;
            // SAFETY: as above.
            let v = unsafe { Rows::new((self.v)(range, scratch), width) };
            Arch::new().dispatch(Values { v, first, count, keys, scores, out });
        }
    }
}

/// A matrix whose rows are slices.
#[derive(Clone, Copy)]
struct Rows {
    matrix: Matrix,
    width: usize,
}

impl Rows {
    /// # Safety
    /// The matrix must lie in a live buffer as long as these are used, each row of consecutive elements.
    unsafe fn new(matrix: Matrix, width: usize) -> Self {
        Self { matrix, width }
    }

    #[inline(always)]
    fn row(&self, row: usize) -> &[f32] {
        // SAFETY: `new`'s caller vouches for the matrix, and rows are counted by its size.
        unsafe { std::slice::from_raw_parts(self.matrix.pointer.add(row * self.matrix.row_stride), self.width) }
    }
}

/// Scores of some keys for all heads.
struct Scores<'a> {
    q: Rows,
    /// Those of `count` keys.
    k: Rows,
    heads: usize,
    first: usize,
    count: usize,
    /// Of all keys.
    keys: usize,
    scale: f32,
    /// (heads, keys).
    scores: &'a mut [f32],
}

impl WithSimd for Scores<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { q, k, heads, first, count, keys, scale, scores } = self;
        for at in (0..count).step_by(OUTPUTS) {
            let found = OUTPUTS.min(count - at);
            // The last keys of all may be fewer: the others of their group repeat one of them.
            let four = std::array::from_fn(|i| k.row(at + i.min(found - 1)));
            let mut put = |head: usize, products: [f32; OUTPUTS]| {
                let scores = &mut scores[head * keys + first + at..][..found];
                scores.iter_mut().zip(products).for_each(|(score, product)| *score = scale * product);
            };
            for head in (0..heads / 2 * 2).step_by(2) {
                let products = dots(simd, four, [q.row(head), q.row(head + 1)], &[]);
                put(head, products.map(|[first, _]| first));
                put(head + 1, products.map(|[_, second]| second));
            }
            if heads % 2 == 1 {
                put(heads - 1, dots(simd, four, [q.row(heads - 1)], &[]).map(|[product]| product));
            }
        }
    }
}

/// Adds the values of some keys for all heads.
struct Values<'a> {
    /// Those of `count` keys.
    v: Rows,
    first: usize,
    count: usize,
    /// Of all keys.
    keys: usize,
    /// (heads, keys).
    scores: &'a [f32],
    out: &'a mut [f32],
}

impl WithSimd for Values<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { v, first, count, keys, scores, out } = self;
        for (weights, out) in scores.chunks_exact(keys).zip(out.chunks_exact_mut(v.width)) {
            let weights = &weights[first..][..count];
            let (whole, tail) = S::as_mut_simd_f32s(out);
            let in_vectors = v.width - tail.len();
            for (part, out) in whole.chunks_mut(SIDE_BY_SIDE).enumerate() {
                let mut sums = [simd.splat_f32s(0.0); SIDE_BY_SIDE];
                sums.iter_mut().zip(&*out).for_each(|(sum, out)| *sum = *out);
                for (key, weight) in weights.iter().enumerate() {
                    let value = S::as_simd_f32s(v.row(key)).0;
                    let weight = simd.splat_f32s(*weight);
                    for (sum, value) in sums.iter_mut().zip(&value[part * SIDE_BY_SIDE..]) {
                        *sum = simd.mul_add_e_f32s(weight, *value, *sum);
                    }
                }
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum);
            }
            for (i, out) in tail.iter_mut().enumerate() {
                *out +=
                    weights.iter().enumerate().map(|(key, weight)| weight * v.row(key)[in_vectors + i]).sum::<f32>();
            }
        }
    }
}

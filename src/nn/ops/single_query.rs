//! Attention of one query, as in decoding: the heads that share keys pass over keys and values together.

use pulp::{Arch, Simd, WithSimd};

use super::blocks::OUTPUTS;
use super::dots::dots;
use super::math::Matrix;

/// Vectors of a value's row that are summed side by side.
const SIDE_BY_SIDE: usize = 8;

/// The heads of a group, and the keys and values that they share.
pub(super) struct SingleQuery {
    /// (heads, head_dim).
    pub q: Matrix,
    /// (keys, head_dim).
    pub k: Matrix,
    /// (keys, head_dim).
    pub v: Matrix,
    pub heads: usize,
    pub keys: usize,
    pub head_dim: usize,
    pub scale: f32,
}

impl SingleQuery {
    /// `softmax(scale q k^T) v` into `out` (heads, head_dim); `softmax` works on the scores of one head.
    ///
    /// # Safety
    /// The matrices must lie in live buffers, each row of consecutive elements.
    pub unsafe fn run(&self, scores: &mut Vec<f32>, out: &mut [f32], softmax: impl Fn(&mut [f32])) {
        scores.resize(self.heads * self.keys, 0.0);
        Arch::new().dispatch(Scores { query: self, scores });
        scores.chunks_exact_mut(self.keys).for_each(softmax);
        Arch::new().dispatch(Values { query: self, scores, out });
    }

    /// A row of one of the matrices.
    #[inline(always)]
    fn row(&self, matrix: Matrix, row: usize) -> &[f32] {
        // SAFETY: `run`'s caller vouches for the matrices, and rows are counted by their sizes.
        unsafe { std::slice::from_raw_parts(matrix.pointer.add(row * matrix.row_stride), self.head_dim) }
    }
}

struct Scores<'a> {
    query: &'a SingleQuery,
    scores: &'a mut [f32],
}

impl WithSimd for Scores<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { query, scores } = self;
        for first in (0..query.keys).step_by(OUTPUTS) {
            let found = OUTPUTS.min(query.keys - first);
            // The last keys of all may be fewer: the others of their group repeat one of them.
            let keys = std::array::from_fn(|i| query.row(query.k, first + i.min(found - 1)));
            let mut put = |head: usize, products: [f32; OUTPUTS]| {
                let scores = &mut scores[head * query.keys + first..][..found];
                scores.iter_mut().zip(products).for_each(|(score, product)| *score = query.scale * product);
            };
            for head in (0..query.heads / 2 * 2).step_by(2) {
                let products = dots(simd, keys, [query.row(query.q, head), query.row(query.q, head + 1)], &[]);
                put(head, products.map(|[first, _]| first));
                put(head + 1, products.map(|[_, second]| second));
            }
            if query.heads % 2 == 1 {
                let last = query.heads - 1;
                put(last, dots(simd, keys, [query.row(query.q, last)], &[]).map(|[product]| product));
            }
        }
    }
}

struct Values<'a> {
    query: &'a SingleQuery,
    scores: &'a [f32],
    out: &'a mut [f32],
}

impl WithSimd for Values<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { query, scores, out } = self;
        for (weights, out) in scores.chunks_exact(query.keys).zip(out.chunks_exact_mut(query.head_dim)) {
            let (whole, tail) = S::as_mut_simd_f32s(out);
            let in_vectors = query.head_dim - tail.len();
            for (part, out) in whole.chunks_mut(SIDE_BY_SIDE).enumerate() {
                let mut sums = [simd.splat_f32s(0.0); SIDE_BY_SIDE];
                for (key, weight) in weights.iter().enumerate() {
                    let value = S::as_simd_f32s(query.row(query.v, key)).0;
                    let weight = simd.splat_f32s(*weight);
                    for (sum, value) in sums.iter_mut().zip(&value[part * SIDE_BY_SIDE..]) {
                        *sum = simd.mul_add_e_f32s(weight, *value, *sum);
                    }
                }
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum);
            }
            for (i, out) in tail.iter_mut().enumerate() {
                let value = |key| query.row(query.v, key)[in_vectors + i];
                *out = weights.iter().enumerate().map(|(key, weight)| weight * value(key)).sum();
            }
        }
    }
}

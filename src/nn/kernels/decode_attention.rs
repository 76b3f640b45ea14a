//! Attention of a single query (decoding), with the widest instructions that pulp finds: the query heads of a group
//! pass over the shared keys and values together. For AVX-512 see [`super::decode_attention_avx512`].

use pulp::{Arch, Simd, WithSimd};

use super::gemv::dot_products;
use super::kv_view::KvHead;
use super::mat::MatRef;
use super::parallel::OUTPUTS;

/// Number of registers of a value's row that are accumulated side by side.
const REGISTERS: usize = 8;

/// Keys of a tile: their values (64 x 64 f32) stay in L1 for all heads of the group, and so do widened f16 elements.
const TILE: usize = 64;

/// Query heads of a group, and the keys and values that they share.
pub struct DecodeAttention<'a> {
    /// Queries, (heads, head_dim).
    pub q: MatRef<'a>,
    pub k: &'a KvHead<'a>,
    /// Values, at as many positions as `k`.
    pub v: &'a KvHead<'a>,
    pub scale: f32,
}

impl DecodeAttention<'_> {
    /// Adds `softmax(scale q k^T) v` to `out` (heads, head_dim); `softmax` normalises the scores of one head.
    ///
    /// The result does not depend on how keys and values are cut into segments.
    pub fn run(&self, scores: &mut Vec<f32>, scratch: &mut Vec<f32>, out: &mut [f32], softmax: impl Fn(&mut [f32])) {
        let (q, keys, scale) = (self.q, self.k.positions(), self.scale);
        scores.resize(q.rows() * keys, 0.0);
        self.k.for_each_tile(TILE, scratch, |first, k| {
            Arch::new().dispatch(Scores { q, k, first, keys, scale, scores });
        });
        scores.chunks_exact_mut(keys.max(1)).for_each(softmax);
        self.v.for_each_tile(TILE, scratch, |first, v| {
            Arch::new().dispatch(Values { v, first, keys, scores, out });
        });
    }
}

/// Computes the scores of a tile of keys for all heads.
struct Scores<'a> {
    /// Queries, (heads, head_dim).
    q: MatRef<'a>,
    /// Keys of the tile, (keys of the tile, head_dim).
    k: MatRef<'a>,
    /// Index of the tile's first key.
    first: usize,
    /// Total number of keys.
    keys: usize,
    scale: f32,
    /// Scores, (heads, keys).
    scores: &'a mut [f32],
}

impl WithSimd for Scores<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { q, k, first, keys, scale, scores } = self;
        let (heads, count) = (q.rows(), k.rows());
        for at in (0..count).step_by(OUTPUTS) {
            let found = OUTPUTS.min(count - at);
            // The last group may have fewer keys; it then repeats the last key.
            let four: [&[f32]; OUTPUTS] = std::array::from_fn(|i| k.row(at + i.min(found - 1)));
            let mut store = |head: usize, products: [f32; OUTPUTS]| {
                let scores = &mut scores[head * keys + first + at..][..found];
                scores.iter_mut().zip(products).for_each(|(score, product)| *score = scale * product);
            };
            for head in (0..heads / 2 * 2).step_by(2) {
                let products = dot_products(simd, four, [q.row(head), q.row(head + 1)]);
                store(head, products.map(|[first, _]| first));
                store(head + 1, products.map(|[_, second]| second));
            }
            if heads % 2 == 1 {
                store(heads - 1, dot_products(simd, four, [q.row(heads - 1)]).map(|[product]| product));
            }
        }
    }
}

/// Accumulates a tile of values for all heads.
struct Values<'a> {
    /// Values of the tile, (keys of the tile, head_dim).
    v: MatRef<'a>,
    /// Index of the tile's first key.
    first: usize,
    /// Total number of keys.
    keys: usize,
    /// Attention weights, (heads, keys).
    scores: &'a [f32],
    out: &'a mut [f32],
}

impl WithSimd for Values<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { v, first, keys, scores, out } = self;
        let (count, width) = (v.rows(), v.columns());
        for (weights, out) in scores.chunks_exact(keys).zip(out.chunks_exact_mut(width)) {
            let weights = &weights[first..][..count];
            let (whole, tail) = S::as_mut_simd_f32s(out);
            let in_registers = width - tail.len();
            for (part, out) in whole.chunks_mut(REGISTERS).enumerate() {
                let mut sums = [simd.splat_f32s(0.0); REGISTERS];
                sums.iter_mut().zip(&*out).for_each(|(sum, out)| *sum = *out);
                for (key, weight) in weights.iter().enumerate() {
                    let value = S::as_simd_f32s(v.row(key)).0;
                    let weight = simd.splat_f32s(*weight);
                    for (sum, value) in sums.iter_mut().zip(&value[part * REGISTERS..]) {
                        *sum = simd.mul_add_e_f32s(weight, *value, *sum);
                    }
                }
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum);
            }
            // Key after key, so that the sum does not depend on the tiles.
            for (key, weight) in weights.iter().enumerate() {
                tail.iter_mut().zip(&v.row(key)[in_registers..]).for_each(|(out, value)| *out += weight * value);
            }
        }
    }
}

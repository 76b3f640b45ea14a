//! Attention of a single query (decoding), for AVX-512: the query heads of a group pass over the shared keys and values
//! together, and f16 elements are widened in registers.

use std::arch::x86_64::*;
use std::ops::Range;

use super::avx512::{self, Element};
use super::kv_view::tiles;
use super::mat::MatRef;
use super::prefetch::prefetch;
use super::simd_math::AVX512_F32_LANES as LANES;

/// Number of accumulators of the scores, one register each.
const SUMS: usize = 16;
/// Number of registers of a value's row that are accumulated side by side.
const REGISTERS: usize = 4;
/// Prefetch distance in bytes: some hundred nanoseconds of work.
const AHEAD: usize = 4096;
/// Number of keys of a tile, which all heads pass over before the next one: 64 keys of 128 elements stay in L1.
const TILE: usize = 64;

/// Address of a row.
#[inline]
fn row_ptr<T>(rows: &MatRef<T>, row: usize) -> *const T {
    rows.row(row).as_ptr()
}

/// Prefetches the memory [`AHEAD`] bytes after some elements of a row.
#[inline]
fn prefetch_after<T>(rows: &MatRef<T>, row: usize, elements: Range<usize>) {
    let next = row * rows.row_stride() + AHEAD / size_of::<T>();
    for element in elements.step_by(64 / size_of::<T>()) {
        prefetch(rows.buffer_from(next + element));
    }
}

/// Query heads of a group, and the keys and values that they share.
pub struct DecodeAttentionAvx512<'a, T> {
    /// Queries, (heads, head_dim).
    pub q: MatRef<'a>,
    /// Keys, (keys of the segment, head_dim) for each segment.
    pub k: &'a [MatRef<'a, T>],
    /// Values, for as many keys.
    pub v: &'a [MatRef<'a, T>],
    pub scale: f32,
}

/// Whether the CPU has AVX-512 and heads of this size fill whole registers.
pub fn is_supported(head_dim: usize) -> bool {
    head_dim.is_multiple_of(LANES) && avx512::is_supported()
}

/// Consecutive keys or values of a segment, and consecutive query heads that pass over them.
struct Tile<'a, T> {
    /// Keys or values, (keys of the tile, head_dim).
    rows: MatRef<'a, T>,
    /// Index of the first key among all keys.
    first_key: usize,
    first_head: usize,
}

impl<T: Element> DecodeAttentionAvx512<'_, T> {
    /// Adds `softmax(scale q k^T) v` to `out` (heads, head_dim); `softmax` normalises the scores of one head.
    ///
    /// The result does not depend on how keys and values are cut into segments.
    pub fn run(&self, scores: &mut Vec<f32>, out: &mut [f32], softmax: impl Fn(&mut [f32])) {
        let (heads, width) = (self.q.rows(), self.q.columns());
        let [keys, values] = [self.k, self.v].map(|parts| parts.iter().map(MatRef::rows).sum::<usize>());
        assert!(is_supported(width) && self.k.iter().chain(self.v).all(|part| part.columns() == width));
        assert!(keys == values && out.len() == heads * width);
        scores.resize(heads * keys, 0.0);
        // SAFETY: the CPU has AVX-512, and rows are whole registers of equal number.
        unsafe {
            self.tiles(self.k, |heads, tile| match heads {
                4 => self.scores::<4, 4>(tile, keys, scores),
                2 => self.scores::<2, 8>(tile, keys, scores),
                _ => self.scores::<1, 16>(tile, keys, scores),
            });
            scores.chunks_exact_mut(keys.max(1)).for_each(softmax);
            self.tiles(self.v, |heads, tile| match heads {
                4 => self.values::<4>(tile, keys, scores, out),
                2 => self.values::<2>(tile, keys, scores, out),
                _ => self.values::<1>(tile, keys, scores, out),
            });
        }
    }

    /// Calls `f` for every tile of keys or values with its number of heads (four, two or one).
    fn tiles(&self, parts: &[MatRef<'_, T>], mut f: impl FnMut(usize, &Tile<'_, T>)) {
        for (first_key, rows) in tiles(parts, TILE) {
            let mut first_head = 0;
            while first_head < self.q.rows() {
                let heads = match self.q.rows() - first_head {
                    4.. => 4,
                    2..4 => 2,
                    _ => 1,
                };
                f(heads, &Tile { rows, first_key, first_head });
                first_head += heads;
            }
        }
    }

    /// Computes the scores of one tile, `HEADS` x `KEYS` at a time, in `scores` (heads, keys).
    ///
    /// # Safety
    /// The CPU must have AVX-512, and rows must be whole registers, as many in `q` as in `k`.
    #[target_feature(enable = "avx512f")]
    unsafe fn scores<const HEADS: usize, const KEYS: usize>(
        &self,
        tile: &Tile<'_, T>,
        keys: usize,
        scores: &mut [f32],
    ) {
        let Tile { rows: k_rows, first_key, first_head } = *tile;
        const { assert!(HEADS * KEYS == SUMS) };
        let mut q = [std::ptr::null(); HEADS];
        for (head, q) in q.iter_mut().enumerate() {
            *q = row_ptr(&self.q, first_head + head);
        }
        for first in (0..k_rows.rows()).step_by(KEYS) {
            let mut k = [std::ptr::null(); KEYS];
            for (i, k) in k.iter_mut().enumerate() {
                // The last group may have fewer keys; it then repeats the last key.
                *k = row_ptr(&k_rows, (first + i).min(k_rows.rows() - 1));
                prefetch_after(&k_rows, first + i, 0..k_rows.columns());
            }
            let mut sums = [_mm512_setzero_ps(); SUMS];
            for at in (0..k_rows.columns()).step_by(LANES) {
                let mut queries = [_mm512_setzero_ps(); HEADS];
                for (query, q) in queries.iter_mut().zip(&q) {
                    // SAFETY: the row is whole.
                    *query = unsafe { f32::load(q.add(at)) };
                }
                for (i, k) in k.iter().enumerate() {
                    // SAFETY: as above.
                    let key = unsafe { T::load(k.add(at)) };
                    for (head, query) in queries.iter().enumerate() {
                        sums[head * KEYS + i] = _mm512_fmadd_ps(*query, key, sums[head * KEYS + i]);
                    }
                }
            }
            let mut found = [0f32; SUMS];
            // SAFETY: as long as a register.
            unsafe {
                _mm512_storeu_ps(found.as_mut_ptr(), _mm512_mul_ps(_mm512_set1_ps(self.scale), reduce_sums(&sums)));
            }
            let count = KEYS.min(k_rows.rows() - first);
            for (head, found) in found.chunks_exact(KEYS).enumerate() {
                scores[(first_head + head) * keys + first_key + first..][..count].copy_from_slice(&found[..count]);
            }
        }
    }

    /// Accumulates the values of one tile.
    ///
    /// # Safety
    /// The CPU must have AVX-512, and rows must be whole registers.
    #[target_feature(enable = "avx512f")]
    unsafe fn values<const HEADS: usize>(&self, tile: &Tile<'_, T>, keys: usize, scores: &[f32], out: &mut [f32]) {
        let mut at = 0;
        while at < tile.rows.columns() {
            // SAFETY: the caller vouches for the rows.
            at += unsafe {
                match tile.rows.columns() - at {
                    64.. => self.accumulate::<HEADS, REGISTERS>(at, tile, keys, scores, out),
                    32..64 => self.accumulate::<HEADS, 2>(at, tile, keys, scores, out),
                    _ => self.accumulate::<HEADS, 1>(at, tile, keys, scores, out),
                }
            };
        }
    }

    /// Accumulates `N` registers of the values, from element `at` on; returns how many elements that are.
    ///
    /// # Safety
    /// The CPU must have AVX-512, and each row must have these elements.
    #[target_feature(enable = "avx512f")]
    unsafe fn accumulate<const HEADS: usize, const N: usize>(
        &self,
        at: usize,
        tile: &Tile<'_, T>,
        keys: usize,
        scores: &[f32],
        out: &mut [f32],
    ) -> usize {
        let Tile { rows: v_rows, first_key, first_head } = *tile;
        let elements = at..at + N * LANES;
        let mut weights = [[].as_slice(); HEADS];
        let mut sums = [[_mm512_setzero_ps(); N]; HEADS];
        for (head, (weights, sums)) in weights.iter_mut().zip(&mut sums).enumerate() {
            *weights = &scores[(first_head + head) * keys + first_key..][..v_rows.rows()];
            let out = &out[(first_head + head) * v_rows.columns()..][elements.clone()];
            for (sum, out) in sums.iter_mut().zip(out.chunks_exact(LANES)) {
                // SAFETY: as long as a register.
                *sum = unsafe { f32::load(out.as_ptr()) };
            }
        }
        for key in 0..v_rows.rows() {
            let row = row_ptr(&v_rows, key);
            prefetch_after(&v_rows, key, elements.clone());
            let mut values = [_mm512_setzero_ps(); N];
            for (i, value) in values.iter_mut().enumerate() {
                // SAFETY: the caller vouches for the elements.
                *value = unsafe { T::load(row.add(at + i * LANES)) };
            }
            for (sums, weights) in sums.iter_mut().zip(&weights) {
                let weight = _mm512_set1_ps(weights[key]);
                for (sum, value) in sums.iter_mut().zip(&values) {
                    *sum = _mm512_fmadd_ps(weight, *value, *sum);
                }
            }
        }
        for (head, sums) in sums.iter().enumerate() {
            let out = &mut out[(first_head + head) * v_rows.columns()..][elements.clone()];
            for (sum, out) in sums.iter().zip(out.chunks_exact_mut(LANES)) {
                // SAFETY: as long as a register.
                unsafe { _mm512_storeu_ps(out.as_mut_ptr(), *sum) };
            }
        }
        elements.len()
    }
}

/// The sum of each register, in order.
#[inline]
#[target_feature(enable = "avx512f")]
fn reduce_sums(sums: &[__m512; SUMS]) -> __m512 {
    // Pairs of registers are added by interleaved lanes, then pairs of those: one sum for each quarter of each
    // register.
    let mut quarters = [_mm512_setzero_ps(); 4];
    for (quarter, sums) in quarters.iter_mut().zip(sums.as_chunks::<4>().0) {
        let [a, b, c, d] = *sums;
        let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        let [ab, cd] = [_mm512_castps_pd(ab), _mm512_castps_pd(cd)];
        let [low, high] = [_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd)];
        *quarter = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
    }
    let [a, b, c, d] = quarters;
    // Even and odd quarters of pairs, twice.
    let ab = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
    let cd = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xdd>(c, d));
    _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xdd>(ab, cd))
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    /// A naive reference.
    fn expected(query: &DecodeAttentionAvx512<'_, f32>) -> Vec<f32> {
        let row = |rows: &MatRef<'_>, i: usize| rows.row(i).to_vec();
        let mut out = vec![];
        for head in 0..query.q.rows() {
            let q = row(&query.q, head);
            let (k, v) = (&query.k[0], &query.v[0]);
            let dot = |key| q.iter().zip(row(k, key)).map(|(q, k)| q * k).sum::<f32>() * query.scale;
            let weights: Vec<f32> = (0..k.rows()).map(|key| dot(key).exp()).collect();
            let total: f32 = weights.iter().sum();
            out.extend((0..v.columns()).map(|i| {
                let weighted = weights.iter().enumerate().map(|(key, w)| w / total * row(v, key)[i]);
                weighted.sum::<f32>()
            }));
        }
        out
    }

    fn softmax(scores: &mut [f32]) {
        let total: f32 = scores.iter().map(|s| s.exp()).sum();
        scores.iter_mut().for_each(|s| *s = s.exp() / total);
    }

    #[test]
    fn kernel_equals_naive_attention() {
        let elements = |count: usize, at: f32| -> Vec<f32> {
            // Exact in f16.
            (0..count).map(|i| ((i as f32 * 0.7311 + at).sin() * 64.0).round() / 64.0).collect()
        };
        for (heads, width) in [(1, 16), (2, 64), (3, 32), (4, 128), (7, 80), (8, 112)] {
            if !is_supported(width) {
                continue;
            }
            for keys in [1, 3, 4, 8, 17, 64, 100, 150] {
                let stride = width + 16;
                let [q, k, v] =
                    [(heads, 0.1), (keys, 0.2), (keys, 0.3)].map(|(rows, at)| elements(rows * stride - 16, at));
                let [k16, v16] = [&k, &v].map(|x| x.iter().map(|x| f16::from_f32(*x)).collect::<Vec<_>>());
                let q = MatRef::new(&q, (heads, width), stride);
                let rows = |data| MatRef::new(data, (keys, width), stride);
                let query = DecodeAttentionAvx512 { q, k: &[rows(&k)], v: &[rows(&v)], scale: 0.2 };
                let (mut scores, mut found) = (vec![], vec![0.0; heads * width]);
                query.run(&mut scores, &mut found, softmax);
                let expected = expected(&query);
                let close = |found: &[f32]| found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 2e-6);
                assert!(close(&found), "{heads} heads of {width}, {keys} keys");
                let rows = |data| MatRef::new(data, (keys, width), stride);
                let query = DecodeAttentionAvx512 { q, k: &[rows(&k16)], v: &[rows(&v16)], scale: 0.2 };
                let mut from_f16 = vec![0.0; heads * width];
                query.run(&mut scores, &mut from_f16, softmax);
                assert_eq!(found, from_f16, "{heads} heads of {width}, {keys} keys");
                DecodeAttentionAvx512::<f16> { k: &[], v: &[], ..query }.run(&mut scores, &mut from_f16, softmax);
                assert_eq!(found, from_f16, "no keys add nothing");
            }
        }
    }
}

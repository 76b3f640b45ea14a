//! Attention of one query by AVX-512: the heads that share keys pass over keys and values together, as these lie in memory.

use std::arch::x86_64::*;
use std::ops::Range;

use half::f16;

use super::prefetch::prefetch;

/// Numbers of a register.
const LANES: usize = 16;
/// Sums that are kept in registers.
const SUMS: usize = 16;
/// Registers of a value's row that are summed side by side.
const SIDE_BY_SIDE: usize = 4;
/// So many bytes ahead are asked for: some hundred nanoseconds of work.
const AHEAD: usize = 4096;
/// Keys that all heads go over before the next ones: those of 128 numbers stay in the nearest cache for the fifth head and on.
const TILE: usize = 64;

/// What keys and values may be.
pub trait Number: Copy {
    /// A register of them, as floats.
    ///
    /// # Safety
    /// [`LANES`] numbers must lie there, and the processor must have AVX-512.
    unsafe fn load(from: *const Self) -> __m512;
}

impl Number for f32 {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(from: *const Self) -> __m512 {
        // SAFETY: the caller vouches for the numbers.
        unsafe { _mm512_loadu_ps(from) }
    }
}

impl Number for f16 {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(from: *const Self) -> __m512 {
        // SAFETY: as above; there are half as many bytes.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
}

/// Rows of as many numbers each, `stride` apart.
#[derive(Clone, Copy)]
pub struct Rows<'a, T> {
    pub data: &'a [T],
    pub stride: usize,
    pub width: usize,
}

impl<T> Rows<'_, T> {
    /// The place of a row, which is whole.
    #[inline]
    fn at(&self, row: usize) -> *const T {
        self.data[row * self.stride..][..self.width].as_ptr()
    }

    /// Asks for what follows these numbers of a row after [`AHEAD`].
    #[inline]
    fn ask_behind(&self, row: usize, numbers: Range<usize>) {
        let next = row * self.stride + AHEAD / size_of::<T>();
        for number in numbers.step_by(64 / size_of::<T>()) {
            prefetch(self.data.get(next + number..).unwrap_or_default());
        }
    }
}

/// The heads of a group, and the keys and values that they share.
pub struct WideQuery<'a, T> {
    /// (heads, head_dim).
    pub q: Rows<'a, f32>,
    /// (keys, head_dim).
    pub k: Rows<'a, T>,
    /// The same.
    pub v: Rows<'a, T>,
    pub heads: usize,
    pub keys: usize,
    pub scale: f32,
}

/// Whether this processor has the instructions for heads of this size.
pub fn suits(head_dim: usize) -> bool {
    head_dim.is_multiple_of(LANES) && std::is_x86_feature_detected!("avx512f")
}

impl<T: Number> WideQuery<'_, T> {
    /// `softmax(scale q k^T) v` into `out` (heads, head_dim), which holds zeros; `softmax` works on the scores of one head.
    pub fn run(&self, scores: &mut Vec<f32>, out: &mut [f32], softmax: impl Fn(&mut [f32])) {
        let width = self.v.width;
        assert!(suits(width) && self.k.width == width && self.q.width == width && out.len() == self.heads * width);
        scores.resize(self.heads * self.keys, 0.0);
        // SAFETY: the processor has the instructions, and rows are whole registers.
        unsafe {
            self.tiles(|first, heads, keys| match heads {
                4 => self.scores::<4, 4>(first, keys, scores),
                2 => self.scores::<2, 8>(first, keys, scores),
                _ => self.scores::<1, 16>(first, keys, scores),
            });
            scores.chunks_exact_mut(self.keys.max(1)).for_each(softmax);
            self.tiles(|first, heads, keys| match heads {
                4 => self.values::<4>(first, keys, scores, out),
                2 => self.values::<2>(first, keys, scores, out),
                _ => self.values::<1>(first, keys, scores, out),
            });
        }
    }

    /// Calls `f` with the first of four, two or one heads, how many they are, and some keys, until there are no more.
    fn tiles(&self, mut f: impl FnMut(usize, usize, Range<usize>)) {
        for start in (0..self.keys).step_by(TILE) {
            let mut first = 0;
            while first < self.heads {
                let heads = match self.heads - first {
                    4.. => 4,
                    2..4 => 2,
                    _ => 1,
                };
                f(first, heads, start..self.keys.min(start + TILE));
                first += heads;
            }
        }
    }

    /// Scores (heads, keys) of some heads and keys, a few at a time.
    ///
    /// # Safety
    /// The processor must have AVX-512, and rows must be whole registers, as many in `q` as in `k`.
    #[target_feature(enable = "avx512f")]
    unsafe fn scores<const HEADS: usize, const KEYS: usize>(
        &self,
        first_head: usize,
        keys: Range<usize>,
        scores: &mut [f32],
    ) {
        const { assert!(HEADS * KEYS == SUMS) };
        let mut q = [std::ptr::null(); HEADS];
        for (head, q) in q.iter_mut().enumerate() {
            *q = self.q.at(first_head + head);
        }
        for first in keys.clone().step_by(KEYS) {
            let mut k = [std::ptr::null(); KEYS];
            for (i, k) in k.iter_mut().enumerate() {
                // The last keys of all may be fewer: the others repeat one of them.
                *k = self.k.at((first + i).min(keys.end - 1));
                self.k.ask_behind(first + i, 0..self.k.width);
            }
            let mut sums = [_mm512_setzero_ps(); SUMS];
            for at in (0..self.k.width).step_by(LANES) {
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
                _mm512_storeu_ps(found.as_mut_ptr(), _mm512_mul_ps(_mm512_set1_ps(self.scale), totals(&sums)));
            }
            let count = KEYS.min(keys.end - first);
            for (head, found) in found.chunks_exact(KEYS).enumerate() {
                scores[(first_head + head) * self.keys + first..][..count].copy_from_slice(&found[..count]);
            }
        }
    }

    /// Adds the values of some keys for some heads.
    ///
    /// # Safety
    /// The processor must have AVX-512, and rows must be whole registers.
    #[target_feature(enable = "avx512f")]
    unsafe fn values<const HEADS: usize>(
        &self,
        first_head: usize,
        keys: Range<usize>,
        scores: &[f32],
        out: &mut [f32],
    ) {
        let mut at = 0;
        while at < self.v.width {
            let keys = keys.clone();
            // SAFETY: the caller vouches for the rows.
            at += unsafe {
                match self.v.width - at {
                    64.. => self.values_at::<HEADS, SIDE_BY_SIDE>(at, first_head, keys, scores, out),
                    32..64 => self.values_at::<HEADS, 2>(at, first_head, keys, scores, out),
                    _ => self.values_at::<HEADS, 1>(at, first_head, keys, scores, out),
                }
            };
        }
    }

    /// Their numbers from `at` on, so many registers; how many numbers that are.
    ///
    /// # Safety
    /// The processor must have AVX-512, and as many numbers must lie there in each row.
    #[target_feature(enable = "avx512f")]
    unsafe fn values_at<const HEADS: usize, const REGISTERS: usize>(
        &self,
        at: usize,
        first_head: usize,
        keys: Range<usize>,
        scores: &[f32],
        out: &mut [f32],
    ) -> usize {
        let numbers = at..at + REGISTERS * LANES;
        let mut weights = [[].as_slice(); HEADS];
        let mut sums = [[_mm512_setzero_ps(); REGISTERS]; HEADS];
        for (head, (weights, sums)) in weights.iter_mut().zip(&mut sums).enumerate() {
            *weights = &scores[(first_head + head) * self.keys..][..self.keys];
            let out = &out[(first_head + head) * self.v.width..][numbers.clone()];
            for (sum, out) in sums.iter_mut().zip(out.chunks_exact(LANES)) {
                // SAFETY: as long as a register.
                *sum = unsafe { f32::load(out.as_ptr()) };
            }
        }
        for key in keys {
            let row = self.v.at(key);
            self.v.ask_behind(key, numbers.clone());
            let mut values = [_mm512_setzero_ps(); REGISTERS];
            for (i, value) in values.iter_mut().enumerate() {
                // SAFETY: the caller vouches for the numbers.
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
            let out = &mut out[(first_head + head) * self.v.width..][numbers.clone()];
            for (sum, out) in sums.iter().zip(out.chunks_exact_mut(LANES)) {
                // SAFETY: as long as a register.
                unsafe { _mm512_storeu_ps(out.as_mut_ptr(), *sum) };
            }
        }
        numbers.len()
    }
}

/// The sum of each register, in their order.
#[inline]
#[target_feature(enable = "avx512f")]
fn totals(sums: &[__m512; SUMS]) -> __m512 {
    // Of two registers, sums of two numbers of each in turn; then, of two of those, a sum of each quarter of all four.
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
    // Even and odd quarters of two, and the same of what that gives.
    let ab = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
    let cd = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xdd>(c, d));
    _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xdd>(ab, cd))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In the plainest loops.
    fn expected(query: &WideQuery<'_, f32>) -> Vec<f32> {
        let row = |rows: &Rows<'_, f32>, i: usize| rows.data[i * rows.stride..][..rows.width].to_vec();
        let mut out = vec![];
        for head in 0..query.heads {
            let q = row(&query.q, head);
            let dot = |key| q.iter().zip(row(&query.k, key)).map(|(q, k)| q * k).sum::<f32>() * query.scale;
            let weights: Vec<f32> = (0..query.keys).map(|key| dot(key).exp()).collect();
            let total: f32 = weights.iter().sum();
            out.extend((0..query.v.width).map(|i| {
                let weighted = weights.iter().enumerate().map(|(key, w)| w / total * row(&query.v, key)[i]);
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
    fn it_is_attention_for_any_heads_keys_and_widths() {
        let numbers = |count: usize, at: f32| -> Vec<f32> {
            // Exact as halves.
            (0..count).map(|i| ((i as f32 * 0.7311 + at).sin() * 64.0).round() / 64.0).collect()
        };
        for (heads, width) in [(1, 16), (2, 64), (3, 32), (4, 128), (7, 80), (8, 112)] {
            if !suits(width) {
                continue;
            }
            for keys in [1, 3, 4, 8, 17, 64, 100, 150] {
                let stride = width + 16;
                let [q, k, v] =
                    [(heads, 0.1), (keys, 0.2), (keys, 0.3)].map(|(rows, at)| numbers(rows * stride - 16, at));
                let [k16, v16] = [&k, &v].map(|x| x.iter().map(|x| f16::from_f32(*x)).collect::<Vec<_>>());
                let q = Rows { data: &q, stride, width };
                let rows = |data| Rows { data, stride, width };
                let query = WideQuery { q, k: rows(&k), v: rows(&v), heads, keys, scale: 0.2 };
                let (mut scores, mut found) = (vec![], vec![0.0; heads * width]);
                query.run(&mut scores, &mut found, softmax);
                let expected = expected(&query);
                let close = |found: &[f32]| found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 2e-6);
                assert!(close(&found), "{heads} heads of {width}, {keys} keys");
                let rows = |data| Rows { data, stride, width };
                let query = WideQuery { q, k: rows(&k16), v: rows(&v16), heads, keys, scale: 0.2 };
                let mut of_halves = vec![0.0; heads * width];
                query.run(&mut scores, &mut of_halves, softmax);
                assert_eq!(found, of_halves, "{heads} heads of {width}, {keys} keys");
                WideQuery { keys: 0, ..query }.run(&mut scores, &mut of_halves, softmax);
                assert_eq!(found, of_halves, "nothing seen adds nothing");
            }
        }
    }
}

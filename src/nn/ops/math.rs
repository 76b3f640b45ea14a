//! Scalar functions that the compiler can vectorise, and what the CPU kernels share: the gemm call, a hint to the caches.

use gemm::Parallelism;

use super::Precision;
#[cfg(target_arch = "x86_64")]
use super::bf16;
#[cfg(target_arch = "x86_64")]
use super::dots::MAX_ROWS;

/// Runs `f` compiled for the widest vector instructions of this CPU: AVX2 or AVX-512 where the build's own target has
/// SSE2 only. What `f` calls must be inlined to profit, closures included.
///
/// Results do not depend on the instructions: no sum is reordered and nothing is fused.
#[inline(always)]
pub(crate) fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// `e^x`, within 2 units in the last place for `x` in [-87, 88]; 0 or a huge number outside.
///
/// Range reduction to `2^n * e^r` with `|r| <= ln(2) / 2`, then a polynomial: no branches and no table, so loops over
/// it become SIMD code, unlike `f32::exp`.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // NaN stays NaN: clamp keeps it, and the arithmetic below carries it.
    let x = x.clamp(-87.3, 88.7);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let p = 1.987_569_1e-4 * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let e = p * r * r + r + 1.0;
    // The integer is in the low bits of the sum; a conversion would saturate, for which AVX2 has no instruction.
    e * f32::from_bits(rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// A matrix inside a larger buffer, by its first element and strides.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    /// Element (0, 0).
    pub pointer: *const f32,
    /// Distance from one row to the next.
    pub row_stride: usize,
    /// Distance from one column to the next.
    pub column_stride: usize,
}

impl Matrix {
    /// Rows of consecutive elements.
    pub fn rows(pointer: *const f32, row_stride: usize) -> Self {
        Self { pointer, row_stride, column_stride: 1 }
    }

    /// The same elements with rows and columns exchanged.
    pub fn transposed(self) -> Self {
        Self { row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }
}

/// What a thread keeps from product to product.
#[cfg(target_arch = "x86_64")]
pub(super) type ProductScratch = bf16::Scratch;
#[cfg(not(target_arch = "x86_64"))]
pub(super) type ProductScratch = ();

/// `out (m, n) = [out +] scale * left (m, k) right (k, n)`, on one thread.
#[derive(Clone, Copy)]
pub(super) struct Product {
    /// `m`, `n` and `k`.
    pub sizes: (usize, usize, usize),
    /// Whether it is added to what is there.
    pub accumulate: bool,
    pub scale: f32,
}

impl Product {
    /// Computes it; rows of `out` are `out_stride` apart.
    ///
    /// # Safety
    /// All elements that the sizes and strides name must lie inside live buffers, and nothing else may access those of
    /// `out` meanwhile.
    pub unsafe fn run(
        self,
        precision: Precision,
        (out, out_stride): (*mut f32, usize),
        left: Matrix,
        right: Matrix,
        scratch: &mut ProductScratch,
    ) {
        let (m, n, k) = self.sizes;
        #[cfg(target_arch = "x86_64")]
        // To pack the right side pays for several rows of the left one.
        if precision == Precision::Bf16 && m > MAX_ROWS && n > 0 && k > 0 && Precision::has_fast_bf16() {
            // SAFETY: the caller vouches for the buffers, and the processor was asked.
            return unsafe { bf16::matmul(self, (out, out_stride), left, right, scratch) };
        }
        let _ = (precision, scratch);
        // SAFETY: the caller vouches for the buffers.
        unsafe { self.in_full((out, out_stride), left, right, Parallelism::None) }
    }

    /// Computes it in f32.
    ///
    /// # Safety
    /// As [`Self::run`].
    unsafe fn in_full(
        self,
        (out, out_stride): (*mut f32, usize),
        left: Matrix,
        right: Matrix,
        parallelism: Parallelism,
    ) {
        let Self { sizes: (m, n, k), accumulate, scale } = self;
        // SAFETY: the caller vouches for the buffers.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                out,
                1,
                out_stride as isize,
                accumulate,
                left.pointer,
                left.column_stride as isize,
                left.row_stride as isize,
                right.pointer,
                right.column_stride as isize,
                right.row_stride as isize,
                1.0,
                scale,
                false,
                false,
                false,
                parallelism,
            );
        }
    }
}

/// Asks the processor to bring the first of these values and its neighbours into its second cache: the nearest one is full of what
/// is in use.
#[inline(always)]
pub(super) fn prefetch<T>(soon: &[T]) {
    #[cfg(target_arch = "x86_64")]
    if let Some(soon) = soon.first() {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a hint that neither reads nor writes as far as a program can tell, and the address is that of a value.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(soon).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = soon;
}

/// `left right^T` of matrices (rows, depth) and (columns, depth), on the threads of the pool: (rows, columns).
///
/// candle's own product asks the system for the number of processors each time, and takes that many threads for it where
/// the pool has fewer.
///
/// # Safety
/// All elements that the sizes and strides name must lie inside live buffers; rows or columns of each side must be consecutive.
pub(super) unsafe fn product(
    (rows, columns, depth): (usize, usize, usize),
    left: Matrix,
    right: Matrix,
    precision: Precision,
) -> Vec<f32> {
    if rows == 0 || columns == 0 || depth == 0 {
        return vec![0.0; rows * columns];
    }
    #[cfg(target_arch = "x86_64")]
    if precision == Precision::Bf16 && Precision::has_fast_bf16() {
        // SAFETY: the caller vouches for the buffers, and the processor was asked.
        return unsafe { bf16::product((rows, columns, depth), left, right) };
    }
    let _ = precision;
    let threads = rayon::current_num_threads();
    let parallelism = if threads > 1 { Parallelism::Rayon(threads) } else { Parallelism::None };
    let product = Product { sizes: (rows, columns, depth), accumulate: false, scale: 1.0 };
    let mut out = Vec::with_capacity(rows * columns);
    // SAFETY: the caller vouches for the sides; there is room for the result, and all of it is written.
    unsafe {
        product.in_full((out.as_mut_ptr(), columns), left, right.transposed(), parallelism);
        out.set_len(rows * columns);
    }
    out
}

/// A buffer that several threads write disjoint parts of.
#[derive(Clone, Copy)]
pub(super) struct SharedMut(*mut f32);
// SAFETY: every user writes only elements that no other writes or reads meanwhile.
unsafe impl Send for SharedMut {}
// SAFETY: as above.
unsafe impl Sync for SharedMut {}

impl SharedMut {
    /// All of `buffer`, which must outlive every use.
    pub fn new(buffer: &mut [f32]) -> Self {
        Self(buffer.as_mut_ptr())
    }

    /// What begins at `pointer`.
    pub fn from_pointer(pointer: *mut f32) -> Self {
        Self(pointer)
    }

    /// The element at `offset`; takes `self` whole, so that closures capture the wrapper and not the bare pointer.
    ///
    /// # Safety
    /// `offset` must lie inside the buffer.
    pub unsafe fn at(self, offset: usize) -> *mut f32 {
        // SAFETY: the caller vouches for the offset.
        unsafe { self.0.add(offset) }
    }

    /// So many elements from `offset` on.
    ///
    /// # Safety
    /// They must lie inside the buffer, and nothing else may use them meanwhile.
    pub unsafe fn slice<'a>(self, offset: usize, len: usize) -> &'a mut [f32] {
        // SAFETY: the caller vouches for place and use.
        unsafe { std::slice::from_raw_parts_mut(self.at(offset), len) }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn exp_is_accurate_to_a_few_ulps() {
        for i in -8700..8800 {
            let x = i as f32 * 0.01;
            let (found, expected) = (super::exp(x), x.exp());
            assert!((found - expected).abs() <= 4e-7 * expected, "exp({x}) = {found}, not {expected}");
        }
        assert!(super::exp(f32::NAN).is_nan());
        assert!(super::exp(-1e30) < 1e-37);
    }
}

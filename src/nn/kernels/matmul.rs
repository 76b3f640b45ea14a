//! GEMM of f32 matrices: the `gemm` crate's kernels, or bf16 products where that is asked for and fast.

use gemm::Parallelism;

#[cfg(target_arch = "x86_64")]
use super::gemv::MAX_ROWS;
#[cfg(target_arch = "x86_64")]
use super::matmul_bf16_avx512 as bf16;
use crate::options::Precision;

/// A matrix inside a larger buffer, by its first element and strides.
#[derive(Clone, Copy)]
pub struct Matrix {
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
pub type ProductScratch = bf16::Scratch;
#[cfg(not(target_arch = "x86_64"))]
pub type ProductScratch = ();

/// `out (m, n) = [out +] scale * left (m, k) right (k, n)`, on one thread.
#[derive(Clone, Copy)]
pub struct Product {
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

/// `left right^T` of matrices (rows, depth) and (columns, depth), on the threads of the pool: (rows, columns).
///
/// candle's own product asks the system for the number of processors each time, and takes that many threads for it where
/// the pool has fewer.
///
/// # Safety
/// All elements that the sizes and strides name must lie inside live buffers; rows or columns of each side must be consecutive.
pub unsafe fn product(
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

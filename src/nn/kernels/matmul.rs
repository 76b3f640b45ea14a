//! GEMM of f32 matrices: the AVX-512 kernels, in f32 or in bf16 if the precision allows it, or the `gemm` crate's, as the
//! CPU has instructions.

use gemm::Parallelism;

use super::dispatch::MatmulBackend;
use super::mat::{MatMut, MatRef};
#[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
use super::matmul_avx512::{self as avx512, Bf16, F32};
use crate::options::Precision;

/// Packing buffers that a thread reuses across GEMMs.
#[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
pub type GemmScratch = avx512::Scratch;
#[cfg(not(all(target_arch = "x86_64", not(haplovl_portable))))]
pub type GemmScratch = ();

/// GEMM on one thread: `out (m, n) = [out +] scale * left (m, k) right (k, n)`.
#[derive(Debug, Clone, Copy)]
pub struct Gemm {
    /// Whether the product is added to the elements of `out`.
    pub accumulate: bool,
    /// Factor of the product.
    pub scale: f32,
    /// Precision of the operands.
    pub precision: Precision,
}

impl Gemm {
    /// Computes `out`. With [`Precision::Bf16`], rows or columns of each operand must be consecutive.
    pub fn run(self, mut out: MatMut, left: MatRef, right: MatRef, scratch: &mut GemmScratch) {
        assert_dims((out.rows(), out.columns()), left, right);
        #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
        let is_empty = left.rows() == 0 || left.columns() == 0 || right.columns() == 0;
        match MatmulBackend::for_tile(left.rows(), self.precision) {
            #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
            MatmulBackend::GemmBf16Avx512 if !is_empty => avx512::gemm::<Bf16>(self, out, left, right, scratch),
            #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
            MatmulBackend::GemmF32Avx512 if !is_empty && avx512::are_packable(&left, &right) => {
                avx512::gemm::<F32>(self, out, left, right, scratch);
            }
            _ => self.run_f32(&mut out, left, right, Parallelism::None),
        }
        let _ = scratch;
    }

    /// Computes `out` in f32.
    fn run_f32(self, out: &mut MatMut, left: MatRef, right: MatRef, parallelism: Parallelism) {
        // SAFETY: the views have the sizes that are passed and lie in live buffers; nothing else accesses `out`.
        unsafe {
            gemm::gemm(
                left.rows(),
                right.columns(),
                left.columns(),
                out.as_mut_ptr(),
                1,
                out.row_stride() as isize,
                self.accumulate,
                left.as_ptr(),
                left.column_stride() as isize,
                left.row_stride() as isize,
                right.as_ptr(),
                right.column_stride() as isize,
                right.row_stride() as isize,
                1.0,
                self.scale,
                false,
                false,
                false,
                parallelism,
            );
        }
    }
}

fn assert_dims(out: (usize, usize), left: MatRef, right: MatRef) {
    assert!(
        out == (left.rows(), right.columns()) && left.columns() == right.rows(),
        "matmul of matrices of mismatched shapes"
    );
}

/// Multiplies `left (m, k) right (k, n)` on the threads of the pool: (m, n), contiguous. With [`Precision::Bf16`], rows
/// or columns of each operand must be consecutive.
///
/// candle's matmul asks the operating system for the number of CPUs in each call, and starts as many threads even if
/// the pool has fewer.
pub fn matmul(left: MatRef, right: MatRef, precision: Precision) -> Vec<f32> {
    let (rows, columns) = (left.rows(), right.columns());
    assert_dims((rows, columns), left, right);
    if rows == 0 || columns == 0 || left.columns() == 0 {
        return vec![0.0; rows * columns];
    }
    match MatmulBackend::for_matmul(columns, precision) {
        #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
        MatmulBackend::GemmBf16Avx512 => avx512::matmul::<Bf16>(left, right),
        #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
        MatmulBackend::GemmF32Avx512 if avx512::are_packable(&left, &right) => avx512::matmul::<F32>(left, right),
        _ => matmul_f32(left, right),
    }
}

fn matmul_f32(left: MatRef, right: MatRef) -> Vec<f32> {
    let (rows, columns) = (left.rows(), right.columns());
    let threads = rayon::current_num_threads();
    let parallelism = if threads > 1 { Parallelism::Rayon(threads) } else { Parallelism::None };
    let mut data = Vec::with_capacity(rows * columns);
    // SAFETY: the GEMM below overwrites every element and reads none.
    let mut out = unsafe { MatMut::uninit(data.spare_capacity_mut(), (rows, columns)) };
    let gemm = Gemm { accumulate: false, scale: 1.0, precision: Precision::Full };
    gemm.run_f32(&mut out, left, right, parallelism);
    // SAFETY: all elements were written.
    unsafe { data.set_len(rows * columns) };
    data
}

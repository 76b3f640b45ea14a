//! Registers in memory, lane masks, transposition and loads of the AVX-512 kernels.

use std::arch::x86_64::*;
use std::sync::LazyLock;

use half::f16;

/// Whether the CPU has AVX-512.
pub fn is_supported() -> bool {
    std::is_x86_feature_detected!("avx512f")
}

/// Whether the CPU has AVX-512, and multiplies a register of it as fast as one of AVX2: AMD's cores before family 1Ah
/// (Zen 5) take two steps for it.
pub fn has_full_rate() -> bool {
    static FULL_RATE: LazyLock<bool> = LazyLock::new(|| {
        let (vendor, signature) = (__cpuid(0), __cpuid(1).eax);
        let is_amd = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD";
        let family = (signature >> 8 & 0xf) + (signature >> 20 & 0xff);
        is_supported() && !(is_amd && family < 0x1a)
    });
    *FULL_RATE
}

/// Sixteen 32-bit lanes in memory, aligned as a register.
#[repr(C, align(64))]
#[derive(Clone, Copy, Default)]
pub struct U32x16(pub [u32; 16]);

impl U32x16 {
    /// Zeros.
    pub const ZERO: Self = Self([0; 16]);

    /// Loads a register.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn load(&self) -> __m512i {
        // SAFETY: as long as a register, and aligned.
        unsafe { _mm512_load_si512(self.0.as_ptr().cast()) }
    }

    /// Stores a register.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn store(&mut self, value: __m512i) {
        // SAFETY: as long as a register, and aligned.
        unsafe { _mm512_store_si512(self.0.as_mut_ptr().cast(), value) }
    }
}

/// The mask of the first `lanes` lanes, at most sixteen.
#[inline(always)]
pub fn lane_mask(lanes: usize) -> __mmask16 {
    ((1u32 << lanes.min(16)) - 1) as __mmask16
}

/// The transpose of a 16 x 16 matrix of 32-bit elements, one row in each register.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn transpose_16x16(rows: &[__m512i; 16]) -> [__m512i; 16] {
    // Groups of four rows: each quarter of register `j` holds column `4 * quarter + j`.
    let mut fours = [[_mm512_setzero_si512(); 4]; 4];
    for (four, rows) in fours.iter_mut().zip(rows.as_chunks::<4>().0) {
        let [a, b, c, d] = *rows;
        let (ab, ab_2) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (cd, cd_2) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        *four = [
            _mm512_unpacklo_epi64(ab, cd),
            _mm512_unpackhi_epi64(ab, cd),
            _mm512_unpacklo_epi64(ab_2, cd_2),
            _mm512_unpackhi_epi64(ab_2, cd_2),
        ];
    }
    let mut columns = *rows;
    for j in 0..4 {
        let [a, b, c, d] = [fours[0][j], fours[1][j], fours[2][j], fours[3][j]];
        // Quarters 0 and 2 of each, then 1 and 3.
        let (even, even_2) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0x88>(c, d));
        let (odd, odd_2) = (_mm512_shuffle_i32x4::<0xdd>(a, b), _mm512_shuffle_i32x4::<0xdd>(c, d));
        columns[j] = _mm512_shuffle_i32x4::<0x88>(even, even_2);
        columns[4 + j] = _mm512_shuffle_i32x4::<0x88>(odd, odd_2);
        columns[8 + j] = _mm512_shuffle_i32x4::<0xdd>(even, even_2);
        columns[12 + j] = _mm512_shuffle_i32x4::<0xdd>(odd, odd_2);
    }
    columns
}

/// Element type that is widened to f32 in registers.
pub trait Element: Copy {
    /// Loads a register of elements, widened to f32.
    ///
    /// # Safety
    /// Sixteen elements must lie there, and the CPU must have AVX-512.
    unsafe fn load(from: *const Self) -> __m512;
}

impl Element for f32 {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(from: *const Self) -> __m512 {
        // SAFETY: the caller vouches for the elements.
        unsafe { _mm512_loadu_ps(from) }
    }
}

impl Element for f16 {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(from: *const Self) -> __m512 {
        // SAFETY: as above, with half the bytes.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transpose_swaps_rows_and_columns() {
        if !is_supported() {
            return;
        }
        let rows: [U32x16; 16] = std::array::from_fn(|row| U32x16(std::array::from_fn(|i| (16 * row + i) as u32)));
        let mut columns = rows;
        #[target_feature(enable = "avx512f")]
        fn transpose(lines: &mut [U32x16; 16]) {
            let mut rows = [_mm512_setzero_si512(); 16];
            for (row, line) in rows.iter_mut().zip(&*lines) {
                *row = line.load();
            }
            let columns = transpose_16x16(&rows);
            for (line, column) in lines.iter_mut().zip(columns) {
                line.store(column);
            }
        }
        // SAFETY: the CPU has AVX-512, as just detected.
        unsafe { transpose(&mut columns) };
        for (i, column) in columns.iter().enumerate() {
            assert_eq!(column.0, std::array::from_fn(|row| rows[row].0[i]));
        }
    }
}

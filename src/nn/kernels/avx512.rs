//! What kernels for AVX-512 share.

use std::arch::x86_64::*;

/// Sixteen lanes of 32 bits, where a register is loaded from and stored to.
#[repr(C, align(64))]
#[derive(Clone, Copy, Default)]
pub struct Line(pub [u32; 16]);

/// Sixteen floats, likewise.
#[repr(C, align(64))]
#[derive(Clone, Copy, Default)]
pub struct Floats(pub [f32; 16]);

impl Floats {
    /// Zeros.
    pub const ZERO: Self = Self([0.0; 16]);

    /// The register's value.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn load(&self) -> __m512 {
        // SAFETY: as long as a register.
        unsafe { _mm512_load_ps(self.0.as_ptr()) }
    }

    /// Becomes the register's value.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn store(&mut self, value: __m512) {
        // SAFETY: as long as a register.
        unsafe { _mm512_store_ps(self.0.as_mut_ptr(), value) }
    }
}

impl Line {
    /// Zeros.
    pub const ZERO: Self = Self([0; 16]);

    /// The register's value.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn load(&self) -> __m512i {
        // SAFETY: a line is as long as a register.
        unsafe { _mm512_load_si512(self.0.as_ptr().cast()) }
    }

    /// Becomes the register's value.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn store(&mut self, value: __m512i) {
        // SAFETY: a line is as long as a register.
        unsafe { _mm512_store_si512(self.0.as_mut_ptr().cast(), value) }
    }
}

/// A mask of so many lanes, at most sixteen.
#[inline(always)]
pub fn up_to(lanes: usize) -> __mmask16 {
    ((1u32 << lanes.min(16)) - 1) as __mmask16
}

/// Of sixteen rows of sixteen 32-bit numbers, the sixteen columns.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn transposed(rows: &[__m512i; 16]) -> [__m512i; 16] {
    // By fours of rows: in each quarter of register `j` the column `4 * quarter + j`.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_those_of_the_rows() {
        if !std::is_x86_feature_detected!("avx512f") {
            return;
        }
        let rows: [Line; 16] = std::array::from_fn(|row| Line(std::array::from_fn(|i| (16 * row + i) as u32)));
        let mut columns = rows;
        #[target_feature(enable = "avx512f")]
        fn transpose(lines: &mut [Line; 16]) {
            let mut rows = [_mm512_setzero_si512(); 16];
            for (row, line) in rows.iter_mut().zip(&*lines) {
                *row = line.load();
            }
            let columns = transposed(&rows);
            for (line, column) in lines.iter_mut().zip(columns) {
                line.store(column);
            }
        }
        // SAFETY: the processor was just asked for these instructions.
        unsafe { transpose(&mut columns) };
        for (i, column) in columns.iter().enumerate() {
            assert_eq!(column.0, std::array::from_fn(|row| rows[row].0[i]));
        }
    }
}

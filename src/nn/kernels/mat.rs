//! Strided matrix views into borrowed memory. Bounds are checked once, when a view is made.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Number of elements that a strided matrix spans from its first to its last one.
fn span((rows, columns): (usize, usize), row_stride: usize, column_stride: usize) -> usize {
    match (rows.checked_sub(1), columns.checked_sub(1)) {
        (Some(row), Some(column)) => {
            row.saturating_mul(row_stride).saturating_add(column.saturating_mul(column_stride)).saturating_add(1)
        }
        _ => 0,
    }
}

/// Read-only matrix (rows, columns).
#[derive(Debug, Clone, Copy)]
pub struct MatRef<'a, T = f32> {
    /// Elements from (0, 0) to the end of the buffer. Invariant: holds the span of the matrix.
    data: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T> MatRef<'a, T> {
    /// A matrix whose rows are slices, `row_stride` elements apart.
    pub fn new(data: &'a [T], (rows, columns): (usize, usize), row_stride: usize) -> Self {
        assert!(span((rows, columns), row_stride, 1) <= data.len(), "a matrix must lie inside its buffer");
        Self { data, rows, columns, row_stride, column_stride: 1 }
    }

    /// A matrix whose rows follow each other and fill `data`.
    pub fn contiguous(data: &'a [T], (rows, columns): (usize, usize)) -> Self {
        assert!(rows.checked_mul(columns) == Some(data.len()), "a contiguous matrix must fill its buffer");
        Self::new(data, (rows, columns), columns)
    }

    /// The transposed matrix: a view of the same elements.
    pub fn transposed(self) -> Self {
        let Self { data, rows, columns, row_stride, column_stride } = self;
        Self { data, rows: columns, columns: rows, row_stride: column_stride, column_stride: row_stride }
    }

    /// Some of the rows.
    pub fn rows_in(self, rows: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows must lie inside their matrix");
        // No rows may begin past the last element.
        let data = self.data.get(rows.start * self.row_stride..).unwrap_or_default();
        Self { data, rows: rows.len(), ..self }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Distance between an element and the one below, in elements.
    pub fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// Distance between an element and the next one in its row, in elements.
    pub fn column_stride(&self) -> usize {
        self.column_stride
    }

    /// Address of the first element; strides and sizes stay inside the buffer.
    pub fn as_ptr(&self) -> *const T {
        self.data.as_ptr()
    }

    /// A row as a slice. The matrix must not be transposed.
    #[inline(always)]
    pub fn row(&self, row: usize) -> &'a [T] {
        debug_assert!(self.column_stride == 1 && row < self.rows);
        &self.data[row * self.row_stride..][..self.columns]
    }

    /// All elements, in row order, of a matrix without gaps between its rows.
    pub fn as_contiguous(&self) -> &'a [T] {
        assert!(self.column_stride == 1 && self.row_stride == self.columns, "rows with gaps are no slice");
        &self.data[..self.rows * self.columns]
    }

    /// The buffer from an offset on, for prefetching also beyond the matrix; empty beyond the buffer.
    #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
    #[inline(always)]
    pub fn buffer_from(&self, offset: usize) -> &'a [T] {
        self.data.get(offset..).unwrap_or_default()
    }
}

/// Writable matrix (rows, columns) with rows of consecutive elements. Nothing else can access its elements.
#[derive(Debug)]
pub struct MatMut<'a> {
    /// Element (0, 0). Invariant: the rows lie in memory borrowed for `'a` and do not overlap.
    pointer: *mut f32,
    rows: usize,
    columns: usize,
    row_stride: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: a view owns the access to its elements, as `&mut [f32]` does.
unsafe impl Send for MatMut<'_> {}

impl<'a> MatMut<'a> {
    /// A matrix whose rows follow each other and fill `data`.
    pub fn contiguous(data: &'a mut [f32], (rows, columns): (usize, usize)) -> Self {
        assert!(rows.checked_mul(columns) == Some(data.len()), "a contiguous matrix must fill its buffer");
        Self { pointer: data.as_mut_ptr(), rows, columns, row_stride: columns, borrow: PhantomData }
    }

    /// A contiguous matrix at the start of uninitialised memory.
    ///
    /// # Safety
    /// No element may be read before it is written, neither by [`Self::row_part`] nor by accumulation.
    pub unsafe fn uninit(data: &'a mut [MaybeUninit<f32>], (rows, columns): (usize, usize)) -> Self {
        assert!(span((rows, columns), columns, 1) <= data.len(), "a matrix must lie inside its buffer");
        Self { pointer: data.as_mut_ptr().cast(), rows, columns, row_stride: columns, borrow: PhantomData }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Distance between an element and the one below, in elements.
    pub fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// Address of the first element; strides and sizes stay inside the buffer.
    pub fn as_mut_ptr(&mut self) -> *mut f32 {
        self.pointer
    }

    /// The elements of a row from column `first` on, at most `most`; empty beyond the last column.
    #[inline(always)]
    pub fn row_part(&mut self, row: usize, first: usize, most: usize) -> &mut [f32] {
        assert!(row < self.rows);
        let first = first.min(self.columns);
        let len = most.min(self.columns - first);
        // SAFETY: inside the matrix, which is borrowed mutably as long as the slice lives.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(row * self.row_stride + first), len) }
    }

    /// All elements, in row order, of a matrix without gaps between its rows (or of one row).
    pub fn into_slice(self) -> &'a mut [f32] {
        assert!(self.row_stride == self.columns || self.rows <= 1, "rows with gaps are no slice");
        // SAFETY: consecutive elements of the matrix, whose access passes on for all of `'a`.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.rows * self.columns) }
    }

    /// The sub-matrix of some rows and columns; it borrows this view mutably.
    pub fn tile(&mut self, rows: Range<usize>, columns: Range<usize>) -> MatMut<'_> {
        // SAFETY: this view is borrowed mutably as long as the tile lives.
        unsafe { self.part(rows, columns) }
    }

    /// The first `rows` rows, and the others.
    pub fn split_rows(self, rows: usize) -> (Self, Self) {
        // SAFETY: the parts do not overlap, and this view is consumed.
        unsafe { (self.part(0..rows, 0..self.columns), self.part(rows..self.rows, 0..self.columns)) }
    }

    /// The first `columns` columns, and the others.
    pub fn split_columns(self, columns: usize) -> (Self, Self) {
        // SAFETY: the parts do not overlap, and this view is consumed.
        unsafe { (self.part(0..self.rows, 0..columns), self.part(0..self.rows, columns..self.columns)) }
    }

    /// Blocks of `rows` rows each; the last one may have fewer.
    pub fn row_blocks(self, rows: usize) -> impl Iterator<Item = Self> {
        let mut rest = Some(self);
        std::iter::from_fn(move || {
            let all = rest.take().filter(|all| all.rows > 0)?;
            let count = rows.clamp(1, all.rows);
            let (block, others) = all.split_rows(count);
            rest = Some(others);
            Some(block)
        })
    }

    /// Blocks of `columns` columns each; the last one may have fewer.
    pub fn column_blocks(self, columns: usize) -> impl Iterator<Item = Self> {
        let mut rest = Some(self);
        std::iter::from_fn(move || {
            let all = rest.take().filter(|all| all.columns > 0)?;
            let count = columns.clamp(1, all.columns);
            let (block, others) = all.split_columns(count);
            rest = Some(others);
            Some(block)
        })
    }

    /// A second view of some rows and columns.
    ///
    /// # Safety
    /// No element of the second view may be accessed through another view during its lifetime.
    unsafe fn part(&self, rows: Range<usize>, columns: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "a tile must lie inside its matrix");
        assert!(columns.start <= columns.end && columns.end <= self.columns, "a tile must lie inside its matrix");
        // An empty tile may begin past the last element, where nothing is accessed.
        let pointer = self.pointer.wrapping_add(rows.start * self.row_stride + columns.start);
        Self { pointer, rows: rows.len(), columns: columns.len(), row_stride: self.row_stride, borrow: PhantomData }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposed_views_and_rows_read_the_right_elements() {
        let data: Vec<f32> = (0..14).map(|i| i as f32).collect();
        let mat = MatRef::new(&data, (3, 4), 5);
        assert_eq!(mat.row(2), [10.0, 11.0, 12.0, 13.0]);
        let turned = mat.transposed();
        assert_eq!((turned.rows(), turned.columns(), turned.row_stride(), turned.column_stride()), (4, 3, 1, 5));
    }

    #[test]
    fn empty_matrices_need_no_memory() {
        for dims in [(0, 9), (9, 0), (0, 0)] {
            assert_eq!(MatRef::<f32>::new(&[], dims, 100).rows(), dims.0);
            assert_eq!(
                MatMut::contiguous(&mut [], dims).row_blocks(2).map(|b| b.columns()).sum::<usize>(),
                dims.0.div_ceil(2) * dims.1
            );
        }
    }

    #[test]
    #[should_panic(expected = "inside its buffer")]
    fn matrices_larger_than_their_buffer_are_refused() {
        MatRef::new(&[0.0; 13], (3, 4), 5);
    }

    #[test]
    fn blocks_cover_every_element_once() {
        for (rows, columns) in [(5, 7), (1, 1), (6, 4)] {
            let mut data = vec![0f32; rows * columns];
            for block in MatMut::contiguous(&mut data, (rows, columns)).row_blocks(2) {
                for mut tile in block.column_blocks(3) {
                    for row in 0..tile.rows() {
                        tile.row_part(row, 0, usize::MAX).iter_mut().for_each(|x| *x += 1.0);
                    }
                }
            }
            assert!(data.iter().all(|x| *x == 1.0));
        }
    }
}

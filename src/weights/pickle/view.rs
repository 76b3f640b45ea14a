//! Tensors as views of storages: an offset, and a stride for each dimension.

use super::globals::ElementType;
use super::reader::Parsed;
use super::value::StorageRef;

/// Most dimensions of a tensor.
pub(super) const MAX_DIMENSIONS: usize = 16;
/// Most elements of a tensor that repeats elements of its storage: a stride of 0 makes any size from one element.
const MAX_REPEATED: usize = 1 << 24;

/// A tensor in a storage; every element lies within the storage.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TensorView<'a> {
    pub(super) storage: StorageRef<'a>,
    pub(super) layout: Layout,
}

/// Elements of a storage that a tensor consists of.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Layout {
    pub(super) element: ElementType,
    pub(super) shape: Vec<usize>,
    /// Elements from one index to the next, for each dimension.
    strides: Vec<usize>,
    /// First element in the file's storage.
    offset: usize,
    /// Number of elements.
    count: usize,
}

impl Layout {
    /// Checks that a view lies within its storage.
    pub(super) fn new(
        storage: &StorageRef<'_>,
        element: ElementType,
        offset: usize,
        shape: Vec<usize>,
        strides: Vec<usize>,
    ) -> Parsed<Self> {
        // The length of an untyped storage is in bytes.
        let length = storage.length.checked_mul(storage.element.size).map(|bytes| bytes / element.size);
        let start = storage.start.checked_mul(storage.element.size).map(|bytes| bytes / element.size);
        let sizes = length.zip(start).filter(|_| shape.len() == strides.len() && shape.len() <= MAX_DIMENSIONS);
        let count = shape.iter().try_fold(1usize, |product, side| product.checked_mul(*side));
        let end = shape
            .iter()
            .zip(&strides)
            .try_fold(offset, |end, (side, stride)| end.checked_add(stride.checked_mul(side.saturating_sub(1))?));
        let valid = (|| {
            let ((length, start), count, last) = (sizes?, count?, end?);
            let inside = count == 0 || last < length && count <= length.max(MAX_REPEATED);
            count.checked_mul(element.size).filter(|_| inside)?;
            Some((start.checked_add(offset)?, count))
        })();
        match valid {
            Some((offset, count)) => Ok(Self { element, shape, strides, offset, count }),
            None => Err(format!(
                "has a tensor of shape {shape:.100?} with strides {strides:.100?} from element {offset} of a storage of \
                 {} elements, which it does not fit: the file is damaged",
                storage.length
            )),
        }
    }

    /// Whether the elements lie one after the other in row-major order.
    pub(super) fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&side, &stride)| {
            let fits = side <= 1 || stride == expected;
            expected *= side.max(1);
            fits
        })
    }

    /// The bytes of a contiguous view in those of its storage.
    pub(super) fn slice<'b>(&self, storage: &'b [u8]) -> Option<&'b [u8]> {
        let start = self.offset.checked_mul(self.element.size)?;
        storage.get(start..start.checked_add(self.count * self.element.size)?)
    }

    /// Copies the elements in row-major order.
    pub(super) fn gather(&self, storage: &[u8]) -> Option<Vec<u8>> {
        let size = self.element.size;
        let mut bytes = Vec::with_capacity(self.count * size);
        let mut index = vec![0; self.shape.len()];
        let mut at = self.offset;
        for _ in 0..self.count {
            let start = at.checked_mul(size)?;
            bytes.extend_from_slice(storage.get(start..start.checked_add(size)?)?);
            self.advance(&mut index, &mut at);
        }
        Some(bytes)
    }

    /// Moves to the next element in row-major order.
    fn advance(&self, index: &mut [usize], at: &mut usize) {
        for ((index, &side), &stride) in index.iter_mut().zip(&self.shape).zip(&self.strides).rev() {
            *index += 1;
            *at += stride;
            if *index < side {
                return;
            }
            *at -= stride * side;
            *index = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::globals::Global;
    use super::*;

    fn bytes() -> ElementType {
        match Global::find("torch", "uint8") {
            Some(Global::Dtype(element)) => element,
            other => panic!("{other:?}"),
        }
    }

    fn layout(length: usize, offset: usize, shape: &[usize], strides: &[usize]) -> Parsed<Layout> {
        let storage = StorageRef { key: "0", element: bytes(), length, start: 0, root_length: length };
        Layout::new(&storage, bytes(), offset, shape.to_vec(), strides.to_vec())
    }

    #[test]
    fn views_are_read_in_row_major_order() {
        let storage: Vec<u8> = (0..12).collect();
        let plain = layout(12, 4, &[2, 3], &[3, 1]).unwrap();
        assert!(plain.is_contiguous());
        assert_eq!(plain.slice(&storage).unwrap(), [4, 5, 6, 7, 8, 9]);
        assert_eq!(plain.gather(&storage).unwrap(), [4, 5, 6, 7, 8, 9]);
        let transposed = layout(12, 0, &[3, 2], &[1, 3]).unwrap();
        assert!(!transposed.is_contiguous());
        assert_eq!(transposed.gather(&storage).unwrap(), [0, 3, 1, 4, 2, 5]);
        let repeated = layout(12, 2, &[2, 2], &[0, 1]).unwrap();
        assert_eq!(repeated.gather(&storage).unwrap(), [2, 3, 2, 3]);
        assert_eq!(layout(12, 5, &[], &[]).unwrap().gather(&storage).unwrap(), [5]);
        assert_eq!(layout(0, 0, &[0, 3], &[3, 1]).unwrap().gather(&[]).unwrap(), Vec::<u8>::new());
    }

    #[test]
    fn what_leaves_the_storage_is_an_error() {
        let big = usize::MAX;
        for (length, offset, shape, strides) in [
            (12, 0, vec![13], vec![1]),
            (12, 12, vec![1], vec![1]),
            (12, 0, vec![2, 2], vec![11, 1]),
            (12, big, vec![2], vec![1]),
            (12, 0, vec![big, big], vec![0, 0]),
            (12, 0, vec![2], vec![big]),
            (1, 0, vec![1 << 40], vec![0]),
            (12, 0, vec![2], vec![]),
            (12, 0, vec![1; 17], vec![1; 17]),
        ] {
            assert!(layout(length, offset, &shape, &strides).is_err(), "{shape:?} {strides:?}");
        }
    }
}

//! Values on the stack of the unpickler.

use super::globals::{ElementType, Global};
use super::view::TensorView;

/// Index of a value in its [`Values`].
pub(super) type Id = u32;

/// A Python value. Containers hold indices, so that shared and cyclic values cost nothing.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// Integer of more than 64 bits, little-endian.
    LongInt(&'a [u8]),
    Text(&'a str),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(StorageRef<'a>),
    Tensor(TensorView<'a>),
    /// Anything without tensors.
    Opaque,
}

/// Reference to a storage, as `torch.save` writes it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct StorageRef<'a> {
    pub(super) key: &'a str,
    pub(super) element: ElementType,
    /// Elements.
    pub(super) length: usize,
    /// First element within the file's storage, for views of storages in old files.
    pub(super) start: usize,
    /// Elements of the file's storage.
    pub(super) root_length: usize,
}

/// All values of one program.
#[derive(Debug, Default)]
pub(super) struct Values<'a>(pub(super) Vec<Value<'a>>);

impl<'a> Values<'a> {
    pub(super) fn get(&self, id: Id) -> &Value<'a> {
        self.0.get(id as usize).unwrap_or(&Value::None)
    }

    pub(super) fn text(&self, id: Id) -> Option<&'a str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// An integer that is not negative.
    pub(super) fn size(&self, id: Id) -> Option<usize> {
        match self.get(id) {
            Value::Int(n) => usize::try_from(*n).ok(),
            _ => None,
        }
    }

    pub(super) fn sizes(&self, id: Id) -> Option<Vec<usize>> {
        self.items(id)?.iter().map(|&id| self.size(id)).collect()
    }

    /// Elements of a tuple or list.
    pub(super) fn items(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(items) | Value::List(items) => Some(items),
            _ => None,
        }
    }

    pub(super) fn entries(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.get(id) {
            Value::Dict(entries) => Some(entries),
            _ => None,
        }
    }
}

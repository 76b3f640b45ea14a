//! The Python objects that a tensor file may refer to. Everything else is refused by name.

use candle_core::DType;

/// Element type of a stored tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ElementType {
    /// PyTorch's name, for messages.
    pub(super) name: &'static str,
    /// Bytes of one element.
    pub(super) size: usize,
    /// Candle's dtype with the same bytes, if it has one.
    pub(super) dtype: Option<DType>,
}

/// A Python class or function that `torch.save` writes for tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    /// `OrderedDict` and dictionaries like it: a call makes an empty dictionary.
    Dict,
    /// `torch._utils._rebuild_tensor_v2` and its older and newer forms.
    RebuildTensor,
    /// `torch._utils._rebuild_tensor_v3`, which names the element type itself.
    RebuildTensorV3,
    /// `torch._utils._rebuild_parameter`: the first argument is the tensor.
    RebuildParameter,
    /// `torch._tensor._rebuild_from_type_v2`: calls its first argument with the third.
    RebuildFromType,
    /// A typed storage.
    Storage(ElementType),
    /// An element type.
    Dtype(ElementType),
    /// Harmless objects without tensors, which are not interpreted.
    Opaque,
}

impl Global {
    /// The object called `module.name`; `None` if it is not on the list.
    pub(super) fn find(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict" | "defaultdict") => Self::Dict,
            ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_tensor_v3") => Self::RebuildTensorV3,
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Self::RebuildParameter,
            ("torch._tensor", "_rebuild_from_type_v2") => Self::RebuildFromType,
            ("torch.storage", "UntypedStorage") => Self::Storage(UINT8),
            ("torch", name) => return Self::of_torch(name),
            ("torch.nn.parameter", "Parameter" | "Buffer") | ("torch.torch_version", "TorchVersion") => Self::Opaque,
            (module, name) if OPAQUE.iter().any(|(m, names)| *m == module && names.contains(&name)) => Self::Opaque,
            _ => return None,
        })
    }

    fn of_torch(name: &str) -> Option<Self> {
        if let "Size" | "device" | "Tensor" = name {
            return Some(Self::Opaque);
        }
        if let Some(of) = name.strip_suffix("Storage") {
            let storage = STORAGES.iter().find(|(kind, _)| *kind == of);
            return storage.map(|(_, element)| Self::Storage(*element));
        }
        let types = STORAGES.iter().map(|(_, element)| element).chain(&OTHERS);
        types.into_iter().find(|element| element.name == name).copied().map(Self::Dtype)
    }
}

/// Objects of Python and NumPy that trainers put beside the tensors: arguments, paths, counters, losses.
const OPAQUE: [(&str, &[&str]); 9] = [
    ("_codecs", &["encode"]),
    ("builtins", BUILTINS),
    ("__builtin__", BUILTINS),
    ("collections", &["Counter", "deque"]),
    ("argparse", &["Namespace"]),
    ("pathlib", &["Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"]),
    ("numpy", &["dtype", "ndarray"]),
    ("numpy.core.multiarray", &["scalar", "_reconstruct"]),
    ("numpy._core.multiarray", &["scalar", "_reconstruct"]),
];
const BUILTINS: &[&str] =
    &["set", "frozenset", "dict", "list", "tuple", "int", "float", "complex", "bool", "str", "bytes", "bytearray"];

const UINT8: ElementType = element("uint8", 1, Some(DType::U8));

const STORAGES: [(&str, ElementType); 13] = [
    ("Float", element("float32", 4, Some(DType::F32))),
    ("Double", element("float64", 8, Some(DType::F64))),
    ("Half", element("float16", 2, Some(DType::F16))),
    ("BFloat16", element("bfloat16", 2, Some(DType::BF16))),
    ("Long", element("int64", 8, Some(DType::I64))),
    ("Int", element("int32", 4, Some(DType::I32))),
    ("Short", element("int16", 2, Some(DType::I16))),
    ("Char", element("int8", 1, None)),
    ("Byte", UINT8),
    ("Untyped", UINT8),
    ("Bool", element("bool", 1, None)),
    ("ComplexFloat", element("complex64", 8, None)),
    ("ComplexDouble", element("complex128", 16, None)),
];

/// Element types without a storage class.
const OTHERS: [ElementType; 7] = [
    element("uint16", 2, None),
    element("uint32", 4, Some(DType::U32)),
    element("uint64", 8, None),
    element("float8_e4m3fn", 1, None),
    element("float8_e5m2", 1, None),
    element("float8_e4m3fnuz", 1, None),
    element("float8_e5m2fnuz", 1, None),
];

const fn element(name: &'static str, size: usize, dtype: Option<DType>) -> ElementType {
    ElementType { name, size, dtype }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_tensors_need_is_known() {
        assert_eq!(Global::find("collections", "OrderedDict"), Some(Global::Dict));
        let storage = Global::find("torch", "BFloat16Storage");
        assert!(matches!(storage, Some(Global::Storage(ElementType { name: "bfloat16", size: 2, .. }))));
        assert!(matches!(Global::find("torch", "float32"), Some(Global::Dtype(_))));
        for (module, name) in
            [("posix", "system"), ("builtins", "eval"), ("torch", "load"), ("torch.hub", "load"), ("torch", "Storage")]
        {
            assert_eq!(Global::find(module, name), None, "{module}.{name}");
        }
    }
}

//! Interpretation of the calls that rebuild tensors.

use super::globals::Global;
use super::reader::Parsed;
use super::value::{Id, StorageRef, Value, Values};
use super::view::{Layout, MAX_DIMENSIONS, TensorView};

/// The storage that a persistent id names: `("storage", type, key, location, length)`, in old files with a sixth item
/// for a view of another storage.
pub(super) fn storage<'a>(values: &Values<'a>, id: Id) -> Parsed<StorageRef<'a>> {
    let wrong = || "has a storage that is not described as torch.save does it: the file is damaged".to_string();
    let [tag, kind, key, _location, length, view @ ..] = values.items(id).ok_or_else(wrong)? else {
        return Err(wrong());
    };
    let Value::Global(Global::Storage(element)) = values.get(*kind) else { return Err(wrong()) };
    if values.text(*tag) != Some("storage") {
        return Err(wrong());
    }
    let key = values.text(*key).ok_or_else(wrong)?;
    let root_length = values.size(*length).ok_or_else(wrong)?;
    let whole = StorageRef { key, element: *element, length: root_length, start: 0, root_length };
    match view.first().map(|view| (values.get(*view), values.items(*view))) {
        None | Some((Value::None, _)) => Ok(whole),
        Some((_, Some([_key, start, length]))) => {
            let (start, length) = values.size(*start).zip(values.size(*length)).ok_or_else(wrong)?;
            let inside = start.checked_add(length).is_some_and(|end| end <= root_length);
            inside.then_some(StorageRef { start, length, ..whole }).ok_or_else(wrong)
        }
        Some(_) => Err(wrong()),
    }
}

/// The value of a call of `global` with a tuple of arguments.
pub(super) fn call<'a>(values: &Values<'a>, global: Global, arguments: Id) -> Parsed<Value<'a>> {
    let items = values.items(arguments).ok_or("calls a function without a tuple of arguments: the file is damaged")?;
    match global {
        Global::Dict => Ok(dict(values, arguments)),
        Global::RebuildTensor | Global::RebuildTensorV3 => tensor(values, global, items).map(Value::Tensor),
        Global::RebuildParameter => match items.first().map(|id| values.get(*id)) {
            Some(value @ Value::Tensor(_)) => Ok(value.clone()),
            _ => Err("has a parameter without a tensor: the file is damaged".into()),
        },
        Global::RebuildFromType => match items {
            [function, _, arguments, ..] => match *values.get(*function) {
                Value::Global(inner @ (Global::RebuildTensor | Global::RebuildTensorV3 | Global::RebuildParameter)) => {
                    call(values, inner, *arguments)
                }
                _ => Err("rebuilds a tensor in an unknown way: save it as a plain tensor".into()),
            },
            _ => Err("has a tensor without its arguments: the file is damaged".into()),
        },
        // The sizes of a tensor, for example; only a tuple is of use.
        Global::Opaque => Ok(items.first().map_or(Value::Opaque, |id| match values.get(*id) {
            Value::Tuple(sizes) if sizes.len() <= MAX_DIMENSIONS => Value::Tuple(sizes.clone()),
            _ => Value::Opaque,
        })),
        Global::Storage(_) | Global::Dtype(_) => Ok(Value::Opaque),
    }
}

/// Pairs that a call of `global` copies to a new dictionary.
pub(super) fn copied<'v>(values: &'v Values<'_>, global: Global, arguments: Id) -> &'v [Id] {
    let pairs = || values.items(*values.items(arguments)?.first()?);
    if global == Global::Dict { pairs().unwrap_or_default() } else { &[] }
}

/// An ordered dictionary: empty, or of the list of pairs that Python 2 wrote.
fn dict<'a>(values: &Values<'a>, arguments: Id) -> Value<'a> {
    let pairs = copied(values, Global::Dict, arguments);
    let pair = |id: &Id| match values.items(*id) {
        Some([key, value]) => Some((*key, *value)),
        _ => None,
    };
    Value::Dict(pairs.iter().filter_map(pair).collect())
}

/// `(storage, offset, shape, strides, ..)`; the third version names the element type as the seventh argument.
fn tensor<'a>(values: &Values<'a>, global: Global, items: &[Id]) -> Parsed<TensorView<'a>> {
    let wrong = || "has a tensor that is not described as torch.save does it: the file is damaged".to_string();
    let [storage, offset, shape, strides, rest @ ..] = items else { return Err(wrong()) };
    let Value::Storage(storage) = values.get(*storage) else { return Err(wrong()) };
    let element = match (global, rest.get(2).map(|id| values.get(*id))) {
        (Global::RebuildTensorV3, Some(Value::Global(Global::Dtype(element)))) => *element,
        (Global::RebuildTensorV3, _) => return Err(wrong()),
        _ => storage.element,
    };
    let metadata = rest.get(if global == Global::RebuildTensorV3 { 3 } else { 2 });
    if let Some(lazy) = metadata.and_then(|id| lazy_operation(values, *id)) {
        return Err(format!(
            "has a tensor whose `{lazy}` bit is set, so that its elements are not those of its storage: save \
             `tensor.resolve_{lazy}()`"
        ));
    }
    let offset = values.size(*offset).ok_or_else(wrong)?;
    let (shape, strides) = values.sizes(*shape).zip(values.sizes(*strides)).ok_or_else(wrong)?;
    Ok(TensorView { storage: *storage, layout: Layout::new(storage, element, offset, shape, strides)? })
}

/// Operation that PyTorch applies to elements when it uses them: `conj` or `neg`.
fn lazy_operation<'a>(values: &Values<'a>, metadata: Id) -> Option<&'a str> {
    let is_set = |(name, set): &(Id, Id)| {
        values.text(*name).filter(|name| ["conj", "neg"].contains(name) && *values.get(*set) == Value::Bool(true))
    };
    values.entries(metadata)?.iter().find_map(is_set)
}

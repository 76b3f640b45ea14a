//! The tensors of a state dict, which may lie inside a checkpoint of a trainer.

use std::collections::BTreeMap;

use super::reader::Parsed;
use super::value::{Id, Value, Values};
use super::view::TensorView;

/// Keys under which trainers put the state dict.
const NESTED: [&str; 6] = ["state_dict", "model_state_dict", "model", "module", "net", "weights"];
/// Most entries of a dictionary around a state dict under another key.
const MAX_AROUND: usize = 64;
/// Most levels of such keys.
const MAX_DEPTH: usize = 4;
/// Longest tensor name in bytes.
const MAX_NAME: usize = 1 << 10;
/// Most names in a message.
const LISTED: usize = 5;

/// Tensors by name, and the names of other entries of the same dictionary.
#[derive(Debug)]
pub(super) struct StateDict<'a> {
    pub(super) tensors: BTreeMap<String, TensorView<'a>>,
    pub(super) others: Vec<&'a str>,
}

/// The state dict in the value `root`.
pub(super) fn find<'a>(values: &Values<'a>, root: Id) -> Parsed<StateDict<'a>> {
    let mut dict = root;
    for _ in 0..MAX_DEPTH {
        match nested(values, dict) {
            Some(inner) => dict = inner,
            None => break,
        }
    }
    let entries = values.entries(dict).ok_or("holds no dictionary of tensors: save a model's state_dict()")?;
    let mut found = StateDict { tensors: BTreeMap::new(), others: Vec::new() };
    for (key, value) in entries {
        match (values.text(*key), values.get(*value)) {
            (Some(name), Value::Tensor(_)) if name.len() > MAX_NAME => {
                return Err(format!("has a tensor name of {} bytes, expected at most {MAX_NAME}", name.len()));
            }
            (Some(name), Value::Tensor(view)) => drop(found.tensors.insert(name.to_string(), view.clone())),
            (name, _) => found.others.push(name.unwrap_or("(a key that is no text)")),
        }
    }
    if found.tensors.is_empty() {
        let keys = found.others.iter().take(LISTED).copied().collect::<Vec<_>>().join("`, `");
        return Err(format!(
            "holds no tensors by name; its {} entries begin with `{keys}`: save a model's state_dict()",
            found.others.len()
        ));
    }
    Ok(found)
}

/// The dictionary under one of the known keys, or else the only one with tensors beside no tensor.
fn nested(values: &Values<'_>, dict: Id) -> Option<Id> {
    let entries = values.entries(dict)?;
    let known = NESTED.iter().find_map(|name| {
        let entry = entries.iter().find(|(key, value)| {
            values.text(*key) == Some(*name) && values.entries(*value).is_some_and(|inner| !inner.is_empty())
        });
        entry.map(|(_, inner)| *inner)
    });
    let mut others = entries.iter().map(|(_, value)| *value).filter(|value| has_tensors(values, *value));
    known.or_else(|| match entries.len() <= MAX_AROUND && !has_tensors(values, dict) {
        true => others.next().filter(|_| others.next().is_none()),
        false => None,
    })
}

/// Whether a dictionary holds tensors by name.
fn has_tensors(values: &Values<'_>, dict: Id) -> bool {
    let is_tensor =
        |(key, value): &(Id, Id)| values.text(*key).is_some() && matches!(values.get(*value), Value::Tensor(_));
    values.entries(dict).is_some_and(|entries| entries.iter().any(is_tensor))
}

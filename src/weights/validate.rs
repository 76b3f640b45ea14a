//! Validation of a source: names and shapes of its tensors against those of the model, all problems in one error.

use std::collections::BTreeMap;

use crate::{Error, Result};

/// Tensors that the source of the error lists for each kind of problem before the rest is only counted.
const LISTED: usize = 20;

/// Checks that `found` has exactly the names and shapes of `expected`; `source` names the origin of `found` in
/// messages.
///
/// # Errors
/// One [`Error::Weights`] that counts missing, unexpected and misshapen tensors and names the first of each kind; its source
/// lists twenty of each.
pub fn check_tensors(
    source: &str,
    expected: &BTreeMap<String, Vec<usize>>,
    found: &BTreeMap<String, Vec<usize>>,
) -> Result<()> {
    let missing = expected.iter().filter(|(name, _)| !found.contains_key(*name));
    let missing: Vec<_> = missing.map(|(name, shape)| format!("{name} {shape:?}")).collect();
    let unexpected = found.iter().filter(|(name, _)| !expected.contains_key(*name));
    let unexpected: Vec<_> = unexpected.map(|(name, shape)| format!("{name} {shape:?}")).collect();
    let misshapen: Vec<_> = expected
        .iter()
        .filter_map(|(name, wanted)| found.get(name).filter(|has| *has != wanted).map(|has| (name, has, wanted)))
        .map(|(name, has, wanted)| format!("{name} is {has:?}, expected {wanted:?}"))
        .collect();
    if missing.is_empty() && unexpected.is_empty() && misshapen.is_empty() {
        return Ok(());
    }
    let kinds = [("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen)];
    let described = |most: usize| {
        let kinds = kinds.iter().filter(|(_, items)| !items.is_empty());
        kinds.map(|(kind, items)| described(kind, items, most)).collect::<Vec<_>>().join("; ")
    };
    let message = format!(
        "{source}: the tensors are not those of the model: {}: check that configuration and weights belong together",
        described(1)
    );
    Err(Error::weights(message).caused_by(described(LISTED)))
}

/// The number of tensors of one kind, and the first of them.
fn described(kind: &str, items: &[String], most: usize) -> String {
    let more = match items.len().saturating_sub(most) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{} {kind}: {}{more}", items.len(), items[..most.min(items.len())].join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes(entries: &[(&str, &[usize])]) -> BTreeMap<String, Vec<usize>> {
        entries.iter().map(|(name, shape)| (name.to_string(), shape.to_vec())).collect()
    }

    #[test]
    fn equal_sets_pass() {
        let set = shapes(&[("a", &[1, 2]), ("b", &[])]);
        check_tensors("x", &set, &set.clone()).unwrap();
    }

    #[test]
    fn lists_all_three_kinds() {
        let expected = shapes(&[("a", &[1, 2]), ("b", &[3]), ("c", &[4])]);
        let found = shapes(&[("a", &[2, 1]), ("c", &[4]), ("d", &[5])]);
        let message = check_tensors("model.safetensors", &expected, &found).unwrap_err().to_string();
        for part in ["model.safetensors", "1 missing", "b [3]", "1 unexpected", "d [5]", "a is [2, 1], expected [1, 2]"]
        {
            assert!(message.contains(part), "{part} is not in {message}");
        }
    }

    #[test]
    fn long_lists_are_truncated() {
        let expected: BTreeMap<_, _> = (0..50).map(|i| (format!("t{i:02}"), vec![1])).collect();
        let error = check_tensors("x", &expected, &BTreeMap::new()).unwrap_err();
        assert!(error.to_string().contains("50 missing: t00 [1] and 49 more"), "{error}");
        let list = std::error::Error::source(&error).unwrap().to_string();
        assert!(list.contains("t19") && list.contains("and 30 more") && !list.contains("t20"), "{list}");
    }
}

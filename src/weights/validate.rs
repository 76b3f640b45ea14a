//! Validation of a source: names and shapes of its tensors against those of the model, all problems in one error.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::{Error, Result};

/// Names listed for each kind of problem; the rest is only counted.
const LISTED: usize = 20;

/// Checks that `found` has exactly the names and shapes of `expected`; `source` names the origin of `found` in
/// messages.
///
/// # Errors
/// One [`Error::Weights`] that lists every missing, unexpected and misshapen tensor.
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
    let mut message = format!("{source}: the tensors are not those of the model");
    list(&mut message, "missing", &missing);
    list(&mut message, "unexpected", &unexpected);
    list(&mut message, "misshapen", &misshapen);
    message.push_str("\n  check that the configuration and the weights belong to the same model");
    Err(Error::weights(message))
}

fn list(message: &mut String, kind: &str, items: &[String]) {
    if items.is_empty() {
        return;
    }
    // Writing to a `String` cannot fail.
    let _ = write!(message, "\n  {} {kind}:", items.len());
    for item in items.iter().take(LISTED) {
        let _ = write!(message, "\n    {item}");
    }
    if let Some(more) = items.len().checked_sub(LISTED).filter(|more| *more > 0) {
        let _ = write!(message, "\n    and {more} more");
    }
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
        let message = check_tensors("x", &expected, &BTreeMap::new()).unwrap_err().to_string();
        assert!(message.contains("50 missing") && message.contains("t19") && message.contains("and 30 more"));
        assert!(!message.contains("t20"));
    }
}

//! GGUF files that are split into parts, as llama.cpp names and numbers them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::GgufValue;
use crate::{Error, Result};

/// Most parts of a file.
const MAX_PARTS: usize = 1000;

/// All parts of a split file, by the name of any of them: `NAME-00001-of-00003.gguf`. Any other file is the only part.
///
/// # Errors
/// [`Error::Format`] naming a part that is missing.
pub(super) fn parts(path: &Path) -> Result<Vec<PathBuf>> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some((stem, count)) = stem_and_count(name) else { return Ok(vec![path.to_path_buf()]) };
    let part = |number: usize| path.with_file_name(format!("{stem}-{number:05}-of-{count:05}.gguf"));
    let parts: Vec<PathBuf> = (1..=count).map(part).collect();
    match parts.iter().find(|part| !part.is_file()) {
        Some(missing) => {
            let missing = missing.file_name().unwrap_or_default().display();
            Err(Error::format(path, format!("is one of {count} parts, and `{missing}` is not beside it: get it too")))
        }
        None => Ok(parts),
    }
}

fn stem_and_count(name: &str) -> Option<(&str, usize)> {
    let (stem, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = stem.rsplit_once('-')?;
    let digits = |text: &str| if text.len() == 5 { text.parse::<usize>().ok() } else { None };
    let (number, count) = (digits(number)?, digits(count)?);
    ((1..=count).contains(&number) && count <= MAX_PARTS).then_some((stem, count))
}

/// Checks what a header says of the file's place among the parts.
pub(super) fn check_part(
    metadata: &BTreeMap<String, GgufValue>,
    part: usize,
    parts: usize,
) -> std::result::Result<(), String> {
    let (number, count) = (integer(metadata, "split.no"), integer(metadata, "split.count"));
    match (number, count) {
        (_, Some(count)) if count > 1 && parts == 1 => Err(format!(
            "is one of {count} parts, but is not named like one: give all parts their names NAME-00001-of-{count:05}.gguf"
        )),
        (Some(number), Some(count)) if parts > 1 && (number, count) != (part as u64, parts as u64) => Err(format!(
            "is part {} of {count} by its content, expected part {} of {parts} by its name",
            number.saturating_add(1),
            part + 1
        )),
        _ => Ok(()),
    }
}

/// Checks that all parts together have as many tensors as the first says.
pub(super) fn check_tensor_count(
    metadata: &BTreeMap<String, GgufValue>,
    found: usize,
) -> std::result::Result<(), String> {
    match integer(metadata, "split.tensors.count").filter(|expected| *expected != found as u64) {
        Some(expected) => {
            Err(format!("has {found} tensors in all parts, expected {expected}: download all parts again"))
        }
        None => Ok(()),
    }
}

fn integer(metadata: &BTreeMap<String, GgufValue>, key: &str) -> Option<u64> {
    match metadata.get(key)? {
        GgufValue::Unsigned(n) => Some(*n),
        GgufValue::Signed(n) => u64::try_from(*n).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_recognised_by_name() {
        assert_eq!(stem_and_count("a-00002-of-00003.gguf"), Some(("a", 3)));
        assert_eq!(stem_and_count("qwen-of-x-00001-of-00001.gguf"), Some(("qwen-of-x", 1)));
        for other in
            ["a.gguf", "a-0001-of-0003.gguf", "a-00004-of-00003.gguf", "a-00000-of-00003.gguf", "a-00001-of-99999.gguf"]
        {
            assert_eq!(stem_and_count(other), None, "{other}");
        }
    }
}

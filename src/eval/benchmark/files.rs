//! The files of a benchmark in a folder, and its images.

use std::path::{Path, PathBuf};

use super::Benchmark;
use crate::data::within;
use crate::{Error, Result};

/// Subfolders in which published images lie.
const IMAGE_FOLDERS: [&str; 14] = [
    "",
    "images",
    "image",
    "val2014",
    "train2014",
    "test2015",
    "val2017",
    "train_images",
    "test_images",
    "png",
    "test",
    "images/test",
    "MMVP Images",
    "SEED-Bench-image",
];
/// Splits of a data set of Parquet files, the best first.
const SPLITS: [&str; 4] = ["test", "validation", "val", "dev"];

/// Parts of the names of a benchmark's own files; several files may match where `several` is set.
struct Published {
    parts: &'static [&'static str],
    several: bool,
}

/// The files of questions and right answers of a benchmark; `data` is one of them, or their folder.
///
/// # Errors
/// [`Error::Data`] that says which file is missing and where it is published, or that there are several.
pub(super) fn find(benchmark: &Benchmark, data: &Path) -> Result<Vec<PathBuf>> {
    if data.is_file() {
        return Ok(vec![data.to_path_buf()]);
    }
    let names = names_in(data)?;
    let found = tables(benchmark, data, &names)?;
    let found = if found.is_empty() { published(benchmark, data, &names)? } else { found };
    let found = if found.is_empty() { parquet(data, &names)? } else { found };
    if found.is_empty() { Err(missing(benchmark, data)) } else { Ok(found) }
}

/// The error of a folder without the files of a benchmark.
pub(super) fn missing(benchmark: &Benchmark, data: &Path) -> Error {
    let Benchmark { title, files, published, .. } = benchmark;
    Error::data(format!(
        "{}: no file of {title}: expected {files} (published at {published}), VLMEvalKit's .tsv or the Hub's .parquet",
        data.display()
    ))
}

fn names_in(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        names.push(entry.map_err(|e| Error::io(folder, e))?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// The only of some files, which may be none.
fn only(folder: &Path, names: Vec<&String>) -> Result<Vec<PathBuf>> {
    match names.as_slice() {
        [first, second, ..] => Err(Error::data(format!(
            "{}: both {first} and {second} could be meant ({} files): name one of them as the data",
            folder.display(),
            names.len()
        ))),
        names => Ok(names.iter().map(|name| folder.join(name)).collect()),
    }
}

/// The table of VLMEvalKit, which has the benchmark's name or is the only one.
fn tables(benchmark: &Benchmark, folder: &Path, names: &[String]) -> Result<Vec<PathBuf>> {
    let plain = |name: &str| name.to_lowercase().replace(['-', '_'], "");
    let tables = Vec::from_iter(names.iter().filter(|name| name.to_lowercase().ends_with(".tsv")));
    let named = tables.iter().copied().filter(|name| plain(name).contains(benchmark.name));
    match Vec::from_iter(named) {
        named if named.is_empty() => only(folder, tables),
        named => only(folder, named),
    }
}

fn published(benchmark: &Benchmark, folder: &Path, names: &[String]) -> Result<Vec<PathBuf>> {
    let one = |parts| Published { parts, several: false };
    let several = |parts| Published { parts, several: true };
    let published = match benchmark.name {
        "vqav2" | "okvqa" => vec![one(&["questions", ".json"]), one(&["annotations", ".json"])],
        "textvqa" => vec![one(&["textvqa", ".json"])],
        "gqa" => vec![one(&["questions", ".json"])],
        "scienceqa" => vec![one(&["problems", ".json"])],
        "seedbench" => vec![one(&["seed", ".json"])],
        "pope" => vec![several(&["pope", ".json"])],
        "mmvp" => vec![one(&["questions", ".csv"])],
        "docvqa" => vec![one(&["val", ".json"])],
        "chartqa" => vec![several(&["test_", ".json"])],
        "coco" => vec![one(&["captions", ".json"])],
        _ => vec![],
    };
    let mut found = Vec::new();
    for Published { parts, several } in published {
        let matches = |name: &&String| parts.iter().all(|part| name.to_lowercase().contains(part));
        let matching = Vec::from_iter(names.iter().filter(matches));
        match several {
            true => found.extend(matching.iter().map(|name| folder.join(name))),
            false => found.extend(only(folder, matching)?),
        }
    }
    Ok(found)
}

/// The Parquet files of the first split that there is, in the folder or in its subfolder `data`.
fn parquet(folder: &Path, names: &[String]) -> Result<Vec<PathBuf>> {
    let inner = folder.join("data");
    let (folder, names) = match inner.is_dir() {
        true => (inner.as_path(), names_in(&inner)?),
        false => (folder, names.to_vec()),
    };
    let files = Vec::from_iter(names.iter().filter(|name| name.ends_with(".parquet")));
    let of_split = |split: &&&str| files.iter().any(|name| name.starts_with(**split));
    let split = SPLITS.iter().find(of_split).copied().unwrap_or("");
    Ok(files.iter().filter(|name| name.starts_with(split)).map(|name| folder.join(name)).collect())
}

/// The file of an image by the name or number that a question has of it.
///
/// # Errors
/// [`Error::Data`] if there is no such file, or the name leads out of the folder.
pub(super) fn image_file(folder: &Path, name: &str) -> Result<PathBuf> {
    for inner in IMAGE_FOLDERS {
        for name in image_names(name) {
            let path = within(&folder.join(inner), &name)?;
            if path.is_file() {
                return Ok(path);
            }
        }
    }
    let shown: String = name.chars().take(80).collect();
    Err(Error::data(format!(
        "{}: no image {shown}, also not in images/, val2014/ and other usual folders: name the images' folder",
        folder.display()
    )))
}

/// Names that the image of a name or number may have.
fn image_names(name: &str) -> Vec<String> {
    let mut names = vec![name.to_owned()];
    if !name.rsplit('/').next().is_some_and(|last| last.contains('.')) {
        names.extend([format!("{name}.jpg"), format!("{name}.png")]);
    }
    if name.len() <= 12 && name.bytes().all(|byte| byte.is_ascii_digit()) {
        names.push(format!("{name:0>12}.jpg"));
        names.extend(["val2014", "train2014", "test2015"].map(|split| format!("COCO_{split}_{name:0>12}.jpg")));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        folder
    }

    fn found(benchmark: &str, names: &[&str]) -> Result<Vec<String>> {
        let folder = folder(names);
        let found = find(Benchmark::named(benchmark).unwrap(), folder.path())?;
        let relative = |path: PathBuf| path.strip_prefix(folder.path()).unwrap().to_string_lossy().into_owned();
        Ok(found.into_iter().map(relative).collect())
    }

    #[test]
    fn files_are_found_by_their_usual_names() {
        assert_eq!(found("mmbench", &["MMBench_DEV_EN.tsv", "AI2D_TEST.tsv"]).unwrap(), ["MMBench_DEV_EN.tsv"]);
        assert_eq!(found("mmstar", &["table.tsv"]).unwrap(), ["table.tsv"]);
        let pope = ["coco_pope_adversarial.json", "coco_pope_popular.json", "coco_pope_random.json"];
        assert_eq!(found("pope", &pope).unwrap(), pope);
        let vqa = ["v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"];
        assert_eq!(found("vqav2", &[&vqa[..], &["x.jpg"]].concat()).unwrap(), vqa);
        let hub = ["data/test-00000.parquet", "data/train-00000.parquet", "data/validation-00000.parquet", "README.md"];
        assert_eq!(found("gqa", &hub).unwrap(), ["data/test-00000.parquet"]);
    }

    #[test]
    fn missing_and_several_files_are_named() {
        let message = found("pope", &["x.txt"]).unwrap_err().to_string();
        assert!(
            message.contains("no file of POPE: expected coco_pope_{random") && message.contains("RUCAIBox"),
            "{message}"
        );
        let message = found("gqa", &["train_questions.json", "val_questions.json"]).unwrap_err().to_string();
        assert!(message.contains("both train_questions.json and val_questions.json"), "{message}");
    }

    #[test]
    fn images_are_found_by_number_and_stay_inside() {
        let folder =
            folder(&["val2014/COCO_val2014_000000000042.jpg", "images/n1.jpg", "MMVP Images/7.jpg", "a/b.png"]);
        for (name, file) in [
            ("42", "val2014/COCO_val2014_000000000042.jpg"),
            ("n1", "images/n1.jpg"),
            ("7", "MMVP Images/7.jpg"),
            ("a/b.png", "a/b.png"),
        ] {
            assert_eq!(image_file(folder.path(), name).unwrap(), folder.path().join(file));
        }
        assert!(image_file(folder.path(), "43").unwrap_err().to_string().contains("no image 43"));
        assert!(image_file(folder.path(), "../x.jpg").unwrap_err().to_string().contains("outside"));
    }
}

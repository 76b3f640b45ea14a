//! The files of a benchmark in a folder, and its images.

use std::path::{Path, PathBuf};

use super::Benchmark;
use crate::data::within;
use crate::{Error, Result};

/// Subfolders in which published images lie.
const IMAGE_FOLDERS: [&str; 18] = [
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
    "images/val2014",
    "images/train2014",
    "images/val2017",
    "spdocvqa_images",
    "MMVP Images",
    "SEED-Bench-image",
];
/// Splits of a data set of Parquet files, the best first.
const SPLITS: [&str; 4] = ["test", "validation", "val", "dev"];
/// The same for benchmarks whose test split is published without answers.
const HELD_BACK: [&str; 7] = ["vqav2", "okvqa", "textvqa", "docvqa", "mmbench", "mmmu", "coco"];
/// Folders of the Hub's GQA, whose images are another data set than its questions.
const GQA_FOLDERS: [&str; 2] = ["testdev_balanced_instructions", "testdev_balanced_images"];

/// Splits of COCO and VQA, as they are in the names of files; the first that is there is taken.
const SPLITS_OF_COCO: [&str; 4] = ["val2014", "val2017", "train2014", "test2015"];
/// Most subfolders that are looked into for a message.
const MAX_SUBFOLDERS: usize = 100;

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
        return Ok(with_annotations(benchmark, data));
    }
    if !crate::files::exists(data)? {
        let Benchmark { title, files, published, .. } = benchmark;
        let folder = data.display();
        let message =
            format!("{folder}: does not exist: name the folder of {title}'s {files} (published at {published})");
        return Err(Error::data(message));
    }
    let found = in_folder(benchmark, data)?;
    if found.is_empty() { Err(missing(benchmark, data)) } else { Ok(found) }
}

/// The files in a folder; none if it has none.
fn in_folder(benchmark: &Benchmark, data: &Path) -> Result<Vec<PathBuf>> {
    let names = names_in(data)?;
    let found = published(benchmark, data, &names)?;
    let found = if found.is_empty() { tables(benchmark, data, &names)? } else { found };
    if found.is_empty() { parquet(benchmark, data, &names) } else { Ok(found) }
}

/// The error of a folder without the files of a benchmark, which names a subfolder that has them.
pub(super) fn missing(benchmark: &Benchmark, data: &Path) -> Error {
    let Benchmark { title, files, published, .. } = benchmark;
    let has_files = |name: &String| in_folder(benchmark, &data.join(name)).is_ok_and(|found| !found.is_empty());
    let inner = names_in(data).ok().and_then(|names| {
        names.into_iter().filter(|name| data.join(name).is_dir()).take(MAX_SUBFOLDERS).find(has_files)
    });
    let hint = match inner {
        Some(inner) => format!("there are some in {inner}/: name that folder"),
        None => format!("expected {files} (published at {published}), VLMEvalKit's .tsv or the Hub's .parquet"),
    };
    Error::data(format!("{}: no file of {title}: {hint}", data.display()))
}

/// A file, with the other one of VQA's questions and annotations if it is one of them.
fn with_annotations(benchmark: &Benchmark, file: &Path) -> Vec<PathBuf> {
    let other = || {
        let (folder, name) = (file.parent()?, file.file_name()?.to_string_lossy().into_owned());
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let wanted = if name.contains("questions") { "annotations" } else { "questions" };
        let split = SPLITS_OF_COCO.iter().find(|split| name.contains(**split))?;
        let is_other = |other: &String| other.contains(wanted) && other.contains(*split) && other.ends_with(".json");
        let others = Vec::from_iter(names_in(folder).ok()?.into_iter().filter(is_other));
        if let [other] = others.as_slice() { Some(folder.join(other)) } else { None }
    };
    let is_vqa = matches!(benchmark.name, "vqav2" | "okvqa");
    [file.to_path_buf()].into_iter().chain(is_vqa.then(other).flatten()).collect()
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
    let is_table = |name: &&String| name.to_lowercase().trim_end_matches(".gz").ends_with(".tsv");
    let tables = Vec::from_iter(names.iter().filter(is_table));
    let (named, others): (Vec<_>, Vec<_>) = tables.into_iter().partition(|name| plain(name).contains(benchmark.name));
    // Another benchmark's table is none of this one.
    let is_anothers = |name: &&String| Benchmark::ALL.iter().any(|other| plain(name).contains(other.name));
    let others = others.into_iter().filter(|name| !is_anothers(name)).collect();
    if named.is_empty() { only(folder, others) } else { only(folder, named) }
}

/// Parts of the names of the files that are taken where several are there, the best first.
fn preferred_parts(benchmark: &Benchmark) -> &'static [&'static str] {
    match benchmark.name {
        "vqav2" | "okvqa" | "coco" => &SPLITS_OF_COCO,
        "gqa" => &["testdev_balanced"],
        "docvqa" => &["val"],
        _ => &[],
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
        // The last part is the extension.
        let matches = |name: &&String| {
            let name = name.to_lowercase();
            parts.iter().all(|part| name.contains(part)) && parts.last().is_none_or(|end| name.ends_with(end))
        };
        let mut matching = Vec::from_iter(names.iter().filter(matches));
        let is_preferred = |name: &&String, part: &str| match benchmark.name {
            // Not `infographicsVQA_val_v1.0_withQT.json`.
            "docvqa" => name.starts_with(part),
            _ => name.contains(part),
        };
        let preferred = preferred_parts(benchmark).iter().copied();
        let mut preferred = preferred.filter(|part| matching.iter().any(|name| is_preferred(name, part)));
        if let (false, Some(part)) = (several, preferred.next()) {
            matching.retain(|name| is_preferred(name, part));
        }
        match several {
            true => found.extend(matching.iter().map(|name| folder.join(name))),
            false => found.extend(only(folder, matching)?),
        }
    }
    if found.is_empty() && benchmark.name == "coco" {
        return karpathys(folder, names);
    }
    Ok(found)
}

/// Karpathy's file, `dataset_coco.json` before `dataset_flickr30k.json` and the like.
fn karpathys(folder: &Path, names: &[String]) -> Result<Vec<PathBuf>> {
    let named = |start: &str| names.iter().filter(|name| name.starts_with(start) && name.ends_with(".json")).collect();
    let coco: Vec<&String> = named("dataset_coco");
    only(folder, if coco.is_empty() { named("dataset_flickr") } else { coco })
}

/// The Parquet files of the first split that there is, in the folder or in its subfolder `data`.
fn parquet(benchmark: &Benchmark, folder: &Path, names: &[String]) -> Result<Vec<PathBuf>> {
    if benchmark.name == "gqa" && GQA_FOLDERS.iter().all(|inner| folder.join(inner).is_dir()) {
        let inner = GQA_FOLDERS.iter().map(|inner| {
            let inner = folder.join(inner);
            parquet(benchmark, &inner, &names_in(&inner)?)
        });
        return Ok(inner.collect::<Result<Vec<_>>>()?.concat());
    }
    let inner = folder.join("data");
    let (folder, names) = match inner.is_dir() {
        true => (inner.as_path(), names_in(&inner)?),
        false => (folder, names.to_vec()),
    };
    let files = Vec::from_iter(names.iter().filter(|name| name.ends_with(".parquet")));
    // `test-0.parquet`, `val2014-0.parquet`, but not `testdev-0.parquet`.
    let is_of = |name: &str, split: &str| {
        name.strip_prefix(split).is_some_and(|rest| split.is_empty() || !rest.starts_with(char::is_alphabetic))
    };
    let mut splits = SPLITS;
    if HELD_BACK.contains(&benchmark.name) {
        splits.rotate_left(1);
    }
    let split = splits.into_iter().find(|split| files.iter().any(|name| is_of(name, split))).unwrap_or("");
    Ok(files.iter().filter(|name| is_of(name, split)).map(|name| folder.join(name)).collect())
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
    let shown: String = name.chars().take(60).collect();
    Err(Error::data(format!(
        "{}: no image {shown}, also not in images/, val2014/ and other usual folders: name the images' folder",
        folder.display()
    )))
}

/// Names that the image of a name or number may have.
fn image_names(name: &str) -> Vec<String> {
    let mut names = vec![name.to_owned()];
    // A folder that the download does not have.
    names.extend(name.rsplit_once('/').map(|(_, bare)| bare.to_owned()));
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
        assert_eq!(found("mmstar", &["MMStar.tsv.gz"]).unwrap(), ["MMStar.tsv.gz"]);
        let pope = ["coco_pope_adversarial.json", "coco_pope_popular.json", "coco_pope_random.json"];
        assert_eq!(found("pope", &pope).unwrap(), pope);
        let vqa = ["v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"];
        assert_eq!(found("vqav2", &[&vqa[..], &["x.jpg"]].concat()).unwrap(), vqa);
        let hub = ["data/test-00000.parquet", "data/train-00000.parquet", "data/validation-00000.parquet", "README.md"];
        assert_eq!(found("gqa", &hub).unwrap(), ["data/test-00000.parquet"]);
        assert_eq!(found("mmmu", &hub).unwrap(), ["data/validation-00000.parquet"]);
        let two = ["testdev_balanced_images/testdev-0.parquet", "testdev_balanced_instructions/testdev-0.parquet"];
        assert_eq!(found("gqa", &two).unwrap(), [two[1], two[0]]);
        assert_eq!(found("vqav2", &["testdev-0.parquet", "test-0.parquet"]).unwrap(), ["test-0.parquet"]);
        assert_eq!(found("okvqa", &["val2014-0.parquet"]).unwrap(), ["val2014-0.parquet"]);
        // Its own files come before a table, which may be a result sheet, and tables of others are none.
        assert_eq!(found("scienceqa", &["problems.json", "sheet.tsv"]).unwrap(), ["problems.json"]);
        assert!(found("ai2d", &["MMStar.tsv"]).unwrap_err().to_string().contains("no file of AI2D"));
        let captions = ["captions_train2014.json", "captions_val2014.json"];
        assert_eq!(found("coco", &captions).unwrap(), [captions[1]]);
        let gqa = ["testdev_balanced_questions.json", "val_balanced_questions.json"];
        assert_eq!(found("gqa", &gqa).unwrap(), [gqa[0]]);
        let splits = ["COCO_VAL.tsv", "dataset_coco.json", "dataset_flickr30k.json", "dataset_infos.json"];
        assert_eq!(found("coco", &splits).unwrap(), [splits[1]]);
        assert_eq!(found("coco", &[splits[0], splits[3]]).unwrap(), [splits[0]]);
        let doc = ["infographicsVQA_val_v1.0_withQT.json", "val_v1.0_withQT.json"];
        assert_eq!(found("docvqa", &doc).unwrap(), [doc[1]]);
        let lines = ["TextVQA_0.5.1_val.json", "llava_textvqa_val_v051_ocr.jsonl"];
        assert_eq!(found("textvqa", &lines).unwrap(), [lines[0]]);
    }

    #[test]
    fn questions_and_annotations_of_vqa_are_of_one_split() {
        let names = [
            "v2_OpenEnded_mscoco_train2014_questions.json",
            "v2_OpenEnded_mscoco_val2014_questions.json",
            "v2_mscoco_train2014_annotations.json",
            "v2_mscoco_val2014_annotations.json",
        ];
        assert_eq!(found("vqav2", &names).unwrap(), [names[1], names[3]]);
        let folder = folder(&names);
        for (named, other) in [(0, 2), (2, 0), (1, 3)] {
            let both = find(Benchmark::named("vqav2").unwrap(), &folder.path().join(names[named])).unwrap();
            assert_eq!(both, [named, other].map(|n| folder.path().join(names[n])));
        }
    }

    #[test]
    fn missing_and_several_files_are_named() {
        let message = found("pope", &["x.txt"]).unwrap_err().to_string();
        assert!(
            message.contains("no file of POPE: expected coco_pope_{random") && message.contains("RUCAIBox"),
            "{message}"
        );
        let message = found("mmbench", &["cn/dev-0.parquet", "x.txt"]).unwrap_err().to_string();
        assert!(message.contains("there are some in cn/: name that folder"), "{message}");
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
            ("documents/n1.jpg", "images/n1.jpg"),
        ] {
            assert_eq!(image_file(folder.path(), name).unwrap(), folder.path().join(file));
        }
        assert!(image_file(folder.path(), "43").unwrap_err().to_string().contains("no image 43"));
        assert!(image_file(folder.path(), "../x.jpg").unwrap_err().to_string().contains("outside"));
    }
}

//! Data sets that refer to other files, never end, or are damaged.

use std::fs;
use std::path::Path;

use haplovl::data::{BadSample, Dataset, ImageFolder, RecordFile, RecordIndex, Turn, open};
use haplovl::processor::ImageDecoder;
use proptest::prelude::*;
use tempfile::TempDir;

/// A data folder `set` with `a.png` and a record file of this content, and `secret.png` outside of it.
fn folder(content: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("set/inner")).unwrap();
    for image in ["secret.png", "set/a.png", "set/inner/b.png"] {
        image::RgbImage::new(2, 2).save(folder.path().join(image)).unwrap();
    }
    fs::write(folder.path().join("set/data.jsonl"), content).unwrap();
    folder
}

fn get(folder: &TempDir, image: &str) -> Result<(), BadSample> {
    let record = serde_json::json!({ "image": image, "text": "x" }).to_string();
    let set = folder.path().join("set");
    fs::write(set.join("data.jsonl"), record).unwrap();
    RecordFile::open(set.join("data.jsonl"), &set).unwrap().get(0).map(|_| ())
}

#[test]
fn records_cannot_reach_files_outside_of_the_image_folder() {
    let folder = folder("{}");
    let secret = folder.path().join("secret.png");
    let back = format!("{}/../secret.png", folder.path().join("set").display());
    for name in [
        "/etc/passwd",
        "../secret.png",
        "inner/../../secret.png",
        "./../secret.png",
        "..",
        "/",
        secret.to_str().unwrap(),
        &back,
    ] {
        let reason = get(&folder, name).unwrap_err();
        assert!(matches!(reason, BadSample::OutsideImage(_)), "{name}: {reason}");
        assert!(reason.to_string().contains("outside of the image folder"), "{reason}");
    }
}

#[test]
fn names_inside_the_image_folder_are_read_in_any_form() {
    let folder = folder("{}");
    let whole = folder.path().join("set/a.png");
    for name in ["a.png", "./a.png", "inner/b.png", "inner/../a.png", "inner//b.png", whole.to_str().unwrap()] {
        get(&folder, name).unwrap_or_else(|reason| panic!("{name}: {reason}"));
    }
    #[cfg(unix)]
    {
        // A symbolic link in the folder was made by the user and is followed.
        std::os::unix::fs::symlink(folder.path().join("secret.png"), folder.path().join("set/link.png")).unwrap();
        get(&folder, "link.png").unwrap();
    }
}

#[test]
fn reasons_are_short_lines_for_any_record() {
    let folder = folder("{}");
    for name in ["x".repeat(100_000), "\u{1b}[31mred".into(), "../".to_string() + &"y".repeat(100_000)] {
        let reason = get(&folder, &name).unwrap_err().to_string();
        assert!(reason.chars().count() < 400 && !reason.chars().any(char::is_control), "{reason}");
    }
    let set = folder.path().join("set/data.jsonl");
    let role = "z".repeat(1 << 20);
    fs::write(&set, format!(r#"{{"conversations":[{{"from":"{role}","value":"x"}}]}}"#)).unwrap();
    let reason = open(&set, None).unwrap().get(0).unwrap_err().to_string();
    assert!(reason.starts_with("broken record") && reason.chars().count() < 400, "{reason}");
}

#[test]
fn captions_are_bounded_and_stripped_of_their_byte_order_mark() {
    let folder = folder("{}");
    let set = folder.path().join("set");
    fs::write(set.join("a.txt"), "\u{feff}a cat\n").unwrap();
    // A hidden file that macOS creates for every file.
    fs::write(set.join("._a.png"), "resource fork").unwrap();
    let images = ImageFolder::open(&set).unwrap();
    assert_eq!(images.len(), 1);
    assert_eq!(images.get(0).unwrap().turns[1], Turn::assistant("a cat"));
    fs::write(set.join("a.txt"), "x".repeat(2 << 20)).unwrap();
    assert!(images.get(0).unwrap_err().to_string().contains("a.txt: is larger than"));
}

#[cfg(unix)]
#[test]
fn pipes_and_devices_are_bad_samples_and_never_block() {
    let folder = folder("{}");
    let set = folder.path().join("set");
    let device = |name: &str| std::os::unix::fs::symlink("/dev/zero", set.join(name)).unwrap();
    device("a.txt");
    assert!(ImageFolder::open(&set).unwrap().get(0).is_err());
    device("zero.jsonl");
    assert!(RecordIndex::open(set.join("zero.jsonl")).unwrap_err().to_string().contains("expected a regular file"));
    device("zero.png");
    assert!(matches!(get(&folder, "zero.png"), Err(BadSample::MissingImage(_))));
    let fifo = std::ffi::CString::new(set.join("pipe.png").to_str().unwrap()).unwrap();
    // SAFETY: the path is a C string that outlives the call.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    assert!(get(&folder, "pipe.png").is_err());
    assert!(ImageDecoder::default().open(set.join("pipe.png")).is_err());
    assert!(RecordIndex::open(set.join("pipe.png")).is_err());
}

/// Reads every record of a file of this content, if it can be opened.
fn read_all(content: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.json");
    fs::write(&path, content).unwrap();
    if let Ok(index) = RecordIndex::open(&path) {
        let records: Vec<_> = (0..index.len()).map(|n| index.read(n).unwrap()).collect();
        assert!(records.iter().map(Vec::len).sum::<usize>() <= content.len());
        // One object over several lines is refused.
        let Ok(file) = RecordFile::open(&path, Path::new("")) else { return };
        (0..file.len()).for_each(|n| drop(file.get(n)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_records_or_an_error(content in prop::collection::vec(any::<u8>(), 0..200)) {
        read_all(&content);
    }

    #[test]
    fn brackets_quotes_and_commas_in_any_order(content in "[\\[\\]{}\",:\\\\ \n a1\u{feff}]{0,60}") {
        read_all(content.as_bytes());
    }

    /// Records written by serde are read back, as an array and as lines.
    #[test]
    fn written_records_round_trip(texts in prop::collection::vec(any::<String>(), 1..8)) {
        let records: Vec<_> = texts.iter().map(|text| serde_json::json!({ "text": text }).to_string()).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.json");
        for content in [format!("[{}]", records.join(" ,\n")), records.join("\n")] {
            fs::write(&path, content).unwrap();
            let index = RecordIndex::open(&path).unwrap();
            let found: Vec<_> = (0..index.len()).map(|n| String::from_utf8(index.read(n).unwrap()).unwrap()).collect();
            let found: Vec<_> = found.iter().map(|record| record.trim()).collect();
            prop_assert_eq!(&found, &records);
        }
    }
}

//! Files and folders in the formats that data sets come in: tables, archives, compressed files, patterns, folders.

use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use haplovl::Error;
use haplovl::data::{Dataset, FilesSource, ImageSource, Records, Turn, open, summarise};
use haplovl::processor::ImageDecoder;
use proptest::prelude::*;
use tempfile::TempDir;

fn png() -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::new(2, 2).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// A folder with these files; an empty content of an image is that of a PNG.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let is_image = content.is_empty() && !name.ends_with(".json");
        fs::write(path, if is_image { png() } else { content.as_bytes().to_vec() }).unwrap();
    }
    folder
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// The answers of all records, or why a record is bad.
fn answers(records: &Records) -> Vec<String> {
    let answer = |n| match records.get(n) {
        Ok(record) => record.turns.last().unwrap().text.clone(),
        Err(reason) => format!("bad: {reason}"),
    };
    (0..records.len()).map(answer).collect()
}

fn refused(path: &Path) -> String {
    let message = open(path, None).map(drop).expect_err("refused").to_string();
    assert!(message.chars().count() < 300 && !message.chars().any(char::is_control), "{message}");
    message
}

#[test]
fn tables_with_a_header_are_read() {
    let rows = "file_name,text\na.png,\"a cat, asleep\"\n\na.png,\"two\nlines \"\"quoted\"\"\"\nnone.png,x\na.png,y,z\n,only text\n";
    let folder = folder(&[("a.png", ""), ("data.csv", rows)]);
    let records = open(folder.path().join("data.csv"), None).unwrap();
    let all = answers(&records);
    assert_eq!(all[..2], ["a cat, asleep", "two\nlines \"quoted\""]);
    assert!(all[2].contains("no image"), "{all:?}");
    assert!(all[3].starts_with("bad: broken record: 3 fields, expected 2 as in the header"), "{}", all[3]);
    assert_eq!((all[4].as_str(), all.len()), ("only text", 5));
    assert_eq!(records.get(0).unwrap().turns[0], Turn::user("<image>"));
    assert!(records.describe(1).ends_with("data.csv record 2"));
    for (name, content) in [
        ("tabs.tsv", "image\tcaption\na.png\tok\n"),
        ("bom.csv", "\u{feff}image,caption\r\na.png,ok\r\n"),
        // Letters that bitmap files begin with.
        ("letters.csv", "BM,image,caption\n1,a.png,ok\n"),
        ("semicolons.csv", "image;caption\na.png;ok"),
        ("decimal.csv", "image;caption;x, y\na.png;ok;1,5\n"),
        ("bars.csv", "image_name| caption\na.png| ok\n"),
        ("commas.tsv", "image,caption\na.png,ok\n"),
        (
            "json.csv",
            "image,conversations\na.png,\"[{\"\"from\"\":\"\"human\"\",\"\"value\"\":\"\"q\"\"},{\"\"from\"\":\"\"gpt\"\",\"\"value\"\":\"\"ok\"\"}]\"\n",
        ),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        let records = open(&path, None).unwrap();
        let answer = answers(&records)[0].trim().to_string();
        assert_eq!((answer.as_str(), records.len(), records.get(0).unwrap().images.len()), ("ok", 1, 1), "{name}");
    }
    let file = |content: &[u8]| {
        fs::write(folder.path().join("data.csv"), content).unwrap();
        folder.path().join("data.csv")
    };
    assert!(
        refused(&file(b"a.png,a cat\nb.png,a dog\n"))
            .contains("has no header: its first line names the image \"a.png\"")
    );
    assert!(refused(&file(b"image,text,text\n")).contains("two columns \"text\""));
    assert!(refused(&file(b"image,text\n")).contains("contains no record"));
    let endless = [b"image,text\na.png,\"".as_slice(), &vec![b'x'; 40 << 20]].concat();
    assert!(refused(&file(&endless)).contains("is a quote not closed?"));
    let latin = open(file(b"image,text\na.png,caf\xe9\n"), None).unwrap();
    assert!(answers(&latin)[0].contains("column `text` is not UTF-8"));
}

#[test]
fn a_quote_that_is_not_closed_never_swallows_records_in_silence() {
    let folder = folder(&[("a.png", ""), ("b.png", "")]);
    let read = |name: &str, content: &str| {
        fs::write(folder.path().join(name), content).unwrap();
        answers(&open(folder.path().join(name), None).unwrap())
    };
    for (name, content) in [
        ("two.tsv", "image\ttext\na.png\t\"a cat\nb.png\ta dog\" runs\n"),
        ("end.csv", "image,text\na.png,\"a cat\nb.png,a dog\n"),
        ("words.csv", "text\n\"a cat\na dog\n"),
    ] {
        assert!(read(name, content)[0].contains("is a quote not closed?"), "{name}: {:?}", read(name, content));
    }
    let fine = "image,text\na.png,\"a cat,\nasleep, on b.png\nor a \"\"cat\"\"\"\nb.png,a 5\" dog\n";
    assert_eq!(
        read("fine.csv", &fine.replace("on b.png", "on it")),
        ["a cat,\nasleep, on it\nor a \"cat\"", "a 5\" dog"]
    );
}

#[test]
fn lists_in_tables_are_read_as_lists() {
    let folder = folder(&[("a.png", "")]);
    let one = |rows: &str| {
        fs::write(folder.path().join("a.csv"), rows).unwrap();
        let records = open(folder.path().join("a.csv"), None).unwrap();
        records.get(0).map(|record| record.turns.into_iter().map(|turn| turn.text).collect::<Vec<_>>())
    };
    let captions = one("image,captions\na.png,\"[\"\"a\"\", \"\"b\"\"]\"\n").unwrap();
    assert_eq!(captions, ["<image>", "a", "", "b"]);
    // A single answer may be JSON that is to be learned.
    assert_eq!(one("question,answer\nq,\"[\"\"a\"\"]\"\n").unwrap(), ["q", "[\"a\"]"]);
    for python in ["image,captions\na.png,\"['a', 'b']\"\n", "images,text\n['a.png'],x\n"] {
        let message = one(python).unwrap_err().to_string();
        assert!(message.contains("a list in Python's notation: write it as JSON, with `json.dumps`"), "{message}");
    }
}

#[test]
fn compressed_files_are_read() {
    let folder = folder(&[("a.png", "")]);
    let line = r#"{"image":"a.png","text":"ok"}"#;
    for (name, content) in [
        ("a.json.gz", format!("[{line}]")),
        ("a.jsonl.gz", format!("{line}\n")),
        ("a.csv.gz", "image,text\na.png,ok\n".into()),
        ("a.tsv.gz", "image\ttext\na.png\tok\n".into()),
        // Compressed, whatever the name says.
        ("b.json", format!("[{line}]")),
    ] {
        fs::write(folder.path().join(name), gzip(content.as_bytes())).unwrap();
        assert_eq!(answers(&open(folder.path().join(name), None).unwrap()), ["ok"], "{name}");
    }
    let whole = gzip(line.repeat(1000).as_bytes());
    fs::write(folder.path().join("cut.json.gz"), &whole[..whole.len() / 2]).unwrap();
    assert!(refused(&folder.path().join("cut.json.gz")).contains("is damaged or truncated"));
    for name in ["a.tar.gz", "a.tgz"] {
        fs::write(folder.path().join(name), gzip(b"x")).unwrap();
        assert!(refused(&folder.path().join(name)).contains("unpack it with `gunzip` to .tar"));
    }
}

#[test]
fn other_formats_are_named_with_the_remedy() {
    let folder = folder(&[]);
    for (name, content, problem) in [
        ("a.json", b"\xff\xfe[\0".as_slice(), "is UTF-16 text: save it as UTF-8"),
        ("a.xlsx", b"PK\x03\x04", "is a zip archive or an Excel workbook: unpack it, or save the sheet as CSV"),
        ("a.xml", b"<annotation>", "is XML or HTML"),
        ("a.json", b"<!doctype html>", "is XML or HTML"),
        ("a.txt", b"a.png a cat\n", "is plain text"),
        ("a.arrow", b"ARROW1\0\0", "save the data set as Parquet"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd", "is compressed with zstd"),
        ("a.parquet", b"PA", "is no Parquet file"),
        ("a.jpg", b"x", "is an image: name its folder"),
        ("a.bin", b"\x89PNG\r\n\x1a\n", "is an image: name its folder"),
        ("a.mp4", b"x", "is an .mp4 video"),
        ("a.json", b"[\0{\0}\0]\0", "is binary data, or UTF-16 text"),
        ("a.jsonl.lz4", b"\x04\x22\x4d\x18", "is compressed with lz4"),
        ("a.json", &gzip(&gzip(b"[]")), "is compressed twice"),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        let message = refused(&path);
        assert!(message.contains(problem) && message.contains("expected JSON, JSON lines, CSV"), "{name}: {message}");
    }
    fs::write(folder.path().join("a.json"), "version https://git-lfs.github.com/spec/v1\n").unwrap();
    assert!(refused(&folder.path().join("a.json")).contains("is a Git LFS pointer"));
    for (content, problem) in [
        (r#"{"data":[{"image":"a.png","text":"x"}]}"#, "with its records in the list `data`"),
        ("{\n \"data\": [\n {\"image\":\"a.png\",\"text\":\"x\"}\n]\n}\n", "with its records in the list `data`"),
        (r#"{"images":[{"id":1}],"annotations":[{"caption":"x"}]}"#, "in the list `annotations`"),
        (r#"{"201":{"question":"x","answer":"y"}}"#, "is one object with a record under each of its keys"),
        ("{\n \"1\": {\"text\":\"x\"},\n \"2\": {\"text\":\"y\"}\n}\n", "a record under each of its keys"),
        ("{\n \"text\": \"x\"\n}\n{\n \"text\": \"y\"\n}\n", "has JSON objects over several lines"),
    ] {
        fs::write(folder.path().join("a.json"), content).unwrap();
        let message = refused(&folder.path().join("a.json"));
        assert!(message.contains(problem), "{content}: {message}");
    }
    #[cfg(not(feature = "parquet"))]
    {
        fs::write(folder.path().join("b.parquet"), b"PAR1").unwrap();
        assert!(refused(&folder.path().join("b.parquet")).contains("build with --features parquet"));
    }
}

#[test]
fn patterns_and_lists_name_several_files() {
    let line = |text: &str| format!("{{\"text\":\"{text}\"}}\n");
    let (a, b, c, d) = (line("a"), line("b"), line("c"), line("d"));
    let folder = folder(&[
        ("p[1]/b1.jsonl", &b),
        ("p[1]/b2.jsonl", &c),
        ("p[1]/.b3.jsonl", &d),
        ("a.jsonl", &a),
        ("x/d.jsonl", &d),
    ]);
    let open = |toml: &str| {
        let source: FilesSource = toml::from_str(toml).unwrap();
        source.resolved(|path| folder.path().join(path)).open()
    };
    assert_eq!(answers(&open(r#"path = ["p[1]/b*.jsonl", "a.jsonl"]"#).unwrap()), ["b", "c", "a"]);
    assert_eq!(answers(&open(r#"path = "p[1]/b?.jsonl""#).unwrap()), ["b", "c"]);
    assert_eq!(answers(&open(r#"path = "*/d.jsonl""#).unwrap()), ["d"]);
    let error = |toml: &str| open(toml).map(drop).unwrap_err().to_string();
    assert!(error(r#"path = "none*.jsonl""#).contains("matches no file"));
    assert!(error(r#"path = ["a.jsonl", "*.jsonl"]"#).contains("a.jsonl twice"));
    assert!(error(r#"path = ["a.jsonl", "x/../a.jsonl"]"#).contains("a.jsonl twice"));
    assert!(error(r#"path = "x-{00..07}.tar""#).contains("braces are not expanded"));
    assert!(error(r#"path = []"#).contains("names no file"));
    assert!(error(r#"path = "a***.jsonl""#).contains("is invalid"));
    assert!(matches!(open(r#"path = "none.jsonl""#).map(drop), Err(Error::Io { .. })));
    let wrong = toml::from_str::<FilesSource>("path = 5").unwrap_err().to_string();
    assert!(wrong.contains("expected a path, a pattern, or a list of these"), "{wrong}");
}

#[test]
fn one_huge_object_is_refused_with_the_remedy() {
    let folder = folder(&[]);
    let item = |n: usize| format!("{{\"image_id\":{n},\"caption\":\"{}\"}}", "a cat ".repeat(200));
    let items: Vec<_> = (0..16_000).map(item).collect();
    let path = folder.path().join("coco.json");
    for separator in [",", ",\n  "] {
        fs::write(
            &path,
            format!("{{\"annotations\":{separator}[{}]}}", items.join(separator)).replacen(separator, "", 1),
        )
        .unwrap();
        let message = refused(&path);
        assert!(message.contains("is one object of") && message.contains("the file name of its image"), "{message}");
    }
    // One long line does not hide the others.
    fs::write(&path, format!("{{\"text\":\"{}\n{{\"text\":\"b\"}}\n", "x".repeat(17 << 20))).unwrap();
    assert_eq!(answers(&open(&path, None).unwrap())[1], "b");
}

#[test]
fn fields_that_are_not_read_are_named() {
    let lines = "{\"text\":\"a\",\"options\":[\"x\"],\"hint\":null}\n{\"text\":\"b\",\"Lecture\":\"y\",\"id\":1}\n";
    let folder = folder(&[("a.jsonl", lines), ("b.csv", ",text,split\n0,x,train\n"), ("c.jsonl", "{\"text\":\"a\"}")]);
    let unread = |name: &str| summarise(name, &open(folder.path().join(name), None).unwrap(), 9).unread_fields;
    assert_eq!(unread("a.jsonl"), ["options", "Lecture"]);
    assert_eq!((unread("b.csv"), unread("c.jsonl")), (vec!["split".to_string()], vec![]));
    let columns: FilesSource = toml::from_str("path = \"a.jsonl\"\ncolumns = { text = \"options\" }").unwrap();
    let records = columns.resolved(|path| folder.path().join(path)).open().unwrap();
    assert_eq!(records.unread_fields(), ["Lecture"]);
}

#[test]
fn the_imagefolder_of_the_hub_is_read() {
    let metadata = "{\"file_name\":\"0.png\",\"text\":\"a\"}\n{\"file_name\":\"sub/1.png\",\"text\":\"b\"}\n";
    let jsonl = folder(&[("0.png", ""), ("sub/1.png", ""), ("metadata.jsonl", metadata)]);
    let records = open(jsonl.path(), None).unwrap();
    assert_eq!((answers(&records), records.get(1).unwrap().images.len()), (vec!["a".into(), "b".into()], 1));

    let csv =
        folder(&[("0.png", ""), ("metadata.csv", "file_name,caption\n0.png,a\n"), ("1.png", ""), ("2.heic", "x")]);
    let records = open(csv.path(), None).unwrap();
    assert_eq!(answers(&records), ["a"]);
    let left_out = records.left_out();
    assert!(left_out.files >= 2 && left_out.named.iter().any(|name| name.contains("2.heic: is HEIC")), "{left_out:?}");
    assert!(left_out.named.iter().any(|name| name.contains("has 2 images, but its metadata has 1 records")));

    // Splits, each with metadata of its own.
    let split = |name: &str| {
        (
            format!("{name}/0.png"),
            format!("{name}/metadata.jsonl"),
            format!("{{\"file_name\":\"0.png\",\"text\":\"{name}\"}}"),
        )
    };
    let (train, test) = (split("train"), split("test"));
    let files = [(&*train.0, ""), (&*train.1, &*train.2), (&*test.0, ""), (&*test.1, &*test.2)];
    let splits = folder(&files);
    let records = open(splits.path(), None).unwrap();
    assert_eq!(answers(&records), ["train"]);
    assert!(records.left_out().named[0].contains("test: is another split than `train`"));
    assert_eq!(answers(&open(splits.path().join("test"), None).unwrap()), ["test"]);
}

#[test]
fn folders_of_images_and_of_shards_are_read_and_the_rest_is_counted() {
    let pairs = folder(&[
        ("a.jfif", ""),
        ("a.txt", "\u{feff}a cat"),
        ("b.PNG", ""),
        ("b.caption", "a dog"),
        ("c.avif", "x"),
        ("d.HEIC", "x"),
        ("._a.jfif", "fork"),
        ("lonely.txt", "x"),
        ("e.mp4", "x"),
        ("more/f.png", ""),
    ]);
    let records = open(pairs.path(), None).unwrap();
    assert_eq!(answers(&records), ["a cat", "a dog"]);
    let summary = summarise("pairs", &records, 100);
    assert_eq!((summary.records, summary.with_images, summary.bad, summary.left_out.files), (2, 2, 0, 5));
    for name in [
        "c.avif: is AVIF, which cannot be decoded",
        "d.HEIC: is HEIC",
        "e.mp4",
        "lonely.txt: is a text without",
        "more: is a folder",
    ] {
        assert!(summary.left_out.named.iter().any(|line| line.contains(name)), "{name}: {:?}", summary.left_out);
    }
    let heic = folder(&[("c.heic", "x")]);
    assert!(refused(heic.path()).contains("contains nothing that can be read: c.heic is HEIC"));
    let saved = folder(&[("data-0.arrow", "x"), ("state.json", "{}")]);
    assert!(refused(saved.path()).contains("data-0.arrow is an Arrow file: save the data set as Parquet"));

    // Texts with upper-case extensions, and fields in JSON files.
    let sidecars = folder(&[
        ("a.png", ""),
        ("a.TXT", "one"),
        ("b.png", ""),
        ("b.json", r#"{"image":"orig/x.png","caption":"two"}"#),
        ("notes.json", r#"[{"text":"x"}]"#),
        ("old.zip", "x"),
    ]);
    let records = open(sidecars.path(), None).unwrap();
    assert_eq!(answers(&records), ["one", "two"]);
    assert_eq!((records.get(1).unwrap().images.len(), records.left_out().files), (1, 2), "{:?}", records.left_out());

    // Below a folder without data of its own, every subfolder counts.
    let nested =
        folder(&[("x/a.png", ""), ("x/a.txt", "a"), ("y/z/b.png", ""), ("y/z/b.txt", "b"), ("empty/readme.md", "x")]);
    assert_eq!(answers(&open(nested.path(), None).unwrap()), ["a", "b"]);

    // A data file beside the images that it names.
    let llava =
        folder(&[("a.png", ""), ("data.json", r#"[{"image":"a.png","text":"x"}]"#), ("dataset_info.json", "{}")]);
    assert_eq!(answers(&open(llava.path(), None).unwrap()), ["x"]);
    let shards = folder(&[
        ("train-0.jsonl", "{\"text\":\"a\"}"),
        ("train-1.jsonl", "{\"text\":\"b\"}"),
        ("test-0.jsonl", "{\"text\":\"c\"}"),
        ("x.csv", "text\nd\n"),
    ]);
    let records = open(shards.path(), None).unwrap();
    assert_eq!((answers(&records), records.left_out().files), (vec!["a".to_string(), "b".into()], 2));
    for (names, read) in [
        (["mine_train.json", "mine_test.json"], &["mine_train.json"][..]),
        (["all.json", "val2017.json"], &["all.json"]),
        (["captions_train.json", "training-dev.json"], &["captions_train.json", "training-dev.json"]),
        (["dev.json", "test.json"], &["dev.json", "test.json"]),
        (["latest.json", "contest.json"], &["contest.json", "latest.json"]),
    ] {
        let files = names.map(|name| (name, format!("[{{\"text\":\"{name}\"}}]")));
        let splits = folder(&files.each_ref().map(|(name, content)| (*name, content.as_str())));
        assert_eq!(answers(&open(splits.path(), None).unwrap()), read, "{names:?}");
    }
    // A note beside images and their data file is no text of an image.
    let noted = folder(&[("a.png", ""), ("llava.json", r#"[{"image":"a.png","text":"x"}]"#), ("readme.txt", "hello")]);
    assert_eq!(answers(&open(noted.path(), None).unwrap()), ["x"]);
    #[cfg(unix)]
    for link in 0..20 {
        std::os::unix::fs::symlink("..", nested.path().join(format!("empty/up{link}"))).unwrap();
    }
    assert_eq!(answers(&open(nested.path(), None).unwrap()), ["a", "b"]);
    let empty = folder(&[("readme.md", "x")]);
    assert!(refused(empty.path()).contains("contains no image and no data file; expected JSON"));
}

/// An archive of these files.
fn tar(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, content.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn archive(content: &[u8]) -> (TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0.tar");
    fs::write(&path, content).unwrap();
    (folder, path)
}

#[test]
fn webdataset_archives_are_read() {
    let text = |text: &str| text.as_bytes().to_vec();
    let long = format!("{}/007.png", "d".repeat(200));
    let long_text = long.replace("png", "txt");
    let dialogue = r#"{"image":"coco/x.jpg","conversations":[{"from":"human","value":"<image>\nq"},{"from":"gpt","value":"talk"}]}"#;
    let files = [
        ("001.png", png()),
        ("001.txt", text("\u{feff}one\n")),
        ("001.cls", text("3")),
        ("._002.png", text("fork")),
        ("002.PNG", png()),
        ("002.json", text(r#"{"caption":"two","url":"https://example.com/a.jpg"}"#)),
        ("a/003.json", text(dialogue)),
        ("a/003.jpg", png()),
        ("b/003.0.png", png()),
        ("b/003.1.png", png()),
        ("b/003.txt", text("both")),
        ("004.txt", text("words")),
        ("005.mp4", text("x")),
        ("005.txt", text("film")),
        ("006.png", png()),
        ("006.npy", text("x")),
        (&long, png()),
        (&long_text, text("long")),
        ("008.png", png()),
        ("008.png", png()),
        ("008.txt", text("x")),
        ("readme", text("x")),
    ];
    let (_folder, path) = archive(&tar(&files));
    let records = open(&path, None).unwrap();
    let all = answers(&records);
    assert_eq!(all[..5], ["one", "two", "talk", "both", "words"], "{all:?}");
    assert!(all[5].contains("is an .mp4 video"), "{}", all[5]);
    assert!(all[6].contains("no text in the fields __key__, images"), "{}", all[6]);
    assert_eq!(all[7], "long");
    assert!(all[8].contains("two files .png of this name"), "{}", all[8]);
    assert_eq!(all.len(), 9);
    let counts: Vec<_> = (0..5).map(|n| records.get(n).unwrap().images.len()).collect();
    assert_eq!(counts, [1, 1, 1, 2, 0]);
    assert_eq!(records.get(2).unwrap().id, "a/003");
    assert!(records.describe(0).ends_with("0.tar record 1 (001)"));
    assert!(records.left_out().named[0].starts_with("readme: has no extension"));
    let ImageSource::Bytes(image) = &records.get(0).unwrap().images[0] else { panic!("expected content") };
    ImageDecoder::default().decode(&image.bytes, &image.name).unwrap();
}

#[test]
fn files_of_a_record_may_be_apart_and_masks_are_left_out() {
    let text = |text: &str| text.as_bytes().to_vec();
    let files = [
        ("1.png", png()),
        ("2.png", png()),
        ("1.seg.png", png()),
        ("3.left.png", png()),
        ("3.right.png", png()),
        ("1.txt", text("one")),
        ("2.txt", text("two")),
        ("3.txt", text("three")),
        // Another shard with the same keys.
        ("1.png", png()),
        ("1.txt", text("four")),
    ];
    let (_folder, path) = archive(&tar(&files));
    let records = open(&path, None).unwrap();
    assert_eq!(answers(&records), ["one", "two", "three", "four"]);
    let images: Vec<_> = (0..4).map(|n| records.get(n).unwrap().images.len()).collect();
    assert_eq!(images, [1, 1, 2, 1]);
    let left_out = records.left_out();
    assert!(left_out.files == 1 && left_out.named[0].starts_with("1.seg.png: is another image"), "{left_out:?}");
}

#[test]
fn hostile_archives_are_errors() {
    let files = [("1.png", png()), ("1.txt", b"one".to_vec())];
    let whole = tar(&files);
    let header = |change: &dyn Fn(&mut tar::Header)| {
        let mut header = tar::Header::new_gnu();
        header.set_path("1.txt").unwrap();
        header.set_size(3);
        change(&mut header);
        header.set_cksum();
        [header.as_bytes().as_slice(), &[b'x'; 512], &[0; 1024]].concat()
    };
    for (content, problem) in [
        (header(&|header| header.set_size(1 << 40)), "ends within the file"),
        (header(&|header| header.set_size(u64::MAX)), "damaged or truncated"),
        (
            header(&|header| {
                header.set_entry_type(tar::EntryType::GNULongName);
                header.set_size(512)
            }),
            "no record",
        ),
        (whole[..1000].to_vec(), "ends within the file"),
        (header(&|header| header.set_entry_type(tar::EntryType::GNUSparse)), "contains no record"),
    ] {
        let (_folder, path) = archive(&content);
        let message = refused(&path);
        assert!(message.contains(problem), "{message}");
    }
    let (_folder, path) = archive(&header(&|header| header.set_entry_type(tar::EntryType::Symlink)));
    assert!(answers(&open(&path, None).unwrap())[0].contains("its .txt is a link, expected a file: pack"));
    let (_folder, path) = archive(&tar(&[]));
    assert!(refused(&path).contains("0.tar: contains no record"));
}

/// Opens a file of this name and content, and reads all its records.
fn read_all(name: &str, content: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, content).unwrap();
    let check = |message: String| {
        assert!(message.chars().count() < 400 && !message.chars().any(char::is_control), "{message}");
    };
    match open(&path, None) {
        Ok(records) => (0..records.len().min(100)).for_each(|n| {
            if let Err(reason) = records.get(n) {
                check(reason.to_string());
            }
        }),
        Err(error) => check(error.to_string()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_archives_tables_and_compressed_files_never_panic(cut in 0.0..1.0f64, at in 0.0..1.0f64, byte: u8) {
        let csv = b"image,text\na.png,\"x\n\"\"\"\nb.png,y\n".to_vec();
        let files = [("1.png", png()), ("1.txt", b"one".to_vec()), ("2.json", br#"{"text":"x"}"#.to_vec())];
        for (name, mut content) in [("a.csv", csv.clone()), ("a.csv.gz", gzip(&csv)), ("a.tar", tar(&files))] {
            let place = (content.len() as f64 * at) as usize;
            content[place] = byte;
            read_all(name, &content);
            content.truncate((content.len() as f64 * cut) as usize);
            read_all(name, &content);
        }
    }

    #[test]
    fn records_of_any_fields_never_panic(
        key in "(image|images|video|text|conversations|messages|answers|captions|x)",
        value in "[\\[\\]{}\",:a1.png <>image]{0,40}",
    ) {
        read_all("a.jsonl", format!("{{\"{key}\":{value}}}").as_bytes());
        read_all("a.jsonl", serde_json::json!({ key: value, "text": "x" }).to_string().as_bytes());
    }
}

#[test]
fn deeply_nested_fields_are_bad_samples() {
    for (open, close) in [("[", "]"), ("{\"image\":", "}")] {
        for depth in [100, 10_000] {
            let value = open.repeat(depth) + "1" + &close.repeat(depth);
            read_all("a.jsonl", format!("{{\"image\":{value},\"text\":\"x\"}}").as_bytes());
            read_all("a.jsonl", format!("{{\"messages\":{value}}}").as_bytes());
        }
    }
}

#[test]
fn pipes_in_folders_never_block() {
    #[cfg(unix)]
    {
        let folder = folder(&[("a.txt", "x")]);
        let fifo = std::ffi::CString::new(folder.path().join("a.png").to_str().unwrap()).unwrap();
        // SAFETY: the path is a C string that outlives the call.
        assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
        let record = open(folder.path(), None).unwrap().get(0);
        assert!(record.is_ok(), "the image is read later");
        let fifo = std::ffi::CString::new(folder.path().join("b.jsonl").to_str().unwrap()).unwrap();
        // SAFETY: as above.
        assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
        assert!(matches!(open(folder.path().join("b.jsonl"), None).map(drop), Err(Error::Io { .. })));
    }
    assert!(matches!(open(Path::new("/no/such/data.tar"), None).map(drop), Err(Error::Io { .. })));
}

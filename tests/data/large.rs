//! Time and memory for a data set of the size of LLaVA's. Run one alone, in a release build:
//! `cargo test --release --features parquet --test data -- --ignored --nocapture large::json`

use std::fs::File;
use std::io::{BufWriter, Write};
use std::time::Instant;

use haplovl::data::{open, summarise};

const RECORDS: usize = 665_000;

/// A record with as much text as one of LLaVA's mean.
fn record(n: usize) -> String {
    let turn = |text: &str| {
        format!(r#"{{"from":"human","value":"{text}"}},{{"from":"gpt","value":"{}"}}"#, "An answer. ".repeat(14))
    };
    let turns =
        [turn("<image>\\nWhat is shown?"), turn("Why?"), turn("Where?"), turn("How many?"), turn("Which?")].join(",");
    format!(r#"{{"id":"{n:012}","image":"coco/train2017/{n:012}.jpg","conversations":[{turns}]}}"#)
}

/// Peak memory of the process in megabytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    peak.unwrap_or_default() / 1000
}

fn measure(path: &std::path::Path) {
    let bytes = path.metadata().unwrap().len() / 1_000_000;
    let before = peak_memory();
    let start = Instant::now();
    let records = open(path, None).unwrap();
    let opened = start.elapsed();
    let summary = summarise("large", &records, 512);
    assert_eq!((summary.records, summary.sampled), (RECORDS, 512));
    println!(
        "{bytes} MB, {RECORDS} records: opened in {opened:.2?}, with a summary of 512 in {:.2?}; peak memory {} MB ({before} MB before)",
        start.elapsed(),
        peak_memory()
    );
}

#[test]
#[ignore = "writes 700 MB to the folder for temporary files"]
fn json() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("llava.json");
    let mut out = BufWriter::new(File::create(&path).unwrap());
    (0..RECORDS).for_each(|n| write!(out, "{}{}", if n == 0 { "[" } else { ",\n" }, record(n)).unwrap());
    out.write_all(b"]").unwrap();
    drop(out);
    measure(&path);
}

#[test]
#[cfg(feature = "parquet")]
#[ignore = "writes 700 MB to the folder for temporary files"]
fn parquet() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("llava.parquet");
    let schema = "message m { optional binary image (UTF8); optional binary conversations (UTF8); }";
    let numbers = Vec::from_iter(0..RECORDS);
    let group = |numbers: &[usize]| {
        let turns = |&n: &usize| {
            let value: serde_json::Value = serde_json::from_str(&record(n)).unwrap();
            value["conversations"].to_string().into_bytes()
        };
        let column = |values: Vec<Vec<u8>>| {
            let levels = vec![1; values.len()];
            (values, levels, vec![0; numbers.len()])
        };
        let images = numbers.iter().map(|n| format!("coco/train2017/{n:012}.jpg").into_bytes());
        vec![column(images.collect()), column(numbers.iter().map(turns).collect())]
    };
    crate::parquet_files::write(&path, schema, numbers.chunks(1000).map(group));
    measure(&path);
}

/// Random access to row groups of 1,000 images of 100 KB: the first pass decodes, the second reads.
#[test]
#[cfg(feature = "parquet")]
#[ignore = "writes 800 MB to the folder for temporary files"]
fn parquet_images() {
    use haplovl::data::Dataset;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("images.parquet");
    let schema = "message m { optional group image { optional binary bytes; optional binary path (UTF8); } optional binary text (UTF8); }";
    let group = |group: usize| {
        let noise = |n: usize| {
            (0..100_000u32)
                .map(move |i| (i.wrapping_mul(2_654_435_761).wrapping_add((n + group * 1000) as u32) >> 13) as u8)
        };
        let column = |values: Vec<Vec<u8>>, level| (values, vec![level; 1000], vec![0; 1000]);
        let names = |end: &str| (0..1000).map(|n| format!("{n}{end}").into_bytes()).collect::<Vec<_>>();
        vec![column((0..1000).map(|n| noise(n).collect()).collect(), 2), column(names(".jpg"), 2), column(names(""), 1)]
    };
    crate::parquet_files::write(&path, schema, (0..4).map(group));
    let records = open(&path, None).unwrap();
    for pass in ["first", "second"] {
        let start = Instant::now();
        (0..4000).for_each(|n| assert_eq!(records.get(n * 1237 % 4000).unwrap().images.len(), 1));
        println!(
            "{pass} pass over 4,000 images of 100 KB in random order: {:.2?}; peak memory {} MB",
            start.elapsed(),
            peak_memory()
        );
    }
}

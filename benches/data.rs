//! Benchmark of the data path: opening of record files, and images per second of the loader with one and more workers.
//!
//! `cargo bench --bench data [-- NAME]`. The images are JPEGs of 640x480 pixels with smooth content, as photographs have,
//! in records of LLaVA's format, prepared for the model of `benches/config.json` (two tiles and an overview each).

#![allow(clippy::expect_used, reason = "a failing bench should stop instead of being timed")]

#[allow(dead_code, reason = "each bench uses a subset")]
mod common;

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use common::{config, report};
use criterion::{Criterion, Throughput, criterion_group};
use haplovl::config::HaploVlConfig;
use haplovl::data::{Grouping, Loader, LoaderConfig, LoaderState, RecordFile, shapes};
use haplovl::processor::{Processor, ProcessorSettings, RgbImage};

/// Number of images on disk, which records name in turn.
const IMAGES: usize = 32;
/// Number of samples that one measurement loads.
const SAMPLES: usize = 64;
/// Number of records of LLaVA-1.5's instruction data.
const RECORDS: usize = 665_000;

/// A JPEG's worth of smooth content: waves of different lengths and directions.
fn photograph(seed: usize) -> RgbImage {
    RgbImage::from_fn(640, 480, |x, y| {
        let wave = |scale: f32, phase: f32| {
            let (x, y) = (x as f32 / scale, y as f32 / scale);
            127.5 + 60.0 * (x + phase).sin() * (y - phase).cos() + 60.0 * (0.3 * x * y / scale + phase).sin()
        };
        [11.0, 23.0, 41.0].map(|scale| wave(scale, seed as f32) as u8).into()
    })
}

fn write_images(folder: &Path) {
    for n in 0..IMAGES {
        photograph(n).save(folder.join(format!("{n:02}.jpg"))).expect("a writable folder");
    }
}

fn record(n: usize) -> String {
    let image = n % IMAGES;
    format!(
        r#"{{"id":"{n}","image":"{image:02}.jpg","conversations":[{{"from":"human","value":"<image>\nwhat is in the picture ?"}},{{"from":"gpt","value":"a red circle and a small blue square, above a large green triangle."}},{{"from":"human","value":"how many objects are there?"}},{{"from":"gpt","value":"three"}}]}}"#
    )
}

fn records(path: &Path, count: usize) {
    let mut text = String::new();
    (0..count).for_each(|n| writeln!(text, "{}", record(n)).expect("text"));
    std::fs::write(path, text).expect("a writable folder");
}

/// A processor of the bench model's images, with the tokenizer of shapes world.
fn processor() -> Arc<Processor> {
    let tokenizer = shapes::tokenizer().expect("a tokenizer");
    let id = |token: &str| tokenizer.id(token).expect("a placeholder");
    let (image_token_index, video_token_index) = (id("<image>"), id("<video>"));
    let config = HaploVlConfig { image_token_index, video_token_index, ..config() };
    Arc::new(Processor::new(&config, ProcessorSettings::new(&config), tokenizer, None).expect("a processor"))
}

fn loader(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    write_images(folder.path());
    records(&folder.path().join("records.jsonl"), SAMPLES);
    let processor = processor();
    let mut group = c.benchmark_group("data/llava_jpeg_640x480");
    group.throughput(Throughput::Elements(SAMPLES as u64)).sample_size(10);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for workers in [1, 2, 4, 8].into_iter().filter(|&workers| workers <= cores) {
        let load = || {
            let data = RecordFile::open(folder.path().join("records.jsonl"), folder.path()).expect("records");
            let grouping = Grouping::InOrder { rows: 8 };
            let config = LoaderConfig { workers, grouping, epochs: Some(1), ..LoaderConfig::default() };
            let processor = Arc::clone(&processor);
            let prepare = move |record: haplovl::data::Record| {
                Ok(processor.training_sequence(&record.conversation(&processor)?)?)
            };
            let loader = Loader::new(data, config, LoaderState::default(), prepare).expect("a loader");
            loader.map(|group| group.expect("samples").samples.len()).sum::<usize>()
        };
        group.bench_function(workers.to_string(), |b| b.iter(|| assert_eq!(load(), SAMPLES)));
    }
    group.finish();
}

fn open(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("records.jsonl");
    records(&path, RECORDS);
    let mut group = c.benchmark_group("data/open");
    group.throughput(Throughput::Elements(RECORDS as u64)).sample_size(10);
    group.bench_function("jsonl_665k", |b| b.iter(|| RecordFile::open(&path, folder.path()).expect("records")));
    group.finish();
}

criterion_group!(benches, loader, open);

fn main() {
    let start = SystemTime::now();
    benches();
    Criterion::default().configure_from_args().final_summary();
    report::write(start);
}

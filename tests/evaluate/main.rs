//! Public benchmarks: their files, their scores, and the report.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[cfg(feature = "builtin")]
#[allow(dead_code, reason = "the tests use a part of it")]
#[path = "../../examples/evaluate/answers.rs"]
mod answers;
#[cfg(feature = "builtin")]
#[allow(dead_code, reason = "the tests use a part of it")]
#[path = "../../examples/common/batch.rs"]
mod batch;
#[cfg(feature = "builtin")]
#[path = "../serve/browser.rs"]
mod browser;
#[path = "../../examples/common/checksum.rs"]
mod checksum;
#[path = "../../examples/common/cli.rs"]
mod cli;
#[cfg(feature = "builtin")]
#[path = "../serve/http.rs"]
mod http;
#[cfg(feature = "builtin")]
#[path = "../../examples/common/images.rs"]
mod images;
mod llava;
#[path = "../../examples/evaluate/modes.rs"]
mod modes;
mod options;
#[path = "../../examples/evaluate/outputs.rs"]
mod outputs;
mod page;
mod readers;
#[cfg(feature = "builtin")]
#[path = "../../examples/evaluate/report.rs"]
mod report;
mod resume;
#[allow(dead_code, reason = "the tests use a part of it")]
#[path = "../../examples/common/sampling.rs"]
mod sampling;
mod scores;

use std::io::Cursor;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use haplovl::eval::benchmark::{Benchmark, QuestionSet};
use haplovl::processor::RgbImage;
use image::{DynamicImage, ImageFormat, Rgb};
use tempfile::TempDir;

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    folder
}

fn open(benchmark: &str, data: &Path) -> haplovl::Result<QuestionSet> {
    QuestionSet::open(Benchmark::named(benchmark)?, data, None)
}

/// A PNG file of one shade, 24 pixels wide.
fn png(shade: u8) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    let image = DynamicImage::from(RgbImage::from_pixel(24, 16, Rgb([shade; 3])));
    image.write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn base64_png(shade: u8) -> String {
    BASE64_STANDARD.encode(png(shade))
}

/// The shade of the image of a question.
fn shade(questions: &QuestionSet, index: usize) -> u8 {
    questions.decoded(&questions.questions()[index]).unwrap()[0].get_pixel(0, 0).0[0]
}

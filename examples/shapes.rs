//! Example: writes images of shapes world with their captions and questions, to inspect the data.
//!
//! `cargo run --example shapes -- [--out DIR] [--split test] [--count 24] [--side 64]` writes one PNG per scene, a
//! contact sheet `sheet.png`, and `scenes.jsonl` with the contents of each scene.

#[path = "common/cli.rs"]
mod cli;

use std::fmt::Display;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::{Parser, ValueEnum};
use haplovl::data::shapes::{Scene, ShapesConfig, Split, caption_prompt};
use image::RgbImage;
use image::imageops::{self, FilterType};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Writes images of shapes world with their captions and questions.
///
/// The folder gets one PNG per scene, a contact sheet sheet.png, and scenes.jsonl with the contents of each scene.
#[derive(Parser)]
#[command(after_help = "Examples:\n  \
    shapes\n  \
    shapes --out images --split train --count 200 --side 128")]
struct Arguments {
    /// Folder to write to; created if necessary
    #[arg(long, default_value = "shapes-world", value_name = "DIR")]
    out: PathBuf,
    /// Split of the generated world
    #[arg(long, default_value = "test")]
    split: SplitName,
    /// Number of scenes
    #[arg(long, default_value_t = 24, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    count: u64,
    /// Side of the images in pixels
    #[arg(long, default_value_t = 64, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(16..=1024))]
    side: u32,
    /// Magnification of the images on the contact sheet
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8))]
    zoom: u32,
}

#[derive(Clone, Copy, ValueEnum)]
enum SplitName {
    Train,
    Validation,
    Test,
}

/// Largest number of images on the contact sheet.
const SHEET: usize = 64;

fn main() -> ExitCode {
    cli::main(write)
}

fn write(arguments: Arguments) -> Result<()> {
    let split = match arguments.split {
        SplitName::Train => Split::Train,
        SplitName::Validation => Split::Validation,
        SplitName::Test => Split::Test,
    };
    let fail = |path: &Path, e: &dyn Display| anyhow!("writing {}: {e}", path.display());
    fs::create_dir_all(&arguments.out).map_err(|e| fail(&arguments.out, &e))?;
    let scenes: Vec<_> = (0..arguments.count).map(|i| split.scene(i, &ShapesConfig::default())).collect();
    let list = arguments.out.join("scenes.jsonl");
    let mut lines = BufWriter::new(fs::File::create(&list).map_err(|e| fail(&list, &e))?);
    let mut images = Vec::new();
    for (i, scene) in scenes.iter().enumerate() {
        let name = format!("{i:04}.png");
        let (image, path) = (scene.render(arguments.side), arguments.out.join(&name));
        image.save(&path).map_err(|e| fail(&path, &e))?;
        writeln!(lines, "{}", described(scene, &name)).map_err(|e| fail(&list, &e))?;
        if images.len() < SHEET {
            images.push(image);
        }
    }
    lines.flush().map_err(|e| fail(&list, &e))?;
    let path = arguments.out.join("sheet.png");
    contact_sheet(&images, arguments.zoom).save(&path).map_err(|e| fail(&path, &e))?;
    cli::print(format_args!(
        "{} scenes in {}, {} of them on {}",
        scenes.len(),
        arguments.out.display(),
        images.len(),
        path.display()
    ))
}

/// JSON object of a scene with its caption, questions and sentences.
fn described(scene: &Scene, name: &str) -> serde_json::Value {
    let mut rng = ChaCha8Rng::seed_from_u64(scene.seed);
    serde_json::json!({
        "image": name,
        "prompt": caption_prompt(&mut rng),
        "caption": scene.caption(&mut rng),
        "questions": scene.questions(&mut rng),
        "sentences": scene.text_sentences(&mut rng),
        "scene": scene,
    })
}

/// Contact sheet of all images, magnified, in rows of eight with a narrow gap.
fn contact_sheet(images: &[RgbImage], zoom: u32) -> RgbImage {
    let columns = images.len().clamp(1, 8) as u32;
    let rows = (images.len() as u32).div_ceil(columns);
    let side = images.first().map_or(0, |image| image.width() * zoom) + 4;
    let mut sheet = RgbImage::from_pixel(columns * side, rows * side, image::Rgb([255; 3]));
    for (i, image) in images.iter().enumerate() {
        let large = imageops::resize(image, side - 4, side - 4, FilterType::Nearest);
        let (column, row) = (i as u32 % columns, i as u32 / columns);
        imageops::replace(&mut sheet, &large, i64::from(column * side + 2), i64::from(row * side + 2));
    }
    sheet
}

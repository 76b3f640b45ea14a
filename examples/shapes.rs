//! Writes pictures of shapes world with their captions and questions, to look at.
//!
//! `cargo run --example shapes -- [--out DIR] [--split test] [--count 24] [--side 64]` writes one PNG a scene, all of
//! them on `sheet.png`, and `scenes.jsonl` with what is in them.

#[path = "common/cli.rs"]
mod cli;

use std::fs;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use haplovl::data::shapes::{Scene, ShapesConfig, Split, caption_prompt};
use image::RgbImage;
use image::imageops::{self, FilterType};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

#[derive(Parser)]
#[command(about = "Writes pictures of shapes world with their captions and questions")]
struct Arguments {
    /// Folder to write to; made if need be.
    #[arg(long, default_value = "shapes-world")]
    out: PathBuf,
    /// Which part of the world to show.
    #[arg(long, default_value = "test")]
    split: SplitName,
    /// Number of scenes.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    count: u64,
    /// Side of the pictures in pixels.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(16..=1024))]
    side: u32,
    /// How much the pictures are magnified on the sheet.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=8))]
    zoom: u32,
}

#[derive(Clone, Copy, ValueEnum)]
enum SplitName {
    Train,
    Validation,
    Test,
}

/// Most pictures on the sheet.
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
    fs::create_dir_all(&arguments.out).with_context(|| format!("making {}", arguments.out.display()))?;
    let scenes: Vec<_> = (0..arguments.count).map(|i| split.scene(i, &ShapesConfig::default())).collect();
    let mut lines = BufWriter::new(fs::File::create(arguments.out.join("scenes.jsonl"))?);
    let mut pictures = Vec::new();
    for (i, scene) in scenes.iter().enumerate() {
        let name = format!("{i:04}.png");
        let picture = scene.render(arguments.side);
        picture.save(arguments.out.join(&name))?;
        writeln!(lines, "{}", described(scene, &name))?;
        if pictures.len() < SHEET {
            pictures.push(picture);
        }
    }
    lines.flush()?;
    let path = arguments.out.join("sheet.png");
    contact_sheet(&pictures, arguments.zoom).save(&path)?;
    println!(
        "{} scenes in {}, {} of them on {}",
        scenes.len(),
        arguments.out.display(),
        pictures.len(),
        path.display()
    );
    Ok(())
}

/// Everything that is known and can be said of a scene, as one JSON object.
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

/// All pictures in rows of eight, magnified, with a narrow gap.
fn contact_sheet(pictures: &[RgbImage], zoom: u32) -> RgbImage {
    let columns = pictures.len().clamp(1, 8) as u32;
    let rows = (pictures.len() as u32).div_ceil(columns);
    let side = pictures.first().map_or(0, |picture| picture.width() * zoom) + 4;
    let mut sheet = RgbImage::from_pixel(columns * side, rows * side, image::Rgb([255; 3]));
    for (i, picture) in pictures.iter().enumerate() {
        let large = imageops::resize(picture, side - 4, side - 4, FilterType::Nearest);
        let (column, row) = (i as u32 % columns, i as u32 / columns);
        imageops::replace(&mut sheet, &large, i64::from(column * side + 2), i64::from(row * side + 2));
    }
    sheet
}

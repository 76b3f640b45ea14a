//! Example: draws the attention of a word of the prompt to the patches of an image, as a heat map (Figure 5 of the paper).
//!
//! `cargo run --release --example attention -- --model DIR --image cat.jpg --prompt "Where is the cat?" --word cat`

#[path = "common/cli.rs"]
mod cli;
#[path = "common/download.rs"]
mod download;
#[path = "common/images.rs"]
mod images;
#[path = "common/model.rs"]
mod model;
#[path = "common/words.rs"]
mod words;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::Parser;
use haplovl::processor::{AttentionMap, Content, Conversation, Message, RgbImage};
use image::{Rgb, imageops};

use images::Images;

/// Draws the attention of a word of the prompt to the patches of an image.
///
/// Writes one PNG per image: the image with a heat map overlay, and a colour scale on the right from no attention
/// (bottom) to the largest attention of any patch (top). Prints the largest values on stdout.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:\n  \
    attention --prompt \"which shape is the yellow object?\" --word yellow\n  \
    attention --model ./haplovl-7b --image cat.jpg --prompt \"Where is the cat?\" --word cat\n  \
    attention --model ./haplovl-7b --image cat.jpg --prompt \"Where is the cat?\" --word cat --layer 12 --head 3")]
struct Arguments {
    #[command(flatten)]
    images: Images,
    /// The question about the images
    #[arg(long, value_name = "TEXT", value_parser = words::text)]
    prompt: String,
    /// A word of the prompt, or several consecutive words
    #[arg(long, value_parser = words::text)]
    word: String,
    /// The layer, counted from 0 over both decoders [default: the last of the pre-decoder]
    #[arg(long, value_name = "N")]
    layer: Option<usize>,
    /// One attention head, counted from 0 [default: the mean over all]
    #[arg(long, value_name = "N")]
    head: Option<usize>,
    /// Folder to write to; created if necessary
    #[arg(long, default_value = ".", value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    options: model::ModelOptions,
}

fn main() -> ExitCode {
    cli::main(|arguments: Arguments| {
        let Arguments { images, prompt, word, layer, head, out, options } = arguments;
        let images = images.open(0)?;
        let model = options.load()?;
        words::note_unknown(&model, &prompt)?;
        let content = images.iter().map(|(_, image)| Content::from(image.clone())).chain([prompt.into()]);
        let conversation = Conversation::from(Message::user(content));
        let layer = layer.unwrap_or(model.model().config().pre_decoder.num_hidden_layers.saturating_sub(1));
        let maps = model.word_attention(&conversation, word.as_str(), layer, head)?;
        std::fs::create_dir_all(&out).map_err(|e| anyhow!("making {}: {e}", out.display()))?;
        for ((path, image), (n, map)) in images.iter().zip(maps.iter().enumerate()) {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let file = out.join(format!("attention-{}-{stem}-{}.png", n + 1, file_name(&word)));
            enlarged(overlay(image, map)).save(&file).map_err(|e| anyhow!("writing {}: {e}", file.display()))?;
            cli::print(format_args!("{}: `{word}` in layer {layer} -> {}", path.display(), file.display()))?;
            describe(map)?;
        }
        Ok(())
    })
}

/// The word as part of a file name: characters that some file systems reject are replaced.
fn file_name(word: &str) -> String {
    word.chars().map(|c| if c.is_alphanumeric() { c } else { '_' }).collect()
}

/// Prints the patches with the most attention.
fn describe(map: &AttentionMap) -> Result<()> {
    let cells = map.cells().len();
    let percent = 100.0 * map.total();
    cli::print(format_args!("  {percent:.1} % of the attention goes to the {cells} patches of {}", map.size()))?;
    for cell in map.hottest(5) {
        cli::print(format_args!(
            "  row {:>2}, column {:>2}: {:>5.2} % ({:.1} times the mean), pixels x {}..{}, y {}..{}",
            cell.row,
            cell.column,
            100.0 * cell.weight,
            cell.weight * cells as f32 / map.total().max(f32::MIN_POSITIVE),
            cell.pixel_columns.start,
            cell.pixel_columns.end,
            cell.pixel_rows.start,
            cell.pixel_rows.end
        ))?;
    }
    Ok(())
}

/// The image with its heat map as overlay, and the colour scale on the right.
fn overlay(image: &RgbImage, map: &AttentionMap) -> RgbImage {
    let (width, height) = image.dimensions();
    let scale = (width / 24).max(8);
    let mut result = RgbImage::from_pixel(width + scale + scale / 2, height, Rgb([255; 3]));
    imageops::replace(&mut result, image, 0, 0);
    let most = map.hottest(1).first().map_or(0.0, |cell| cell.weight).max(f32::MIN_POSITIVE);
    for cell in map.cells() {
        let colour = heat(cell.weight / most);
        for y in cell.pixel_rows.clone() {
            for x in cell.pixel_columns.clone() {
                let pixel = result.get_pixel_mut(x, y);
                *pixel = mix(*pixel, colour, 0.6);
            }
        }
    }
    for y in 0..height {
        let colour = heat(1.0 - y as f32 / height.saturating_sub(1).max(1) as f32);
        (width + scale / 2..result.width()).for_each(|x| result.put_pixel(x, y, colour));
    }
    result
}

/// A small image enlarged by an integer factor with nearest-neighbour sampling: cells of eight pixels are hard to see.
fn enlarged(image: RgbImage) -> RgbImage {
    const SIDE: u32 = 384;
    let (width, height) = image.dimensions();
    match SIDE / width.max(height).max(1) {
        0 | 1 => image,
        times => imageops::resize(&image, times * width, times * height, imageops::Nearest),
    }
}

/// Colour map of increasing brightness: black, violet, red, orange, pale yellow.
fn heat(share: f32) -> Rgb<u8> {
    const STOPS: [[u8; 3]; 5] = [[0, 0, 8], [85, 15, 110], [190, 55, 80], [250, 140, 10], [252, 255, 165]];
    let at = share.clamp(0.0, 1.0) * (STOPS.len() - 1) as f32;
    let low = (at as usize).min(STOPS.len() - 2);
    mix(Rgb(STOPS[low]), Rgb(STOPS[low + 1]), at - low as f32)
}

/// Linear interpolation from `a` (0) to `b` (1).
fn mix(a: Rgb<u8>, b: Rgb<u8>, share: f32) -> Rgb<u8> {
    let channel = |c: usize| (f32::from(a[c]) * (1.0 - share) + f32::from(b[c]) * share).round() as u8;
    Rgb([channel(0), channel(1), channel(2)])
}

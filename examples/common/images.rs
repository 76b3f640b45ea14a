//! Image options of the examples.
#![allow(dead_code, reason = "each example compiles this module and uses a part of it")]

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, ensure};
use clap::Args;
use haplovl::data::shapes::{ShapesConfig, Split};
use haplovl::processor::{ImageDecoder, RgbImage};

use crate::cli;

/// Side of a drawn scene in pixels.
const SIDE: u32 = 336;

/// Image files; without any, a scene is drawn.
#[derive(Debug, Args)]
pub struct Images {
    /// An image file, or - for an image on stdin; may be given several times. Without any image, a scene of shapes
    /// world is drawn
    #[arg(long = "image", value_name = "FILE")]
    pub images: Vec<PathBuf>,
}

impl Images {
    /// Opens all images; called before the model is loaded, so that a wrong file name is reported at once.
    pub fn open(self, seed: u64) -> Result<Vec<(PathBuf, RgbImage)>> {
        if self.images.is_empty() {
            return Ok(vec![draw(seed)?]);
        }
        self.images.into_iter().map(|path| Ok((path.clone(), open(&path)?))).collect()
    }
}

/// Opens an image file, or reads the image on stdin for `-`.
pub fn open(path: &Path) -> Result<RgbImage> {
    if path == Path::new("-") { from_stdin() } else { Ok(ImageDecoder::default().open(path)?) }
}

/// Reads an image on stdin.
fn from_stdin() -> Result<RgbImage> {
    let decoder = ImageDecoder::default();
    let mut bytes = Vec::new();
    std::io::stdin().lock().take(decoder.max_bytes + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= decoder.max_bytes, "the image on stdin has more than {} bytes", decoder.max_bytes);
    Ok(decoder.decode(&bytes, "stdin")?)
}

/// Draws a held-out scene.
fn draw(seed: u64) -> Result<(PathBuf, RgbImage)> {
    let image = Split::Test.scene(seed, &ShapesConfig::default()).render(SIDE);
    // A unique name, so that no file is overwritten.
    let file = tempfile::Builder::new().prefix("haplovl-shapes-").suffix(".png").tempfile()?;
    let (_, path) = file.keep()?;
    image.save(&path).map_err(|e| anyhow!("writing {}: {e}", path.display()))?;
    cli::note(format_args!("no image is given, so a scene is drawn: {}", path.display()));
    Ok((path, image))
}

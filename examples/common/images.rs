//! Image options of the examples.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use clap::Args;
use haplovl::data::shapes::{ShapesConfig, Split};
use haplovl::processor::{ImageDecoder, RgbImage};

use crate::cli;

/// Side of a drawn scene in pixels.
const SIDE: u32 = 336;

/// Image files; without any, a scene is drawn.
#[derive(Debug, Args)]
pub struct Images {
    /// An image file; may be given several times. Without any, a scene of shapes world is drawn
    #[arg(long = "image", value_name = "FILE")]
    images: Vec<PathBuf>,
}

impl Images {
    /// Opens all images; called before the model is loaded, so that a wrong file name is reported at once.
    pub fn open(self, seed: u64) -> Result<Vec<(PathBuf, RgbImage)>> {
        if self.images.is_empty() {
            return Ok(vec![draw(seed)?]);
        }
        let open = |path: PathBuf| {
            let image = ImageDecoder::default().open(&path)?;
            Ok((path, image))
        };
        self.images.into_iter().map(open).collect()
    }
}

/// Draws a held-out scene.
fn draw(seed: u64) -> Result<(PathBuf, RgbImage)> {
    let image = Split::Test.scene(seed, &ShapesConfig::default()).render(SIDE);
    // A unique name, so that no file is overwritten.
    let file = tempfile::Builder::new().prefix("haplovl-shapes-").suffix(".png").tempfile()?;
    let (_, path) = file.keep()?;
    image.save(&path).map_err(|e| anyhow!("writing {}: {e}", path.display()))?;
    cli::note(format_args!("no --image is given, so a scene is drawn: {}", path.display()));
    Ok((path, image))
}

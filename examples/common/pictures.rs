//! Which pictures are asked about.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use haplovl::data::shapes::{ShapesConfig, Split};
use haplovl::processor::{ImageDecoder, RgbImage};

/// Side of a drawn picture, in pixels.
const SIDE: u32 = 336;

/// The pictures, or else one that is drawn.
#[derive(Debug, Args)]
pub struct Pictures {
    /// A picture; may be given several times. Without any, a scene of shapes world is drawn
    #[arg(long = "image", value_name = "FILE")]
    images: Vec<PathBuf>,
}

impl Pictures {
    /// All of them, opened before the model, which takes longer, so that a wrong name is told at once.
    pub fn open(self, seed: u64) -> Result<Vec<(PathBuf, RgbImage)>> {
        if self.images.is_empty() {
            return Ok(vec![draw(seed)?]);
        }
        let open = |path: PathBuf| {
            let picture = ImageDecoder::default().open(&path)?;
            Ok((path, picture))
        };
        self.images.into_iter().map(open).collect()
    }
}

/// Draws a scene that no model was trained on.
fn draw(seed: u64) -> Result<(PathBuf, RgbImage)> {
    let picture = Split::Test.scene(seed, &ShapesConfig::default()).render(SIDE);
    // Under a name of its own: others may have one there.
    let file = tempfile::Builder::new().prefix("haplovl-shapes-").suffix(".png").tempfile()?;
    let (_, path) = file.keep()?;
    picture.save(&path)?;
    eprintln!("no --image is given, so here is one: {}", path.display());
    Ok((path, picture))
}

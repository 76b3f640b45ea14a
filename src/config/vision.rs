//! Configuration of tiles and patches.

use serde::{Deserialize, Serialize};

use super::validate::{at_least_one, at_most, multiple_of};
use crate::{Error, Result};

/// Largest layout of tiles: an image is enlarged to it, so this bounds the memory of one image to 200 MB of f32.
const MAX_PINPOINT_PIXELS: usize = 1 << 24;

/// Layout of images that are not a single tile; LLaVA's `image_aspect_ratio`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageAspectRatio {
    /// Tiles in the best-fitting pinpoint, without shrinking (`anyres`).
    AnyRes,
    /// Like `AnyRes`, but a patch grid above 1.1 times (in linear size) this many tiles is shrunk (`anyres_max_N`).
    AnyResMax(usize),
}

impl std::fmt::Display for ImageAspectRatio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AnyRes => f.write_str("anyres"),
            Self::AnyResMax(n) => write!(f, "anyres_max_{n}"),
        }
    }
}

impl std::str::FromStr for ImageAspectRatio {
    type Err = String;

    fn from_str(s: &str) -> std::result::Result<Self, String> {
        if s == "anyres" {
            return Ok(Self::AnyRes);
        }
        match s.strip_prefix("anyres_max_").map(str::parse) {
            Some(Ok(n)) => Ok(Self::AnyResMax(n)),
            _ => Err(format!("unknown image_aspect_ratio `{s}`, expected `anyres` or `anyres_max_N`")),
        }
    }
}

impl Serialize for ImageAspectRatio {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ImageAspectRatio {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Configuration of patches, tiles and pinpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionConfig {
    /// Side of a square patch, in pixels.
    pub patch_size: usize,
    /// Side of a square tile, in pixels (official `default_image_size`); a multiple of `patch_size`.
    pub image_size: usize,
    /// Whether large patch grids are shrunk.
    pub image_aspect_ratio: ImageAspectRatio,
    /// Pinpoints: image sizes `[height, width]` in pixels; multiples of `image_size`.
    pub image_grid_pinpoints: Vec<[usize; 2]>,
    /// Whether a learned newline token ends every patch row and every video.
    pub image_newline: bool,
}

impl VisionConfig {
    /// Number of patches along one side of a tile.
    pub fn patches_per_side(&self) -> usize {
        self.image_size / self.patch_size.max(1)
    }

    /// Number of patches of one tile, and so of one video frame.
    pub fn patches_per_tile(&self) -> usize {
        self.patches_per_side().pow(2)
    }

    /// Pinpoints of the released models: 1xN and Nx1 up to six tiles, 2x2, 2x3 and 3x2.
    pub fn default_pinpoints(image_size: usize) -> Vec<[usize; 2]> {
        let strips = (1..=6).map(|n| [1, n]);
        let rest = [[2, 1], [2, 2], [2, 3], [3, 1], [3, 2], [4, 1], [5, 1], [6, 1]];
        strips.chain(rest).map(|[h, w]| [h * image_size, w * image_size]).collect()
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first invalid field.
    pub fn validate(&self) -> Result<()> {
        at_least_one("vision.patch_size", self.patch_size)?;
        at_least_one("vision.image_size", self.image_size)?;
        at_most("vision.image_size", self.image_size, 1 << 14)?;
        multiple_of("vision.image_size", self.image_size, "patch_size", self.patch_size)?;
        if let ImageAspectRatio::AnyResMax(n) = self.image_aspect_ratio {
            at_least_one("vision.image_aspect_ratio", n)?;
            at_most("vision.image_aspect_ratio", n, 1 << 16)?;
        }
        if self.image_grid_pinpoints.is_empty() {
            return Err(Error::config(
                "vision.image_grid_pinpoints",
                "is empty, expected at least one [height, width]",
            ));
        }
        at_most("vision.image_grid_pinpoints (count)", self.image_grid_pinpoints.len(), 1 << 12)?;
        for (i, pinpoint) in self.image_grid_pinpoints.iter().enumerate() {
            let field = format!("vision.image_grid_pinpoints[{i}]");
            for &side in pinpoint {
                at_least_one(&field, side)?;
                at_most(&field, side, 1 << 16)?;
                multiple_of(&field, side, "image_size", self.image_size)?;
            }
            at_most(&format!("{field} (pixels)"), pinpoint[0] * pinpoint[1], MAX_PINPOINT_PIXELS)?;
        }
        Ok(())
    }
}

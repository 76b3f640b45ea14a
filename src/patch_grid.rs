//! Patch layout of an image: its tiles, the patch grid after unpadding and shrinking, and the number of tokens.
//!
//! [`PatchGrid`] is the single source of both counts: the processor counts placeholder tokens by [`PatchGrid::tokens`],
//! and the embeddings lay out patches by the same value. The rules are LLaVA-NeXT's `anyres` with LLaVA-OneVision's
//! size limit.

use crate::config::{ImageAspectRatio, VisionConfig};
use crate::{Error, Result};

/// Size in pixels, patches or tiles; height first, as everywhere in this crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Size {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Size {
    /// A size from its height and width.
    pub fn new(height: usize, width: usize) -> Self {
        Self { height, width }
    }

    /// Height times width.
    pub fn area(self) -> usize {
        self.height.saturating_mul(self.width)
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{} (height x width)", self.height, self.width)
    }
}

/// Pixels of the largest layout of an image. Every image is enlarged to its layout, so this bounds the memory of one:
/// 48 MB as 8-bit RGB and 192 MB as f32, before the patches of the model.
pub(crate) const MAX_LAYOUT_PIXELS: usize = 1 << 24;

/// Checks that every pinpoint is within the size limit.
///
/// # Errors
/// [`Error::Config`] naming the pinpoint.
pub(crate) fn check_pinpoints(config: &VisionConfig) -> Result<()> {
    config.image_grid_pinpoints.iter().enumerate().try_for_each(|(n, &[height, width])| {
        check_layout(&format!("vision.image_grid_pinpoints[{n}]"), Size::new(height, width))
    })
}

fn check_layout(field: &str, layout: Size) -> Result<()> {
    if layout.area() <= MAX_LAYOUT_PIXELS {
        return Ok(());
    }
    let message = format!("is {layout}, {} pixels, expected at most {MAX_LAYOUT_PIXELS}", layout.area());
    Err(Error::config(field, message))
}

/// Patch layout of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PatchGrid {
    /// Number of tiles, vertically and horizontally.
    pub tiles: Size,
    /// First patch row and column that is not pure padding, in the grid of all tiles.
    pub offset: Size,
    /// Patch rows and columns that are not pure padding.
    pub unpadded: Size,
    /// Patch rows and columns after shrinking; equal to `unpadded` if the grid is not shrunk.
    pub rows_cols: Size,
    /// Whether a newline token ends every row.
    pub newline: bool,
}

impl PatchGrid {
    /// The grid of an image of `image` pixels.
    ///
    /// # Errors
    /// [`Error::Image`] if a side is 0, and [`Error::Config`] if there is no pinpoint, or the chosen pinpoint is too
    /// large.
    pub fn new(config: &VisionConfig, image: Size) -> Result<Self> {
        if image.area() == 0 {
            return Err(Error::image(image.to_string(), "has no pixels"));
        }
        if config.image_size == 0 || config.patch_size == 0 {
            return Err(Error::config("vision.image_size", "or vision.patch_size is 0, expected at least 1"));
        }
        let pinpoints = config.image_grid_pinpoints.iter().map(|&[h, w]| Size::new(h, w));
        let canvas = best_resolution(image, pinpoints)
            .ok_or_else(|| Error::config("vision.image_grid_pinpoints", "is empty"))?;
        check_layout("vision.image_grid_pinpoints", canvas)?;
        let tiles = Size::new(canvas.height / config.image_size, canvas.width / config.image_size);
        let side = config.patches_per_side();
        let full = Size::new(tiles.height * side, tiles.width * side);
        let (offset, unpadded) = unpad(full, image);
        let rows_cols = match config.image_aspect_ratio {
            ImageAspectRatio::AnyRes => unpadded,
            ImageAspectRatio::AnyResMax(max_tiles) => shrink(unpadded, max_tiles, side),
        };
        Ok(Self { tiles, offset, unpadded, rows_cols, newline: config.image_newline })
    }

    /// Number of tiles.
    pub fn num_tiles(&self) -> usize {
        self.tiles.area()
    }

    /// Number of tokens that the image takes in a sequence, newlines included.
    pub fn tokens(&self) -> usize {
        self.rows_cols.height.saturating_mul(self.rows_cols.width.saturating_add(usize::from(self.newline)))
    }
}

/// Number of tokens of a video, whose frames are one tile each: all patches, and one newline at the end.
pub fn video_tokens(config: &VisionConfig, frames: usize) -> usize {
    frames.saturating_mul(config.patches_per_tile()).saturating_add(usize::from(config.image_newline))
}

/// The pinpoint that keeps most of the image: the largest area after aspect-preserving down-scaling, and the least
/// waste among equals (LLaVA-NeXT's `select_best_resolution`).
pub fn best_resolution(image: Size, pinpoints: impl IntoIterator<Item = Size>) -> Option<Size> {
    let mut best: Option<(Size, usize, usize)> = None;
    for pinpoint in pinpoints {
        let scale = (pinpoint.width as f64 / image.width as f64).min(pinpoint.height as f64 / image.height as f64);
        let scaled = Size::new((image.height as f64 * scale) as usize, (image.width as f64 * scale) as usize);
        let effective = scaled.area().min(image.area());
        let wasted = pinpoint.area().saturating_sub(effective);
        let better = best.is_none_or(|(_, e, w)| effective > e || (effective == e && wasted < w));
        if better {
            best = Some((pinpoint, effective, wasted));
        }
    }
    best.map(|(size, ..)| size)
}

/// First row and column, and size, of the part of a grid that an `image` of that aspect ratio fills when centred.
fn unpad(full: Size, image: Size) -> (Size, Size) {
    let (height, width) = (full.height as f64, full.width as f64);
    let (image_height, image_width) = (image.height as f64, image.width as f64);
    // Rounded to 7 digits before truncation, so that 11.999999999 is 12.
    let filled = |length: f64, scale: f64| ((length * scale * 1e7).round() / 1e7) as usize;
    // An image thinner than a patch still gets the patches in the middle.
    let border = |full: usize, filled: usize| full.saturating_sub(filled.max(1)) / 2;
    let mut offset = Size::new(0, 0);
    if image_width / image_height > width / height {
        offset.height = border(full.height, filled(image_height, width / image_width));
    } else {
        offset.width = border(full.width, filled(image_width, height / image_height));
    }
    (offset, Size::new(full.height - 2 * offset.height, full.width - 2 * offset.width))
}

/// The size that a grid above 1.1 times (in linear size) `max_tiles` tiles is shrunk to.
fn shrink(grid: Size, max_tiles: usize, side: usize) -> Size {
    let most = max_tiles.saturating_mul(side).saturating_mul(side).max(1) as f64;
    let ratio = (grid.area() as f64 / most).sqrt();
    if ratio <= 1.1 {
        return grid;
    }
    let shrunk = |length: usize| ((length as f64 / ratio).floor() as usize).max(1);
    Size::new(shrunk(grid.height), shrunk(grid.width))
}

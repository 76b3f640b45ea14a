//! What pictures and video frames have in common: resizing, rescaling, normalising.

use image::RgbImage;

use super::resize::resize;
use crate::Result;
use crate::config::{PreprocessorConfig, Resample};

/// Turns 8-bit RGB into the planes of normalised numbers that a model sees.
#[derive(Debug, Clone)]
pub(super) struct PixelPipeline {
    resample: Resample,
    /// For each colour the normalised value of each level: rescaling and normalising are one look-up.
    table: Box<[[f32; 256]; 3]>,
}

impl PixelPipeline {
    pub(super) fn new(config: &PreprocessorConfig) -> Self {
        let mut table = Box::new([[0.0; 256]; 3]);
        for (c, levels) in table.iter_mut().enumerate() {
            for (level, value) in levels.iter_mut().enumerate() {
                let scale = if config.do_rescale { config.rescale_factor } else { 1.0 };
                let (mean, std) =
                    if config.do_normalize { (config.image_mean[c], config.image_std[c]) } else { (0.0, 1.0) };
                *value = ((level as f64 * scale - mean) / std) as f32;
            }
        }
        Self { resample: config.resample, table }
    }

    pub(super) fn resize(&self, image: &RgbImage, width: usize, height: usize) -> Result<RgbImage> {
        resize(image, width as u32, height as u32, self.resample)
    }

    /// Writes the part of `picture` that lies on a tile into the tile's planes, `(3, side, side)`, and black
    /// elsewhere. The picture's upper left corner stands at row `top` and column `left` of the tile, maybe outside.
    pub(super) fn write(&self, picture: &RgbImage, (top, left): (i64, i64), side: usize, tile: &mut [f32]) {
        let overlap = |start: i64, length: u32| {
            let end = (start + i64::from(length)).clamp(0, side as i64);
            start.clamp(0, end) as usize..end as usize
        };
        let (rows, columns) = (overlap(top, picture.height()), overlap(left, picture.width()));
        let covered = rows.len() == side && columns.len() == side;
        let source_row = 3 * picture.width() as usize;
        for (plane, (levels, channel)) in tile.chunks_exact_mut(side * side).zip(self.table.iter().zip(0..)) {
            if !covered {
                plane.fill(levels[0]);
            }
            for y in rows.clone() {
                let from = (y as i64 - top) as usize * source_row + 3 * (columns.start as i64 - left) as usize;
                let source = &picture.as_raw()[from..from + 3 * columns.len()];
                let target = &mut plane[y * side..][columns.clone()];
                for (value, pixel) in target.iter_mut().zip(source.chunks_exact(3)) {
                    *value = levels[usize::from(pixel[channel])];
                }
            }
        }
    }
}

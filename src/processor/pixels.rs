//! Resizing, rescaling and normalisation, shared by images and video frames.

use std::ops::Range;

use image::RgbImage;

use super::resize::resize;
use crate::Result;
use crate::config::{PreprocessorConfig, Resample};

/// Conversion of 8-bit RGB to planes of normalised values, the model's input.
#[derive(Debug, Clone)]
pub(super) struct PixelPipeline {
    resample: Resample,
    /// Lookup table of normalised values, per colour and level: rescaling and normalisation in one step.
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

    /// Writes the part of `image` that overlaps a tile into the tile's planes, `(3, side, side)`, and black elsewhere.
    /// The image's upper left corner is at row `top` and column `left` of the tile, possibly outside.
    pub(super) fn write(&self, image: &RgbImage, (top, left): (i64, i64), side: usize, tile: &mut [f32]) {
        let rows = Overlap::new(top, image.height(), side);
        let columns = Overlap::new(left, image.width(), side);
        let covered = rows.target.len() == side && columns.target.len() == side;
        let row_len = 3 * image.width() as usize;
        let source = image.as_raw().chunks_exact(row_len.max(1)).skip(rows.source).zip(rows.target);
        for (plane, (levels, channel)) in tile.chunks_exact_mut(side * side).zip(self.table.iter().zip(0..)) {
            if !covered {
                plane.fill(levels[0]);
            }
            for (row, y) in source.clone() {
                let target = &mut plane[y * side..][columns.target.clone()];
                for (value, pixel) in target.iter_mut().zip(row.chunks_exact(3).skip(columns.source)) {
                    *value = levels[usize::from(pixel[channel])];
                }
            }
        }
    }
}

/// Overlap of an image and a tile along one axis; empty if there is none.
struct Overlap {
    /// First pixel of the overlap in the image.
    source: usize,
    /// Pixels of the overlap in the tile.
    target: Range<usize>,
}

impl Overlap {
    /// Computes the overlap; `start` is the image's first pixel in the tile's coordinates, `length` the image's length.
    fn new(start: i64, length: u32, side: usize) -> Self {
        let end = (start + i64::from(length)).clamp(0, side as i64);
        let begin = start.clamp(0, end);
        Self { source: (begin - start).max(0) as usize, target: begin as usize..end as usize }
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;
    use crate::config::HaploVlConfig;

    /// Shifts from far outside on one side to far outside on the other: the tile holds the shifted image.
    #[test]
    fn images_beside_and_across_a_tile_leave_black() {
        let mut config = PreprocessorConfig::image(&HaploVlConfig::tiny().vision);
        (config.do_normalize, config.do_rescale) = (false, false);
        let pipeline = PixelPipeline::new(&config);
        let image = RgbImage::from_fn(3, 2, |x, y| Rgb([1 + x as u8, 10 + y as u8, 7]));
        let side = 4;
        for (top, left) in (-9..10).flat_map(|top| (-9..10).map(move |left| (top, left))) {
            let mut tile = vec![-1.0; 3 * side * side];
            pipeline.write(&image, (top, left), side, &mut tile);
            for (i, &value) in tile.iter().enumerate() {
                let (c, y, x) = (i / 16, (i / 4 % 4) as i64 - top, (i % 4) as i64 - left);
                let inside = (0..2).contains(&y) && (0..3).contains(&x);
                let expected = if inside { image.get_pixel(x as u32, y as u32)[c].into() } else { 0.0 };
                assert_eq!(value, expected, "corner {top},{left}, value {i}");
            }
        }
    }
}

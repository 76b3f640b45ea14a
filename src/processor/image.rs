//! Image preprocessing: layout in the best-fitting pinpoint, tiling, normalisation.

use candle_core::{Device, Tensor};
use image::{RgbImage, imageops};
use rayon::prelude::*;

use super::pixels::PixelPipeline;
use crate::Result;
use crate::batch::Visual;
use crate::config::{PreprocessorConfig, VisionConfig};
use crate::patch_grid::{PatchGrid, Size, check_pinpoints};

/// Image preprocessing as in LLaVA-NeXT's `anyres`, without a thumbnail tile.
///
/// An image is resized to fit inside the pinpoint that keeps most of it, centred on black, and cut into square tiles in
/// reading order. If an odd number of pixels is left over, both borders get the smaller half: the last row or column of
/// tiles is then one pixel short and is stretched to full size, as in the original.
#[derive(Debug, Clone)]
pub struct ImageProcessor {
    vision: VisionConfig,
    pixels: PixelPipeline,
}

impl ImageProcessor {
    /// A processor for a model with the tiles of `vision`.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if the configuration is invalid or does not fit the tiles.
    pub fn new(config: &PreprocessorConfig, vision: &VisionConfig) -> Result<Self> {
        vision.validate()?;
        config.validate(vision)?;
        config.validate_pinpoints(vision)?;
        check_pinpoints(vision)?;
        Ok(Self { vision: vision.clone(), pixels: PixelPipeline::new(config) })
    }

    /// Preprocesses one image to [`Visual::Image`], `(tiles, 3, image_size, image_size)`, f32, on the CPU.
    ///
    /// # Errors
    /// [`Error::Image`](crate::Error::Image) if the image has no pixels.
    pub fn process(&self, image: &RgbImage) -> Result<Visual> {
        let size = Size::new(image.height() as usize, image.width() as usize);
        let side = self.vision.image_size;
        let tiles = PatchGrid::new(&self.vision, size)?.tiles;
        let canvas = Canvas::new(self, image, Size::new(tiles.height * side, tiles.width * side))?;
        let mut values = vec![0f32; tiles.area() * 3 * side * side];
        values.par_chunks_exact_mut(3 * side * side).enumerate().try_for_each(|(n, tile)| {
            let origin = Size::new(n / tiles.width * side, n % tiles.width * side);
            canvas.write_tile(&self.pixels, origin, side, tile)
        })?;
        let pixel_values = Tensor::from_vec(values, (tiles.area(), 3, side, side), &Device::Cpu)?;
        Ok(Visual::Image { pixel_values, size })
    }

    /// Preprocesses several images, in parallel.
    ///
    /// # Errors
    /// The error of [`Self::process`] for the first image that fails.
    pub fn process_all(&self, images: &[&RgbImage]) -> Result<Vec<Visual>> {
        images.par_iter().map(|image| self.process(image)).collect()
    }
}

/// Placement of a resized image on its canvas, with equal borders left and right, or above and below.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placement {
    /// Size after resizing.
    pub(super) fitted: Size,
    /// Height of the borders above and below.
    pub(super) top: usize,
    /// Width of the borders left and right.
    pub(super) left: usize,
}

impl Placement {
    pub(super) fn new(image: Size, canvas: Size) -> Self {
        let fitted = fit(image, canvas);
        Self { fitted, top: (canvas.height - fitted.height) / 2, left: (canvas.width - fitted.width) / 2 }
    }
}

/// A resized image with black borders.
struct Canvas {
    image: RgbImage,
    placement: Placement,
}

impl Canvas {
    fn new(processor: &ImageProcessor, image: &RgbImage, canvas: Size) -> Result<Self> {
        let placement = Placement::new(Size::new(image.height() as usize, image.width() as usize), canvas);
        let Size { width, height } = placement.fitted;
        Ok(Self { image: processor.pixels.resize(image, width, height)?, placement })
    }

    /// Size with borders: one pixel less than the pinpoint if the border cannot be halved.
    fn size(&self) -> Size {
        let Placement { fitted, top, left } = self.placement;
        Size::new(fitted.height + 2 * top, fitted.width + 2 * left)
    }

    fn write_tile(&self, pixels: &PixelPipeline, origin: Size, side: usize, tile: &mut [f32]) -> Result<()> {
        let Placement { top, left, .. } = self.placement;
        let corner = (top as i64 - origin.height as i64, left as i64 - origin.width as i64);
        let height = self.size().height.saturating_sub(origin.height).min(side);
        let width = self.size().width.saturating_sub(origin.width).min(side);
        if height == side && width == side {
            pixels.write(&self.image, corner, side, tile);
            return Ok(());
        }
        if height == 0 || width == 0 {
            // One-pixel tiles may lie in a border that could not be halved.
            pixels.write(&RgbImage::default(), (0, 0), side, tile);
            return Ok(());
        }
        let mut short = RgbImage::new(width as u32, height as u32);
        imageops::overlay(&mut short, &self.image, corner.1, corner.0);
        pixels.write(&pixels.resize(&short, side, side)?, (0, 0), side, tile);
        Ok(())
    }
}

/// The largest size with the image's aspect ratio inside `canvas`; the short side is rounded up.
fn fit(image: Size, canvas: Size) -> Size {
    let scale_height = canvas.height as f64 / image.height as f64;
    let scale_width = canvas.width as f64 / image.width as f64;
    let scaled = |length: usize, scale: f64, most: usize| ((length as f64 * scale).ceil() as usize).clamp(1, most);
    if scale_width < scale_height {
        Size::new(scaled(image.height, scale_width, canvas.height), canvas.width)
    } else {
        Size::new(canvas.height, scaled(image.width, scale_height, canvas.width))
    }
}

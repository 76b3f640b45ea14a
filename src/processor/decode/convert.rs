//! Conversion of decoded pixels of any kind to 8-bit RGB.

use image::{DynamicImage, ImageBuffer, RgbImage, RgbaImage};

/// How an alpha channel relates to the colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alpha {
    /// Colours are those of an opaque pixel.
    Straight,
    /// Colours are multiplied by alpha, as TIFF's associated alpha.
    Premultiplied,
}

/// Converts an image to RGB, blended with white where it is transparent.
pub(super) fn to_rgb(image: DynamicImage, alpha: Alpha) -> RgbImage {
    if image.color().has_alpha() { on_white(image.into_rgba8(), alpha) } else { image.into_rgb8() }
}

/// Blends an image with white, in place.
pub(super) fn on_white(image: RgbaImage, kind: Alpha) -> RgbImage {
    let (width, height) = image.dimensions();
    let mut levels = image.into_raw();
    let pixels = levels.len() / 4;
    for n in 0..pixels {
        let [r, g, b, alpha] = [0, 1, 2, 3].map(|c| u32::from(levels[4 * n + c]));
        let blend = |level: u32| match kind {
            Alpha::Straight => ((level * alpha + 255 * (255 - alpha) + 127) / 255) as u8,
            Alpha::Premultiplied => (level + 255 - alpha).min(255) as u8,
        };
        levels[3 * n..3 * n + 3].copy_from_slice(&[blend(r), blend(g), blend(b)]);
    }
    levels.truncate(3 * pixels);
    ImageBuffer::from_raw(width, height, levels).unwrap_or_default()
}

//! Conversion of decoded pixels of any kind to 8-bit RGB.

use image::{DynamicImage, ImageBuffer, RgbImage, RgbaImage};

/// Converts an image to RGB, blended with white where it is transparent.
pub(super) fn to_rgb(image: DynamicImage) -> RgbImage {
    if image.color().has_alpha() { on_white(image.into_rgba8()) } else { image.into_rgb8() }
}

/// Blends an image with white, in place.
pub(super) fn on_white(image: RgbaImage) -> RgbImage {
    let (width, height) = image.dimensions();
    let mut levels = image.into_raw();
    let pixels = levels.len() / 4;
    for n in 0..pixels {
        let [r, g, b, alpha] = [0, 1, 2, 3].map(|c| u32::from(levels[4 * n + c]));
        let blend = |level: u32| ((level * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
        levels[3 * n..3 * n + 3].copy_from_slice(&[blend(r), blend(g), blend(b)]);
    }
    levels.truncate(3 * pixels);
    ImageBuffer::from_raw(width, height, levels).unwrap_or_default()
}

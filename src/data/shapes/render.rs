//! Rendering of scenes to images.

use image::RgbImage;
use rand::RngExt;

use super::geometry::REACH;
use super::scene::{Object, Scene};
use crate::data::random_stream;

impl Scene {
    /// Renders the scene to an anti-aliased image of `side` by `side` pixels, bit-identical on every machine.
    pub fn render(&self, side: u32) -> RgbImage {
        let mut rng = random_stream(self.seed, 1);
        let mut pixels = self.background.paint(side, &mut rng);
        for object in &self.objects {
            object.paint(&mut pixels, side);
        }
        let grain = self.background.grain;
        let grainy = |pixel: [f32; 3]| {
            let shift = grain * rng.random_range(-1.0f32..1.0);
            // The cast saturates.
            pixel.map(|channel| (channel + shift).round() as u8)
        };
        let bytes = pixels.into_iter().flat_map(grainy).collect();
        // `from_raw` only fails for a buffer of fewer than three bytes per pixel, which this one is not.
        RgbImage::from_raw(side, side, bytes).unwrap_or_default()
    }
}

impl Object {
    /// Computes how much of pixel (`x`, `y`) the object covers, from 0 to 1, in an image of `side` by `side` pixels.
    ///
    /// Coverage follows from the signed distance between the pixel's centre and the outline, in pixels.
    pub fn coverage(&self, x: u32, y: u32, side: u32) -> f32 {
        let scale = side as f32;
        let centre = [(x as f32 + 0.5) / scale, (y as f32 + 0.5) / scale];
        let distance = self.shape.signed_distance(self.to_local(centre)) * self.radius * scale;
        (0.5 - distance).clamp(0.0, 1.0)
    }

    fn paint(&self, pixels: &mut [[f32; 3]], side: u32) {
        // Casts saturate, which clips the object to the image.
        let range = |centre: f32| {
            let at = |offset: f32| ((centre + offset) * side as f32) as u32;
            at(-REACH * self.radius)..(at(REACH * self.radius) + 1).min(side)
        };
        for y in range(self.y) {
            for x in range(self.x) {
                let coverage = self.coverage(x, y, side);
                let at = y as usize * side as usize + x as usize;
                let Some(pixel) = pixels.get_mut(at) else { continue };
                for (channel, colour) in pixel.iter_mut().zip(self.rgb) {
                    *channel += coverage * (f32::from(colour) - *channel);
                }
            }
        }
    }
}

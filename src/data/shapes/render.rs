//! Painting a scene.

use image::RgbImage;
use rand::RngExt;

use super::geometry::REACH;
use super::scene::{Object, Scene};
use crate::data::random_stream;

impl Scene {
    /// The image, `side` by `side` pixels, anti-aliased; the same bits on every machine.
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
        // The buffer is three bytes a pixel by construction, the one thing that `from_raw` asks for.
        RgbImage::from_raw(side, side, bytes).unwrap_or_default()
    }
}

impl Object {
    /// How much of a pixel of an image of `side` pixels this object covers, 0 to 1.
    ///
    /// Taken from the distance of the pixel's centre to the outline, in pixels.
    pub fn coverage(&self, x: u32, y: u32, side: u32) -> f32 {
        let scale = side as f32;
        let centre = [(x as f32 + 0.5) / scale, (y as f32 + 0.5) / scale];
        let distance = self.shape.signed_distance(self.to_local(centre)) * self.radius * scale;
        (0.5 - distance).clamp(0.0, 1.0)
    }

    fn paint(&self, pixels: &mut [[f32; 3]], side: u32) {
        // Casts saturate, so what lies outside the image is cut off.
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

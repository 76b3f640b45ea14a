//! Background of a scene.

use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

/// Background: two nearly grey shades in a pattern, with grain. Both are pale or dark, so that every colour stands out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Background {
    /// Pattern of the two shades.
    pub pattern: Pattern,
    /// The two shades, 8-bit RGB.
    pub shades: [[u8; 3]; 2],
    /// Amplitude of the grain: each pixel is shifted by up to this many 8-bit levels, up or down.
    pub grain: f32,
}

/// Pattern of the two shades of a background.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pattern {
    /// First shade only.
    Plain,
    /// Linear gradient between the shades along a unit vector.
    Gradient([f32; 2]),
    /// Stripes perpendicular to a vector. The vector's length is the number of stripe pairs across the image.
    Stripes([f32; 2]),
    /// Value noise with this many grid cells along a side.
    Noise(u8),
}

impl Background {
    /// Draws a random background.
    pub(super) fn draw(rng: &mut impl Rng) -> Self {
        let (lightness, step) = *[(236, -26), (205, 30), (22, 26), (58, -30)].choose(rng).unwrap_or(&(236, -26));
        let mut shade = |level: i16| [0; 3].map(|_: u8| (level + rng.random_range(-9..=9)).clamp(0, 255) as u8);
        let shades = [shade(lightness), shade(lightness + step)];
        let turn: f32 = rng.random_range(-1.0..1.0);
        let square = turn * turn;
        let direction = [(1.0 - square) / (1.0 + square), 2.0 * turn / (1.0 + square)];
        let pairs = rng.random_range(3.0..6.0);
        let pattern = match rng.random_range(0..4) {
            0 => Pattern::Plain,
            1 => Pattern::Gradient(direction),
            2 => Pattern::Stripes(direction.map(|d| d * pairs)),
            _ => Pattern::Noise(rng.random_range(6..=16)),
        };
        Self { pattern, shades, grain: rng.random_range(0.0..9.0) }
    }

    /// Paints the background: `side * side` RGB pixels in `0..=255`, row by row.
    pub(super) fn paint(&self, side: u32, rng: &mut impl Rng) -> Vec<[f32; 3]> {
        let [a, b] = self.shades.map(|shade| shade.map(f32::from));
        let noise = ValueNoise::draw(self.pattern, rng);
        let pixel = |at: [f32; 2]| {
            let t = match self.pattern {
                Pattern::Plain => 0.0,
                Pattern::Gradient([dx, dy]) => (0.5 + (at[0] - 0.5) * dx + (at[1] - 0.5) * dy).clamp(0.0, 1.0),
                Pattern::Stripes(direction) => stripe(at, direction, side),
                Pattern::Noise(_) => noise.at(at),
            };
            [0, 1, 2].map(|c| a[c] + t * (b[c] - a[c]))
        };
        let centre = |i: u32| (i as f32 + 0.5) / side as f32;
        (0..side).flat_map(|y| (0..side).map(move |x| [centre(x), centre(y)])).map(pixel).collect()
    }
}

/// Evaluates the stripe pattern: alternately 0 and 1 along `direction`, with anti-aliased edges one pixel wide.
fn stripe([x, y]: [f32; 2], [dx, dy]: [f32; 2], side: u32) -> f32 {
    let phase = x * dx + y * dy;
    let to_edge = 0.25 - (phase - phase.floor() - 0.5).abs();
    let period = side as f32 / (dx * dx + dy * dy).sqrt();
    (0.5 + to_edge * period).clamp(0.0, 1.0)
}

/// Value noise: random values on a coarse grid, interpolated bilinearly.
struct ValueNoise {
    cells: usize,
    values: Vec<f32>,
}

impl ValueNoise {
    fn draw(pattern: Pattern, rng: &mut impl Rng) -> Self {
        let cells = if let Pattern::Noise(cells) = pattern { usize::from(cells.max(1)) } else { 1 };
        let values = (0..(cells + 1) * (cells + 1)).map(|_| rng.random()).collect();
        Self { cells, values }
    }

    fn at(&self, place: [f32; 2]) -> f32 {
        let scaled = place.map(|p| p * self.cells as f32);
        let [column, row] = scaled.map(|s| (s as usize).min(self.cells - 1));
        let [fx, fy] = [scaled[0] - column as f32, scaled[1] - row as f32];
        let value = |dx: usize, dy: usize| self.values[(row + dy) * (self.cells + 1) + column + dx];
        let blend = |dy| value(0, dy) + fx * (value(1, dy) - value(0, dy));
        blend(0) + fy * (blend(1) - blend(0))
    }
}

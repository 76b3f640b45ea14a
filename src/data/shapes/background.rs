//! What is behind the objects.

use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

/// Pale or dark, nearly grey, so that every named colour stands out; two shades in a pattern, with some grain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Background {
    /// How the two shades are laid out.
    pub pattern: Pattern,
    /// The two shades, 8-bit red, green and blue.
    pub shades: [[u8; 3]; 2],
    /// Strength of the grain over the whole image, in 8-bit steps up and down.
    pub grain: f32,
}

/// How the two shades of a background are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pattern {
    /// The first shade alone.
    Plain,
    /// From one shade to the other along a direction; a vector of length about one.
    Gradient([f32; 2]),
    /// Stripes across a direction, whose length is the number of stripe pairs over the image.
    Stripes([f32; 2]),
    /// Random blotches, so many along a side.
    Noise(u8),
}

impl Background {
    /// Draws one.
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

    /// The image without objects, `side * side` pixels of red, green and blue in `0..=255`, row by row.
    pub(super) fn paint(&self, side: u32, rng: &mut impl Rng) -> Vec<[f32; 3]> {
        let [a, b] = self.shades.map(|shade| shade.map(f32::from));
        let blotches = Blotches::draw(self.pattern, rng);
        let pixel = |at: [f32; 2]| {
            let t = match self.pattern {
                Pattern::Plain => 0.0,
                Pattern::Gradient([dx, dy]) => (0.5 + (at[0] - 0.5) * dx + (at[1] - 0.5) * dy).clamp(0.0, 1.0),
                Pattern::Stripes(direction) => stripe(at, direction, side),
                Pattern::Noise(_) => blotches.at(at),
            };
            [0, 1, 2].map(|c| a[c] + t * (b[c] - a[c]))
        };
        let centre = |i: u32| (i as f32 + 0.5) / side as f32;
        (0..side).flat_map(|y| (0..side).map(move |x| [centre(x), centre(y)])).map(pixel).collect()
    }
}

/// 0 or 1 in turn across `direction`, with edges one pixel wide.
fn stripe([x, y]: [f32; 2], [dx, dy]: [f32; 2], side: u32) -> f32 {
    let phase = x * dx + y * dy;
    let to_edge = 0.25 - (phase - phase.floor() - 0.5).abs();
    let period = side as f32 / (dx * dx + dy * dy).sqrt();
    (0.5 + to_edge * period).clamp(0.0, 1.0)
}

/// Random values on a coarse grid, blended in between.
struct Blotches {
    cells: usize,
    values: Vec<f32>,
}

impl Blotches {
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

//! Scenes: the objects and background of an image, drawn from a seed.

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use super::attributes::{Colour, Description, Shape, Size};
use super::background::Background;
use crate::data::random_stream;
use crate::{Error, Result};

/// Maximum number of objects in a scene, whatever its configuration.
pub const MAX_OBJECTS: usize = 12;
/// Maximum number of objects in a scene of the default configuration.
pub(super) const DEFAULT_MAX_OBJECTS: usize = 6;
/// Range of [`ShapesConfig::size_percent`]: smaller objects lose their outline, and larger ones do not fit.
const SIZE_PERCENTS: std::ops::RangeInclusive<u32> = 25..=100;

/// Minimum gap between an object and the image border, in half widths of the object.
const BORDER: f32 = 0.08;
/// Maximum overlap of two objects of different colours, in half widths of the smaller object.
const OVERLAP: f32 = 0.25;
/// Minimum gap between two objects of one colour, which would otherwise merge, as a fraction of the side.
const GAP: f32 = 0.03;
/// Number of positions tried for an object before its size class is reduced.
const TRIES: usize = 40;

/// Options for drawing scenes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShapesConfig {
    /// Minimum number of objects in a scene.
    pub min_objects: usize,
    /// Maximum number of objects in a scene, at most [`MAX_OBJECTS`]. More than six need the number words `seven` to
    /// `twelve`, which [`tokenizer`](super::tokenizer) lacks: add them to the vocabulary.
    pub max_objects: usize,
    /// Half widths of the objects, in percent of [`Size::radius`]: 25 to 100.
    #[serde(skip_serializing_if = "is_whole")]
    pub size_percent: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_whole(percent: &u32) -> bool {
    *percent == 100
}

impl Default for ShapesConfig {
    fn default() -> Self {
        Self { min_objects: 1, max_objects: DEFAULT_MAX_OBJECTS, size_percent: 100 }
    }
}

impl ShapesConfig {
    /// Checks that `1 <= min_objects <= max_objects <= MAX_OBJECTS`, and the range of `size_percent`.
    ///
    /// # Errors
    /// [`Error::Config`], which names the field.
    pub fn validate(&self) -> Result<()> {
        if !(1..=MAX_OBJECTS).contains(&self.max_objects) {
            let message = format!("is {}, expected 1 to {MAX_OBJECTS}", self.max_objects);
            return Err(Error::config("shapes.max_objects", message));
        }
        if !(1..=self.max_objects).contains(&self.min_objects) {
            let message = format!("is {}, expected 1 to `max_objects` = {}", self.min_objects, self.max_objects);
            return Err(Error::config("shapes.min_objects", message));
        }
        if !SIZE_PERCENTS.contains(&self.size_percent) {
            let [least, most] = [SIZE_PERCENTS.start(), SIZE_PERCENTS.end()];
            let message = format!("is {}, expected {least} to {most}", self.size_percent);
            return Err(Error::config("shapes.size_percent", message));
        }
        Ok(())
    }
}

/// Object of a scene. Lengths and coordinates are fractions of the image side, with the origin at the top left.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Object {
    /// Outline.
    pub shape: Shape,
    /// Named colour.
    pub colour: Colour,
    /// Size class.
    pub size: Size,
    /// Horizontal coordinate of the centre, from the left.
    pub x: f32,
    /// Vertical coordinate of the centre, from the top.
    pub y: f32,
    /// Half width.
    pub radius: f32,
    /// Rotation, as the tangent of half its angle.
    pub tilt: f32,
    /// Exact colour, 8-bit RGB, close to the nominal value of `colour`.
    pub rgb: [u8; 3],
}

/// Scene: one to twelve objects on a background. No two objects share both colour and shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scene {
    /// Seed that the scene was drawn from.
    pub seed: u64,
    /// Objects in painting order, from the largest to the smallest; none is hidden.
    pub objects: Vec<Object>,
    /// Background.
    pub background: Background,
}

impl Scene {
    /// Draws a scene. The same seed and configuration give the same scene on every machine.
    ///
    /// Settings out of range are clamped; call [`ShapesConfig::validate`] to reject them.
    pub fn generate(seed: u64, config: &ShapesConfig) -> Self {
        let mut rng = random_stream(seed, 0);
        let most = config.max_objects.clamp(1, MAX_OBJECTS);
        let count = rng.random_range(config.min_objects.clamp(1, most)..=most);
        let background = Background::draw(&mut rng);
        let mut sizes: Vec<_> = (0..count).filter_map(|_| Size::ALL.choose(&mut rng).copied()).collect();
        sizes.sort_by(|a, b| b.cmp(a));
        let mut objects = Vec::with_capacity(count);
        let scale = config.size_percent.clamp(*SIZE_PERCENTS.start(), *SIZE_PERCENTS.end()) as f32 / 100.0;
        for (size, (shape, colour)) in sizes.into_iter().zip(draw_names(most, &mut rng)) {
            objects.extend(place(&mut rng, shape, colour, size, scale, &objects));
        }
        objects.sort_by(|a, b| b.radius.total_cmp(&a.radius));
        Self { seed, objects, background }
    }

    /// Returns the objects in ascending order of `key`.
    pub(super) fn ordered(&self, key: impl Fn(&Object) -> f32) -> Vec<&Object> {
        let mut objects = Vec::from_iter(&self.objects);
        objects.sort_by(|a, b| key(a).total_cmp(&key(b)));
        objects
    }

    /// Counts the objects that `description` matches.
    pub fn count(&self, description: &Description) -> usize {
        self.objects.iter().filter(|object| description.matches(object)).count()
    }
}

/// Draws at least `most` distinct (shape, colour) pairs, and six if that is less, from a few shapes and colours. Shapes and colours thus
/// repeat within a scene, which makes counting and distinguishing similar objects meaningful.
fn draw_names(most: usize, rng: &mut impl Rng) -> Vec<(Shape, Colour)> {
    let few = |all: usize, rng: &mut _| [2, 3, all].choose(rng).copied().unwrap_or(all);
    let shapes = few(Shape::ALL.len(), rng);
    let colours = few(Colour::ALL.len(), rng).max(most.max(DEFAULT_MAX_OBJECTS).div_ceil(shapes));
    let colours = shuffled(Colour::ALL, rng).into_iter().take(colours);
    let shapes = Vec::from_iter(shuffled(Shape::ALL, rng).into_iter().take(shapes));
    let pairs = Vec::from_iter(colours.flat_map(|colour| shapes.iter().map(move |&shape| (shape, colour))));
    shuffled(&pairs, rng)
}

/// Returns a copy of `items` in random order.
pub(super) fn shuffled<T: Copy>(items: &[T], rng: &mut impl Rng) -> Vec<T> {
    let mut items = items.to_vec();
    items.shuffle(rng);
    items
}

/// Places an object at a free position, reducing its size class if needed. Returns `None` if even a small object does
/// not fit. Half widths are those of the size class times `scale`.
fn place(
    rng: &mut impl Rng,
    shape: Shape,
    colour: Colour,
    size: Size,
    scale: f32,
    others: &[Object],
) -> Option<Object> {
    for _ in 0..TRIES {
        let [least, most] = size.radius().map(|radius| radius * scale);
        let radius = rng.random_range(least..most);
        let border = radius * (1.0 + BORDER);
        let object = Object {
            shape,
            colour,
            size,
            x: rng.random_range(border..1.0 - border),
            y: rng.random_range(border..1.0 - border),
            radius,
            tilt: rng.random_range(-0.1..0.1),
            rgb: colour.rgb().map(|channel| channel.saturating_add_signed(rng.random_range(-10..=10))),
        };
        if others.iter().all(|other| object.is_clear_of(other)) {
            return Some(object);
        }
    }
    place(rng, shape, colour, size.smaller()?, scale, others)
}

impl Object {
    /// Returns whether the gap or overlap of two objects leaves both recognisable.
    fn is_clear_of(&self, other: &Self) -> bool {
        let gap = if self.colour == other.colour { GAP } else { -OVERLAP * self.radius.min(other.radius) };
        let (dx, dy) = (self.x - other.x, self.y - other.y);
        (dx * dx + dy * dy).sqrt() > self.radius + other.radius + gap
    }

    /// Maps a point of the image (fractions of the side) to the frame of the unrotated shape with half width one.
    pub(super) fn to_local(&self, [x, y]: [f32; 2]) -> [f32; 2] {
        let (dx, dy) = ((x - self.x) / self.radius, (y - self.y) / self.radius);
        let square = self.tilt * self.tilt;
        let (cos, sin) = ((1.0 - square) / (1.0 + square), 2.0 * self.tilt / (1.0 + square));
        [cos * dx + sin * dy, cos * dy - sin * dx]
    }
}

//! Scenes: what is in an image, drawn from a seed.

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use super::attributes::{Colour, Description, Shape, Size};
use super::background::Background;
use crate::data::random_stream;
use crate::{Error, Result};

/// No scene holds more objects than this.
pub const MAX_OBJECTS: usize = 6;

/// Free space between an object and the image's border, in half widths of the object beyond its own.
const BORDER: f32 = 0.08;
/// How deep two objects of different colours may overlap, in half widths of the smaller one.
const OVERLAP: f32 = 0.25;
/// Space between two objects of one colour, which would melt into each other, as a fraction of the side.
const GAP: f32 = 0.03;
/// How often a place for an object is tried before it is made smaller.
const TRIES: usize = 40;

/// How scenes are drawn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShapesConfig {
    /// Fewest objects in a scene.
    pub min_objects: usize,
    /// Most objects in a scene, at most [`MAX_OBJECTS`].
    pub max_objects: usize,
}

impl Default for ShapesConfig {
    fn default() -> Self {
        Self { min_objects: 1, max_objects: MAX_OBJECTS }
    }
}

impl ShapesConfig {
    /// Checks the numbers against each other.
    ///
    /// # Errors
    /// [`Error::Config`], naming the field.
    pub fn validate(&self) -> Result<()> {
        if !(1..=MAX_OBJECTS).contains(&self.max_objects) {
            let message = format!("is {}, expected 1 to {MAX_OBJECTS}", self.max_objects);
            return Err(Error::config("shapes.max_objects", message));
        }
        if !(1..=self.max_objects).contains(&self.min_objects) {
            let message = format!("is {}, expected 1 to `max_objects` = {}", self.min_objects, self.max_objects);
            return Err(Error::config("shapes.min_objects", message));
        }
        Ok(())
    }
}

/// One object; lengths and places are fractions of the image's side, from its top left corner.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Object {
    /// Outline.
    pub shape: Shape,
    /// Named colour.
    pub colour: Colour,
    /// Class of size.
    pub size: Size,
    /// Centre, from the left.
    pub x: f32,
    /// Centre, from the top.
    pub y: f32,
    /// Half width.
    pub radius: f32,
    /// Rotation, as the tangent of half its angle.
    pub tilt: f32,
    /// The very colour, near the named one.
    pub rgb: [u8; 3],
}

/// What is in one image: one to six objects, no two alike in colour *and* shape, before a background.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scene {
    /// The seed that it was drawn from.
    pub seed: u64,
    /// Objects in the order of painting: from the largest to the smallest, none hidden.
    pub objects: Vec<Object>,
    /// What is behind them.
    pub background: Background,
}

impl Scene {
    /// Draws a scene; the same seed and configuration give the same scene on every machine.
    ///
    /// Numbers of objects outside `1..=MAX_OBJECTS` are brought into it; [`ShapesConfig::validate`] tells of them.
    pub fn generate(seed: u64, config: &ShapesConfig) -> Self {
        let mut rng = random_stream(seed, 0);
        let most = config.max_objects.clamp(1, MAX_OBJECTS);
        let count = rng.random_range(config.min_objects.clamp(1, most)..=most);
        let background = Background::draw(&mut rng);
        let mut sizes: Vec<_> = (0..count).filter_map(|_| Size::ALL.choose(&mut rng).copied()).collect();
        sizes.sort_by(|a, b| b.cmp(a));
        let mut objects = Vec::with_capacity(count);
        for (size, (shape, colour)) in sizes.into_iter().zip(draw_names(&mut rng)) {
            objects.extend(place(&mut rng, shape, colour, size, &objects));
        }
        objects.sort_by(|a, b| b.radius.total_cmp(&a.radius));
        Self { seed, objects, background }
    }

    /// The objects, from the least to the largest of these numbers.
    pub(super) fn ordered(&self, number: impl Fn(&Object) -> f32) -> Vec<&Object> {
        let mut objects = Vec::from_iter(&self.objects);
        objects.sort_by(|a, b| number(a).total_cmp(&number(b)));
        objects
    }

    /// How many objects `description` is true of.
    pub fn count(&self, description: &Description) -> usize {
        self.objects.iter().filter(|object| description.matches(object)).count()
    }
}

/// At least [`MAX_OBJECTS`] different pairs, of few enough shapes and colours that some come again: that makes
/// counting, and telling apart what is alike, worth asking.
fn draw_names(rng: &mut impl Rng) -> Vec<(Shape, Colour)> {
    let few = |all: usize, rng: &mut _| [2, 3, all].choose(rng).copied().unwrap_or(all);
    let shapes = few(Shape::ALL.len(), rng);
    let colours = few(Colour::ALL.len(), rng).max(MAX_OBJECTS.div_ceil(shapes));
    let colours = shuffled(Colour::ALL, rng).into_iter().take(colours);
    let shapes = Vec::from_iter(shuffled(Shape::ALL, rng).into_iter().take(shapes));
    let pairs = Vec::from_iter(colours.flat_map(|colour| shapes.iter().map(move |&shape| (shape, colour))));
    shuffled(&pairs, rng)
}

/// A copy of `items` in random order.
pub(super) fn shuffled<T: Copy>(items: &[T], rng: &mut impl Rng) -> Vec<T> {
    let mut items = items.to_vec();
    items.shuffle(rng);
    items
}

/// Finds a free place, if need be for a smaller object; `None` in an image so full that even a small one has none.
fn place(rng: &mut impl Rng, shape: Shape, colour: Colour, size: Size, others: &[Object]) -> Option<Object> {
    for _ in 0..TRIES {
        let [least, most] = size.radius();
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
    place(rng, shape, colour, size.smaller()?, others)
}

impl Object {
    /// Whether both can be seen as what they are.
    fn is_clear_of(&self, other: &Self) -> bool {
        let gap = if self.colour == other.colour { GAP } else { -OVERLAP * self.radius.min(other.radius) };
        let (dx, dy) = (self.x - other.x, self.y - other.y);
        (dx * dx + dy * dy).sqrt() > self.radius + other.radius + gap
    }

    /// A point of the image, as fractions of its side, in the frame of the unrotated shape of half width one.
    pub(super) fn to_local(&self, [x, y]: [f32; 2]) -> [f32; 2] {
        let (dx, dy) = ((x - self.x) / self.radius, (y - self.y) / self.radius);
        let square = self.tilt * self.tilt;
        let (cos, sin) = ((1.0 - square) / (1.0 + square), 2.0 * self.tilt / (1.0 + square));
        [cos * dx + sin * dy, cos * dy - sin * dx]
    }
}

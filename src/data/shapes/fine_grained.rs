//! Questions that hang on a small object, or on one at the margin of the image.

use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};

use super::attributes::{Description, Naming, Size};
use super::questions::{self, Draft, yes_no};
use super::scene::{Object, Scene, shuffled};
use super::words::{Templates, phrase};

/// A corner reaches this far into the image, as a fraction of its side.
const CORNER: f32 = 0.3;
/// Every other object's centre is further out of the corner by this much.
const CORNER_CLEARANCE: f32 = 0.15;
/// Every other object is further from the edge by this much.
const EDGE_CLEARANCE: f32 = 0.07;

const IN_CORNER: Templates = &["what is in the {where} corner?", "which object is in the {where} corner?"];
const NEAR_EDGE: Templates = &["object nearest to the {where} edge"];
pub(super) const CORNERS: [(&str, [f32; 2]); 4] =
    [("top left", [0.0, 0.0]), ("top right", [1.0, 0.0]), ("bottom left", [0.0, 1.0]), ("bottom right", [1.0, 1.0])];
pub(super) const EDGES: [&str; 4] = ["left", "right", "top", "bottom"];
pub(super) const TEMPLATES: &[Templates] = &[IN_CORNER, NEAR_EDGE, &EDGES];

/// Ways to name a small object without its colour, and without its shape.
const SMALL_COLOURLESS: &[Naming] = &[[true, false, true], [true, false, false]];
const SMALL_SHAPELESS: &[Naming] = &[[true, true, false], [true, false, false]];

/// A question about a small or marginal object: of all forms, in random order, the first that the scene has.
pub(super) fn ask(scene: &Scene, rng: &mut impl Rng) -> Draft {
    shuffled(&[0, 1, 2, 3, 4], rng).into_iter().find_map(|form| match form {
        0 => small_colour(scene, rng),
        1 => small_shape(scene, rng),
        2 => small_existence(scene, rng),
        3 => in_corner(scene, rng),
        _ => near_edge(scene, rng),
    })
}

fn is_small(object: &Object) -> bool {
    object.size == Size::Small
}

fn small_colour(scene: &Scene, rng: &mut impl Rng) -> Draft {
    let (object, description) = scene.referent(SMALL_COLOURLESS, is_small, rng)?;
    Some((phrase(questions::COLOUR, &[("a", &description.to_string())], rng), object.colour.to_string()))
}

fn small_shape(scene: &Scene, rng: &mut impl Rng) -> Draft {
    let (object, description) = scene.referent(SMALL_SHAPELESS, is_small, rng)?;
    Some((phrase(questions::SHAPE, &[("a", &description.to_string())], rng), object.shape.to_string()))
}

/// Whether a small object is there, where some is; if not, one is that differs from it in a single attribute.
fn small_existence(scene: &Scene, rng: &mut impl Rng) -> Draft {
    scene.objects.iter().find(|object| is_small(object))?;
    let there: bool = rng.random();
    let small = Description::all([true; 3]).filter(|wanted| wanted.size == Some(Size::Small));
    let wanted = scene.existing_or_nearly(small, there, rng)?;
    Some((phrase(questions::EXISTENCE, &[("a", &wanted.indefinite())], rng), yes_no(there)))
}

/// What is in a corner of the image.
fn in_corner(scene: &Scene, rng: &mut impl Rng) -> Draft {
    let within =
        |object: &Object, [x, y]: [f32; 2], reach| (object.x - x).abs() < reach && (object.y - y).abs() < reach;
    let (place, corner) = *CORNERS.choose(rng)?;
    let mut near = scene.objects.iter().filter(|object| within(object, corner, CORNER + CORNER_CLEARANCE));
    let object = near.next().filter(|object| within(object, corner, CORNER))?;
    let answer = Description::name(object).to_string();
    near.next().is_none().then(|| (phrase(IN_CORNER, &[("where", place)], rng), answer))
}

impl Object {
    /// From its centre to an edge of the image.
    pub(super) fn distance(&self, edge: &str) -> f32 {
        match edge {
            "left" => self.x,
            "right" => 1.0 - self.x,
            "top" => self.y,
            _ => 1.0 - self.y,
        }
    }
}

/// Colour or shape of the object nearest to an edge of the image.
fn near_edge(scene: &Scene, rng: &mut impl Rng) -> Draft {
    let edge = *EDGES.choose(rng)?;
    let distance = |object: &Object| object.distance(edge) - object.radius;
    let [nearest, next, ..] = scene.ordered(distance)[..] else { return None };
    if distance(next) - distance(nearest) < EDGE_CLEARANCE {
        return None;
    }
    let object = phrase(NEAR_EDGE, &[("where", edge)], rng);
    let slots = [("a", object.as_str())];
    Some(if rng.random() {
        (phrase(questions::COLOUR, &slots, rng), nearest.colour.to_string())
    } else {
        (phrase(questions::SHAPE, &slots, rng), nearest.shape.to_string())
    })
}

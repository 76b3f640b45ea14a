//! Questions that take two steps: find an object, then another one, or all others, by their place beside it.

use rand::Rng;
use rand::seq::IndexedRandom;

use super::attributes::Description;
use super::questions::{COLOUR, Draft, SHAPE, SIZE};
use super::scene::{Object, Scene, shuffled};
use super::spatial::Direction;
use super::words::{NUMBERS, Templates, phrase};

/// Minimum distance by which every other object is farther away than the nearest one, as a fraction of the side.
const NEAREST_CLEARANCE: f32 = 0.06;
/// Minimum distance of every other centre from the line through the centre of the object, as a fraction of the side.
const SIDE_CLEARANCE: f32 = 0.03;

const NEAREST: Templates = &["object nearest to the {b}"];
const ON_SIDE: Templates = &["how many objects are {where} the {b}?"];
pub(super) const TEMPLATES: &[Templates] = &[NEAREST, ON_SIDE];

/// Draws a question about the object nearest to another one, or about the number of objects on one side of one: the
/// first form, in random order, that the scene allows.
pub(super) fn ask<R: Rng>(scene: &Scene, rng: &mut R) -> Draft {
    let forms: [fn(&Scene, &mut R) -> Draft; 2] = [nearest, on_side];
    shuffled(&forms, rng).into_iter().find_map(|form| form(scene, rng))
}

fn name(object: &Object) -> String {
    Description::name(object).to_string()
}

/// Asks for colour, shape or size of the object nearest to another one.
fn nearest(scene: &Scene, rng: &mut impl Rng) -> Draft {
    let pairs = scene.objects.iter().filter_map(|b| Some((nearest_to(scene, b)?, b)));
    let (a, b) = *Vec::from_iter(pairs).choose(rng)?;
    let object = phrase(NEAREST, &[("b", &name(b))], rng);
    let forms = [(COLOUR, a.colour.to_string()), (SHAPE, a.shape.to_string()), (SIZE, a.size.to_string())];
    let (templates, answer) = forms.choose(rng)?;
    Some((phrase(templates, &[("a", &object)], rng), answer.clone()))
}

/// The object whose centre is nearest to that of `b`, if it is by far.
fn nearest_to<'a>(scene: &'a Scene, b: &Object) -> Option<&'a Object> {
    let distance = |a: &Object| ((a.x - b.x).powi(2) + (a.y - b.y).powi(2)).sqrt();
    match scene.ordered(distance)[..] {
        // The first one is `b` itself.
        [_, only] => Some(only),
        [_, nearest, next, ..] => (distance(next) - distance(nearest) >= NEAREST_CLEARANCE).then_some(nearest),
        _ => None,
    }
}

/// Asks for the number of objects on one side of another one; the numbers that the scene allows are equally frequent.
fn on_side(scene: &Scene, rng: &mut impl Rng) -> Draft {
    let asked = scene.objects.iter().flat_map(|b| Direction::ALL.map(|direction| (b, direction)));
    let counted = Vec::from_iter(asked.filter_map(|(b, direction)| Some((b, direction, beside(scene, b, direction)?))));
    let numbers = shuffled(&Vec::from_iter(0..scene.objects.len()), rng);
    let number = numbers.into_iter().find(|number| counted.iter().any(|(_, _, found)| found == number))?;
    let alike = Vec::from_iter(counted.into_iter().filter(|(_, _, found)| *found == number));
    let (b, direction, _) = *alike.choose(rng)?;
    let slots = [("where", direction.preposition()), ("b", &*name(b))];
    Some((phrase(ON_SIDE, &slots, rng), NUMBERS.get(number)?.to_string()))
}

/// Number of other objects in this direction from `b`; `None` if one is neither there nor on the other side.
fn beside(scene: &Scene, b: &Object, direction: Direction) -> Option<usize> {
    let others = scene.objects.iter().filter(|&other| other != b);
    let along = Vec::from_iter(others.map(|other| direction.offset(other, b).0));
    let is_clear = !along.is_empty() && along.iter().all(|along| along.abs() >= SIDE_CLEARANCE);
    is_clear.then(|| along.into_iter().filter(|along| *along > 0.0).count())
}

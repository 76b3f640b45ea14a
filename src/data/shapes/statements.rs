//! Statements that refer to an object by some of its attributes and state the others.
//!
//! A caption lists objects from left to right and names the shape last, so it never requires finding an object by its
//! shape. Statements come in random order and start with any attributes: completing one requires finding the object.

use rand::Rng;
use rand::seq::IndexedRandom;

use super::attributes::{Description, Naming};
use super::caption::enumeration;
use super::location;
use super::scene::{Object, Scene, shuffled};
use super::words::{Templates, phrase};

const PROMPTS: Templates = &["describe all objects.", "describe all objects in the picture.", "what are the objects?"];
const SENTENCE: Templates = &["the {a} is {told}."];
pub(super) const TEMPLATES: &[Templates] = &[PROMPTS, SENTENCE];

/// Every naming of some, but not all, attributes.
const NAMINGS: [Naming; 6] = [
    [false, false, true],
    [false, true, false],
    [true, false, false],
    [false, true, true],
    [true, false, true],
    [true, true, false],
];

/// Draws a request to describe all objects, and one sentence per object in random order.
pub(super) fn ask(scene: &Scene, rng: &mut impl Rng) -> (String, String) {
    let objects = shuffled(&Vec::from_iter(&scene.objects), rng);
    let sentences = Vec::from_iter(objects.into_iter().filter_map(|object| sentence(scene, object, rng)));
    (phrase(PROMPTS, &[], rng), sentences.join(" "))
}

/// Draws a statement, such as `the ring is small, red and nearest to the left edge.` or `the small object is a red
/// ring.`
fn sentence(scene: &Scene, object: &Object, rng: &mut impl Rng) -> Option<String> {
    // At least one naming is unique: no two objects share both colour and shape.
    let is_alone = |naming: &Naming| scene.count(&Description::of(object, *naming)) == 1;
    let naming = *Vec::from_iter(NAMINGS.into_iter().filter(is_alone)).choose(rng)?;
    let (subject, rest) = (Description::of(object, naming), Description::of(object, naming.map(|named| !named)));
    let place = location::place(object, rng);
    let told = if rest.shape.is_some() {
        Vec::from_iter([rest.indefinite()].into_iter().chain(place)).join(" ")
    } else {
        let words = [rest.size.map(|size| size.to_string()), rest.colour.map(|colour| colour.to_string()), place];
        enumeration(&Vec::from_iter(words.into_iter().flatten()))
    };
    Some(phrase(SENTENCE, &[("a", &subject.to_string()), ("told", &told)], rng))
}

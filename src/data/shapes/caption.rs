//! Captions, and reading them back.

use rand::Rng;

use super::attributes::{Colour, Description, Shape, Size};
use super::scene::{Object, Scene};
use super::words::{NUMBERS, Templates, phrase, words};

const PROMPTS: Templates = &[
    "describe the picture.",
    "describe the image.",
    "please describe this picture.",
    "what is in the picture?",
    "what is in this image?",
    "what do you see?",
    "list all objects.",
    "write a caption.",
];
const ONE: Templates = &[
    "{list}.",
    "there is {list}.",
    "the picture shows {list}.",
    "this is a picture of {list}.",
    "the image contains {list}.",
    "you can see {list}.",
];
const SEVERAL: Templates = &[
    "{list}.",
    "there are {count} objects: {list}.",
    "the picture shows {list}.",
    "this is a picture of {list}.",
    "the image contains {count} objects: {list}.",
    "you can see {list}.",
    "from left to right: {list}.",
];
pub(super) const TEMPLATES: &[Templates] = &[PROMPTS, ONE, SEVERAL];

/// A request for a caption, in varied wording.
pub fn caption_prompt(rng: &mut impl Rng) -> String {
    phrase(PROMPTS, &[], rng)
}

impl Scene {
    /// A caption in varied wording, which names every object, from left to right, by size, colour and shape.
    pub fn caption(&self, rng: &mut impl Rng) -> String {
        let objects = self.ordered(|object| object.x);
        let phrases = Vec::from_iter(objects.into_iter().map(|object| Description::full(object).indefinite()));
        let templates = if phrases.len() == 1 { ONE } else { SEVERAL };
        let count = NUMBERS.get(phrases.len()).copied().unwrap_or_default();
        phrase(templates, &[("list", &enumeration(&phrases)), ("count", count)], rng)
    }
}

/// `a`, `a and b`, `a, b and c`.
pub(super) fn enumeration(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// What a caption says of a scene, and how much of it is true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptionScore {
    /// Objects in the scene.
    pub objects: usize,
    /// Objects that the caption names.
    pub named: usize,
    /// Named objects that are there with every attribute that was named; each real object counts once.
    pub right: usize,
    /// Whether the number of objects, if the caption tells it, is right.
    pub count_right: bool,
}

impl CaptionScore {
    /// Whether every named attribute is right, and something was named.
    pub fn all_right(&self) -> bool {
        self.named > 0 && self.right == self.named && self.count_right
    }

    /// Whether, beyond that, no object was left out.
    pub fn complete(&self) -> bool {
        self.all_right() && self.named == self.objects
    }
}

/// Reads a caption back and holds it against the scene; also captions in wordings that [`Scene::caption`] never uses.
///
/// Every run of size and colour words that ends in a shape or `object` names one object. Capitals do not matter.
pub fn check_caption(scene: &Scene, caption: &str) -> CaptionScore {
    let caption = caption.to_lowercase();
    let mut named: Vec<Description> = Vec::new();
    let mut current = Description::default();
    let mut count_right = true;
    let mut number = None;
    for word in words(&caption) {
        current.size = Size::from_word(word).or(current.size);
        current.colour = Colour::from_word(word).or(current.colour);
        current.shape = Shape::from_word(word);
        if current.shape.is_some() || word == "object" {
            named.push(std::mem::take(&mut current));
        } else if word == "objects" {
            count_right &= number.is_none_or(|number| number == scene.objects.len());
        }
        number = NUMBERS.iter().position(|&name| name == word);
    }
    // What was said of nothing is not true of anything.
    let dangling = usize::from(current != Description::default());
    let right = most_matches(&named, &scene.objects);
    CaptionScore { objects: scene.objects.len(), named: named.len() + dangling, right, count_right }
}

/// The most descriptions that can be given an object of their own each (a bipartite matching by augmenting paths).
fn most_matches(named: &[Description], objects: &[Object]) -> usize {
    let mut owners = vec![None; objects.len()];
    named.iter().filter(|wanted| claim(wanted, objects, &mut owners, &mut vec![false; objects.len()])).count()
}

/// Gives `wanted` an object, moving the present owners to others where that helps.
fn claim<'a>(
    wanted: &'a Description,
    objects: &[Object],
    owners: &mut [Option<&'a Description>],
    seen: &mut [bool],
) -> bool {
    for i in 0..objects.len() {
        if seen[i] || !wanted.matches(&objects[i]) {
            continue;
        }
        seen[i] = true;
        if owners[i].is_none_or(|owner| claim(owner, objects, owners, seen)) {
            owners[i] = Some(wanted);
            return true;
        }
    }
    false
}

//! Captions: generation, and scoring against the scene.

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

/// Draws a request for a caption, in varied wording.
pub fn caption_prompt(rng: &mut impl Rng) -> String {
    phrase(PROMPTS, &[], rng)
}

impl Scene {
    /// Draws a caption in varied wording. It names every object by size, colour and shape, from left to right.
    pub fn caption(&self, rng: &mut impl Rng) -> String {
        let objects = self.ordered(|object| object.x);
        let phrases = Vec::from_iter(objects.into_iter().map(|object| Description::full(object).indefinite()));
        let templates = if phrases.len() == 1 { ONE } else { SEVERAL };
        let count = NUMBERS.get(phrases.len()).copied().unwrap_or_default();
        phrase(templates, &[("list", &enumeration(&phrases)), ("count", count)], rng)
    }
}

/// Joins items as `a`, `a and b`, `a, b and c`.
pub(super) fn enumeration(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// Score of a caption against its scene.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptionScore {
    /// Number of objects in the scene.
    pub objects: usize,
    /// Number of objects that the caption names.
    pub named: usize,
    /// Number of named objects that match an object of the scene in every named attribute. An object of the scene
    /// matches at most once.
    pub right: usize,
    /// Whether the number of objects is correct, if the caption states one.
    pub count_right: bool,
}

impl CaptionScore {
    /// Returns whether the caption names at least one object and states nothing wrong.
    pub fn all_right(&self) -> bool {
        self.named > 0 && self.right == self.named && self.count_right
    }

    /// Returns whether the caption states nothing wrong and names every object.
    pub fn complete(&self) -> bool {
        self.all_right() && self.named == self.objects
    }
}

/// Parses a caption and scores it against the scene. Wordings that [`Scene::caption`] never uses are accepted too.
///
/// Every run of size and colour words that ends in a shape word or `object` names one object. Case is ignored.
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
    // Attributes without a noun count as a named object that matches nothing.
    let dangling = usize::from(current != Description::default());
    let right = maximum_matching(&named, &scene.objects);
    CaptionScore { objects: scene.objects.len(), named: named.len() + dangling, right, count_right }
}

/// Computes the size of a maximum bipartite matching between descriptions and objects, by augmenting paths.
fn maximum_matching(named: &[Description], objects: &[Object]) -> usize {
    let mut owners = vec![None; objects.len()];
    named.iter().filter(|wanted| claim(wanted, objects, &mut owners, &mut vec![false; objects.len()])).count()
}

/// Assigns an object to `wanted`, reassigning the current owners where needed. Returns whether that succeeded.
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

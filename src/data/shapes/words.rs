//! Templates and vocabulary of all shapes-world texts.

use std::collections::BTreeSet;

use rand::Rng;
use rand::seq::IndexedRandom;

use super::attributes::{Colour, Shape, Size};
use super::scene::DEFAULT_MAX_OBJECTS;
use super::{caption, fine_grained, location, questions, relation, spatial, statements, text};

/// Number words from zero to [`super::MAX_OBJECTS`].
pub(super) const NUMBERS: [&str; super::MAX_OBJECTS + 1] =
    ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"];

/// Interchangeable templates of one meaning; `{name}` is a slot.
pub(super) type Templates = &'static [&'static str];

/// Draws one of `templates` and fills in its slots.
pub(super) fn phrase(templates: Templates, slots: &[(&str, &str)], rng: &mut impl Rng) -> String {
    let template = templates.choose(rng).copied().unwrap_or_default().to_owned();
    slots.iter().fold(template, |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
}

/// Splits a text into its words and punctuation marks, as a word-level tokenizer does.
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    let is_mark = |c: char| c.is_ascii_punctuation();
    text.split_whitespace().flat_map(move |chunk| chunk.split_inclusive(is_mark)).flat_map(move |piece| {
        let word = piece.trim_end_matches(is_mark);
        [word, &piece[word.len()..]].into_iter().filter(|part| !part.is_empty())
    })
}

/// Whether a word is part of a description of objects: an attribute, `object`, or an article that depends on it.
pub(super) fn is_descriptive(word: &str) -> bool {
    let is_shape = |shape: &Shape| shape.word() == word || shape.plural() == word;
    matches!(word, "a" | "an" | "object" | "objects")
        || Shape::ALL.iter().any(is_shape)
        || Colour::from_word(word).is_some()
        || Size::from_word(word).is_some()
}

/// Lists every word and punctuation mark that occurs in texts of the default configuration, sorted. Scenes of more than
/// six objects also need the number words above six.
pub fn vocabulary() -> Vec<String> {
    let mut all = BTreeSet::from(["a", "an", "and", ",", "object", "objects"].map(String::from));
    let templates_by_module = [
        caption::TEMPLATES,
        questions::TEMPLATES,
        spatial::TEMPLATES,
        fine_grained::TEMPLATES,
        location::TEMPLATES,
        relation::TEMPLATES,
        statements::TEMPLATES,
        text::TEMPLATES,
    ];
    for template in templates_by_module.into_iter().flatten().copied().flatten() {
        // Slots are never adjacent to a letter, so splitting at the braces leaves whole words outside of slots.
        let outside_slots = template.split('{').flat_map(|part| part.rsplit('}').next());
        all.extend(outside_slots.flat_map(words).map(String::from));
    }
    all.extend(NUMBERS.iter().take(DEFAULT_MAX_OBJECTS + 1).copied().map(String::from));
    all.extend(questions::ANSWERS.iter().copied().map(String::from));
    all.extend(Shape::ALL.iter().flat_map(|shape| [shape.to_string(), shape.plural()]));
    all.extend(Colour::ALL.iter().map(ToString::to_string));
    all.extend(Size::ALL.iter().map(ToString::to_string));
    all.into_iter().collect()
}

//! Words and templates: everything that shapes world can say.

use std::collections::BTreeSet;

use rand::Rng;
use rand::seq::IndexedRandom;

use super::attributes::{Colour, Shape, Size};
use super::{caption, fine_grained, location, questions, spatial, statements, text};

/// Names of numbers from zero to [`super::MAX_OBJECTS`].
pub(super) const NUMBERS: [&str; super::MAX_OBJECTS + 1] = ["zero", "one", "two", "three", "four", "five", "six"];

/// Sets of templates of one meaning; `{name}` stands for what is filled in.
pub(super) type Templates = &'static [&'static str];

/// One of `templates`, filled in.
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

/// Every word and punctuation mark that shapes world can emit, sorted: what a word-level tokenizer has to know.
pub fn vocabulary() -> Vec<String> {
    let mut all = BTreeSet::from(["a", "an", "and", ",", "object", "objects"].map(String::from));
    let rooms = [
        caption::TEMPLATES,
        questions::TEMPLATES,
        spatial::TEMPLATES,
        fine_grained::TEMPLATES,
        location::TEMPLATES,
        statements::TEMPLATES,
        text::TEMPLATES,
    ];
    for template in rooms.into_iter().flatten().copied().flatten() {
        // Slots are never next to a letter, so what is left of `{name}` are braces and names to be dropped.
        let outside_slots = template.split('{').flat_map(|part| part.rsplit('}').next());
        all.extend(outside_slots.flat_map(words).map(String::from));
    }
    all.extend(NUMBERS.map(String::from));
    all.extend(questions::ANSWERS.iter().copied().map(String::from));
    all.extend(Shape::ALL.iter().flat_map(|shape| [shape.to_string(), shape.plural()]));
    all.extend(Colour::ALL.iter().map(ToString::to_string));
    all.extend(Size::ALL.iter().map(ToString::to_string));
    all.into_iter().collect()
}

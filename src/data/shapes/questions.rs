//! Questions about a scene, each with the one answer that the image allows.

use std::fmt;

use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use super::attributes::{Description, Naming, Size};
use super::scene::{Object, Scene, shuffled};
use super::words::{NUMBERS, Templates, phrase};
use super::{fine_grained, location, spatial};

pub(super) const EXISTENCE: Templates = &["is there {a}?", "do you see {a}?", "does the picture contain {a}?"];
pub(super) const COLOUR: Templates =
    &["what color is the {a}?", "what colour is the {a}?", "what is the color of the {a}?"];
pub(super) const SHAPE: Templates =
    &["what shape is the {a}?", "what is the shape of the {a}?", "which shape is the {a}?"];
const SIZE: Templates = &["what size is the {a}?", "how large is the {a}?", "what is the size of the {a}?"];
const COUNTING: Templates = &["how many {a} are there?", "how many {a} do you see?", "count the {a}."];
const LARGER: Templates = &["is the {a} larger than the {b}?"];
const SMALLER: Templates = &["is the {a} smaller than the {b}?"];
const LARGER_OF_TWO: Templates = &["which is larger, the {a} or the {b}?"];
const SMALLER_OF_TWO: Templates = &["which is smaller, the {a} or the {b}?"];
const MORE: Templates = &["are there more {a} than {b}?"];
const FEWER: Templates = &["are there fewer {a} than {b}?"];
const SAME_SIZE: Templates = &["is the {a} the same size as the {b}?", "do the {a} and the {b} have the same size?"];

pub(super) const TEMPLATES: &[Templates] =
    &[EXISTENCE, COLOUR, SHAPE, SIZE, COUNTING, LARGER, SMALLER, LARGER_OF_TWO, SMALLER_OF_TWO, MORE, FEWER, SAME_SIZE];
/// Words of answers that are neither a number nor an attribute.
pub(super) const ANSWERS: &[&str] = &["yes", "no", "left", "right", "above", "below"];

/// Ways to describe an object without its colour, its shape, or its size.
pub(super) const COLOURLESS: &[Naming] = &[[false, false, true], [true, false, true], [true, false, false]];
const SHAPELESS: &[Naming] = &[[false, true, false], [true, true, false], [true, false, false]];
const SIZELESS: &[Naming] = &[[false, true, true], [false, true, false], [false, false, true]];
const EXISTENCE_NAMINGS: &[Naming] = &[[false, false, true], [false, true, false], [false, true, true], [true; 3]];
/// What is counted: all objects, those of a size, of a colour, of a shape.
const COUNTED: [Naming; 4] = [[false; 3], [true, false, false], [false, true, false], [false, false, true]];

/// How often an answer to a counting question is wanted, relative to the others, where the scene allows it. Small
/// numbers are always at hand, large ones hardly ever: these weights even the answers out.
const COUNT_WEIGHTS: [f64; NUMBERS.len()] = [0.12, 0.17, 0.7, 1.0, 2.0, 3.0, 4.0];

/// What a question is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuestionKind {
    /// Whether something is there.
    Existence,
    /// The colour of an object.
    Colour,
    /// The shape of an object.
    Shape,
    /// The class of size of an object.
    Size,
    /// How many there are.
    Counting,
    /// Which is larger, of which there are more, whether two are alike.
    Comparison,
    /// Left, right, above, below.
    Spatial,
    /// Which corner or edge of the image an object is nearest to.
    Location,
    /// What hangs on a small object or on one at the image's margin.
    FineGrained,
}

impl QuestionKind {
    /// Every kind.
    pub const ALL: [Self; 9] = [
        Self::Existence,
        Self::Colour,
        Self::Shape,
        Self::Size,
        Self::Counting,
        Self::Comparison,
        Self::Spatial,
        Self::Location,
        Self::FineGrained,
    ];

    /// Those that a caption answers, since it names every object by every attribute.
    pub const TOLD: [Self; 6] =
        [Self::Existence, Self::Colour, Self::Shape, Self::Size, Self::Counting, Self::Comparison];

    /// The kind's name, as in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Existence => "existence",
            Self::Colour => "colour",
            Self::Shape => "shape",
            Self::Size => "size",
            Self::Counting => "counting",
            Self::Comparison => "comparison",
            Self::Spatial => "spatial",
            Self::Location => "location",
            Self::FineGrained => "fine_grained",
        }
    }
}

impl fmt::Display for QuestionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A question and its answer of one or two words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// What it is about.
    pub kind: QuestionKind,
    /// For example `what color is the small circle?`.
    pub question: String,
    /// For example `red`.
    pub answer: String,
}

/// Question and answer before they are told apart by kind.
pub(super) type Draft = Option<(String, String)>;

impl Scene {
    /// One question of every kind that the scene has an unambiguous one of, in random order.
    pub fn questions(&self, rng: &mut impl Rng) -> Vec<Question> {
        self.questions_of(&QuestionKind::ALL, 1, rng)
    }

    /// In each of so many rounds one question of each of these kinds, in random order; none of a kind is
    /// asked twice.
    pub fn questions_of(&self, kinds: &[QuestionKind], rounds: usize, rng: &mut impl Rng) -> Vec<Question> {
        let mut questions: Vec<Question> = Vec::new();
        for _ in 0..rounds {
            for kind in shuffled(kinds, rng) {
                let new = self.question(kind, rng);
                let same = |asked: &Question, new: &Question| asked.kind == new.kind && asked.question == new.question;
                questions.extend(new.filter(|new| !questions.iter().any(|asked| same(asked, new))));
            }
        }
        questions
    }

    /// A question of one kind, or `None` where the scene has no unambiguous one. What is asked is drawn so that no
    /// answer is much commoner than the others.
    pub fn question(&self, kind: QuestionKind, rng: &mut impl Rng) -> Option<Question> {
        let (question, answer) = match kind {
            QuestionKind::Existence => self.existence(rng),
            QuestionKind::Colour => self.colour(rng),
            QuestionKind::Shape => self.shape(rng),
            QuestionKind::Size => self.size(rng),
            QuestionKind::Counting => self.counting(rng),
            QuestionKind::Comparison => self.comparison(rng),
            QuestionKind::Spatial => spatial::ask(self, rng),
            QuestionKind::Location => location::ask(self, rng),
            QuestionKind::FineGrained => fine_grained::ask(self, rng),
        }?;
        Some(Question { kind, question, answer })
    }

    fn existence(&self, rng: &mut impl Rng) -> Draft {
        let naming = *EXISTENCE_NAMINGS.choose(rng)?;
        let there = rng.random();
        let wanted = self.existing_or_nearly(Description::all(naming), there, rng)?;
        Some((phrase(EXISTENCE, &[("a", &wanted.indefinite())], rng), yes_no(there)))
    }

    /// One of `descriptions`, of something that is there, or else of something that no object is, but for a single
    /// attribute.
    pub(super) fn existing_or_nearly(
        &self,
        descriptions: impl Iterator<Item = Description>,
        there: bool,
        rng: &mut impl Rng,
    ) -> Option<Description> {
        let least_mismatch = |wanted: &Description| self.objects.iter().map(|object| wanted.mismatches(object)).min();
        let fits = |wanted: &Description| least_mismatch(wanted) == Some(usize::from(!there));
        Vec::from_iter(descriptions.filter(fits)).choose(rng).copied()
    }

    fn colour(&self, rng: &mut impl Rng) -> Draft {
        let (object, description) = self.referent(COLOURLESS, |_| true, rng)?;
        Some((phrase(COLOUR, &[("a", &description.to_string())], rng), object.colour.to_string()))
    }

    fn shape(&self, rng: &mut impl Rng) -> Draft {
        let (object, description) = self.referent(SHAPELESS, |_| true, rng)?;
        Some((phrase(SHAPE, &[("a", &description.to_string())], rng), object.shape.to_string()))
    }

    fn size(&self, rng: &mut impl Rng) -> Draft {
        let sizes = shuffled(Size::ALL, rng);
        let of_size = |size| self.objects.iter().any(|object| object.size == size);
        let wanted = sizes.into_iter().find(|&size| of_size(size))?;
        let (object, description) = self.referent(SIZELESS, |object| object.size == wanted, rng)?;
        Some((phrase(SIZE, &[("a", &description.to_string())], rng), object.size.to_string()))
    }

    fn counting(&self, rng: &mut impl Rng) -> Draft {
        let counted = Vec::from_iter(COUNTED.into_iter().flat_map(Description::all).map(|d| (d, self.count(&d))));
        let weight = |number: usize| {
            let alike = counted.iter().filter(|(_, other)| *other == number).count();
            COUNT_WEIGHTS.get(number).map_or(0.0, |weight| weight / alike as f64)
        };
        let weighted = Vec::from_iter(counted.iter().map(|&(d, number)| (d, number, weight(number))));
        let (counted, number, _) = weighted.choose_weighted(rng, |&(_, _, weight)| weight).ok()?;
        Some((phrase(COUNTING, &[("a", &counted.plural())], rng), NUMBERS.get(*number)?.to_string()))
    }

    fn comparison(&self, rng: &mut impl Rng) -> Draft {
        match rng.random_range(0..4) {
            0 => self.comparison_of_numbers(rng),
            1 => self.same_size(rng),
            form => {
                let (a, b) = self.pair(|a, b| a.size != b.size, rng)?;
                let larger = rng.random();
                let holds = (a.size > b.size) == larger;
                let names = [a, b].map(|object| Description::name(object).to_string());
                let slots = [("a", names[0].as_str()), ("b", names[1].as_str())];
                Some(if form == 2 {
                    (phrase(if larger { LARGER } else { SMALLER }, &slots, rng), yes_no(holds))
                } else {
                    let question = phrase(if larger { LARGER_OF_TWO } else { SMALLER_OF_TWO }, &slots, rng);
                    (question, names[usize::from(!holds)].clone())
                })
            }
        }
    }

    fn comparison_of_numbers(&self, rng: &mut impl Rng) -> Draft {
        let naming = *COUNTED.get(1..)?.choose(rng)?;
        let groups = shuffled(&Vec::from_iter(Description::all(naming)), rng);
        let more = groups.iter().find(|group| self.count(group) > 0)?;
        let other = groups.iter().find(|group| self.count(group) != self.count(more))?;
        let [a, b] = if rng.random() { [more, other] } else { [other, more] };
        let ask_more = rng.random();
        let holds = (self.count(a) > self.count(b)) == ask_more;
        let slots = [("a", &*a.plural()), ("b", &*b.plural())];
        Some((phrase(if ask_more { MORE } else { FEWER }, &slots, rng), yes_no(holds)))
    }

    fn same_size(&self, rng: &mut impl Rng) -> Draft {
        let same = rng.random();
        let (a, b) = self.pair(|a, b| (a.size == b.size) == same, rng)?;
        let [a, b] = [a, b].map(|object| Description::name(object).to_string());
        Some((phrase(SAME_SIZE, &[("a", &a), ("b", &b)], rng), yes_no(same)))
    }

    /// An object that `wanted` holds for, and a description that is true of it alone and names what one of `namings`
    /// says.
    pub(super) fn referent(
        &self,
        namings: &[Naming],
        wanted: impl Fn(&Object) -> bool,
        rng: &mut impl Rng,
    ) -> Option<(&Object, Description)> {
        let described = |object| namings.iter().map(move |&naming| (object, Description::of(object, naming)));
        let objects = self.objects.iter().filter(|object| wanted(object));
        let unique = objects.flat_map(described).filter(|(_, description)| self.count(description) == 1);
        Vec::from_iter(unique).choose(rng).copied()
    }

    /// Two different objects, in either order, that `wanted` holds for.
    pub(super) fn pair(
        &self,
        wanted: impl Fn(&Object, &Object) -> bool,
        rng: &mut impl Rng,
    ) -> Option<(&Object, &Object)> {
        let all = self.objects.iter().flat_map(|a| self.objects.iter().map(move |b| (a, b)));
        Vec::from_iter(all.filter(|&(a, b)| !std::ptr::eq(a, b) && wanted(a, b))).choose(rng).copied()
    }
}

/// The answer to whether something holds.
pub(super) fn yes_no(holds: bool) -> String {
    if holds { "yes" } else { "no" }.into()
}

//! Questions about a scene, each with exactly one correct answer.

use std::fmt;

use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::attributes::{Description, Naming, Size};
use super::scene::{Object, Scene, shuffled};
use super::words::{NUMBERS, Templates, is_descriptive, phrase, words};
use super::{fine_grained, location, relation, spatial};

pub(super) const EXISTENCE: Templates = &["is there {a}?", "do you see {a}?", "does the picture contain {a}?"];
pub(super) const COLOUR: Templates =
    &["what color is the {a}?", "what colour is the {a}?", "what is the color of the {a}?"];
pub(super) const SHAPE: Templates =
    &["what shape is the {a}?", "what is the shape of the {a}?", "which shape is the {a}?"];
pub(super) const SIZE: Templates = &["what size is the {a}?", "how large is the {a}?", "what is the size of the {a}?"];
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
/// Answer words that are neither numbers nor attributes.
pub(super) const ANSWERS: &[&str] = &["yes", "no", "left", "right", "above", "below"];

/// Namings of an object without its colour, its shape, or its size.
pub(super) const COLOURLESS: &[Naming] = &[[false, false, true], [true, false, true], [true, false, false]];
const SHAPELESS: &[Naming] = &[[false, true, false], [true, true, false], [true, false, false]];
const SIZELESS: &[Naming] = &[[false, true, true], [false, true, false], [false, false, true]];
const EXISTENCE_NAMINGS: &[Naming] = &[[false, false, true], [false, true, false], [false, true, true], [true; 3]];
/// Namings of counted objects: all objects, or all objects of one size, colour or shape.
const COUNTED: [Naming; 4] = [[false; 3], [true, false, false], [false, true, false], [false, false, true]];

/// Sampling weight of each answer to a counting question, where the scene allows that answer. Almost every scene allows
/// small counts and few scenes allow large ones; the weights balance the answers.
const COUNT_WEIGHTS: [f64; NUMBERS.len()] = [0.12, 0.17, 0.7, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0];

/// Kind of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum QuestionKind {
    /// Whether an object of a description exists.
    Existence,
    /// Colour of an object.
    Colour,
    /// Shape of an object.
    Shape,
    /// Size class of an object.
    Size,
    /// Number of objects of a description.
    Counting,
    /// Comparison of two objects' sizes, or of two counts.
    Comparison,
    /// Direction between two objects: left, right, above, below.
    Spatial,
    /// Corner or edge of the image that an object is nearest to.
    Location,
    /// Question about a small object, or about an object near an edge or corner of the image.
    FineGrained,
    /// Attribute of the object nearest to another object, or number of objects on one side of it. Asked only on request:
    /// no part of [`Self::ALL`].
    Relation,
}

impl QuestionKind {
    /// All kinds that are asked by default.
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

    /// [`Self::ALL`] and [`Self::Relation`].
    pub const WITH_RELATIONS: [Self; 10] = [
        Self::Existence,
        Self::Colour,
        Self::Shape,
        Self::Size,
        Self::Counting,
        Self::Comparison,
        Self::Spatial,
        Self::Location,
        Self::FineGrained,
        Self::Relation,
    ];

    /// Kinds that a caption answers, since it names every object with all attributes.
    pub const TOLD: [Self; 6] =
        [Self::Existence, Self::Colour, Self::Shape, Self::Size, Self::Counting, Self::Comparison];

    /// Returns the name of the kind, as in JSON.
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
            Self::Relation => "relation",
        }
    }
}

impl fmt::Display for QuestionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Question and its answer of one or two words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Kind of the question.
    pub kind: QuestionKind,
    /// Text of the question, for example `what color is the small circle?`.
    pub question: String,
    /// Text of the answer, for example `red`.
    pub answer: String,
}

impl Question {
    /// The question without the words that describe objects: `what color is the ?` for `what color is the small circle?`.
    /// A model that answers by the form alone has not looked at the image.
    pub fn form(&self) -> String {
        Vec::from_iter(words(&self.question).filter(|word| !is_descriptive(word))).join(" ")
    }
}

/// Question and answer without their kind; `None` if the scene allows no question of the kind.
pub(super) type Draft = Option<(String, String)>;

impl Scene {
    /// Draws one question of every kind of [`QuestionKind::ALL`] for which the scene allows an unambiguous question, in random order.
    pub fn questions(&self, rng: &mut impl Rng) -> Vec<Question> {
        self.questions_of(&QuestionKind::ALL, 1, rng)
    }

    /// Draws the questions of a test about this scene, at most one of every kind of `kinds`: the same each time.
    pub fn test_questions(&self, kinds: &[QuestionKind]) -> Vec<Question> {
        self.questions_of(kinds, 1, &mut ChaCha8Rng::seed_from_u64(self.seed))
    }

    /// Draws `rounds` rounds of questions, each with at most one question of every kind of `kinds` in random order. No
    /// question repeats.
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

    /// Draws a question of one kind, or `None` if the scene allows no unambiguous question. The draw balances answers:
    /// none is much more frequent than the others.
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
            QuestionKind::Relation => relation::ask(self, rng),
        }?;
        Some(Question { kind, question, answer })
    }

    fn existence(&self, rng: &mut impl Rng) -> Draft {
        let naming = *EXISTENCE_NAMINGS.choose(rng)?;
        let there = rng.random();
        let wanted = self.existing_or_nearly(Description::all(naming), there, rng)?;
        Some((phrase(EXISTENCE, &[("a", &wanted.indefinite())], rng), yes_no(there)))
    }

    /// Chooses one of `descriptions`: if `there`, a description that matches an object, else one that no object matches
    /// but that differs from some object in a single attribute.
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
            0 => self.comparison_of_counts(rng),
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

    fn comparison_of_counts(&self, rng: &mut impl Rng) -> Draft {
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

    /// Draws an object that satisfies `wanted`, and a description that matches only this object and names exactly the
    /// attributes of one of `namings`.
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

    /// Draws an ordered pair of distinct objects that satisfies `wanted`.
    pub(super) fn pair(
        &self,
        wanted: impl Fn(&Object, &Object) -> bool,
        rng: &mut impl Rng,
    ) -> Option<(&Object, &Object)> {
        let all = self.objects.iter().flat_map(|a| self.objects.iter().map(move |b| (a, b)));
        Vec::from_iter(all.filter(|&(a, b)| !std::ptr::eq(a, b) && wanted(a, b))).choose(rng).copied()
    }
}

/// Returns the answer to a yes/no question.
pub(super) fn yes_no(holds: bool) -> String {
    if holds { "yes" } else { "no" }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_a_question_without_descriptions() {
        for (question, form) in [
            ("what color is the small circle?", "what color is the ?"),
            ("is there an orange object?", "is there ?"),
            ("count the red crosses.", "count the ."),
            ("which is larger, the pink ring or the blue star?", "which is larger , the or the ?"),
            ("which edge is the large object nearest to?", "which edge is the nearest to ?"),
        ] {
            let question = Question { kind: QuestionKind::Colour, question: question.into(), answer: String::new() };
            assert_eq!(question.form(), form);
        }
    }
}

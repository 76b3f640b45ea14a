//! Questions about directions between objects: left, right, above, below.

use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};

use super::attributes::Description;
use super::questions::{Draft, yes_no};
use super::scene::{Object, Scene};
use super::text::TextQuestion;
use super::words::{Templates, phrase};

/// Minimum distance between two centres along the axis in question, as a fraction of the side.
const MARGIN: f32 = 0.2;
/// Maximum ratio of the distance across that axis to the distance along it.
const SLANT: f32 = 1.5;

/// Direction of one object from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Left,
    Right,
    Above,
    Below,
}

const LEFT: Templates = &["is the {a} to the left of the {b}?"];
const RIGHT: Templates = &["is the {a} to the right of the {b}?"];
const ABOVE: Templates = &["is the {a} above the {b}?"];
const BELOW: Templates = &["is the {a} below the {b}?"];
const SIDE: Templates = &["is the {a} to the left or to the right of the {b}?"];
const HEIGHT: Templates = &["is the {a} above or below the {b}?"];
const WHAT: Templates = &["what is {where} the {b}?", "which object is {where} the {b}?"];
const STATEMENT: Templates = &["the {a} is {where} the {b}."];
const WHERE: Templates = &["to the left of", "to the right of", "above", "below"];
pub(super) const TEMPLATES: &[Templates] = &[LEFT, RIGHT, ABOVE, BELOW, SIDE, HEIGHT, WHAT, STATEMENT, WHERE];

impl Direction {
    pub(super) const ALL: [Self; 4] = [Self::Left, Self::Right, Self::Above, Self::Below];

    const fn word(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Right => "right",
            Self::Above => "above",
            Self::Below => "below",
        }
    }

    /// Returns the preposition between the names of two objects.
    pub(super) const fn preposition(self) -> &'static str {
        match self {
            Self::Left => "to the left of",
            Self::Right => "to the right of",
            Self::Above => "above",
            Self::Below => "below",
        }
    }

    const fn opposite(self) -> Self {
        match self {
            Self::Left => Self::Right,
            Self::Right => Self::Left,
            Self::Above => Self::Below,
            Self::Below => Self::Above,
        }
    }

    const fn question(self) -> Templates {
        match self {
            Self::Left => LEFT,
            Self::Right => RIGHT,
            Self::Above => ABOVE,
            Self::Below => BELOW,
        }
    }

    /// Computes the distance from `b` to `a` along this direction (signed) and across it, as fractions of the side.
    pub(super) fn offset(self, a: &Object, b: &Object) -> (f32, f32) {
        let (dx, dy) = (a.x - b.x, a.y - b.y);
        match self {
            Self::Left => (-dx, dy.abs()),
            Self::Right => (dx, dy.abs()),
            Self::Above => (-dy, dx.abs()),
            Self::Below => (dy, dx.abs()),
        }
    }

    /// Returns whether `a` is unambiguously in this direction from `b`.
    fn holds(self, a: &Object, b: &Object) -> bool {
        let (along, across) = self.offset(a, b);
        along >= MARGIN && across <= SLANT * along
    }
}

/// Draws a question about the direction between two objects.
pub(super) fn ask(scene: &Scene, rng: &mut impl Rng) -> Draft {
    let direction = *Direction::ALL.choose(rng)?;
    let form = rng.random_range(0..3);
    if form == 0
        && let Some(draft) = ask_what(scene, direction, rng)
    {
        return Some(draft);
    }
    let (a, b) = scene.pair(|a, b| direction.holds(a, b), rng)?;
    let [a, b] = [a, b].map(|object| Description::name(object).to_string());
    let slots = [("a", a.as_str()), ("b", b.as_str())];
    if form == 1 {
        let choice = if matches!(direction, Direction::Left | Direction::Right) { SIDE } else { HEIGHT };
        return Some((phrase(choice, &slots, rng), direction.word().into()));
    }
    let holds = rng.random();
    let asked = if holds { direction } else { direction.opposite() };
    Some((phrase(asked.question(), &slots, rng), yes_no(holds)))
}

/// Asks for the only object on one side of another object.
fn ask_what(scene: &Scene, direction: Direction, rng: &mut impl Rng) -> Draft {
    let alone = |a: &Object, b: &Object| {
        let others = scene.objects.iter().filter(|&o| o != a && o != b);
        direction.holds(a, b) && others.into_iter().all(|o| direction.opposite().offset(o, b).0 >= MARGIN / 2.0)
    };
    let (a, b) = scene.pair(alone, rng)?;
    let [a, b] = [a, b].map(|object| Description::name(object).to_string());
    Some((phrase(WHAT, &[("where", direction.preposition()), ("b", &b)], rng), a))
}

/// Draws a statement of the direction between two objects, and a question that the statement answers.
pub(super) fn state_and_ask(scene: &Scene, rng: &mut impl Rng) -> Option<TextQuestion> {
    let direction = *Direction::ALL.choose(rng)?;
    let (a, b) = scene.pair(|a, b| direction.holds(a, b), rng)?;
    let [a, b] = [a, b].map(|object| Description::name(object).to_string());
    let description = phrase(STATEMENT, &[("a", &a), ("b", &b), ("where", direction.preposition())], rng);
    // The statement covers one axis only. Swapping the two objects reverses the direction.
    let asked = *[direction, direction.opposite()].choose(rng)?;
    let swapped = rng.random();
    let slots = if swapped { [("a", b.as_str()), ("b", a.as_str())] } else { [("a", a.as_str()), ("b", b.as_str())] };
    let answer = yes_no((asked == direction) != swapped);
    Some(TextQuestion { description, question: phrase(asked.question(), &slots, rng), answer })
}

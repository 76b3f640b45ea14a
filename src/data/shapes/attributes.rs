//! What can be said of an object: shape, colour, size.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::scene::Object;

/// Declares an attribute: an enum whose every value has one word.
macro_rules! attribute {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum $name {
            $(#[doc = concat!("The word `", $word, "`.")] $variant),+
        }

        impl $name {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word that names it.
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }

            /// The value that `word` names, if any.
            pub fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.word() == word)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())
            }
        }
    };
}

attribute! {
    /// Outline of an object.
    Shape {
        Circle = "circle",
        Square = "square",
        Triangle = "triangle",
        Star = "star",
        Cross = "cross",
        Ring = "ring",
    }
}

attribute! {
    /// Colour of an object; chosen far apart, and far from every background.
    Colour {
        Red = "red",
        Green = "green",
        Blue = "blue",
        Yellow = "yellow",
        Orange = "orange",
        Purple = "purple",
        Pink = "pink",
        Cyan = "cyan",
    }
}

attribute! {
    /// Class of size, in increasing order; the classes leave gaps between them.
    Size {
        Small = "small",
        Medium = "medium",
        Large = "large",
    }
}

impl Shape {
    /// The word for several of them.
    pub fn plural(self) -> String {
        match self {
            Self::Cross => "crosses".into(),
            other => format!("{other}s"),
        }
    }
}

impl Colour {
    /// The colour's 8-bit red, green and blue; an object's own varies slightly around it.
    pub const fn rgb(self) -> [u8; 3] {
        match self {
            Self::Red => [222, 28, 36],
            Self::Green => [28, 158, 56],
            Self::Blue => [36, 72, 228],
            Self::Yellow => [250, 226, 30],
            Self::Orange => [250, 132, 12],
            Self::Purple => [128, 36, 168],
            Self::Pink => [248, 98, 178],
            Self::Cyan => [20, 202, 222],
        }
    }
}

impl Size {
    /// Range of the half width, as a fraction of the image's side.
    pub const fn radius(self) -> [f32; 2] {
        match self {
            Self::Small => [0.072, 0.084],
            Self::Medium => [0.122, 0.140],
            Self::Large => [0.188, 0.215],
        }
    }

    /// The next smaller class.
    pub const fn smaller(self) -> Option<Self> {
        match self {
            Self::Small => None,
            Self::Medium => Some(Self::Small),
            Self::Large => Some(Self::Medium),
        }
    }
}

/// Which of size, colour and shape a description names.
pub(super) type Naming = [bool; 3];

/// A (partial) description of an object: the attributes that are named.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Description {
    /// Size, if named.
    pub size: Option<Size>,
    /// Colour, if named.
    pub colour: Option<Colour>,
    /// Shape, if named; else the word is "object".
    pub shape: Option<Shape>,
}

impl Description {
    /// Everything there is to say of `object`.
    pub fn full(object: &Object) -> Self {
        Self::of(object, [true; 3])
    }

    /// Colour and shape, which no two objects of a scene share.
    pub fn name(object: &Object) -> Self {
        Self::of(object, [false, true, true])
    }

    /// What `naming` names of `object`.
    pub(super) fn of(object: &Object, [size, colour, shape]: Naming) -> Self {
        Self {
            size: size.then_some(object.size),
            colour: colour.then_some(object.colour),
            shape: shape.then_some(object.shape),
        }
    }

    /// Every description that names just what `naming` says.
    pub(super) fn all([size, colour, shape]: Naming) -> impl Iterator<Item = Self> {
        let colours = move || options(Colour::ALL, colour);
        let shapes = move || options(Shape::ALL, shape);
        options(Size::ALL, size).flat_map(move |size| {
            colours().flat_map(move |colour| shapes().map(move |shape| Self { size, colour, shape }))
        })
    }

    /// How many of the named attributes are not true of `object`.
    pub fn mismatches(&self, object: &Object) -> usize {
        usize::from(self.size.is_some_and(|size| size != object.size))
            + usize::from(self.colour.is_some_and(|colour| colour != object.colour))
            + usize::from(self.shape.is_some_and(|shape| shape != object.shape))
    }

    /// Whether everything that is named is true of `object`.
    pub fn matches(&self, object: &Object) -> bool {
        self.mismatches(object) == 0
    }

    /// With its indefinite article: `a small circle`, `an orange object`.
    pub fn indefinite(&self) -> String {
        let text = self.to_string();
        let article = if text.starts_with('o') { "an" } else { "a" };
        format!("{article} {text}")
    }

    /// For several objects: `small circles`, `red objects`.
    pub fn plural(&self) -> String {
        let noun = self.shape.map_or_else(|| "objects".into(), Shape::plural);
        self.adjectives() + &noun
    }

    fn adjectives(&self) -> String {
        let words = [self.size.map(Size::word), self.colour.map(Colour::word)];
        words.into_iter().flatten().fold(String::new(), |text, word| text + word + " ")
    }
}

/// All values of a named attribute, or the one way of not naming it.
fn options<T: Copy>(all: &'static [T], named: bool) -> impl Iterator<Item = Option<T>> {
    let unnamed = (!named).then_some(None);
    all.iter().filter(move |_| named).map(|&value| Some(value)).chain(unnamed)
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.adjectives(), self.shape.map_or("object", Shape::word))
    }
}

//! Attributes of an object (shape, colour, size), and descriptions made of them.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::scene::Object;

/// Declares an attribute: an enum with one word per value.
macro_rules! attribute {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum $name {
            $(#[doc = concat!("Value named `", $word, "`.")] $variant),+
        }

        impl $name {
            /// All values.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Returns the word for this value.
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }

            /// Returns the value that `word` names, if any.
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
    /// Colour of an object. The colours are far apart from each other and from every background.
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
    /// Size class, in increasing order. The radius ranges of the classes have gaps between them.
    Size {
        Small = "small",
        Medium = "medium",
        Large = "large",
    }
}

impl Shape {
    /// Returns the plural of the word.
    pub fn plural(self) -> String {
        match self {
            Self::Cross => "crosses".into(),
            other => format!("{other}s"),
        }
    }
}

impl Colour {
    /// Returns the nominal 8-bit RGB value. The colour of an object varies slightly around it.
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
    /// Returns the range of the half width, as a fraction of the image side.
    pub const fn radius(self) -> [f32; 2] {
        match self {
            Self::Small => [0.072, 0.084],
            Self::Medium => [0.122, 0.140],
            Self::Large => [0.188, 0.215],
        }
    }

    /// Returns the next smaller class, if any.
    pub const fn smaller(self) -> Option<Self> {
        match self {
            Self::Small => None,
            Self::Medium => Some(Self::Small),
            Self::Large => Some(Self::Medium),
        }
    }
}

/// Flags for the attributes that a description names: size, colour, shape.
pub(super) type Naming = [bool; 3];

/// Full or partial description of an object: the attributes that it names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Description {
    /// Size, if named.
    pub size: Option<Size>,
    /// Colour, if named.
    pub colour: Option<Colour>,
    /// Shape, if named; otherwise the noun is "object".
    pub shape: Option<Shape>,
}

impl Description {
    /// Describes `object` by size, colour and shape.
    pub fn full(object: &Object) -> Self {
        Self::of(object, [true; 3])
    }

    /// Describes `object` by colour and shape, a combination that is unique within a scene.
    pub fn name(object: &Object) -> Self {
        Self::of(object, [false, true, true])
    }

    /// Describes `object` by the attributes of `naming`.
    pub(super) fn of(object: &Object, [size, colour, shape]: Naming) -> Self {
        Self {
            size: size.then_some(object.size),
            colour: colour.then_some(object.colour),
            shape: shape.then_some(object.shape),
        }
    }

    /// Enumerates every description that names exactly the attributes of `naming`.
    pub(super) fn all([size, colour, shape]: Naming) -> impl Iterator<Item = Self> {
        let colours = move || options(Colour::ALL, colour);
        let shapes = move || options(Shape::ALL, shape);
        options(Size::ALL, size).flat_map(move |size| {
            colours().flat_map(move |colour| shapes().map(move |shape| Self { size, colour, shape }))
        })
    }

    /// Counts the named attributes that differ from those of `object`.
    pub fn mismatches(&self, object: &Object) -> usize {
        usize::from(self.size.is_some_and(|size| size != object.size))
            + usize::from(self.colour.is_some_and(|colour| colour != object.colour))
            + usize::from(self.shape.is_some_and(|shape| shape != object.shape))
    }

    /// Returns whether `object` has every named attribute.
    pub fn matches(&self, object: &Object) -> bool {
        self.mismatches(object) == 0
    }

    /// Formats the description with an indefinite article: `a small circle`, `an orange object`.
    pub fn indefinite(&self) -> String {
        let text = self.to_string();
        let article = if text.starts_with('o') { "an" } else { "a" };
        format!("{article} {text}")
    }

    /// Formats the description in the plural: `small circles`, `red objects`.
    pub fn plural(&self) -> String {
        let noun = self.shape.map_or_else(|| "objects".into(), Shape::plural);
        self.adjectives() + &noun
    }

    fn adjectives(&self) -> String {
        let words = [self.size.map(Size::word), self.colour.map(Colour::word)];
        words.into_iter().flatten().fold(String::new(), |text, word| text + word + " ")
    }
}

/// Enumerates all values of a named attribute, or only `None` for an attribute that is not named.
fn options<T: Copy>(all: &'static [T], named: bool) -> impl Iterator<Item = Option<T>> {
    let unnamed = (!named).then_some(None);
    all.iter().filter(move |_| named).map(|&value| Some(value)).chain(unnamed)
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.adjectives(), self.shape.map_or("object", Shape::word))
    }
}

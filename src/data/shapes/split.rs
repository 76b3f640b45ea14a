//! Which scenes are for training and which are kept back.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::scene::{Scene, ShapesConfig};

/// A part of shapes world, by ranges of seeds that never change and never meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// For training.
    Train,
    /// For choosing between trained models.
    Validation,
    /// For the numbers that are reported.
    Test,
}

/// Number of scenes in each part.
const SCENES: u64 = 1 << 40;

impl Split {
    /// Every part.
    pub const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];

    /// The seeds of its scenes.
    pub const fn seeds(self) -> Range<u64> {
        let start = match self {
            Self::Train => 0,
            Self::Validation => SCENES,
            Self::Test => 2 * SCENES,
        };
        start..start + SCENES
    }

    /// Its scene number `index`; after the last one it begins again.
    pub fn scene(self, index: u64, config: &ShapesConfig) -> Scene {
        Scene::generate(self.seeds().start + index % SCENES, config)
    }
}

//! Training, validation and test splits of the scenes.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::scene::{Scene, ShapesConfig};

/// Split of shapes world: a fixed range of seeds, disjoint from the other splits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Scenes for training.
    Train,
    /// Scenes for model selection.
    Validation,
    /// Scenes for reported results.
    Test,
}

/// Number of scenes in each split.
const SCENES: u64 = 1 << 40;

impl Split {
    /// All splits.
    pub const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];

    /// Returns the seeds of the split's scenes.
    pub const fn seeds(self) -> Range<u64> {
        let start = match self {
            Self::Train => 0,
            Self::Validation => SCENES,
            Self::Test => 2 * SCENES,
        };
        start..start + SCENES
    }

    /// Generates scene `index` of the split. Indices wrap around after the last scene.
    pub fn scene(self, index: u64, config: &ShapesConfig) -> Scene {
        Scene::generate(self.seeds().start + index % SCENES, config)
    }
}

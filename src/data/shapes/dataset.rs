//! Data set of conversations about shapes-world scenes.

use std::sync::Arc;

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use super::attributes::Description;
use super::caption::caption_prompt;
use super::location;
use super::questions::QuestionKind;
use super::scene::{Scene, ShapesConfig};
use super::split::Split;
use super::statements;
use crate::Result;
use crate::config::validate::{at_least_one, at_most};
use crate::data::{BadSample, Dataset, IMAGE_MARKER, ImageSource, Record, SampleResult, Turn, random_stream};

/// Content of the conversations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShapesContent {
    /// Image and its caption. For half of the scenes, a list of the objects in a requested order replaces the caption,
    /// mostly with the corner or edge nearest to each object.
    Captions,
    /// Image and one sentence per object, which refers to the object by some attributes and states the others.
    Statements,
    /// Image and one turn per object with its full description; a second turn adds the location if it is unambiguous.
    Objects,
    /// Image and questions of every kind that the scene allows.
    Questions,
    /// Image, caption and questions, with the caption at a random place among the questions.
    Mixed,
    /// Text only: the caption of a scene and questions that the caption answers, or the caption alone if there are
    /// none.
    Text,
}

/// Data set of conversations about consecutive scenes of a split; sample `i` is about scene `first + i`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShapesDataset {
    /// Split that the scenes come from.
    pub split: Split,
    /// Index of the first scene.
    #[serde(default)]
    pub first: u64,
    /// Number of scenes.
    pub scenes: usize,
    /// Side of the images, in pixels.
    pub side: u32,
    /// Content of the conversations.
    pub content: ShapesContent,
    /// Number of rounds of questions, each with at most one question of each kind.
    #[serde(default = "one")]
    pub rounds: usize,
    /// Whether the image follows the text of the first turn, instead of preceding it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub image_last: bool,
    /// Kinds of questions about images. A scene without questions of these kinds gets questions of any kind.
    #[serde(default = "every_kind")]
    pub kinds: Vec<QuestionKind>,
    /// Options for drawing scenes.
    #[serde(default)]
    pub config: ShapesConfig,
}

fn one() -> usize {
    1
}

fn every_kind() -> Vec<QuestionKind> {
    QuestionKind::ALL.into()
}

/// Maximum number of scenes of a data set, since the sample order is held in memory.
const MAX_SCENES: usize = 1 << 28;
/// Maximum side of an image, in pixels.
const MAX_SIDE: usize = 1 << 12;
/// Maximum number of rounds; a scene has far fewer distinct questions of a kind.
const MAX_ROUNDS: usize = 1 << 8;

impl ShapesDataset {
    /// Checks that all sizes are within their limits.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config), which names the field.
    pub fn validate(&self) -> Result<()> {
        let limits = [
            ("shapes.scenes", self.scenes, MAX_SCENES),
            ("shapes.side", self.side as usize, MAX_SIDE),
            ("shapes.rounds", self.rounds, MAX_ROUNDS),
            ("shapes.kinds", self.kinds.len(), QuestionKind::WITH_RELATIONS.len()),
        ];
        for (field, value, most) in limits {
            at_least_one(field, value)?;
            at_most(field, value, most)?;
        }
        self.config.validate()
    }

    /// Generates the scene of sample `index`.
    pub fn scene(&self, index: usize) -> Scene {
        self.split.scene(self.first.wrapping_add(index as u64), &self.config)
    }

    fn question_turns(&self, scene: &Scene, rng: &mut impl Rng) -> Vec<[Turn; 2]> {
        let mut questions = scene.questions_of(&self.kinds, self.rounds, rng);
        if questions.is_empty() {
            questions = scene.questions_of(&QuestionKind::ALL, self.rounds, rng);
        }
        questions.into_iter().map(|q| turns_of((q.question, q.answer))).collect()
    }
}

impl Dataset for ShapesDataset {
    type Item = Record;

    fn len(&self) -> usize {
        self.scenes
    }

    fn get(&self, index: usize) -> SampleResult<Record> {
        if index >= self.scenes {
            return Err(crate::data::dataset::out_of_range(index, self.scenes));
        }
        let scene = self.scene(index);
        let mut rng = random_stream(scene.seed, 2);
        let mut turns = match self.content {
            ShapesContent::Captions => caption_turns(&scene, &mut rng).into(),
            ShapesContent::Statements => turns_of(statements::ask(&scene, &mut rng)).into(),
            ShapesContent::Objects => object_turns(&scene, &mut rng),
            ShapesContent::Questions => self.question_turns(&scene, &mut rng).concat(),
            ShapesContent::Mixed => {
                let mut exchanges = self.question_turns(&scene, &mut rng);
                exchanges.insert(rng.random_range(0..=exchanges.len()), caption_turns(&scene, &mut rng));
                exchanges.concat()
            }
            ShapesContent::Text => text_turns(&scene, self.rounds, &mut rng),
        };
        let mut images = Vec::new();
        if self.content != ShapesContent::Text {
            images.push(ImageSource::Pixels(Arc::new(scene.render(self.side))));
            let first: &mut Turn = turns.first_mut().ok_or(BadSample::NoTurns)?;
            match self.image_last {
                true => first.text.push_str(&format!("\n{IMAGE_MARKER}")),
                false => first.text.insert_str(0, &format!("{IMAGE_MARKER}\n")),
            }
        }
        Record::new(scene.seed.to_string(), images, turns)
    }

    fn describe(&self, index: usize) -> String {
        format!("shapes world scene of seed {}", self.scene(index).seed)
    }
}

/// Draws a caption, or for half of the scenes a list in a requested order, mostly with locations.
fn caption_turns(scene: &Scene, rng: &mut impl Rng) -> [Turn; 2] {
    turns_of(match rng.random() {
        true => location::list(scene, rng),
        false => (caption_prompt(rng), scene.caption(rng)),
    })
}

fn turns_of((asked, answer): (String, String)) -> [Turn; 2] {
    [Turn::user(asked), Turn::assistant(answer)]
}

fn object_turns(scene: &Scene, rng: &mut impl Rng) -> Vec<Turn> {
    let mut turns = Vec::new();
    for object in &scene.objects {
        let names = [Some(Description::full(object).indefinite()), location::name(object, rng)];
        for name in names.into_iter().flatten() {
            turns.extend(turns_of((caption_prompt(rng), name)));
        }
    }
    turns
}

/// Builds text-only turns: the scene's caption precedes the first question.
fn text_turns(scene: &Scene, rounds: usize, rng: &mut impl Rng) -> Vec<Turn> {
    let caption = scene.caption(rng);
    let mut questions = scene.questions_of(&QuestionKind::TOLD, rounds, rng);
    match questions.first_mut() {
        Some(first) => first.question.insert_str(0, &format!("{caption} ")),
        None => return vec![Turn::assistant(caption)],
    }
    questions.into_iter().flat_map(|q| turns_of((q.question, q.answer))).collect()
}

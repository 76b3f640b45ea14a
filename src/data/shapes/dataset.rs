//! Shapes world as a data set of conversations.

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

/// What the conversations are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShapesContent {
    /// An image and its caption; or, of half of the scenes, a list of its objects in an order that is asked for, mostly with the
    /// corner or edge that each is nearest to.
    Captions,
    /// An image and a sentence about each of its objects, which finds it by some of its attributes and tells the others.
    Statements,
    /// An image and each of its objects by its full name, and once more with its place where that is beyond doubt, one a turn.
    Objects,
    /// An image and questions of every kind that it has.
    Questions,
    /// An image, its caption and its questions, the caption anywhere among them.
    Mixed,
    /// No image: a scene told in words, and questions that these words answer; where it has none, its caption alone.
    Text,
}

/// A stretch of a split as conversations; sample `i` is about the split's scene number `first + i`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShapesDataset {
    /// Which scenes.
    pub split: Split,
    /// The first one.
    #[serde(default)]
    pub first: u64,
    /// How many.
    pub scenes: usize,
    /// Side of the images in pixels.
    pub side: u32,
    /// What is said.
    pub content: ShapesContent,
    /// How many questions of each kind are asked, one at a time.
    #[serde(default = "one")]
    pub rounds: usize,
    /// Which kinds of questions are asked about images; any, of a scene that has none of them.
    #[serde(default = "every_kind")]
    pub kinds: Vec<QuestionKind>,
    /// How scenes are drawn.
    #[serde(default)]
    pub config: ShapesConfig,
}

fn one() -> usize {
    1
}

fn every_kind() -> Vec<QuestionKind> {
    QuestionKind::ALL.into()
}

/// Most scenes of a data set, whose order is kept in memory.
const MAX_SCENES: usize = 1 << 28;
/// Largest side of an image in pixels.
const MAX_SIDE: usize = 1 << 12;
/// Most rounds of questions; a scene has far fewer different ones.
const MAX_ROUNDS: usize = 1 << 8;

impl ShapesDataset {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) naming the field.
    pub fn validate(&self) -> Result<()> {
        let limits = [
            ("shapes.scenes", self.scenes, MAX_SCENES),
            ("shapes.side", self.side as usize, MAX_SIDE),
            ("shapes.rounds", self.rounds, MAX_ROUNDS),
            ("shapes.kinds", self.kinds.len(), QuestionKind::ALL.len()),
        ];
        for (field, value, most) in limits {
            at_least_one(field, value)?;
            at_most(field, value, most)?;
        }
        self.config.validate()
    }

    /// The scene of sample `index`.
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
            first.text.insert_str(0, &format!("{IMAGE_MARKER}\n"));
        }
        Record::new(scene.seed.to_string(), images, turns)
    }

    fn describe(&self, index: usize) -> String {
        format!("shapes world scene of seed {}", self.scene(index).seed)
    }
}

/// A caption, or, of half of the scenes, a list in an order that is asked for, mostly with places.
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

/// The scene's caption before the first question.
fn text_turns(scene: &Scene, rounds: usize, rng: &mut impl Rng) -> Vec<Turn> {
    let told = scene.caption(rng);
    let mut questions = scene.questions_of(&QuestionKind::TOLD, rounds, rng);
    match questions.first_mut() {
        Some(first) => first.question.insert_str(0, &format!("{told} ")),
        None => return vec![Turn::assistant(told)],
    }
    questions.into_iter().flat_map(|q| turns_of((q.question, q.answer))).collect()
}

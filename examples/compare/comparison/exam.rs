//! Questions about held-out scenes, and a model's answers to them.

use std::sync::Arc;

use anyhow::Result;
use candle_core::Device;
use haplovl::config::GenerationConfig;
use haplovl::data::shapes::{Question, Split};
use haplovl::data::{IMAGE_MARKER, ImageSource, Record, Turn};
use haplovl::eval::{Accuracy, CommonestAnswers, answers_match};
use haplovl::generation::{CausalModel, Generator};
use haplovl::processor::{Conversation, Processor};
use serde::{Deserialize, Serialize};

use super::plan::Setting;

/// Questions that are answered together.
const BATCH: usize = 32;
/// Longest answer in tokens; right ones have one or two, and the end.
const MAX_NEW_TOKENS: usize = 6;

/// Questions about scenes, one of each kind that a scene allows.
pub struct Exam {
    asked: Vec<Asked>,
}

struct Asked {
    scene: u64,
    question: Question,
    record: Record,
}

/// An answer to one question: a line of `answers.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answered {
    /// Number of the scene in its split.
    pub scene: u64,
    /// Kind of the question.
    pub kind: String,
    /// The question.
    pub question: String,
    /// The right answer.
    pub answer: String,
    /// The model's answer.
    pub given: String,
    /// Whether it is right.
    pub right: bool,
}

/// Answers to the questions of the test by their form alone, see [`CommonestAnswers::by_form`].
pub fn question_alone(setting: &Setting) -> Accuracy {
    let commonest = CommonestAnswers::by_form(&setting.shapes, setting.kinds());
    let scenes = (0..setting.test_scenes).map(|scene| Split::Test.scene(scene, &setting.shapes));
    let mut accuracy = Accuracy::default();
    for question in scenes.flat_map(|scene| scene.test_questions(setting.kinds())) {
        accuracy.add(question.kind, commonest.answer(question.form()), &question.answer);
    }
    accuracy
}

impl Exam {
    /// Questions about the first scenes of a split.
    pub fn new(split: Split, scenes: u64, setting: &Setting, image_last: bool) -> Result<Self> {
        let mut asked = Vec::new();
        for scene in 0..scenes {
            let drawn = split.scene(scene, &setting.shapes);
            let image = Arc::new(drawn.render(setting.side));
            for question in drawn.test_questions(setting.kinds()) {
                let record = record(&question, ImageSource::Pixels(Arc::clone(&image)), image_last)?;
                asked.push(Asked { scene, question, record });
            }
        }
        Ok(Self { asked })
    }

    /// The model's answers, the most likely ones.
    pub fn answers<M: CausalModel>(&self, model: M, processor: &Arc<Processor>) -> Result<Vec<Answered>> {
        let generation = GenerationConfig {
            eos_token_id: processor.eos_ids(),
            max_new_tokens: Some(MAX_NEW_TOKENS),
            ..GenerationConfig::default()
        };
        let decoder = Arc::clone(processor);
        let generator = Generator::new(Arc::new(model), move |ids| decoder.tokenizer().decode(ids, true));
        let mut answers = Vec::with_capacity(self.asked.len());
        for asked in self.asked.chunks(BATCH) {
            let prompts = asked.iter().map(|asked| asked.record.conversation(processor).map_err(haplovl::Error::from));
            let prompts: Vec<Conversation> = prompts.collect::<haplovl::Result<_>>()?;
            let given = generator.generate(&processor.batch(&prompts, &Device::Cpu)?, &generation)?;
            answers.extend(asked.iter().zip(given.sequences).map(|(asked, sequence)| asked.answered(&sequence.text)));
        }
        Ok(answers)
    }
}

/// A conversation that ends with the question.
fn record(question: &Question, image: ImageSource, image_last: bool) -> Result<Record> {
    let text = match image_last {
        true => format!("{}\n{IMAGE_MARKER}", question.question),
        false => format!("{IMAGE_MARKER}\n{}", question.question),
    };
    let turns = vec![Turn::user(text), Turn::assistant(&question.answer)];
    let mut record = Record::new(String::new(), vec![image], turns)?;
    record.turns.truncate(1);
    Ok(record)
}

impl Asked {
    fn answered(&self, given: &str) -> Answered {
        let Question { kind, question, answer } = &self.question;
        let given = given.trim().to_owned();
        Answered {
            scene: self.scene,
            kind: kind.to_string(),
            question: question.clone(),
            answer: answer.clone(),
            right: answers_match(&given, answer),
            given,
        }
    }
}

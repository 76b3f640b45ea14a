//! Text-only samples, for language models.

use rand::Rng;
use rand::seq::IndexedRandom;

use super::questions::QuestionKind;
use super::scene::Scene;
use super::spatial;
use super::words::{Templates, phrase};

const EXCHANGE: Templates = &["{said} question: {question} answer: {answer}."];
pub(super) const TEMPLATES: &[Templates] = &[EXCHANGE];

/// Description of a scene in words, with a question that the description answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextQuestion {
    /// Description of the scene.
    pub description: String,
    /// Text of the question.
    pub question: String,
    /// Text of the answer: one or two words.
    pub answer: String,
}

impl Scene {
    /// Draws a question about the scene, with a caption in place of the image.
    pub fn text_question(&self, rng: &mut impl Rng) -> Option<TextQuestion> {
        let kind = QuestionKind::TOLD.choose(rng).copied()?;
        let question = self.question(kind, rng)?;
        Some(TextQuestion { description: self.caption(rng), question: question.question, answer: question.answer })
    }

    /// Draws sentences for a language model: a caption; a caption with a question and its answer; and a statement of
    /// the direction between two objects with a question and its answer. The last two are optional: not every scene
    /// allows them.
    pub fn text_sentences(&self, rng: &mut impl Rng) -> Vec<String> {
        let mut sentences = vec![self.caption(rng)];
        let placed = spatial::state_and_ask(self, rng);
        let exchanges = [self.text_question(rng), placed].into_iter().flatten();
        sentences.extend(exchanges.map(|exchange| {
            let TextQuestion { description, question, answer } = &exchange;
            phrase(EXCHANGE, &[("said", description), ("question", question), ("answer", answer)], rng)
        }));
        sentences
    }
}

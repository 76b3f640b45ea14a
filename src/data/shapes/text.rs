//! Text without an image, for language models.

use rand::Rng;
use rand::seq::IndexedRandom;

use super::questions::QuestionKind;
use super::scene::Scene;
use super::spatial;
use super::words::{Templates, phrase};

const EXCHANGE: Templates = &["{said} question: {question} answer: {answer}."];
pub(super) const TEMPLATES: &[Templates] = &[EXCHANGE];

/// A scene told in words, with a question that these words answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextQuestion {
    /// What is said of the imagined scene.
    pub description: String,
    /// What is asked.
    pub question: String,
    /// The answer, of one or two words.
    pub answer: String,
}

impl Scene {
    /// A question about this scene as told in words instead of shown.
    pub fn text_question(&self, rng: &mut impl Rng) -> Option<TextQuestion> {
        let kind = QuestionKind::TOLD.choose(rng).copied()?;
        let question = self.question(kind, rng)?;
        Some(TextQuestion { description: self.caption(rng), question: question.question, answer: question.answer })
    }

    /// Sentences for a language model: a caption, a question about a scene told in words, and, where the scene has
    /// them, a statement of where something is with a question that it answers.
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

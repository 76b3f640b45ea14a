//! Constraints on answers: the tokens that may come next.

use std::fmt::Debug;

use crate::{Error, Result};

/// A constraint on answers, such as a grammar or a list of answers. It can be shared by requests.
///
/// [`Request::with_constraint`](super::Request::with_constraint) gives it to an engine, which samples of the tokens that
/// it allows.
pub trait Constraint: Debug + Send + Sync {
    /// The state of an answer before its first token, on the thread that submits the request.
    ///
    /// # Errors
    /// The constraint's own, for example if it cannot be fulfilled.
    fn start(&self) -> Result<Box<dyn ConstraintState>>;
}

/// The state of a constraint on one answer. It is asked on the engine's thread, between the decode steps of all requests:
/// what takes long holds them all up.
///
/// An error, or a panic, ends this answer alone.
pub trait ConstraintState: Send {
    /// The tokens that may come next. Tokens that end an answer are allowed by [`Self::end`] alone, and are none of them.
    ///
    /// # Errors
    /// The constraint's own, for example where it is too complex.
    fn allowed(&mut self) -> Result<TokenMask>;

    /// Takes the token that was sampled, one of those allowed.
    ///
    /// # Errors
    /// The constraint's own.
    fn accept(&mut self, id: u32) -> Result<()>;

    /// Whether the answer may end, or has to, after the tokens so far.
    ///
    /// # Errors
    /// The constraint's own.
    fn end(&mut self) -> Result<AnswerEnd>;
}

/// Whether an answer may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerEnd {
    /// It is incomplete.
    Forbidden,
    /// It is complete, and may go on.
    Allowed,
    /// It is complete, and no token may follow.
    Required,
}

/// A set of token ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenMask(Vec<u32>);

impl TokenMask {
    /// The set of the ids `32 * i + j` for each bit `j` (from the lowest) that is set in `words[i]`.
    pub fn from_words(words: Vec<u32>) -> Self {
        Self(words)
    }

    /// Whether an id is in the set.
    pub fn contains(&self, id: u32) -> bool {
        self.0.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
    }

    /// Whether no id is in the set.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Sets the logits of all other ids to minus infinity.
    pub(super) fn apply(&self, logits: &mut [f32]) {
        for (logits, word) in logits.chunks_mut(32).zip(self.0.iter().copied().chain(std::iter::repeat(0))) {
            match word {
                u32::MAX => {}
                0 => logits.fill(f32::NEG_INFINITY),
                _ => {
                    let forbidden = logits.iter_mut().enumerate().filter(|(bit, _)| word >> bit & 1 == 0);
                    forbidden.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
                }
            }
        }
    }
}

impl FromIterator<u32> for TokenMask {
    fn from_iter<I: IntoIterator<Item = u32>>(ids: I) -> Self {
        let mut words = Vec::new();
        for id in ids {
            let at = id as usize / 32;
            words.resize(words.len().max(at + 1), 0);
            words[at] |= 1 << (id % 32);
        }
        Self(words)
    }
}

/// A list of answers, of which the model chooses one; [`LoadedModel::choices`](crate::pipeline::LoadedModel::choices)
/// makes it of texts.
#[derive(Debug, Clone)]
pub struct Choices(Vec<Vec<u32>>);

impl Choices {
    /// Answers by their token ids, without tokens that end an answer.
    ///
    /// # Errors
    /// [`Error::Generation`] without any answer, and for one without a token.
    pub fn new(answers: Vec<Vec<u32>>) -> Result<Self> {
        match answers.iter().position(Vec::is_empty) {
            Some(at) => Err(Error::generation(format!("choice {at} has no token: give each choice a text"))),
            None if answers.is_empty() => Err(Error::generation("there are no choices: give at least one")),
            None => Ok(Self(answers)),
        }
    }
}

impl Constraint for Choices {
    fn start(&self) -> Result<Box<dyn ConstraintState>> {
        Ok(Box::new(ChoicesLeft { left: self.0.clone(), position: 0 }))
    }
}

/// The answers that begin with the tokens so far.
struct ChoicesLeft {
    left: Vec<Vec<u32>>,
    position: usize,
}

impl ConstraintState for ChoicesLeft {
    fn allowed(&mut self) -> Result<TokenMask> {
        Ok(self.left.iter().filter_map(|answer| answer.get(self.position).copied()).collect())
    }

    fn accept(&mut self, id: u32) -> Result<()> {
        self.left.retain(|answer| answer.get(self.position) == Some(&id));
        self.position += 1;
        Ok(())
    }

    fn end(&mut self) -> Result<AnswerEnd> {
        let complete = self.left.iter().filter(|answer| answer.len() == self.position).count();
        Ok(match complete {
            0 => AnswerEnd::Forbidden,
            _ if complete == self.left.len() => AnswerEnd::Required,
            _ => AnswerEnd::Allowed,
        })
    }
}

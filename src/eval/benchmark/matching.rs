//! Which question a prediction answers: by its id, or by the ids that LLaVA's lists of questions have.

use std::collections::{HashMap, HashSet};

use super::predictions::Prediction;
use super::question::Question;
use super::question_set::{QuestionSet, coco_number};
use super::{Benchmark, Metric};
use crate::error::one_line;
use crate::{Error, Result};

/// Splits of POPE in LLaVA's list of questions, and what is added to the ids of each.
const SPLITS_OF_LLAVA: [(&str, u64); 3] = [("popular", 20_000_000), ("random", 10_000_000), ("adversarial", 0)];
/// The first id behind all of these.
const END_OF_LLAVA: u64 = 30_000_000;
/// Most lines of a question that shares its id with others and is found in a prompt.
const MAX_QUESTION_LINES: usize = 16;

impl QuestionSet {
    /// The prediction of each question; `None` where there is none. See [`Self::positions`].
    ///
    /// # Errors
    /// [`Error::Data`] for two predictions of one question that differ, if there is none of any question, or if most prompts,
    /// or one of POPE, do not have their question in them.
    pub fn matched<'p>(&self, predictions: &'p [Prediction]) -> Result<Vec<Option<&'p Prediction>>> {
        let mut found: Vec<Option<&Prediction>> = vec![None; self.questions().len()];
        for (prediction, at) in predictions.iter().zip(self.positions(predictions)) {
            let Some(slot) = at.and_then(|at| found.get_mut(at)) else { continue };
            match slot {
                // A resumed run asks questions again that failed.
                Some(earlier) if earlier.answer.is_some() => {
                    if prediction.answer.is_some() && !earlier.says_the_same(prediction) {
                        let message =
                            format!("the predictions have question {} twice, with other answers", prediction.id);
                        return Err(Error::data(message + ": remove one"));
                    }
                }
                _ => *slot = Some(prediction),
            }
        }
        if found.iter().all(Option::is_none) {
            let (theirs, ours) =
                (predictions.first().map(|p| p.id.as_str()), self.questions().first().map(|q| q.id.as_str()));
            let or_images = if self.has_ids_of_images() { ", or names of images beside a `prompt`" } else { "" };
            return Err(Error::data(format!(
                "no prediction is of a question of {}: ids are like {}, expected like {}{or_images}",
                self.benchmark().title,
                theirs.unwrap_or_default(),
                ours.unwrap_or_default()
            )));
        }
        self.check_prompts(&found)?;
        Ok(found)
    }

    /// The place among [`Self::questions`] of what each prediction answers; `None` for another question. Ids that are none
    /// of the questions' own may be those of LLaVA's lists: names of images, where the prompt says which question about the
    /// image it is (TextVQA, and files whose questions share ids), and numbers of all splits (POPE: 10,000,000 more in the
    /// random one, 20,000,000 in the popular). The id of a caption may be the name of COCO's image. Predictions that answer
    /// the same question about an image as others are taken in the order of the questions.
    pub fn positions(&self, predictions: &[Prediction]) -> Vec<Option<usize>> {
        // What a limit leaves out is answered, too, and by no other question.
        let questions = Vec::from_iter(self.questions().iter().chain(self.beyond()));
        let by_id = HashMap::from_iter(questions.iter().enumerate().map(|(at, asked)| (asked.id.as_str(), at)));
        let by_image = self.has_ids_of_images();
        let lookup = Lookup { benchmark: self.benchmark(), questions: &questions, by_id, by_image };
        let within = |at: &Option<usize>| at.filter(|at| *at < self.questions().len());
        lookup.positions(predictions).iter().map(within).collect()
    }

    /// Number of predictions whose prompts do not have the questions in them, among those of [`Self::matched`].
    pub fn count_other_prompts(&self, matched: &[Option<&Prediction>]) -> usize {
        self.prompts(matched).filter(|(question, prompt)| !asks(question, prompt)).count()
    }

    /// The questions with their prompts in the predictions. What is asked for captions is no part of their files.
    fn prompts<'a>(&'a self, matched: &[Option<&'a Prediction>]) -> impl Iterator<Item = (&'a Question, &'a str)> {
        let are_questions = self.benchmark().metric != Metric::Captions;
        let pairs = self.questions().iter().zip(matched).filter(move |_| are_questions);
        pairs.filter_map(|(question, found)| Some((question, (*found)?.prompt.as_deref()?)))
    }

    /// Number of predictions that are of none of the questions.
    pub fn count_others(&self, predictions: &[Prediction]) -> usize {
        self.positions(predictions).iter().filter(|at| at.is_none()).count()
    }

    /// Whether predictions may have the names of images for ids.
    fn has_ids_of_images(&self) -> bool {
        self.benchmark().name == "textvqa" || self.with_shared_ids() > 0
    }

    /// Refuses predictions whose prompts are of other questions: numbers from 1 are ids in many files.
    fn check_prompts(&self, predictions: &[Option<&Prediction>]) -> Result<()> {
        let (same, others): (Vec<_>, Vec<_>) =
            self.prompts(predictions).partition(|(asked, prompt)| asks(asked, prompt));
        // Splits of POPE ask much the same under the same numbers.
        let is_pope = self.benchmark().metric == Metric::YesNo;
        let Some((question, prompt)) = others.first().filter(|_| is_pope || others.len() > same.len()) else {
            return Ok(());
        };
        let split = question.categories.first().filter(|_| is_pope);
        let within = split.map_or_else(String::new, |split| format!(" in category {split}"));
        let count =
            others.iter().filter(|(other, _)| split.is_none_or(|split| other.categories.first() == Some(split)));
        Err(Error::data(format!(
            "the predictions are of other questions{within}: `prompt` of {} is `{}`, expected `{}` in it ({} such): choose \
             those of this file, or remove `prompt`",
            question.id,
            short(prompt),
            short(&question.text),
            count.count()
        )))
    }
}

/// The questions by what predictions name them with.
struct Lookup<'q> {
    benchmark: &'static Benchmark,
    questions: &'q [&'q Question],
    by_id: HashMap<&'q str, usize>,
    /// Whether predictions may have the names of images for ids.
    by_image: bool,
}

/// Questions with the same words about images of one name.
#[derive(Default)]
struct Same {
    places: Vec<usize>,
    /// Number of them that have an answer.
    answered: usize,
}

impl Lookup<'_> {
    fn positions(&self, predictions: &[Prediction]) -> Vec<Option<usize>> {
        if self.are_llavas(predictions) {
            let found = Vec::from_iter(predictions.iter().map(|prediction| self.of_llavas_pope(&prediction.id)));
            if found.iter().any(Option::is_some) {
                return found;
            }
        }
        let mut found = Vec::from_iter(predictions.iter().map(|prediction| self.of_id(&prediction.id)));
        if self.by_image && found.iter().any(Option::is_none) {
            self.add_by_image(predictions, &mut found, |text| text.trim().to_owned());
            self.add_by_image(predictions, &mut found, plain_words);
        }
        found
    }

    fn of_id(&self, id: &str) -> Option<usize> {
        let number = if self.benchmark.metric == Metric::Captions { coco_number(id) } else { None };
        self.by_id.get(number.unwrap_or(id)).copied()
    }

    /// Whether predictions may have the ids of LLaVA's list of POPE, and the questions those of POPE.
    fn are_llavas(&self, predictions: &[Prediction]) -> bool {
        let is_of_a_split = |id: &str| id.parse().is_ok_and(|id: u64| (10_000_001..END_OF_LLAVA).contains(&id));
        let is_foreign =
            |prediction: &Prediction| is_of_a_split(&prediction.id) && self.of_id(&prediction.id).is_none();
        self.benchmark.name == "pope" && predictions.iter().any(is_foreign)
    }

    /// The question of an id of LLaVA's list of POPE.
    fn of_llavas_pope(&self, id: &str) -> Option<usize> {
        let id = id.parse::<u64>().ok().filter(|id| *id < END_OF_LLAVA)?;
        let (split, first) = SPLITS_OF_LLAVA.into_iter().find(|(_, first)| id >= *first)?;
        let number = (id - first).to_string();
        // Numbers alone are ids where one split is all there is.
        let of_split = |at: &usize| {
            self.questions.get(*at).is_some_and(|question| question.categories.iter().any(|name| name == split))
        };
        self.of_id(&format!("{split}/{number}")).or_else(|| self.of_id(&number).filter(of_split))
    }

    /// Adds the questions of predictions whose ids are names of images, by what `key` makes of question and prompt.
    fn add_by_image(&self, predictions: &[Prediction], found: &mut [Option<usize>], key: impl Fn(&str) -> String) {
        let answered = predictions.iter().zip(found.iter()).filter(|(prediction, _)| prediction.answer.is_some());
        let answered: HashSet<usize> = answered.filter_map(|(_, at)| *at).collect();
        let mut by_words: HashMap<(&str, String), Same> = HashMap::new();
        for (at, question) in self.questions.iter().enumerate().filter(|(at, _)| !answered.contains(at)) {
            by_words.entry((question.image_stem(), key(&question.text))).or_default().places.push(at);
        }
        // An image of another folder may have the same name.
        let image = |at: &usize| self.questions.get(*at).map(|question| &question.image);
        by_words.retain(|_, same| same.places.iter().all(|at| image(at) == same.places.first().and_then(image)));
        for (prediction, slot) in predictions.iter().zip(found).filter(|(_, slot)| slot.is_none()) {
            let Some(prompt) = &prediction.prompt else { continue };
            let parts = beginnings(prompt).chain(prompt.lines().map(str::to_owned));
            let mut keys = parts.map(|part| (prediction.id.as_str(), key(&part)));
            let Some(asked) = keys.find(|key| by_words.contains_key(key)) else { continue };
            let Some(same) = by_words.get_mut(&asked) else { continue };
            *slot = same.places.get(same.answered).or(same.places.last()).copied();
            same.answered += usize::from(prediction.answer.is_some());
        }
    }
}

/// A prompt without more and more of its last lines: a question may have several.
fn beginnings(prompt: &str) -> impl Iterator<Item = String> {
    let lines = Vec::from_iter(prompt.lines());
    let counts = (2..lines.len().min(MAX_QUESTION_LINES)).rev();
    let cut = move |count: usize| Some(lines.get(..count)?.join("\n"));
    std::iter::once(prompt.to_owned()).chain(counts.filter_map(cut))
}

/// Whether a prompt has a line of the question in it, if that has any words. Hints, options and instructions may be others in
/// the prompt of another tool, also behind the question.
fn asks(question: &Question, prompt: &str) -> bool {
    let prompt = without_typo(&plain_words(prompt));
    let asked = question.text.lines().filter_map(|line| line.split_inclusive('?').next());
    let asked = asked.map(|line| without_typo(&plain_words(line))).filter(|line| !line.is_empty());
    let lines = Vec::from_iter(asked.take(if question.is_prompt { 1 } else { usize::MAX }));
    lines.is_empty() || lines.iter().any(|line| prompt.contains(line))
}

/// The words of a text in lower case, without tags such as `<image 1>`.
fn plain_words(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for (at, part) in text.split("<image").enumerate() {
        let part = part.split_once('>').filter(|_| at > 0).map_or(part, |(_, rest)| rest);
        plain.extend([" ", part]);
    }
    Vec::from_iter(plain.split_whitespace()).join(" ").to_lowercase()
}

/// A question of POPE without the error of its first version, which LLaVA's list has.
fn without_typo(question: &str) -> String {
    question.replace("imange", "image")
}

/// The beginning of a text, in one line.
pub(super) fn short(text: &str) -> String {
    one_line(text).chars().take(60).collect()
}

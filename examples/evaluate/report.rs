//! report.html: the answers of a model to look at, in one file.

use std::collections::HashMap;
use std::io::Cursor;
use std::path::Path;

use anyhow::Result;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use haplovl::eval::benchmark::{Prediction, Question, QuestionScore, QuestionSet, Results};
use haplovl::pipeline::LoadedModel;
use haplovl::processor::{AttentionMap, Content, Conversation, RgbImage};
use haplovl::weights::write_bytes_atomically;
use image::{DynamicImage, ImageFormat, imageops};
use serde_json::{Value, json};

/// The page, with marks where the data and the nonce of its scripts go.
const PAGE: &str = include_str!("report.html");
/// Longest side of an image in the page, in pixels.
const SIDE: u32 = 320;
/// Images up to this side are kept without loss.
const LOSSLESS_SIDE: u32 = 128;
/// Most images of a question that are shown.
const MAX_IMAGES: usize = 4;
/// Most answers for which attention is computed, since each takes a pass of the model.
const MAX_ATTENTIONS: usize = 64;
/// Largest attention weights of a layer in bytes: all heads, all pairs of positions, f32.
const MAX_WEIGHTS: usize = 1 << 30;
/// Most characters of a text in the page.
const MAX_CHARS: usize = 2000;

/// What a report is about.
pub struct Report<'a> {
    pub questions: &'a QuestionSet,
    pub predictions: &'a [Option<&'a Prediction>],
    pub results: &'a Results,
    pub instruction: Option<&'a str>,
    /// Seed of the intervals.
    pub seed: u64,
    /// What was evaluated, by name; what is null is not shown.
    pub config: &'a Value,
}

/// Attention maps of the images of a question, or why there are none.
#[derive(Default)]
struct Attention {
    computed: usize,
    left_out: usize,
}

impl Report<'_> {
    /// Writes the page with at most `count` answers; attention needs the model.
    pub fn write(&self, path: &Path, count: usize, model: Option<&LoadedModel>) -> Result<()> {
        let mut attention = Attention::default();
        let chosen = self.chosen(count);
        let cases = chosen.into_iter().map(|(at, score)| self.case(at, score, model, &mut attention));
        let cases = Vec::from_iter(cases);
        let benchmark = self.questions.benchmark();
        let measures = self.results.rows.iter().map(|row| {
            let interval = row.measure.interval(self.seed);
            json!({
                "category": row.category, "name": row.measure.name(), "value": row.measure.value(),
                "low": interval.low, "high": interval.high, "units": row.measure.units(),
            })
        });
        let data = json!({
            "title": benchmark.title, "scored": self.results.scores.len(), "problems": self.results.problems,
            "measures": measures.collect::<Vec<_>>(), "cases": cases, "attention_left_out": attention.left_out,
            "most_attentions": MAX_ATTENTIONS, "facts": self.facts(),
        });
        // Scripts run only with the nonce, which no text in the data can know.
        let nonce = format!("{:032x}", rand::random::<u128>());
        let page = PAGE.replace("NONCE", &nonce).replace("\"DATA\"", &embedded(&data));
        Ok(write_bytes_atomically(path, page.as_bytes())?)
    }

    /// What was evaluated, as texts.
    fn facts(&self) -> Vec<[String; 2]> {
        let fields = self.config.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        fields
            .map(|(name, value)| [name.clone(), short(&text(value))])
            .chain([["seed".into(), self.seed.to_string()]])
            .collect()
    }

    /// Questions with their scores: the worst answers, and a quarter from all others, worst first. Without any score the
    /// first answers.
    fn chosen(&self, count: usize) -> Vec<(usize, Option<&QuestionScore>)> {
        let mut scores = Vec::from_iter(&self.results.scores);
        if scores.is_empty() {
            let answered = self.predictions.iter().enumerate().filter(|(_, prediction)| prediction.is_some());
            return answered.take(count).map(|(at, _)| (at, None)).collect();
        }
        scores.sort_by(|a, b| a.score.total_cmp(&b.score));
        let (worst, rest) = scores.split_at(scores.len().min(count - count / 4));
        let others = count.saturating_sub(worst.len()).min(rest.len());
        let spread = (0..others).filter_map(|n| rest.get(n * rest.len() / others.max(1)));
        worst.iter().chain(spread).map(|score| (score.question, Some(*score))).collect()
    }

    fn case(
        &self,
        at: usize,
        score: Option<&QuestionScore>,
        model: Option<&LoadedModel>,
        attention: &mut Attention,
    ) -> Value {
        let Some(question) = self.questions.questions().get(at) else { return Value::Null };
        let given = self.predictions.get(at).copied().flatten();
        let answer = given.and_then(|given| given.answer.as_deref());
        let prompt = question.prompt(self.questions.benchmark().metric, self.instruction);
        let (images, problem) = match self.images(question, &prompt, model, attention) {
            Ok(images) => (images, None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        let error = given.and_then(|given| given.error.as_deref()).filter(|error| problem.as_deref() != Some(*error));
        json!({
            "id": question.id, "categories": Vec::from_iter(question.category_names()), "prompt": short(&prompt),
            "right": question.answers.iter().map(|right| short(right)).collect::<Vec<_>>(), "answer": answer.map(short),
            "read_as": score.and_then(|score| score.read_as.as_deref()), "problem": score.and_then(|score| score.problem),
            "score": score.map(|score| score.score), "images": images, "image_problem": problem, "error": error.map(short),
        })
    }

    /// The images of a question, with attention where there is a model.
    fn images(
        &self,
        question: &Question,
        prompt: &str,
        model: Option<&LoadedModel>,
        attention: &mut Attention,
    ) -> haplovl::Result<Vec<Value>> {
        let Some(model) = model else {
            let images = self.questions.decoded(question)?;
            return Ok(images.iter().take(MAX_IMAGES).map(|image| shown(image, None)).collect());
        };
        let conversation = self.questions.conversation(question, prompt, model.processor())?;
        let maps = attention.maps(model, &conversation).unwrap_or_default();
        let images = conversation.messages.iter().flat_map(|message| &message.content);
        let images = images.filter_map(|content| if let Content::Image(image) = content { Some(image) } else { None });
        let images = images.enumerate().take(MAX_IMAGES).map(|(n, image)| shown(image, maps.get(n)));
        Ok(images.collect())
    }
}

impl Attention {
    /// The maps of an answer's first token, unless there are enough of them or one would take too much memory.
    fn maps(&mut self, model: &LoadedModel, asked: &Conversation) -> Option<Vec<AttentionMap>> {
        let config = model.model().config();
        let layer = config.pre_decoder.num_hidden_layers.saturating_sub(1);
        let positions = model.processor().sequence(asked, true).map_or(usize::MAX, |sequence| sequence.len());
        let weights = positions.saturating_mul(positions).saturating_mul(4 * config.pre_decoder.num_attention_heads);
        let maps = match self.computed < MAX_ATTENTIONS && weights <= MAX_WEIGHTS {
            true => model.answer_attention(asked, layer, None).ok(),
            false => None,
        };
        match &maps {
            Some(_) => self.computed += 1,
            None => self.left_out += 1,
        }
        maps
    }
}

/// An image, scaled down, and the attention to its parts.
fn shown(image: &RgbImage, map: Option<&AttentionMap>) -> Value {
    let (width, height) = image.dimensions();
    let scale = f64::from(SIDE) / f64::from(width.max(height).max(1));
    let size = |side: u32| ((f64::from(side) * scale) as u32).max(1);
    let scaled = match scale < 1.0 {
        true => imageops::resize(image, size(width), size(height), imageops::Triangle),
        false => image.clone(),
    };
    let is_small = scaled.width().max(scaled.height()) <= LOSSLESS_SIDE;
    let format = if is_small { ImageFormat::Png } else { ImageFormat::Jpeg };
    let mut bytes = Cursor::new(Vec::new());
    let written = DynamicImage::from(scaled).write_to(&mut bytes, format);
    let content = if written.is_ok() { BASE64_STANDARD.encode(bytes.into_inner()) } else { String::new() };
    let cells = map.map(|map| {
        let share = |pixel: u32, side: u32| (f64::from(pixel) / f64::from(side.max(1)) * 1e4).round() / 1e4;
        let cell = |cell: &haplovl::processor::AttentionCell| {
            let (x, y) = (&cell.pixel_columns, &cell.pixel_rows);
            let weight = (f64::from(cell.weight) * 1e6).round() / 1e6;
            json!([share(x.start, width), share(y.start, height), share(x.end, width), share(y.end, height), weight])
        };
        map.cells().iter().map(cell).collect::<Vec<_>>()
    });
    json!({ "src": format!("data:{};base64,{content}", format.to_mime_type()), "cells": cells })
}

/// The start of a text.
fn short(text: &str) -> String {
    let mut start: String = text.chars().take(MAX_CHARS).collect();
    if start.len() < text.len() {
        start.push('…');
    }
    start
}

/// JSON that cannot end the element that it stands in.
fn embedded(data: &Value) -> String {
    let escapes = HashMap::from([
        ('<', "\\u003c"),
        ('>', "\\u003e"),
        ('&', "\\u0026"),
        ('\u{2028}', "\\u2028"),
        ('\u{2029}', "\\u2029"),
    ]);
    let mut text = String::new();
    for c in data.to_string().chars() {
        match escapes.get(&c) {
            Some(escape) => text.push_str(escape),
            None => text.push(c),
        }
    }
    text
}

//! Example: writes images of shapes world with their captions and questions, to inspect the data.
//!
//! `cargo run --example shapes -- [--out DIR] [--split test] [--count 24] [--side 64]` writes one PNG per scene, a
//! contact sheet `sheet.png`, and `scenes.jsonl` with the contents of each scene. With `--layout` it writes a data set as
//! users have them, to try out fine-tuning.

#[path = "common/cli.rs"]
mod cli;

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::{Parser, ValueEnum};
use haplovl::data::shapes::{Question, Scene, ShapesConfig, Split, caption_prompt};
use image::RgbImage;
use image::imageops::{self, FilterType};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// Writes images of shapes world with their captions and questions.
///
/// The folder gets one PNG per scene, a contact sheet sheet.png, and scenes.jsonl with the contents of each scene; with
/// --layout a data set to fine-tune on.
#[derive(Parser)]
#[command(after_help = "Examples:\n  \
    shapes\n  \
    shapes --out images --split train --count 200 --side 128\n  \
    shapes --out parts --split train --count 2000 --layout llava --rename")]
struct Arguments {
    /// Folder to write to; created if necessary
    #[arg(long, default_value = "shapes-world", value_name = "DIR")]
    out: PathBuf,
    /// Split of the generated world
    #[arg(long, default_value = "test")]
    split: SplitName,
    /// Number of scenes
    #[arg(long, default_value_t = 24, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    count: u64,
    /// Side of the images in pixels
    #[arg(long, default_value_t = 64, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(16..=1024))]
    side: u32,
    /// Magnification of the images on the contact sheet
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8))]
    zoom: u32,
    /// What to write beside the images
    #[arg(long, default_value = "scenes", value_name = "LAYOUT")]
    layout: Layout,
    /// Call things by words that the built-in model does not know: a red ring becomes a crimson washer
    #[arg(long)]
    rename: bool,
}

/// Texts beside the images.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Layout {
    /// scenes.jsonl with the contents of each scene, and a contact sheet
    Scenes,
    /// A text file with the caption of each image: 0000.png, 0000.txt
    Captions,
    /// questions.json: records in LLaVA's format, with a question of each kind that the scene allows
    Llava,
}

#[derive(Clone, Copy, ValueEnum)]
enum SplitName {
    Train,
    Validation,
    Test,
}

/// Largest number of images on the contact sheet.
const SHEET: usize = 64;

fn main() -> ExitCode {
    cli::main(write)
}

fn write(arguments: Arguments) -> Result<()> {
    let split = match arguments.split {
        SplitName::Train => Split::Train,
        SplitName::Validation => Split::Validation,
        SplitName::Test => Split::Test,
    };
    let fail = |path: &Path, e: &dyn Display| anyhow!("writing {}: {e}", path.display());
    fs::create_dir_all(&arguments.out).map_err(|e| fail(&arguments.out, &e))?;
    let scenes: Vec<_> = (0..arguments.count).map(|i| split.scene(i, &ShapesConfig::default())).collect();
    let mut images = Vec::with_capacity(SHEET);
    let mut texts = Vec::with_capacity(scenes.len());
    for (i, scene) in scenes.iter().enumerate() {
        let name = format!("{i:04}.png");
        let (image, path) = (scene.render(arguments.side), arguments.out.join(&name));
        image.save(&path).map_err(|e| fail(&path, &e))?;
        texts.push(Texts::of(scene, name, arguments.rename));
        if images.len() < SHEET {
            images.push(image);
        }
    }
    let write = |name: &str, text: String| {
        let path = arguments.out.join(name);
        fs::write(&path, text).map_err(|e| fail(&path, &e))
    };
    match arguments.layout {
        Layout::Scenes => {
            let lines = scenes.iter().zip(&texts).map(|(scene, texts)| format!("{}\n", texts.with_scene(scene)));
            write("scenes.jsonl", lines.collect())?;
            let path = arguments.out.join("sheet.png");
            contact_sheet(&images, arguments.zoom).save(&path).map_err(|e| fail(&path, &e))?;
        }
        Layout::Captions => texts
            .iter()
            .try_for_each(|texts| write(&texts.image.replace(".png", ".txt"), format!("{}\n", texts.caption)))?,
        Layout::Llava => {
            let records: Vec<_> = texts.iter().map(Texts::record).collect();
            write("questions.json", serde_json::to_string_pretty(&records)?)?;
        }
    }
    cli::print(format_args!("{} scenes in {}", scenes.len(), arguments.out.display()))
}

/// Texts about a scene.
struct Texts {
    image: String,
    prompt: String,
    caption: String,
    questions: Vec<Question>,
    sentences: Vec<String>,
}

impl Texts {
    fn of(scene: &Scene, image: String, renames: bool) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(scene.seed);
        let text = |text: String| if renames { renamed(&text) } else { text };
        Self {
            image,
            prompt: text(caption_prompt(&mut rng)),
            caption: text(scene.caption(&mut rng)),
            questions: (scene.questions(&mut rng).into_iter())
                .map(|q| Question { question: text(q.question), answer: text(q.answer), ..q })
                .collect(),
            sentences: scene.text_sentences(&mut rng).into_iter().map(text).collect(),
        }
    }

    /// Everything about a scene.
    fn with_scene(&self, scene: &Scene) -> Value {
        let Self { image, prompt, caption, questions, sentences } = self;
        json!({
            "image": image, "prompt": prompt, "caption": caption, "questions": questions, "sentences": sentences,
            "scene": scene,
        })
    }

    /// A record in LLaVA's format.
    fn record(&self) -> Value {
        let turn = |from: &str, value: &str| json!({ "from": from, "value": value });
        let turns = self.questions.iter().enumerate().flat_map(|(n, Question { question, answer, .. })| {
            let marker = if n == 0 { "<image>\n" } else { "" };
            [turn("human", &format!("{marker}{question}")), turn("gpt", answer)]
        });
        let id = self.image.trim_end_matches(".png");
        json!({ "id": id, "image": self.image, "conversations": turns.collect::<Vec<_>>() })
    }
}

/// Words of shapes world, and what they are called in a workshop.
const RENAMED: [(&str, &str); 25] = [
    ("circle", "disc"),
    ("square", "tile"),
    ("triangle", "wedge"),
    ("star", "gear"),
    ("cross", "bracket"),
    ("crosses", "brackets"),
    ("ring", "washer"),
    ("red", "crimson"),
    ("green", "olive"),
    ("blue", "navy"),
    ("yellow", "amber"),
    ("orange", "copper"),
    ("purple", "violet"),
    ("pink", "rose"),
    ("cyan", "teal"),
    ("small", "tiny"),
    ("medium", "standard"),
    ("large", "big"),
    ("object", "part"),
    ("colour", "finish"),
    ("shape", "type"),
    ("picture", "tray"),
    ("image", "tray"),
    ("shows", "holds"),
    ("contains", "holds"),
];

/// The text with every word that has another name replaced, and articles that fit.
fn renamed(text: &str) -> String {
    let name = |word: &str| {
        let core = word.trim_end_matches(|c: char| c.is_ascii_punctuation());
        let of = |name: &str| RENAMED.iter().find(|(known, _)| *known == name).map(|(_, new)| (*new).to_string());
        let plural = || of(core.strip_suffix('s')?).map(|new| new + "s");
        of(core).or_else(plural).map_or_else(|| word.to_string(), |new| new + &word[core.len()..])
    };
    let words: Vec<String> = text.split(' ').map(name).collect();
    let article = |n: usize| {
        let next = words.get(n + 1).and_then(|next| next.chars().next()).unwrap_or_default();
        match words[n].as_str() {
            "a" | "an" => {
                if "aeiou".contains(next) {
                    "an"
                } else {
                    "a"
                }
            }
            other => other,
        }
    };
    (0..words.len()).map(article).collect::<Vec<_>>().join(" ")
}

/// Contact sheet of all images, magnified, in rows of eight with a narrow gap.
fn contact_sheet(images: &[RgbImage], zoom: u32) -> RgbImage {
    let columns = images.len().clamp(1, 8) as u32;
    let rows = (images.len() as u32).div_ceil(columns);
    let side = images.first().map_or(0, |image| image.width() * zoom) + 4;
    let mut sheet = RgbImage::from_pixel(columns * side, rows * side, image::Rgb([255; 3]));
    for (i, image) in images.iter().enumerate() {
        let large = imageops::resize(image, side - 4, side - 4, FilterType::Nearest);
        let (column, row) = (i as u32 % columns, i as u32 / columns);
        imageops::replace(&mut sheet, &large, i64::from(column * side + 2), i64::from(row * side + 2));
    }
    sheet
}

//! Scaling benchmark: prefill and decoding by prompt length, image tiles and number of sequences; a training step by
//! sequence length and number of layers.
//!
//! `cargo bench --bench growth [-- NAME]` (Linux) measures each table row in a separate process, since peak memory
//! never shrinks within a process, and draws plots into `growth` in the target folder. NAME is one of the tables:
//! `prompts`, `tiles`, `sequences`, `training`, `layers`.

#![allow(clippy::expect_used, reason = "a failing bench should stop instead of being timed")]

#[allow(dead_code, reason = "each bench uses a subset")]
mod common;
#[path = "../examples/common/memory.rs"]
mod memory;

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Instant;

use haplovl::batch::MultimodalBatch;
use haplovl::config::HaploVlConfig;
use haplovl::options::{Precision, Quantization};
use haplovl::train::on_large_stack;
use haplovl::train::plot::{Plot, Series};

/// Environment variable with the case that a child process measures.
const CASE: &str = "HAPLOVL_GROWTH_CASE";
/// Number of tokens generated after each prompt.
const NEW_TOKENS: usize = 16;

const FORMATS: &[&str] = &["f32", "q8_0", "q4_k"];
const LENGTHS: &[&str] = &["160", "320", "640", "1280", "2560", "5120"];
const CHECKPOINTED: &[&str] = &["no", "yes"];

/// Table of measurements over two varied parameters.
struct Table {
    name: &'static str,
    /// Name and values of each parameter.
    by: [(&'static str, &'static [&'static str]); 2],
    /// Column titles of the measured values.
    measured: &'static [&'static str],
    measure: fn([&str; 2]) -> haplovl::Result<Vec<f64>>,
}

/// Points of a plot by the value of the first parameter.
type Curves<'a> = BTreeMap<&'a str, Vec<(f64, f64)>>;

const INFERENCE: &[&str] = &["tokens", "prefill, s", "prefill, ms a token", "decoding, tokens/s", "peak, MB"];
const TRAINING: &[&str] = &["parameters, M", "before, MB", "peak, MB", "step, s"];

const TABLES: [Table; 5] = [
    Table {
        name: "prompts",
        by: [("weights", FORMATS), ("tokens of text", LENGTHS)],
        measured: INFERENCE,
        measure: prompts,
    },
    Table {
        name: "tiles",
        by: [("weights", FORMATS), ("tiles", &["1", "2", "3", "4", "5", "6"])],
        measured: INFERENCE,
        measure: tiles,
    },
    Table {
        name: "sequences",
        by: [("weights", FORMATS), ("sequences", &["1", "2", "4", "8"])],
        measured: INFERENCE,
        measure: sequences,
    },
    Table {
        name: "training",
        by: [("checkpointed", CHECKPOINTED), ("tokens of text", &["160", "320", "640", "1280", "2560"])],
        measured: TRAINING,
        measure: training,
    },
    Table {
        name: "layers",
        by: [("checkpointed", CHECKPOINTED), ("post-decoder layers", &["4", "8", "12"])],
        measured: TRAINING,
        measure: layers,
    },
];

fn main() {
    memory::keep();
    if let Ok(case) = std::env::var(CASE) {
        let mut words = case.split(' ');
        let mut word = || words.next().expect("three words");
        let (name, values) = (word(), [word(), word()]);
        let table = TABLES.iter().find(|table| table.name == name).expect("a table");
        let measured = on_large_stack(|| (table.measure)(values)).expect("a measurement");
        println!("{}", measured.iter().map(f64::to_string).collect::<Vec<_>>().join(" "));
        return;
    }
    let asked = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    for table in TABLES.iter().filter(|table| asked.as_deref().is_none_or(|name| name == table.name)) {
        run_table(table);
    }
}

/// Measures a table, prints it and draws its plots.
fn run_table(table: &Table) {
    let [(first, firsts), (second, seconds)] = table.by;
    println!("\n| {first} | {second} | {} |", table.measured.join(" | "));
    println!("|{}", "---|".repeat(2 + table.measured.len()));
    let mut curves: BTreeMap<&str, Curves<'_>> = BTreeMap::new();
    for first in firsts {
        for second in seconds {
            let case = format!("{} {first} {second}", table.name);
            let output =
                Command::new(std::env::current_exe().expect("the path of this program")).env(CASE, &case).output();
            let output = output.expect("a process");
            assert!(output.status.success(), "{case}: {}", String::from_utf8_lossy(&output.stderr));
            let line = String::from_utf8(output.stdout).expect("numbers");
            let measured: Vec<f64> = line.split_whitespace().map(|word| word.parse().expect("a number")).collect();
            println!(
                "| {first} | {second} | {} |",
                measured.iter().map(|value| three_digits(*value)).collect::<Vec<_>>().join(" | ")
            );
            let x = second.parse().expect("a number");
            for (name, value) in table.measured.iter().zip(measured) {
                curves.entry(name).or_default().entry(first).or_default().push((x, value));
            }
        }
    }
    let folder = common::report::target_folder().expect("the target folder").join("growth");
    std::fs::create_dir_all(&folder).expect("a folder");
    for (measured, by_first) in curves {
        let series = |(name, points): (&str, Vec<(f64, f64)>)| Series { name: format!("{first} {name}"), points };
        let plot = Plot {
            title: format!("{measured} by {second}"),
            x_label: second.into(),
            y_label: measured.into(),
            log_y: false,
            smoothing: 0.0,
            series: by_first.into_iter().map(series).collect(),
        };
        let words: Vec<&str> = measured.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
        let file = folder.join(format!("{}-{}.svg", table.name, words.join("-")));
        plot.write_svg(&file).expect("a plot");
        eprintln!("{}", file.display());
    }
}

/// Formats a value with three significant digits.
fn three_digits(value: f64) -> String {
    let decimals = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.decimals$}")
}

/// Returns the configuration of the other benches, with a longer context and with grids of five and six tiles.
fn config() -> HaploVlConfig {
    let mut config = common::config();
    config.max_position_embeddings = 8192;
    config.vision.image_grid_pinpoints.extend([[336, 1680], [672, 1008]]);
    config
}

fn prompts([format, tokens]: [&str; 2]) -> haplovl::Result<Vec<f64>> {
    inference(format, &common::text(&config(), tokens.parse().expect("a number")))
}

fn tiles([format, tiles]: [&str; 2]) -> haplovl::Result<Vec<f64>> {
    let (columns, rows) = match tiles {
        "1" => (1, 1),
        "2" => (2, 1),
        "3" => (3, 1),
        "4" => (2, 2),
        "5" => (5, 1),
        _ => (3, 2),
    };
    inference(format, &common::prompt_of(&config(), 1, (336 * columns, 336 * rows)))
}

fn sequences([format, rows]: [&str; 2]) -> haplovl::Result<Vec<f64>> {
    inference(format, &common::prompt(&config(), rows.parse().expect("a number")))
}

/// Measures prefill on the second of two runs, with warm memory, and then decoding.
fn inference(format: &str, prompt: &MultimodalBatch) -> haplovl::Result<Vec<f64>> {
    let model = common::model(&config(), format.parse::<Quantization>().ok());
    let (rows, length) = (prompt.batch_size(), prompt.layout.seq_len);
    let mut cache = model.cache(rows, length + NEW_TOKENS)?;
    let mut seconds = 0.0;
    for _ in 0..2 {
        cache.truncate(0);
        let start = Instant::now();
        model.prefill(prompt, &mut cache)?;
        seconds = start.elapsed().as_secs_f64();
    }
    let start = Instant::now();
    for id in 0..NEW_TOKENS as u32 {
        model.decode(&vec![3000 + id; rows], &mut cache)?;
    }
    let decoded = (rows * NEW_TOKENS) as f64 / start.elapsed().as_secs_f64();
    let tokens = (rows * length) as f64;
    Ok(vec![tokens, seconds, 1e3 * seconds / tokens, decoded, megabytes("VmHWM:")])
}

fn training([checkpointed, tokens]: [&str; 2]) -> haplovl::Result<Vec<f64>> {
    let config = config();
    step(&config, checkpointed, &common::text(&config, tokens.parse().expect("a number")))
}

fn layers([checkpointed, layers]: [&str; 2]) -> haplovl::Result<Vec<f64>> {
    let mut config = common::config();
    config.post_decoder.num_hidden_layers = layers.parse().expect("a number");
    step(&config, checkpointed, &common::prompt(&config, 1))
}

/// Takes two training steps and times the second.
fn step(config: &HaploVlConfig, checkpointed: &str, batch: &MultimodalBatch) -> haplovl::Result<Vec<f64>> {
    let mut trainer = common::trainer(config, checkpointed == "yes", Precision::Full)?;
    let parameters: usize = trainer.parameters().values().map(|var| var.elem_count()).sum();
    let before = megabytes("VmRSS:");
    trainer.step(std::slice::from_ref(batch))?;
    let start = Instant::now();
    trainer.step(std::slice::from_ref(batch))?;
    Ok(vec![parameters as f64 / 1e6, before, megabytes("VmHWM:"), start.elapsed().as_secs_f64()])
}

fn megabytes(field: &str) -> f64 {
    common::megabytes(field).expect("a Linux process")
}

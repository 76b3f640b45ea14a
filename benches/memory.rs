//! Peak memory of a training step, with and without gradient checkpointing, by the number of layers.
//!
//! `cargo bench --bench memory` (Linux) takes two steps on the prompt of the other benches for each line of its table, in
//! a process of its own: memory that a process has once touched counts for good.

#![allow(clippy::expect_used, reason = "a bench that fails should stop, not be counted")]

#[allow(dead_code, reason = "each bench uses its part")]
mod common;
#[path = "../examples/common/memory.rs"]
mod memory;

use std::process::Command;
use std::time::Instant;

use haplovl::train::on_large_stack;

/// Says which case a process is to take: layers and whether checkpointed.
const CASE: &str = "HAPLOVL_MEMORY_CASE";

fn main() {
    memory::keep();
    if let Ok(case) = std::env::var(CASE) {
        on_large_stack(|| measure(&case)).expect("a thread");
        return;
    }
    println!("| post-decoder layers | checkpointed | parameters, M | before, MB | peak, MB | step, s |");
    println!("|---|---|---|---|---|---|");
    for layers in [4, 8, 12] {
        for checkpointed in [false, true] {
            let mut process = Command::new(std::env::current_exe().expect("the path of this program"));
            let status = process.env(CASE, format!("{layers} {checkpointed}")).status().expect("a process");
            assert!(status.success(), "{layers} layers: {status}");
        }
    }
}

fn measure(case: &str) -> haplovl::Result<()> {
    let (layers, checkpointed) = case.split_once(' ').expect("two words");
    let mut config = common::config();
    config.post_decoder.num_hidden_layers = layers.parse().expect("a number");
    let mut trainer = common::trainer(&config, checkpointed == "true")?;
    let batch = common::prompt(&config, 1);
    let parameters: usize = trainer.parameters().values().map(|var| var.elem_count()).sum();
    let before = megabytes("VmRSS:");
    trainer.step(std::slice::from_ref(&batch))?;
    let start = Instant::now();
    trainer.step(std::slice::from_ref(&batch))?;
    let seconds = start.elapsed().as_secs_f64();
    let (millions, peak) = (parameters as f64 / 1e6, megabytes("VmHWM:"));
    println!("| {layers} | {checkpointed} | {millions:.0} | {before:.0} | {peak:.0} | {seconds:.1} |");
    Ok(())
}

/// A line of this process's status, which counts in KiB.
fn megabytes(field: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux's /proc");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
    line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") * 1024.0 / 1e6
}

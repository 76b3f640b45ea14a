//! Configuration files, as JSON merged into a valid one: of the model in both forms, of generation, and of the processor.
//!
//! The first byte chooses the file. An accepted configuration is the same after it was written and read again, and
//! an image can be cut into tiles with it.

#![no_main]

use haplovl::config::{GenerationConfig, HaploVlConfig, PreprocessorConfig, ProcessorConfig, VisionConfig};
use haplovl::processor::{ImageProcessor, RgbImage};
use haplovl_fuzz::{accepted, builtin_config, builtin_json, patched};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

/// Canvases up to this many pixels are drawn; the largest ones only cost time.
const MAX_PIXELS: usize = 1 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((kind, patch)) = data.split_first() else { return };
    match kind % 5 {
        0 => own_form(patch),
        1 => official_form(patch),
        2 => generation(patch),
        3 => preprocessor(patch),
        _ => processor(patch),
    }
});

fn own_form(patch: &[u8]) {
    let tiny = serde_json::to_value(HaploVlConfig::tiny()).expect("a configuration is JSON");
    if let Some(value) = patched(tiny, patch) {
        model(value);
    }
}

fn official_form(patch: &[u8]) {
    if let Some(value) = patched(builtin_json("config.json"), patch) {
        model(value);
    }
}

fn model(value: Value) {
    let Some(config) = accepted(HaploVlConfig::from_json(value)) else { return };
    let own = serde_json::to_value(&config).expect("a configuration is JSON");
    assert_eq!(accepted(HaploVlConfig::from_json(own)).as_ref(), Some(&config));
    if config.is_official() {
        let official = accepted(config.to_official()).expect("an official configuration can be written");
        let read = accepted(HaploVlConfig::from_json(official)).expect("what was written can be read");
        assert_eq!(read.to_official().ok(), config.to_official().ok());
    }
    cut_into_tiles(&PreprocessorConfig::image(&config.vision), &config.vision);
}

fn cut_into_tiles(preprocessor: &PreprocessorConfig, vision: &VisionConfig) {
    let largest = vision.image_grid_pinpoints.iter().map(|[height, width]| height * width).max();
    if largest.is_some_and(|pixels| pixels <= MAX_PIXELS) {
        let Some(processor) = accepted(ImageProcessor::new(preprocessor, vision)) else { return };
        for (width, height) in [(1, 1), (5, 3), (2, 17)] {
            accepted(processor.process(&RgbImage::new(width, height)));
        }
    }
}

fn generation(patch: &[u8]) {
    let base = serde_json::to_value(GenerationConfig::default()).expect("a configuration is JSON");
    let Some(value) = patched(base, patch) else { return };
    let file = haplovl_fuzz::file("generation_config.json", value.to_string().as_bytes());
    if let Some(config) = accepted(GenerationConfig::from_file(file)) {
        accepted(config.validate()).expect("a configuration that was read is valid");
    }
}

fn preprocessor(patch: &[u8]) {
    let vision = builtin_config().vision;
    let Some(value) = patched(builtin_json("preprocessor_config.json"), patch) else { return };
    let Some(config) = accepted(PreprocessorConfig::from_json(value, &vision)) else { return };
    assert_eq!(accepted(PreprocessorConfig::from_json(config.to_json(), &vision)).as_ref(), Some(&config));
    cut_into_tiles(&config, &vision);
}

fn processor(patch: &[u8]) {
    let vision = builtin_config().vision;
    let Some(value) = patched(json!({ "image_token": "<image>", "video_token": "<video>" }), patch) else { return };
    let Some(config) = accepted(ProcessorConfig::from_json(value, &vision)) else { return };
    assert_eq!(accepted(ProcessorConfig::from_json(config.to_json(), &vision)).as_ref(), Some(&config));
}

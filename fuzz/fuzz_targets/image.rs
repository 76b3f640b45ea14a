//! Image files of every format: the first image, all frames, and its tiles.
//!
//! No decoded image is larger than the limit on pixels.

#![no_main]

use std::sync::LazyLock;

use haplovl::config::PreprocessorConfig;
use haplovl::processor::{ImageDecoder, ImageProcessor, RgbImage};
use haplovl_fuzz::{accepted, builtin_config};
use libfuzzer_sys::fuzz_target;

const DECODER: ImageDecoder = ImageDecoder { max_pixels: 1 << 20 };
/// Frames of one animation that are decoded.
const MAX_FRAMES: usize = 16;

static PROCESSOR: LazyLock<ImageProcessor> = LazyLock::new(|| {
    let vision = builtin_config().vision;
    ImageProcessor::new(&PreprocessorConfig::image(&vision), &vision).expect("the built-in configuration is valid")
});

fuzz_target!(|data: &[u8]| {
    if let Some(image) = accepted(DECODER.decode(data, "input")) {
        check_size(&image);
        accepted(PROCESSOR.process(&image)).expect("an image that was decoded can be cut into tiles");
    }
    let Some(frames) = accepted(DECODER.frames(data, "input")) else { return };
    frames.take(MAX_FRAMES).map_while(accepted).for_each(|frame| check_size(&frame));
});

fn check_size(image: &RgbImage) {
    let pixels = u64::from(image.width()) * u64::from(image.height());
    assert!((1..=DECODER.max_pixels).contains(&pixels), "{pixels} pixels");
}

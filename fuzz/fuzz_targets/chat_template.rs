//! Chat templates: compiled, and rendered for a conversation with an image.
//!
//! Time and memory are bounded by the template's fuel and size limits, which libFuzzer's limits check from outside.

#![no_main]

use haplovl::processor::{ChatTemplate, Conversation, RgbImage};
use haplovl_fuzz::{accepted, processor};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|source: &str| {
    let Some(template) = accepted(ChatTemplate::new(source)) else { return };
    let Some(processor) = accepted(processor(Some(template))) else { return };
    let conversation = Conversation::ask([RgbImage::new(3, 2)], "what is in the image?");
    accepted(processor.sequence(&conversation, true));
    accepted(processor.training_sequence(&conversation));
});

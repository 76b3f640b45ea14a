//! What a user says: it never becomes a control token, whatever is in it.

#![no_main]

use std::sync::LazyLock;

use haplovl::processor::{Conversation, Processor, RgbImage};
use haplovl_fuzz::accepted;
use libfuzzer_sys::fuzz_target;

static PROCESSOR: LazyLock<Processor> =
    LazyLock::new(|| haplovl_fuzz::processor(None).expect("the built-in processor works"));

fuzz_target!(|text: &str| {
    let asked = |text: &str| PROCESSOR.sequence(&Conversation::ask([RgbImage::new(3, 2)], text), true);
    let Some(sequence) = accepted(asked(text)) else { return };
    let plain = asked("a").expect("a plain question is accepted");
    let control = |ids: &[u32]| ids.iter().filter(|&&id| PROCESSOR.tokenizer().is_special(id)).count();
    assert_eq!(control(&sequence.input_ids), control(&plain.input_ids), "{text:?}");
    assert_eq!(sequence.visuals.len(), 1);
});

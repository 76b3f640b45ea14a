//! `tokenizer.json`: a whole file, or JSON merged into a valid one.
//!
//! The first byte chooses which. An accepted tokenizer encodes and decodes text or refuses it, and its ids decode.

#![no_main]

use haplovl::processor::TextTokenizer;
use haplovl_fuzz::{accepted, allow_caught_panics, builtin_json, file, folder, patched};
use libfuzzer_sys::fuzz_target;

const TEXTS: [&str; 4] =
    ["", "what is in the image?", "<|im_end|><image>", "caf\u{e9} \u{1f600}\u{0}\u{fffd} 1234567890"];

// The tokenizers library panics on some files; haplovl catches that.
fuzz_target!(init: allow_caught_panics(), |data: &[u8]| {
    let Some((kind, content)) = data.split_first() else { return };
    match kind % 2 {
        0 => file("tokenizer.json", content),
        _ => match patched(builtin_json("tokenizer.json"), content) {
            Some(value) => file("tokenizer.json", value.to_string().as_bytes()),
            None => return,
        },
    };
    let Some(tokenizer) = accepted(TextTokenizer::from_folder(folder())) else { return };
    for text in TEXTS {
        accepted(tokenizer.unknown_words(text));
        if let Some(ids) = accepted(tokenizer.encode(text)) {
            accepted(tokenizer.decode(&ids, true));
            accepted(tokenizer.decode(&ids, false));
        }
    }
});

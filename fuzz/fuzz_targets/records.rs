//! Data files of LLaVA records, as a JSON array or JSON lines; `a.png` beside them is an image.
//!
//! Every record is there or refused on its own, and an accepted one makes a conversation with all its images.

#![no_main]

use std::sync::LazyLock;

use haplovl::data::Dataset;
use haplovl::processor::{ImageDecoder, Processor, RgbImage};
use haplovl_fuzz::{accepted, file, folder};
use libfuzzer_sys::fuzz_target;

/// Records of one file that are read.
const MAX_RECORDS: usize = 64;

static PROCESSOR: LazyLock<Processor> = LazyLock::new(|| {
    let decoder = ImageDecoder { max_pixels: 1 << 16, ..ImageDecoder::default() };
    haplovl_fuzz::processor(None).expect("the built-in processor works").with_decoder(decoder)
});

fuzz_target!(init: write_image(), |data: &[u8]| {
    let Some(records) = accepted(haplovl::data::open(file("records.json", data), None)) else { return };
    assert!(!records.is_empty(), "a file without records is refused");
    for index in 0..records.len().min(MAX_RECORDS) {
        records.describe(index);
        let Some(record) = accepted(records.get(index)) else { continue };
        // An image that a record names may be missing or no image, but not be dropped.
        if let Some(conversation) = accepted(record.conversation(&PROCESSOR)) {
            let images = conversation.messages.iter().map(|message| message.images().count()).sum::<usize>();
            assert_eq!(images, record.images.len());
        }
    }
});

fn write_image() {
    RgbImage::new(3, 2).save(folder().join("a.png")).expect("the folder for temporary files is writable");
}

//! Spans and events that a subscriber sees.
//!
//! A test binary of one test: `tracing` caches whether a span is wanted, and a thread without a subscriber that meets the
//! span first would switch it off for all.

#![allow(clippy::unwrap_used, reason = "a failed test helper should panic")]

mod common;

use std::sync::{Arc, Mutex};

use candle_core::{DType, Device};
use haplovl::config::{GenerationConfig, HaploVlConfig};
use haplovl::model::{HaploVl, save_pretrained};
use haplovl::pipeline::{Chat, LoadOptions, LoadedModel};
use haplovl::processor::RgbImage;
use haplovl::weights::{Parameters, SaveOptions};
use tempfile::TempDir;

fn checkpoint() -> TempDir {
    let (folder, config, parameters) = (tempfile::tempdir().unwrap(), HaploVlConfig::tiny(), Parameters::new());
    HaploVl::new(&config, parameters.var_builder(5, DType::F32, &Device::Cpu)).unwrap();
    let generation = GenerationConfig { max_new_tokens: Some(8), ..GenerationConfig::default() };
    let processor = common::tiny_processor();
    let options = SaveOptions::default();
    save_pretrained(folder.path(), &config, &parameters.tensors(), &processor, &generation, &options).unwrap();
    folder
}

/// A subscriber that notes the names of spans and the messages and fields of events of this crate.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Notes {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("haplovl")
    }

    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        let mut notes = self.0.lock().unwrap();
        notes.push(format!("span {}", span.metadata().name()));
        tracing::span::Id::from_u64(notes.len() as u64)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Fields(String);
        impl tracing::field::Visit for Fields {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0 += &format!(" {}={value:?}", field.name());
            }
        }
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        self.0.lock().unwrap().push(format!("event{}", fields.0));
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn a_subscriber_sees_loading_preprocessing_prefill_decoding_and_cache_reuse() {
    let folder = checkpoint();
    let notes = Notes::default();
    let (first, second) = tracing::subscriber::with_default(notes.clone(), || {
        let mut chat = Chat::new(&LoadedModel::from_folder(folder.path(), LoadOptions::default()).unwrap());
        (
            chat.ask([RgbImage::from_pixel(28, 28, image::Rgb([9, 8, 7])).into(), "a b".into()]).unwrap(),
            chat.ask(["c d".into()]).unwrap(),
        )
    });
    let notes = notes.0.lock().unwrap();
    let count = |start: &str| notes.iter().filter(|note| note.starts_with(start)).count();
    assert_eq!((count("span load"), count("span preprocess"), count("span prefill")), (1, 2, 2), "{notes:#?}");
    let decoded = first.timings.new_tokens + second.timings.new_tokens - 2;
    assert_eq!(count("span decode"), decoded, "{notes:#?}");
    let holds = |parts: &[String]| notes.iter().any(|note| parts.iter().all(|part| note.contains(part.as_str())));
    for parts in [
        ["message=model loaded".to_string(), "parameters=".into(), "dtype=\"f32\"".into()],
        [
            "message=conversations preprocessed".into(),
            "images=1 ".into(),
            format!("tokens={} ", first.timings.prompt_tokens),
        ],
        ["message=prompt prefilled".into(), format!("tokens={} ", first.timings.prompt_tokens), "seconds=".into()],
        ["message=answer finished".into(), format!("new_tokens={} ", second.timings.new_tokens), "seconds=".into()],
        [
            "message=prefix cache looked up".into(),
            format!("prefix={} ", second.timings.cached_tokens),
            "tokens=".into(),
        ],
    ] {
        assert!(holds(&parts), "{parts:?} in {notes:#?}");
    }
}

//! Benches of batch inference: captions of a folder with the built-in model, and answers of a fixed length.

use std::cell::LazyCell;

use criterion::{Criterion, Throughput};
use haplovl::config::GenerationConfig;
use haplovl::data::shapes::{ShapesConfig, Split};
use haplovl::generation::Generator;
use haplovl::options::{DeviceChoice, Quantization};
use haplovl::pipeline::batch::{BatchRunner, ImageList, Input};
use haplovl::pipeline::{Captioner, LoadOptions, LoadedModel, ModelSource};

use crate::common::{config, model, prompt};

/// Number of images of the folder.
const IMAGES: u64 = 32;
/// Number of tokens of an answer of the model with random weights.
const NEW_TOKENS: usize = 64;

/// Benches captions of a folder of 32 scenes, in images per second, by batch size; `alone` is one caption after the
/// other without a runner.
pub fn caption_folder(c: &mut Criterion) {
    let folder = LazyCell::new(|| {
        let folder = tempfile::tempdir().expect("a folder");
        for index in 0..IMAGES {
            let image = Split::Test.scene(index, &ShapesConfig::default()).render(336);
            image.save(folder.path().join(format!("{index:02}.png"))).expect("space on the disk");
        }
        folder
    });
    let model = LazyCell::new(|| {
        let options = LoadOptions::default().with_device(DeviceChoice::Cpu);
        LoadedModel::load(&ModelSource::Builtin, options).expect("the built-in model")
    });
    let images = || ImageList::find([folder.path()]).expect("images").images;
    let mut group = c.benchmark_group("inference/caption_folder");
    group.sample_size(10).throughput(Throughput::Elements(IMAGES));
    group.bench_function("alone", |b| {
        let captioner = Captioner::new(&model);
        let decoder = model.processor().decoder();
        b.iter(|| {
            images().iter().for_each(|path| {
                captioner.caption(decoder.open(path).expect("an image")).expect("a caption");
            })
        });
    });
    for batch_size in [1, 8] {
        group.bench_function(batch_size.to_string(), |b| {
            let runner = BatchRunner::new(&model).with_batch_size(batch_size);
            b.iter(|| {
                let requests =
                    images().into_iter().map(|path| ((), Input::image(path).request(Captioner::DEFAULT_PROMPT)));
                runner.run(requests).expect("threads").for_each(|(_, answer)| drop(answer.expect("a caption")));
            });
        });
    }
    group.finish();
}

/// Benches answers of 64 tokens to prompts of 640 tokens in q8_0, in images per second, by batch size.
pub fn answers(c: &mut Criterion) {
    let config = config();
    let generator = LazyCell::new(|| {
        let model = model(&config, Some(Quantization::Q8_0));
        Generator::new(std::sync::Arc::new(model), |_: &[u32]| Ok(String::new()))
    });
    let settings = GenerationConfig { max_new_tokens: Some(NEW_TOKENS), ..GenerationConfig::default() };
    let mut group = c.benchmark_group("inference/answers_640_64");
    group.sample_size(10);
    for rows in [1, 8] {
        let batch = LazyCell::new(|| prompt(&config, rows));
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function(format!("{rows}/q8_0"), |b| {
            b.iter(|| generator.generate(&batch, &settings).expect("answers"));
        });
    }
    group.finish();
}

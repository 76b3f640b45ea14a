//! Attention maps: the pixels of a patch token, and the attention of a word.

#![allow(clippy::unwrap_used, reason = "a failed test helper should panic")]

use crate::common;
use candle_core::{DType, Device, Tensor};
use haplovl::Error;
use haplovl::batch::{BatchSpec, MultimodalBatch, PaddingSide, Sequence, Visual};
use haplovl::config::{GenerationConfig, HaploVlConfig, ImageAspectRatio, PreprocessorConfig};
use haplovl::model::{HaploVl, patches_in_order};
use haplovl::patch_grid::{PatchGrid, Size};
use haplovl::pipeline::{LoadedModel, Word};
use haplovl::processor::{AttentionMap, Content, Conversation, ImageProcessor, Message, RgbImage};
use haplovl::weights::Parameters;

/// The sum of each token's pixels after all preprocessing.
fn brightness(config: &HaploVlConfig, image: &RgbImage) -> Vec<f32> {
    let mut settings = PreprocessorConfig::image(&config.vision);
    settings.do_normalize = false;
    let visual = ImageProcessor::new(&settings, &config.vision).unwrap().process(image).unwrap();
    let (tiles, side) = (visual.pixel_values().dim(0).unwrap(), config.vision.patches_per_side());
    let patch = config.vision.patch_size;
    let patches = visual.pixel_values().reshape(vec![tiles, 3, side, patch, side, patch]).unwrap();
    let features = patches.sum((1, 3, 5)).unwrap().reshape((tiles * side * side, 1)).unwrap();
    let input_ids = vec![config.image_token_index; visual.tokens(&config.vision).unwrap()];
    let sequence = Sequence { input_ids, labels: None, visuals: vec![visual] };
    let spec = BatchSpec { max_len: 1 << 20, ..BatchSpec::new(config) };
    let batch = MultimodalBatch::new(&[sequence], spec, PaddingSide::Right, &Device::Cpu).unwrap();
    let (_, in_order) = patches_in_order(&batch, &config.vision, &features).unwrap();
    in_order.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn cells_cover_the_pixels_of_their_tokens() {
    let mut shrinking = HaploVlConfig::tiny();
    shrinking.vision.image_aspect_ratio = ImageAspectRatio::AnyResMax(1);
    for config in [HaploVlConfig::tiny(), shrinking] {
        for size in [Size::new(56, 56), Size::new(150, 90), Size::new(60, 200), Size::new(28, 28)] {
            let tokens = PatchGrid::new(&config.vision, size).unwrap().tokens();
            let map = AttentionMap::new(&config.vision, size, &vec![0.0; tokens]).unwrap();
            for (n, cell) in map.cells().iter().enumerate() {
                let lit = |x, y| cell.pixel_columns.contains(&x) && cell.pixel_rows.contains(&y);
                let image = RgbImage::from_fn(size.width as u32, size.height as u32, |x, y| {
                    image::Rgb([if lit(x, y) { 255 } else { 0 }; 3])
                });
                let seen = brightness(&config, &image);
                assert_eq!(seen.len(), map.cells().len());
                let brightest = (0..seen.len()).max_by(|&a, &b| seen[a].total_cmp(&seen[b])).unwrap();
                assert_eq!(brightest, n, "{size}, {cell:?}");
            }
        }
    }
}

fn model() -> LoadedModel {
    let config = HaploVlConfig::tiny();
    let parameters = Parameters::new();
    let model = HaploVl::new(&config, parameters.var_builder(3, DType::F32, &Device::Cpu)).unwrap();
    for (name, var) in parameters.iter().filter(|(name, _)| name.ends_with("proj.weight")) {
        parameters.set(&name, &(var.as_tensor() * 20.0).unwrap()).unwrap();
    }
    LoadedModel::new(model, common::tiny_processor(), GenerationConfig::default())
}

fn sample_image(seed: u32) -> Content {
    RgbImage::from_fn(40, 30, |x, y| image::Rgb([(x * seed) as u8, (y * 7 + seed) as u8, (x * y) as u8])).into()
}

#[test]
fn the_map_of_a_word_is_the_mean_over_its_tokens() {
    let model = model();
    let conversation = Conversation::from(Message::user([sample_image(3), "is it a cat?".into()]));
    let batch = model.batch(std::slice::from_ref(&conversation)).unwrap();
    let Visual::Image { size, .. } = batch.visuals[0] else { panic!("expected an image") };
    let span = batch.layout.rows[0][0].visuals[0].clone();
    let ids: Vec<u32> = batch.input_ids.get(0).unwrap().to_vec1().unwrap();
    let cat = model.processor().tokenizer().encode("cat").unwrap();
    let start = ids.windows(3).position(|window| window == cat).unwrap();
    for layer in 0..4 {
        let weights = model.model().hidden_states(&batch, &[layer]).unwrap().attentions.remove(0);
        for head in [None, Some(1)] {
            let heads = head.map_or(weights.clone(), |head| weights.narrow(1, head, 1).unwrap());
            let mean: Tensor = heads.mean(1).unwrap().narrow(1, start, 3).unwrap().mean((0, 1)).unwrap();
            let expected = mean.to_vec1::<f32>().unwrap();
            let expected = AttentionMap::new(&model.model().config().vision, size, &expected[span.clone()]).unwrap();
            let maps = model.word_attention(&conversation, "cat", layer, head).unwrap();
            assert_eq!(maps.len(), 1);
            assert!(maps[0].total() > 0.0 && maps[0].total() < 1.0);
            for (found, expected) in maps[0].cells().iter().zip(expected.cells()) {
                assert_eq!((found.row, found.column), (expected.row, expected.column));
                assert!((found.weight - expected.weight).abs() < 1e-6, "layer {layer}, head {head:?}");
            }
        }
    }
}

#[test]
fn a_word_has_a_map_for_each_of_its_places() {
    let model = model();
    let asked = Message::user([sample_image(3), "a cat, or no cat?".into()]);
    let conversation = Conversation { messages: vec![asked, Message::assistant("a cat")] };
    let total = |occurrence| {
        let word = Word { text: "cat", occurrence };
        let maps = model.word_attention(&conversation, word, 3, None)?;
        Ok::<_, Error>(maps[0].total())
    };
    let places = [0, 1, 2].map(|place| total(Some(place)).unwrap());
    assert!(places[0] != places[1] && places[1] != places[2], "{places:?}");
    assert!((places.iter().sum::<f32>() / 3.0 - total(None).unwrap()).abs() < 1e-6);
    let error = total(Some(3)).unwrap_err().to_string();
    assert!(error.contains("the word `cat` 3 time(s), but not at place 3"), "{error}");
}

#[test]
fn a_word_attends_only_to_images_before_it() {
    let model = model();
    let text = "<image> one, two <image>, three";
    let conversation = Conversation::from(Message::user([sample_image(3), sample_image(90), text.into()]));
    let totals = |word| {
        let maps = model.word_attention(&conversation, word, 0, None).unwrap();
        Vec::from_iter(maps.iter().map(AttentionMap::total))
    };
    let (early, late) = (totals("two"), totals("three"));
    assert!(early[0] > 0.0 && early[1] == 0.0, "{early:?}");
    assert!(late[0] > 0.0 && late[1] > 0.0, "{late:?}");
}

#[test]
fn missing_words_and_layers_are_errors() {
    let model = model();
    let conversation = Conversation::from(Message::user([sample_image(3), "is it a cat?".into()]));
    let message = |word, layer, head| model.word_attention(&conversation, word, layer, head).unwrap_err().to_string();
    // `user` is in the prompt, but only as part of the template.
    let error = model.word_attention(&conversation, "user", 0, None).unwrap_err();
    assert!(matches!(&error, Error::Prompt(message) if message.text().contains("`user`")), "{error}");
    assert!(message("cat", 4, None).contains("the model has 4 layers, 2 of them pre-decoder"));
    assert!(message("cat", 1, Some(2)).contains("layer 1 has 2 heads"));
    assert!(message("cat", 2, Some(4)).contains("layer 2 has 4 heads"));
}

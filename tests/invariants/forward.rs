//! Invariants of the forward pass: what logits depend on, and what they do not depend on.

use candle_core::{DType, Device, IndexOp, Tensor};
use haplovl::batch::{BatchSpec, MultimodalBatch, PaddingSide, Sequence, Visual};
use haplovl::config::{HaploVlConfig, ImageAttention};
use haplovl::model::HaploVl;
use haplovl::weights::{SafetensorsFiles, SaveOptions, save_safetensors};

use crate::{
    batch, batch_of_one, bits, configs, conversations, empty_sequence, image, max_diff, model, parameters, push_text,
    push_visual, video,
};

/// Rounding of sums in another order; the worst observed is 4e-6 on logits of order 1 to 10.
const CLOSE: f32 = 2e-5;

/// Computes the logits (seq, vocab) of a batch of one sequence.
fn logits(model: &HaploVl, sequence: &Sequence) -> Tensor {
    model.forward(&batch_of_one(model.config(), sequence)).unwrap().squeeze(0).unwrap()
}

/// Computes the logits of each sample of a batch, row by row.
fn logits_by_sample(model: &HaploVl, batch: &MultimodalBatch) -> Vec<Tensor> {
    let all = model.forward(batch).unwrap();
    let rows = batch.layout.rows.iter().enumerate();
    let samples = rows.flat_map(|(r, row)| row.iter().map(move |sample| (r, sample.range.clone())));
    samples.map(|(r, range)| all.i((r, range)).unwrap()).collect()
}

#[test]
fn batching_padding_and_packing_do_not_change_logits() {
    for (name, config) in configs() {
        let (model, rows) = (model(&config), conversations(&config));
        let expected: Vec<Tensor> = rows.iter().map(|row| logits(&model, row)).collect();
        let packed = [vec![rows[0].clone(), rows[2].clone()], vec![rows[2].clone(), rows[1].clone()]];
        let packed = MultimodalBatch::packed(&packed, BatchSpec::new(&config), &Device::Cpu).unwrap();
        for (how, batch, order) in [
            ("left", batch(&config, &rows, PaddingSide::Left), &[0, 1, 2][..]),
            ("right", batch(&config, &rows, PaddingSide::Right), &[0, 1, 2]),
            ("packed", packed, &[0, 2, 2, 1]),
        ] {
            let found = logits_by_sample(&model, &batch);
            assert_eq!(found.len(), order.len());
            for (found, &expected_at) in found.iter().zip(order) {
                let error = max_diff(found, &expected[expected_at]);
                assert!(error < CLOSE, "{name}, {how}: sample {expected_at} is off by {error}");
            }
        }
    }
}

fn last(logits: &Tensor) -> Tensor {
    logits.i(logits.dim(0).unwrap() - 1).unwrap()
}

fn concatenated(parts: &[&Sequence]) -> Sequence {
    Sequence {
        input_ids: parts.iter().flat_map(|part| part.input_ids.clone()).collect(),
        labels: None,
        visuals: parts.iter().flat_map(|part| part.visuals.clone()).collect(),
    }
}

#[test]
fn f16_cache_is_close_to_f32_cache() {
    for (name, config) in configs() {
        let model = model(&config).with_cache_dtype(DType::F16);
        let [first, second] = prefixes_and_continuations(&config);
        let mut whole: Vec<Sequence> = first.iter().zip(&second).map(|(a, b)| concatenated(&[a, b])).collect();
        let left = |rows: &[Sequence]| batch(&config, rows, PaddingSide::Left);
        let mut cache = model.cache(2, left(&whole).layout.seq_len + 1).unwrap();
        model.prefill(&left(&first), &mut cache).unwrap();
        let check = |found: &Tensor, whole: &[Sequence]| {
            for (row, sequence) in whole.iter().enumerate() {
                let expected = last(&logits(&model, sequence));
                let size = expected.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                let error = max_diff(&found.i(row).unwrap(), &expected);
                assert!(error > 0.0 && error < 4e-3 * size, "{name}, row {row}: off by {error} of {size}");
            }
        };
        check(&model.prefill(&left(&second), &mut cache).unwrap(), &whole);
        whole.iter_mut().zip([20, 30]).for_each(|(row, id)| row.input_ids.push(id));
        check(&model.decode(&[20, 30], &mut cache).unwrap(), &whole);
    }
}

/// Builds two prefixes of different lengths, and two continuations of equal length, each with an image.
fn prefixes_and_continuations(config: &HaploVlConfig) -> [[Sequence; 2]; 2] {
    let mut prefixes = [empty_sequence(), empty_sequence()];
    push_text(&mut prefixes[0], &[3, 4]);
    push_visual(&mut prefixes[0], config, image(config, 40, 90, 1));
    push_text(&mut prefixes[0], &[5]);
    push_text(&mut prefixes[1], &[6, 7, 8]);
    let continuation = |seed: u64| {
        let mut next = empty_sequence();
        push_text(&mut next, &[9]);
        push_visual(&mut next, config, image(config, 28, 40, seed));
        push_text(&mut next, &[10, seed as u32]);
        next
    };
    [prefixes, [continuation(11), continuation(12)]]
}

#[test]
fn cached_logits_match_uncached_for_whole_and_chunked_prefill() {
    for (name, config) in configs() {
        let model = model(&config);
        let [first, second] = prefixes_and_continuations(&config);
        let mut whole: Vec<Sequence> = first.iter().zip(&second).map(|(a, b)| concatenated(&[a, b])).collect();
        let left = |rows: &[Sequence]| batch(&config, rows, PaddingSide::Left);
        let check = |what: &str, found: &Tensor, whole: &[Sequence]| {
            for (row, sequence) in whole.iter().enumerate() {
                let error = max_diff(&found.i(row).unwrap(), &last(&logits(&model, sequence)));
                assert!(error < CLOSE, "{name}, {what}, row {row}: off by {error}");
            }
        };
        let mut one = model.cache(2, left(&whole).layout.seq_len + 3).unwrap();
        check("whole prefill", &model.prefill(&left(&whole), &mut one).unwrap(), &whole);
        let mut two = model.cache(2, one.capacity()).unwrap();
        check("first chunk", &model.prefill(&left(&first), &mut two).unwrap(), &first);
        check("second chunk", &model.prefill(&left(&second), &mut two).unwrap(), &whole);
        for ids in [[20, 30], [21, 31], [22, 32]] {
            whole.iter_mut().zip(ids).for_each(|(row, id)| row.input_ids.push(id));
            check("decode after whole prefill", &model.decode(&ids, &mut one).unwrap(), &whole);
            check("decode after chunked prefill", &model.decode(&ids, &mut two).unwrap(), &whole);
        }
        let error = model.decode(&[1, 1], &mut one).unwrap_err().to_string();
        assert!(error.contains("larger capacity"), "{error}");
        // Truncating the last token and decoding another token equals decoding only the other token.
        two.truncate(two.len() - 1);
        whole.iter_mut().for_each(|row| *row.input_ids.last_mut().unwrap() = 40);
        check("after truncating", &model.decode(&[40, 40], &mut two).unwrap(), &whole);
    }
}

#[test]
fn last_hidden_states_match_full_hidden_states() {
    for (name, config) in configs() {
        let (model, rows) = (model(&config), conversations(&config));
        for side in [PaddingSide::Left, PaddingSide::Right] {
            let batch = batch(&config, &rows, side);
            let all = model.hidden_states(&batch, &[]).unwrap().post_decoder_output;
            let seq_len = all.dim(1).unwrap();
            for count in [0, 1, 5, seq_len, seq_len + 1] {
                let found = model.last_hidden_states(&batch, count).unwrap();
                let expected = all.narrow(1, seq_len - count.min(seq_len), count.min(seq_len)).unwrap();
                let error = max_diff(&found, &expected);
                assert!(error < CLOSE, "{name}, the last {count} of {seq_len}: off by {error}");
            }
        }
    }
}

#[test]
fn later_tokens_do_not_change_earlier_logits() {
    for (name, config) in configs() {
        let model = model(&config);
        let original = conversations(&config).remove(0);
        let before = logits(&model, &original);
        let end = original.input_ids.len();
        let mut other_word = original.clone();
        other_word.input_ids[end - 1] = 50;
        let mut other_image = original.clone();
        other_image.visuals[1] = image(&config, 28, 28, 99);
        let second = batch_of_one(&config, &original).layout.rows[0][0].visuals[1].clone();
        for (what, changed, at) in [("word", other_word, end - 1), ("image", other_image, second.start)] {
            let after = logits(&model, &changed);
            let same = |logits: &Tensor| bits(&logits.i(..at).unwrap());
            assert_eq!(same(&before), same(&after), "{name}: earlier tokens attend to a later {what}");
            assert!(max_diff(&last(&before), &last(&after)) > 1e-3, "{name}: the {what} has no effect");
        }
        let mut longer = original.clone();
        longer.labels = None;
        longer.input_ids.extend([51, 52]);
        let error = max_diff(&logits(&model, &longer).i(..end).unwrap(), &before);
        assert!(error < CLOSE, "{name}: longer, off by {error}");
    }
}

/// Changes the last pixel value of an image or video.
fn with_changed_last_pixel(visual: &Visual) -> Visual {
    let pixels = visual.pixel_values();
    let (tiles, channels, height, width) = pixels.dims4().unwrap();
    let mut values = pixels.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    *values.last_mut().unwrap() += 3.0;
    let pixel_values = Tensor::from_vec(values, (tiles, channels, height, width), &Device::Cpu).unwrap();
    match visual {
        Visual::Image { size, .. } => Visual::Image { pixel_values, size: *size },
        Visual::Video { .. } => Visual::Video { pixel_values },
    }
}

/// Computes the largest logit change at each position after the last pixel of the only visual changes, and the visual's
/// first position.
fn change_by_position(model: &HaploVl, visual: Visual) -> (Vec<f32>, usize) {
    let mut original = empty_sequence();
    push_text(&mut original, &[3, 4]);
    push_visual(&mut original, model.config(), visual);
    push_text(&mut original, &[5]);
    let mut changed = original.clone();
    changed.visuals[0] = with_changed_last_pixel(&original.visuals[0]);
    let (a, b) = (logits(model, &original), logits(model, &changed));
    let change = |i: usize| max_diff(&a.i(i).unwrap(), &b.i(i).unwrap());
    ((0..original.len()).map(change).collect(), 2)
}

#[test]
fn patches_attend_to_later_patches_of_their_own_image_only() {
    for (name, config) in configs() {
        let model = model(&config);
        let bidirectional = config.image_attention == ImageAttention::Bidirectional;
        let (changes, first) = change_by_position(&model, image(&config, 28, 28, 1));
        assert!(changes[..first].iter().all(|&change| change == 0.0), "{name}: {changes:?}");
        assert_eq!(changes[first] > 1e-5, bidirectional, "{name}: {changes:?}");
        // Each video frame is a separate attention block: the first frame does not attend to the second.
        let (changes, first) = change_by_position(&model, video(&config, 2, 1));
        let patches = config.vision.patches_per_tile();
        assert!(changes[..first + patches].iter().all(|&change| change == 0.0), "{name}: {changes:?}");
        assert_eq!(changes[first + patches] > 1e-5, bidirectional, "{name}: {changes:?}");
        assert!(*changes.last().unwrap() > 1e-5, "{name}: {changes:?}");
    }
}

#[test]
fn image_order_changes_logits() {
    for (name, config) in configs() {
        let model = model(&config);
        let logits_of_both = |seeds: [u64; 2]| {
            let mut both = empty_sequence();
            seeds.into_iter().for_each(|seed| push_visual(&mut both, &config, image(&config, 28, 28, seed)));
            push_text(&mut both, &[3]);
            last(&logits(&model, &both))
        };
        assert!(max_diff(&logits_of_both([1, 2]), &logits_of_both([2, 1])) > 1e-3, "{name}");
    }
}

#[test]
fn saved_model_loads_bit_identically() {
    for (name, config) in configs() {
        let parameters = parameters(&config);
        let rows = batch(&config, &conversations(&config), PaddingSide::Left);
        let expected = bits(&crate::model_over(&config, &parameters).forward(&rows).unwrap());
        for max_shard_bytes in [u64::MAX, 4096] {
            let folder = tempfile::tempdir().unwrap();
            let options = SaveOptions { max_shard_bytes, ..SaveOptions::default() };
            save_safetensors(folder.path(), &parameters.tensors(), &options).unwrap();
            let files = SafetensorsFiles::open(folder.path()).unwrap();
            files.check(&HaploVl::parameter_shapes(&config).unwrap()).unwrap();
            let vb = std::sync::Arc::new(files).var_builder(DType::F32, &Device::Cpu);
            assert_eq!(bits(&HaploVl::new(&config, vb).unwrap().forward(&rows).unwrap()), expected, "{name}");
        }
    }
}

#[test]
fn attention_weights_sum_to_one_and_exclude_padding() {
    let config = HaploVlConfig::tiny();
    let rows = batch(&config, &conversations(&config), PaddingSide::Left);
    let states = model(&config).hidden_states(&rows, &[0, 3]).unwrap();
    assert_eq!(states.attentions.len(), 2);
    for (weights, heads) in states.attentions.iter().zip([2, 4]) {
        let seq = rows.layout.seq_len;
        assert_eq!(weights.dims(), [3, heads, seq, seq]);
        for (r, row) in rows.layout.rows.iter().enumerate() {
            let range = row[0].range.clone();
            let row = weights.i((r, .., range.clone())).unwrap();
            let sums = row.sum(2).unwrap();
            assert!(max_diff(&sums, &sums.ones_like().unwrap()) < 1e-5);
            let into_padding = row.i((.., .., ..range.start)).unwrap();
            assert_eq!(max_diff(&into_padding, &into_padding.zeros_like().unwrap()), 0.0);
        }
    }
}

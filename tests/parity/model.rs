//! Parity of the whole model: hidden states, logits, loss, greedy tokens and gradients.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, IndexOp, Tensor};
use haplovl::batch::{BatchSpec, IGNORE_INDEX, MultimodalBatch, PaddingSide, Sequence, Visual};
use haplovl::config::HaploVlConfig;
use haplovl::model::{Cache, HaploVl};
use haplovl::patch_grid::{PatchGrid, Size};
use haplovl::weights::{Parameters, SafetensorsFiles};

use crate::{Case, Summary, cases, files, folders, max_diff, read_json, relative_diff};

pub fn read_config(folder: &Path) -> HaploVlConfig {
    HaploVlConfig::from_json(read_json(&folder.join("config.json"))).unwrap()
}

/// Reads the rows of a case without padding, and the padding side.
pub fn sequences(case: &Case, config: &HaploVlConfig) -> (Vec<Sequence>, PaddingSide) {
    let (ids, mask, labels) = (case.ints("input_ids"), case.ints("attention_mask"), case.ints("labels"));
    let mut visuals = Visuals::new(case, config);
    let mut side = PaddingSide::Right;
    let row = |((ids, mask), labels): ((&Vec<i64>, &Vec<i64>), &Vec<i64>)| {
        let first = mask.iter().position(|&m| m == 1).unwrap();
        let last = mask.iter().rposition(|&m| m == 1).unwrap();
        if first > 0 {
            side = PaddingSide::Left;
        }
        let input_ids: Vec<u32> = ids[first..=last].iter().map(|&id| id as u32).collect();
        let label = |&l: &i64| if l < 0 { IGNORE_INDEX } else { l as u32 };
        let labels = Some(labels[first..=last].iter().map(label).collect());
        Sequence { visuals: visuals.of(&input_ids, config), input_ids, labels }
    };
    let rows = ids.iter().zip(&mask).zip(&labels).map(row).collect();
    (rows, side)
}

/// Images and videos of a case, in order.
struct Visuals {
    images: std::vec::IntoIter<Visual>,
    videos: std::vec::IntoIter<Visual>,
}

impl Visuals {
    fn new(case: &Case, config: &HaploVlConfig) -> Self {
        let image = |i: usize, size: &Vec<i64>| {
            let size = Size::new(size[0] as usize, size[1] as usize);
            // The file pads all images to the same number of tiles.
            let tiles = PatchGrid::new(&config.vision, size).unwrap().num_tiles();
            Visual::Image { pixel_values: case.get("pixel_values").i((i, ..tiles)).unwrap(), size }
        };
        let images: Vec<Visual> = match case.find("image_sizes") {
            Some(_) => case.ints("image_sizes").iter().enumerate().map(|(i, size)| image(i, size)).collect(),
            None => vec![],
        };
        let videos: Vec<Visual> = match case.find("pixel_values_videos") {
            Some(t) => (0..t.dim(0).unwrap()).map(|i| Visual::Video { pixel_values: t.i(i).unwrap() }).collect(),
            None => vec![],
        };
        Self { images: images.into_iter(), videos: videos.into_iter() }
    }

    fn of(&mut self, ids: &[u32], config: &HaploVlConfig) -> Vec<Visual> {
        let mut found = Vec::new();
        let mut at = 0;
        while at < ids.len() {
            let next = if ids[at] == config.image_token_index {
                self.images.next()
            } else if ids[at] == config.video_token_index {
                self.videos.next()
            } else {
                at += 1;
                continue;
            };
            let visual = next.expect("an image or video for each placeholder");
            at += visual.tokens(&config.vision).unwrap();
            found.push(visual);
        }
        found
    }
}

/// Places computed values at their positions in the file's padded layout; padding keeps the file's values.
fn with_file_padding(found: &Tensor, batch: &MultimodalBatch, case: &Case, name: &str) -> Tensor {
    let expected = case.get(name);
    let row = |(r, mask): (usize, &Vec<i64>)| {
        let first = mask.iter().position(|&m| m == 1).unwrap();
        let range = batch.layout.rows[r][0].range.clone();
        let last = first + range.len();
        let parts = [expected.i((r, ..first)), found.i((r, range)), expected.i((r, last..))];
        Tensor::cat(&parts.map(Result::unwrap), 0).unwrap()
    };
    let rows: Vec<Tensor> = case.ints("attention_mask").iter().enumerate().map(row).collect();
    Tensor::stack(&rows, 0).unwrap()
}

/// Reads the labels of a case, with [`IGNORE_INDEX`] in place of negative labels.
fn labels(case: &Case) -> Tensor {
    let label = |l: i64| if l < 0 { IGNORE_INDEX } else { l as u32 };
    let rows = case.ints("labels").into_iter().map(|row| row.into_iter().map(label).collect::<Vec<u32>>());
    Tensor::new(rows.collect::<Vec<_>>(), &Device::Cpu).unwrap()
}

/// Computes the mean next-token cross-entropy with plain tensor operations.
pub fn shifted_loss(logits: &Tensor, labels: &Tensor) -> Tensor {
    let (_, seq, vocab) = logits.dims3().unwrap();
    let logits = logits.narrow(1, 0, seq - 1).unwrap().reshape(((), vocab)).unwrap();
    let labels = labels.narrow(1, 1, seq - 1).unwrap().flatten_all().unwrap();
    let count = labels.to_vec1::<u32>().unwrap().into_iter().filter(|&l| l != IGNORE_INDEX).count();
    let log_probabilities = candle_nn::ops::log_softmax(&logits, 1).unwrap();
    let picked = log_probabilities.gather(&labels.unsqueeze(1).unwrap().contiguous().unwrap(), 1).unwrap();
    (picked.sum_all().unwrap().neg().unwrap() / count as f64).unwrap()
}

#[test]
fn hidden_states_logits_and_loss_match_reference() {
    let mut summary = Summary::default();
    for (folder, config, model) in models() {
        for (name, case) in cases(&folder) {
            let context = format!("{} {name}", folder.display());
            let (rows, side) = sequences(&case, &config);
            let batch = MultimodalBatch::new(&rows, BatchSpec::new(&config), side, &Device::Cpu).unwrap();
            let states = model.hidden_states(&batch, &[]).unwrap();
            let logits = model.forward(&batch).unwrap();
            summary.case();
            for (tensor, found) in [
                ("pre_decoder_input", &states.pre_decoder_input),
                ("pre_decoder_output", &states.pre_decoder_output),
                ("post_decoder_output", &states.post_decoder_output),
                ("logits", &logits),
            ] {
                let error = max_diff(&with_file_padding(found, &batch, &case, tensor), &case.get(tensor));
                summary.check(tensor, error, 2e-4, &context);
            }
            // The expected loss of a left-padded row includes its first token, predicted from padding. Logits of
            // padding are not compared, so they are taken from the file.
            let loss = shifted_loss(&with_file_padding(&logits, &batch, &case, "logits"), &labels(&case));
            summary.check("loss", max_diff(&loss.reshape(1).unwrap(), &case.get("loss")), 1e-5, &context);
        }
    }
    summary.print("model");
}

#[test]
fn greedy_tokens_match_reference_with_and_without_cache() {
    let mut summary = Summary::default();
    for (folder, config, model) in models() {
        for (name, case) in cases(&folder) {
            let expected = case.ints("greedy_tokens");
            let (rows, _) = sequences(&case, &config);
            assert_eq!(with_cache(&model, &rows, expected[0].len()), expected, "{} {name}, cached", folder.display());
            assert_eq!(without_cache(&model, rows, expected[0].len()), expected, "{} {name}", folder.display());
            summary.case();
        }
    }
    summary.print("greedy tokens");
}

fn with_cache(model: &HaploVl, rows: &[Sequence], steps: usize) -> Vec<Vec<i64>> {
    let config = model.config();
    let batch = MultimodalBatch::new(rows, BatchSpec::new(config), PaddingSide::Left, &Device::Cpu).unwrap();
    let mut cache: Cache = model.cache(rows.len(), batch.layout.seq_len + steps).unwrap();
    let mut logits = model.prefill(&batch, &mut cache).unwrap();
    let mut tokens = vec![vec![]; rows.len()];
    for _ in 0..steps {
        let next = best(&logits, config);
        tokens.iter_mut().zip(&next).for_each(|(row, &id)| row.push(id as i64));
        logits = model.decode(&next, &mut cache).unwrap();
    }
    tokens
}

fn without_cache(model: &HaploVl, mut rows: Vec<Sequence>, steps: usize) -> Vec<Vec<i64>> {
    let config = model.config();
    let mut tokens = vec![vec![]; rows.len()];
    for _ in 0..steps {
        rows.iter_mut().for_each(|row| row.labels = None);
        let batch = MultimodalBatch::new(&rows, BatchSpec::new(config), PaddingSide::Left, &Device::Cpu).unwrap();
        let last = model.forward(&batch).unwrap().i((.., batch.layout.seq_len - 1)).unwrap();
        for ((row, tokens), id) in rows.iter_mut().zip(&mut tokens).zip(best(&last, config)) {
            row.input_ids.push(id);
            tokens.push(id as i64);
        }
    }
    tokens
}

/// The likeliest token of each row, placeholders banned.
fn best(logits: &Tensor, config: &HaploVlConfig) -> Vec<u32> {
    let pick = |row: Vec<f32>| {
        let allowed = |id: &u32| *id != config.image_token_index && *id != config.video_token_index;
        let ids = (0..row.len() as u32).filter(allowed);
        ids.reduce(|a, b| if row[b as usize] > row[a as usize] { b } else { a }).unwrap()
    };
    logits.to_vec2::<f32>().unwrap().into_iter().map(pick).collect()
}

#[test]
fn gradients_of_every_parameter() {
    let mut summary = Summary::default();
    for folder in folders("model") {
        let config = read_config(&folder);
        for (name, expected) in files(&folder, ".grads.safetensors") {
            let case = Case::open(&folder.join(format!("{name}.safetensors")));
            let parameters = Parameters::new();
            let model = HaploVl::new(&config, parameters.var_builder(0, DType::F32, &Device::Cpu)).unwrap();
            parameters.load_from(&SafetensorsFiles::open(&folder).unwrap()).unwrap();
            let (rows, side) = sequences(&case, &config);
            let batch = MultimodalBatch::new(&rows, BatchSpec::new(&config), side, &Device::Cpu).unwrap();
            let loss = shifted_loss(&model.forward(&batch).unwrap(), batch.labels.as_ref().unwrap());
            let grads = loss.backward().unwrap();
            assert_eq!(expected.iter().count(), parameters.len());
            for (parameter, expected) in expected.iter() {
                let context = format!("{} {name} {parameter}", folder.display());
                let var = parameters.get(parameter).unwrap_or_else(|| panic!("{context}: no such parameter"));
                let grad = grads.get(&var).unwrap_or_else(|| panic!("{context}: no gradient"));
                check_gradient(&mut summary, grad, expected, &context);
            }
            summary.case();
        }
    }
    summary.print("gradients");
}

/// Compares a gradient with the expected one.
pub fn check_gradient(summary: &mut Summary, grad: &Tensor, expected: &Tensor, context: &str) {
    let largest = max_diff(expected, &expected.zeros_like().unwrap());
    if largest < 1e-7 {
        // A key bias shifts all scores of a query equally: its exact gradient is zero, both are rounding.
        summary.check("gradient of zero", max_diff(grad, expected), 1e-6, context);
    } else {
        summary.check("gradient", relative_diff(grad, expected), 1e-3, context);
    }
}

#[test]
fn released_7b_model_has_exactly_the_published_tensors() {
    let published =
        read_json(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity/haplo-7b-pro.tensors.json"));
    let expected: std::collections::BTreeMap<String, Vec<usize>> =
        serde_json::from_value(published["tensors"].clone()).unwrap();
    let from_file = HaploVlConfig::from_json(published["config"].clone()).unwrap();
    assert_eq!(HaploVl::parameter_shapes(&from_file).unwrap(), expected);
    assert_eq!(HaploVl::parameter_shapes(&HaploVlConfig::haplovl_7b_pro()).unwrap(), expected);
    let parameters: usize = expected.values().map(|shape| shape.iter().product::<usize>()).sum();
    assert_eq!(parameters, 7_635_530_240);
}

fn models() -> impl Iterator<Item = (std::path::PathBuf, HaploVlConfig, HaploVl)> {
    folders("model").into_iter().map(|folder| {
        let config = read_config(&folder);
        let files = SafetensorsFiles::open(&folder).unwrap();
        files.check(&HaploVl::parameter_shapes(&config).unwrap()).unwrap();
        let model = HaploVl::new(&config, Arc::new(files).var_builder(DType::F32, &Device::Cpu)).unwrap();
        (folder, config, model)
    })
}

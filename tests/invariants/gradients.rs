//! Invariants of the backward pass: every parameter gets a gradient, and gradients match finite differences.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use haplovl::batch::{IGNORE_INDEX, MultimodalBatch, PaddingSide};
use haplovl::config::{DecoderConfig, HaploVlConfig, MlpKind, NormKind, Rope};
use haplovl::loss::linear_cross_entropy;
use haplovl::model::{ClipTeacher, ClipVision, DistillationHeads, HaploVl, PreDecoderModel};
use haplovl::nn::Activations::{self, Kept, Recomputed, Released};
use haplovl::optim::{AdamW, AdamWConfig, Decay, Gradients, Schedule};
use haplovl::train::{Counts, Distillation, DistillationWeights, Loss, NextToken, Objective, Trainer, UpdateRule};
use haplovl::weights::{ClipConfig, Parameters, VisionFamily};

use crate::{batch, bits, configs, conversations, max_diff, model_over, parameters, random, randomize, vars};

/// Builds a trainer with a constant learning rate, without warm-up.
pub fn trainer<O: Objective>(objective: O, parameters: BTreeMap<String, Var>) -> Trainer<O> {
    let optimizer = AdamW::new(&parameters, AdamWConfig { weight_decay: 0.0, ..AdamWConfig::default() }).unwrap();
    let schedule = Schedule { decay: Decay::Constant, warmup_ratio: 0.0, stable_ratio: 0.0, floor_ratio: 1.0 };
    let rule = UpdateRule { learning_rate: 3e-3, schedule, total_steps: 100, max_grad_norm: 1.0 };
    Trainer::new(objective, parameters, optimizer, rule)
}

/// Computes loss and gradients of one step over the micro-batches.
pub fn gradients<O: Objective>(trainer: &Trainer<O>, micro_batches: &[MultimodalBatch]) -> (f64, Gradients) {
    let counts = micro_batches.iter().map(|batch| trainer.objective().counts(batch).unwrap());
    let counts = counts.reduce(|a, b| a + b).unwrap();
    let (loss, _, gradients) = trainer.gradients(micro_batches, &counts).unwrap();
    (loss, gradients)
}

/// Builds a random CLIP with another width than the student and the same tiles.
pub fn teacher(config: &HaploVlConfig) -> ClipVision {
    let decoder = DecoderConfig {
        hidden_size: 12,
        intermediate_size: 20,
        num_attention_heads: 3,
        num_key_value_heads: 3,
        mlp: MlpKind::Plain,
        norm_mode: NormKind::LayerNorm,
        rope: Rope::None,
        ..config.pre_decoder.clone()
    };
    let clip = ClipConfig {
        family: VisionFamily::Clip,
        decoder,
        image_size: config.vision.image_size,
        patch_size: config.vision.patch_size,
    };
    let parameters = Parameters::new();
    ClipVision::new(&clip, parameters.var_builder(0, DType::F32, &Device::Cpu)).unwrap();
    randomize(&parameters);
    ClipVision::new(&clip, parameters.var_builder(0, DType::F32, &Device::Cpu)).unwrap()
}

/// Builds a stage 1 trainer of a tiny model.
pub fn distillation(config: &HaploVlConfig, activations: Activations) -> Trainer<Distillation> {
    let parameters = Parameters::new();
    let text_width = config.post_decoder.hidden_size;
    let build = || {
        let vb = parameters.var_builder(0, DType::F32, &Device::Cpu);
        let heads = DistillationHeads::new(config.pre_decoder.hidden_size, 12, text_width, vb.clone()).unwrap();
        (PreDecoderModel::new(config, vb).unwrap().with_activations(activations), heads)
    };
    build();
    randomize(&parameters);
    let (model, heads) = build();
    let parameters = vars(&parameters);
    let vision_teacher = Box::new(ClipTeacher::new(teacher(config), -1).unwrap());
    let table = random(&[config.vocab_size, text_width], 7);
    let weights = DistillationWeights::default();
    let objective = Distillation::new(config, model, heads, vision_teacher, table, weights).unwrap();
    trainer(objective, parameters)
}

/// Builds a stage 2 trainer of a tiny model.
pub fn next_token(config: &HaploVlConfig, activations: Activations) -> Trainer<NextToken> {
    let parameters = parameters(config);
    let model = model_over(config, &parameters).with_activations(activations);
    trainer(NextToken::new(model), vars(&parameters))
}

fn mixed_batch(config: &HaploVlConfig) -> MultimodalBatch {
    batch(config, &conversations(config), PaddingSide::Right)
}

fn assert_all_gradients_nonzero<O: Objective>(name: &str, config: &HaploVlConfig, trainer: &Trainer<O>) {
    let (loss, gradients) = gradients(trainer, &[mixed_batch(config)]);
    assert!(loss.is_finite(), "{name}");
    assert_eq!(gradients.len(), trainer.parameters().len(), "{name}");
    for (parameter, gradient) in gradients.iter() {
        // Without rotary positions a key bias shifts all scores of a query equally, so its gradient is zero.
        let first_post = config.pre_decoder.num_hidden_layers;
        let in_pre = (0..first_post).any(|layer| parameter.starts_with(&format!("model.layers.{layer}.")));
        let no_effect = parameter.ends_with("k_proj.bias") && in_pre && config.pre_decoder.rope == Rope::None;
        let largest = max_diff(gradient, &gradient.zeros_like().unwrap());
        assert!(no_effect || (largest > 1e-7 && largest.is_finite()), "{name}: {parameter} has gradient {largest}");
    }
}

#[test]
fn every_parameter_has_a_gradient_in_both_stages() {
    for (name, config) in configs() {
        assert_all_gradients_nonzero(name, &config, &next_token(&config, Kept));
        assert_all_gradients_nonzero(name, &config, &distillation(&config, Kept));
    }
}

fn assert_bit_identical<O: Objective>(name: &str, config: &HaploVlConfig, trainers: [Trainer<O>; 2]) {
    let [(plain_loss, plain), (loss, found)] = trainers.map(|trainer| gradients(&trainer, &[mixed_batch(config)]));
    assert_eq!(plain_loss.to_bits(), loss.to_bits(), "{name}");
    assert_eq!(plain.len(), found.len(), "{name}");
    for ((parameter, plain), (_, found)) in plain.iter().zip(found.iter()) {
        assert_eq!(bits(plain), bits(found), "{name}: {parameter}");
    }
}

#[test]
fn released_and_recomputed_activations_give_bit_identical_gradients() {
    for (name, config) in configs() {
        for other in [Released, Recomputed] {
            assert_bit_identical(name, &config, [Kept, other].map(|activations| next_token(&config, activations)));
            assert_bit_identical(name, &config, [Kept, other].map(|activations| distillation(&config, activations)));
        }
    }
}

/// [`NextToken`] that computes hidden states of all positions.
struct AllPositions(NextToken);

impl Objective for AllPositions {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn counts(&self, batch: &MultimodalBatch) -> haplovl::Result<Counts> {
        self.0.counts(batch)
    }

    fn loss(&self, batch: &MultimodalBatch, step: &Counts) -> haplovl::Result<Loss> {
        let hidden = self.0.model().hidden_states(batch, &[])?.post_decoder_output.flatten_to(1)?;
        let labels = batch.next_token_labels()?;
        let labels = Tensor::from_vec(labels, hidden.dim(0)?, hidden.device())?;
        let sum = linear_cross_entropy(&hidden, self.0.model().lm_head().weight()?, &labels)?.sum;
        Ok(Loss { total: (sum / step.label_tokens as f64)?, parts: vec![] })
    }

    fn may_lack_gradient(&self, parameter: &str, step: &Counts) -> bool {
        self.0.may_lack_gradient(parameter, step)
    }
}

#[test]
fn skipping_positions_before_the_first_label_keeps_gradients() {
    for (name, config) in configs() {
        let mut answers = conversations(&config);
        for labels in answers.iter_mut().flat_map(|row| &mut row.labels) {
            let questions = labels.len() - 3;
            labels[..questions].fill(IGNORE_INDEX);
        }
        let batches = [PaddingSide::Left, PaddingSide::Right].map(|side| batch(&config, &answers, side));
        for (batch, activations) in batches.iter().flat_map(|batch| [Kept, Released].map(|kind| (batch, kind))) {
            let parameters = parameters(&config);
            let model = || model_over(&config, &parameters).with_activations(activations);
            let reference = trainer(AllPositions(NextToken::new(model())), vars(&parameters));
            let (all_loss, all) = gradients(&reference, std::slice::from_ref(batch));
            let (loss, found) =
                gradients(&trainer(NextToken::new(model()), vars(&parameters)), std::slice::from_ref(batch));
            assert!((loss - all_loss).abs() <= 1e-6 * all_loss.abs(), "{name}: {loss} and {all_loss}");
            assert_eq!(all.len(), found.len(), "{name}");
            for ((parameter, all), (_, found)) in all.iter().zip(found.iter()) {
                let largest = max_diff(all, &all.zeros_like().unwrap());
                let error = max_diff(found, all);
                assert!(error <= 2e-6 * (1.0 + largest), "{name}: {parameter} is off by {error} of {largest}");
            }
        }
    }
}

fn assert_accumulates<O: Objective>(name: &str, config: &HaploVlConfig, trainer: &Trainer<O>) {
    let mut rows = conversations(config);
    rows.push(rows[1].clone());
    rows[3].input_ids.reverse();
    let micro_batches: Vec<_> = rows.iter().map(|row| crate::batch_of_one(config, row)).collect();
    let (whole_loss, whole) = gradients(trainer, &[batch(config, &rows, PaddingSide::Right)]);
    let (loss, found) = gradients(trainer, &micro_batches);
    assert!((loss - whole_loss).abs() <= 1e-6 * whole_loss.abs(), "{name}: {loss} and {whole_loss}");
    for ((parameter, whole), (_, found)) in whole.iter().zip(found.iter()) {
        let largest = max_diff(whole, &whole.zeros_like().unwrap());
        let error = max_diff(found, whole);
        assert!(error <= 2e-6 * (1.0 + largest), "{name}: {parameter} is off by {error} of {largest}");
    }
}

#[test]
fn gradient_accumulation_matches_one_large_batch() {
    for (name, config) in configs() {
        assert_accumulates(name, &config, &next_token(&config, Released));
        assert_accumulates(name, &config, &distillation(&config, Recomputed));
    }
}

#[test]
fn parallel_micro_batches_are_bit_identical_to_sequential() {
    let config = HaploVlConfig::tiny();
    let micro_batches: Vec<_> = conversations(&config).iter().map(|row| crate::batch_of_one(&config, row)).collect();
    fn run<O: Objective>(trainer: Trainer<O>, micro_batches: &[MultimodalBatch]) -> (u64, Vec<Vec<u32>>) {
        let (loss, found) = gradients(&trainer, micro_batches);
        assert!((trainer.evaluate(micro_batches).unwrap() - loss).abs() < 1e-6);
        (loss.to_bits(), found.iter().map(|(_, gradient)| bits(gradient)).collect())
    }
    let sequential = run(next_token(&config, Kept), &micro_batches);
    for (threads, activations) in [(2, Kept), (2, Released), (3, Recomputed), (8, Released)] {
        let parallel = run(next_token(&config, activations).with_parallel(threads).unwrap(), &micro_batches);
        assert!(sequential == parallel, "{threads} threads, {activations:?}");
    }
}

/// Computes the directional derivative of the loss by central differences.
fn slope<O: Objective>(trainer: &Trainer<O>, batch: &MultimodalBatch, var: &Var, direction: &Tensor) -> f64 {
    const STEP: f64 = 4e-3;
    let at = var.as_tensor().copy().unwrap();
    let loss = |step: f64| {
        var.set(&(&at + (direction * step).unwrap()).unwrap()).unwrap();
        trainer.evaluate(std::slice::from_ref(batch)).unwrap()
    };
    let slope = (loss(STEP) - loss(-STEP)) / (2.0 * STEP);
    var.set(&at).unwrap();
    slope
}

fn dot(a: &Tensor, b: &Tensor) -> f64 {
    f64::from((a * b).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap())
}

/// Compares the directional derivative with finite differences. The direction is the sum of the normalised gradient,
/// for a large derivative, and a random unit vector, which reveals a gradient with a wrong direction.
fn assert_finite_differences<O: Objective>(name: &str, config: &HaploVlConfig, trainer: &Trainer<O>) {
    let batch = mixed_batch(config);
    let (_, gradients) = gradients(trainer, std::slice::from_ref(&batch));
    for (seed, (parameter, var)) in (1..).zip(trainer.parameters()) {
        let unit = |x: &Tensor| (x / dot(x, x).sqrt().max(1e-12)).unwrap();
        let gradient = gradients.get(parameter).unwrap();
        let direction = unit(&(unit(gradient) + unit(&random(var.dims(), seed))).unwrap());
        let expected = dot(gradient, &direction);
        let found = slope(trainer, &batch, var, &direction);
        // The loss is exact to about 1e-6, hence the derivative to about 1e-4; the rest is curvature.
        let error = (found - expected).abs();
        assert!(error < 1e-3 + 1e-2 * found.abs(), "{name}: {parameter}: {expected}, by differences {found}");
    }
}

#[test]
fn gradients_match_finite_differences() {
    for (name, config) in configs() {
        assert_finite_differences(name, &config, &next_token(&config, Recomputed));
        assert_finite_differences(name, &config, &distillation(&config, Released));
    }
}

#[test]
fn frozen_parameters_get_no_gradient_and_do_not_change() {
    let config = HaploVlConfig::tiny();
    let parameters = parameters(&config);
    let trained = |name: &str| name.starts_with("model.pre_connector.");
    let vb = parameters.var_builder_where(0, DType::F32, &Device::Cpu, trained);
    let objective = NextToken::new(HaploVl::new(&config, vb).unwrap());
    let batch = mixed_batch(&config);
    let counts = objective.counts(&batch).unwrap();
    let store = objective.loss(&batch, &counts).unwrap().total.backward().unwrap();
    for (name, var) in parameters.iter() {
        assert_eq!(store.get(&var).is_some(), trained(&name), "{name}");
    }
    let before = parameters.iter().map(|(name, var)| (name, bits(&var))).collect::<BTreeMap<_, _>>();
    let connector = vars(&parameters).into_iter().filter(|(name, _)| trained(name)).collect();
    trainer(objective, connector).step(&[batch]).unwrap();
    for (name, var) in parameters.iter() {
        assert_eq!(bits(&var) != before[&name], trained(&name), "{name}");
    }
}

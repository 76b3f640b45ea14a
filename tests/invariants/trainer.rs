//! The training step: it learns, repeats itself, and refuses what would spoil the model.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor, Var};
use haplovl::batch::{MultimodalBatch, PaddingSide, Visual};
use haplovl::config::HaploVlConfig;
use haplovl::model::ClipTeacher;
use haplovl::nn::Activations::{Recomputed, Released};
use haplovl::train::{Counts, Loss, Objective, Trainer, on_large_stack};

use crate::gradients::{distillation, next_token, trainer};
use crate::{batch, bits, conversations};

fn everything(config: &HaploVlConfig) -> MultimodalBatch {
    batch(config, &conversations(config), PaddingSide::Right)
}

fn parameter_bits<O: Objective>(trainer: &Trainer<O>) -> BTreeMap<String, Vec<u32>> {
    trainer.parameters().iter().map(|(name, var)| (name.clone(), bits(var))).collect()
}

fn steps<O: Objective>(trainer: &mut Trainer<O>, batch: &MultimodalBatch, steps: u64) -> Vec<f64> {
    (1..=steps)
        .map(|step| {
            let report = trainer.step(std::slice::from_ref(batch)).unwrap();
            assert_eq!((report.step, report.counts.samples), (step, 3));
            assert!(report.grad_norm > 0.0 && report.seconds > 0.0);
            let parts: f64 = report.parts.values().sum();
            assert!(report.parts.is_empty() || (parts - report.loss).abs() < 1e-5, "{report:?}");
            report.loss
        })
        .collect()
}

#[test]
fn both_stages_learn_what_they_see() {
    let config = HaploVlConfig::tiny();
    let losses = steps(&mut next_token(&config, Released), &everything(&config), 40);
    assert!(losses[39] < 0.5 * losses[0], "{losses:?}");
    let mut stage_1 = distillation(&config, Released);
    let losses = steps(&mut stage_1, &everything(&config), 40);
    assert!(losses[39] < losses[0] - 1.0, "{losses:?}");
}

#[test]
fn the_same_steps_give_the_same_bits() {
    let config = HaploVlConfig::tiny();
    let run = |activations| {
        let mut trainer = next_token(&config, activations);
        steps(&mut trainer, &everything(&config), 3);
        parameter_bits(&trainer)
    };
    let once = run(Released);
    assert!(once == run(Released), "not repeatable");
    assert!(once == run(Recomputed), "recomputing leads elsewhere");
}

fn with_nan(mut batch: MultimodalBatch) -> MultimodalBatch {
    let pixels = batch.visuals[0].pixel_values();
    let pixel_values = Tensor::full(f32::NAN, pixels.shape(), &Device::Cpu).unwrap();
    let Visual::Image { size, .. } = batch.visuals[0] else { panic!("the first is a picture") };
    batch.visuals[0] = Visual::Image { pixel_values, size };
    batch
}

fn assert_refuses<O: Objective>(mut trainer: Trainer<O>, good: &MultimodalBatch) {
    trainer.step(std::slice::from_ref(good)).unwrap();
    let (before, state) = (parameter_bits(&trainer), trainer.optimizer().state().unwrap());
    let state_bits = |state: &BTreeMap<String, Tensor>| -> Vec<_> {
        state.values().map(|t| bits(&t.to_dtype(DType::F32).unwrap())).collect()
    };
    let state = state_bits(&state);
    let error = trainer.step(&[good.clone(), with_nan(good.clone())]).unwrap_err().to_string();
    assert!(error.contains("step 2") && error.contains("NaN") && error.contains("rejected"), "{error}");
    assert!(parameter_bits(&trainer) == before, "parameters were touched");
    assert!(state_bits(&trainer.optimizer().state().unwrap()) == state, "the optimizer was touched");
    assert_eq!(trainer.step(std::slice::from_ref(good)).unwrap().step, 2);
    assert!(parameter_bits(&trainer) != before);
}

#[test]
fn an_image_of_nan_is_rejected_and_changes_nothing() {
    let config = HaploVlConfig::tiny();
    let good = everything(&config);
    assert_refuses(next_token(&config, Released), &good);
    assert_refuses(next_token(&config, Recomputed), &good);
    assert_refuses(distillation(&config, Recomputed), &good);
}

#[test]
fn a_step_of_text_alone_leaves_the_vision_side_without_gradient_only() {
    let config = HaploVlConfig::tiny();
    let text = batch(&config, &conversations(&config)[2..], PaddingSide::Right);
    next_token(&config, Released).step(std::slice::from_ref(&text)).unwrap();
    distillation(&config, Released).step(&[text]).unwrap();
}

#[test]
fn a_parameter_that_nothing_reaches_is_an_error() {
    let config = HaploVlConfig::tiny();
    let whole = next_token(&config, Released);
    let mut parameters = whole.parameters().clone();
    parameters.insert("model.forgotten".into(), Var::zeros(3, DType::F32, &Device::Cpu).unwrap());
    let objective = haplovl::train::NextToken::new(whole.objective().model().clone());
    let error = trainer(objective, parameters).step(&[everything(&config)]).unwrap_err().to_string();
    assert!(error.contains("model.forgotten"), "{error}");
}

#[test]
fn batches_without_labels_and_unfit_teachers_say_so() {
    let config = HaploVlConfig::tiny();
    let mut rows = conversations(&config);
    rows.iter_mut().for_each(|row| row.labels = None);
    let unlabelled = batch(&config, &rows, PaddingSide::Right);
    let error = next_token(&config, Released).step(&[unlabelled]).unwrap_err().to_string();
    assert!(error.contains("has no labels"), "{error}");
    let clip = crate::gradients::teacher(&config);
    for layer in [3, -4, isize::MIN] {
        let error = ClipTeacher::new(clip.clone(), layer).unwrap_err().to_string();
        assert!(error.contains("teacher.layer"), "{error}");
    }
}

/// Fails for the first batch, and counts all.
struct Failing {
    batches: AtomicUsize,
    failed: AtomicBool,
}

impl Objective for Failing {
    fn name(&self) -> &'static str {
        "failing"
    }

    fn counts(&self, _: &MultimodalBatch) -> haplovl::Result<Counts> {
        Ok(Counts { samples: 1, ..Counts::default() })
    }

    fn loss(&self, _: &MultimodalBatch, _: &Counts) -> haplovl::Result<Loss> {
        if self.batches.fetch_add(1, Ordering::Relaxed) == 0 {
            self.failed.store(true, Ordering::Relaxed);
            return Err(haplovl::Error::training("on purpose"));
        }
        // The others are slow, so that whoever has failed can say so.
        while !self.failed.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
        Ok(Loss { total: Tensor::new(0f32, &Device::Cpu)?, parts: Vec::new() })
    }

    fn may_lack_gradient(&self, _: &str, _: &Counts) -> bool {
        true
    }
}

#[test]
fn a_batch_that_fails_ends_the_step() {
    let config = HaploVlConfig::tiny();
    let batches: Vec<_> = (0..20).map(|_| everything(&config)).collect();
    for threads in [1, 2, 3] {
        let objective = Failing { batches: AtomicUsize::new(0), failed: AtomicBool::new(false) };
        let mut trainer = trainer(objective, BTreeMap::new()).with_parallel(threads).unwrap();
        let error = trainer.step(&batches).unwrap_err().to_string();
        assert!(error.contains("on purpose"), "{error}");
        assert!(trainer.objective().batches.load(Ordering::Relaxed) < batches.len());
    }
}

#[test]
fn the_training_thread_hands_back_results_errors_and_panics() {
    assert_eq!(on_large_stack(|| Ok(7)).unwrap(), 7);
    let error = on_large_stack(|| -> haplovl::Result<()> { panic!("on purpose") }).unwrap_err().to_string();
    assert!(error.contains("panicked"), "{error}");
}

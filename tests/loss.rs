//! Parity of the stage-1 losses with independent PyTorch code.
#![allow(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, Var};
use haplovl::batch::IGNORE_INDEX;
use haplovl::loss::{LossSum, current_token_prediction, feature_distillation, vision_distillation};

/// Absolute on values of order 1 to 20; the case of the fixtures is met to the bit.
const VALUE_TOLERANCE: f32 = 1e-5;
/// Relative to the largest entry of a gradient; the worst seen is 8.3e-7.
const GRADIENT_TOLERANCE: f32 = 1e-4;

fn cases() -> Vec<PathBuf> {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity");
    let roots = [Some(committed), std::env::var_os("HAPLOVL_PARITY_DIR").map(PathBuf::from)];
    let entries = |root: PathBuf| std::fs::read_dir(root.join("stage1_losses")).into_iter().flatten();
    roots
        .into_iter()
        .flatten()
        .flat_map(entries)
        .map(|entry| entry.unwrap().path().join("expected.safetensors"))
        .collect()
}

fn largest(x: &Tensor) -> f32 {
    x.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

#[test]
fn stage_1_losses_match_the_reference() {
    let (mut worst_value, mut worst_gradient) = (0f32, 0f32);
    let cases = cases();
    for case in &cases {
        let tensors = candle_core::safetensors::load(case, &Device::Cpu).unwrap();
        let [vision, text] = ["vision", "text"].map(|s| Var::from_tensor(&tensors[&format!("student_{s}")]).unwrap());
        let losses = losses(&tensors, &vision, &text, &tensors["logit_scale"]);
        let means: Vec<Tensor> = losses.iter().map(|loss| loss.mean().unwrap()).collect();
        let total = means.iter().skip(1).fold(means[0].clone(), |sum, mean| (sum + mean).unwrap());
        for (name, found) in
            ["vision", "feature", "current_token", "total"].into_iter().zip(means.iter().chain([&total]))
        {
            let expected: f32 = tensors[&format!("loss_{name}")].reshape(()).unwrap().to_scalar().unwrap();
            let error = (found.to_scalar::<f32>().unwrap() - expected).abs();
            assert!(error < VALUE_TOLERANCE, "{}: loss_{name} is off by {error}", case.display());
            worst_value = worst_value.max(error);
        }
        let grads = total.backward().unwrap();
        for (name, student) in [("vision", &vision), ("text", &text)] {
            let expected = &tensors[&format!("grad_student_{name}")];
            let error = largest(&(grads.get(student).unwrap() - expected).unwrap()) / largest(expected);
            assert!(error < GRADIENT_TOLERANCE, "{}: gradient of {name} is off by {error}", case.display());
            worst_gradient = worst_gradient.max(error);
        }
    }
    assert!(!cases.is_empty());
    println!("stage1_losses: {} cases, worst value {worst_value:e}, worst gradient {worst_gradient:e}", cases.len());
}

/// Vision, feature and current-token losses of a case; text only where `text_mask` is 1.
fn losses(
    tensors: &std::collections::HashMap<String, Tensor>,
    vision: &Tensor,
    text: &Tensor,
    logit_scale: &Tensor,
) -> [LossSum; 3] {
    let flat = |tensor: &Tensor| tensor.flatten_to(tensor.rank() - 2).unwrap();
    let mask = tensors["text_mask"].flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let rows: Vec<u32> = (0u32..).zip(&mask).filter(|(_, m)| **m == 1.0).map(|(row, _)| row).collect();
    let rows = Tensor::new(rows, &Device::Cpu).unwrap();
    let selected = |tensor: &Tensor| flat(tensor).index_select(&rows, 0).unwrap();
    let ids = tensors["token_ids"].flatten_all().unwrap().to_vec1::<i64>().unwrap();
    let ids: Vec<u32> =
        ids.iter().zip(&mask).map(|(id, m)| if *m == 1.0 { *id as u32 } else { IGNORE_INDEX }).collect();
    let ids = Tensor::new(ids, &Device::Cpu).unwrap();
    [
        vision_distillation(&flat(vision), &flat(&tensors["teacher_vision"])).unwrap(),
        feature_distillation(&selected(text), &selected(&tensors["teacher_text"])).unwrap(),
        current_token_prediction(&flat(text), &tensors["embed_tokens"], &ids, logit_scale).unwrap(),
    ]
}

#[test]
fn the_logit_scale_receives_its_gradient() {
    let case = &cases()[0];
    let tensors = candle_core::safetensors::load(case, &Device::Cpu).unwrap();
    let value =
        |scale: &Tensor| losses(&tensors, &tensors["student_vision"], &tensors["student_text"], scale)[2].mean();
    let scale = Var::new(&[1.5f32], &Device::Cpu).unwrap();
    let analytic = value(&scale).unwrap().backward().unwrap().get(&scale).unwrap().to_vec1::<f32>().unwrap()[0];
    let at = |x: f32| value(&Tensor::new(&[x], &Device::Cpu).unwrap()).unwrap().to_scalar::<f32>().unwrap();
    let numeric = (at(1.51) - at(1.49)) / 0.02;
    assert!((analytic - numeric).abs() < 1e-3 * analytic.abs(), "{analytic} and {numeric}");
}

#[test]
fn a_half_precision_table_costs_only_its_own_rounding() {
    let tensors = candle_core::safetensors::load(&cases()[0], &Device::Cpu).unwrap();
    let value = |tensors: &std::collections::HashMap<String, Tensor>| {
        let [_, _, loss] =
            losses(tensors, &tensors["student_vision"], &tensors["student_text"], &tensors["logit_scale"]);
        loss.mean().unwrap().to_scalar::<f32>().unwrap()
    };
    let (mut half, mut rounded) = (tensors.clone(), tensors);
    let table = half["embed_tokens"].to_dtype(DType::BF16).unwrap();
    rounded.insert("embed_tokens".into(), table.to_dtype(DType::F32).unwrap());
    half.insert("embed_tokens".into(), table);
    assert_eq!(value(&half), value(&rounded));
}

#[test]
fn a_perfect_or_silent_student_has_a_finite_gradient() {
    let teacher = Tensor::new(&[[1f32, -2.0], [0.5, 0.25]], &Device::Cpu).unwrap();
    for student in [teacher.clone(), teacher.zeros_like().unwrap()] {
        let student = Var::from_tensor(&student).unwrap();
        for loss in
            [vision_distillation(&student, &teacher).unwrap(), feature_distillation(&student, &teacher).unwrap()]
        {
            assert_eq!(loss.count, 2);
            let gradient = loss.sum.backward().unwrap();
            assert!(largest(gradient.get(&student).unwrap()).is_finite());
        }
    }
    let perfect = feature_distillation(&teacher, &teacher).unwrap().sum.to_scalar::<f32>().unwrap();
    assert!((perfect + 2.0).abs() < 1e-5, "{perfect}");
}

#[test]
fn teachers_receive_no_gradient_and_shapes_must_agree() {
    let student = Var::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
    let teacher = Var::ones((2, 3), DType::F32, &Device::Cpu).unwrap();
    let grads = vision_distillation(&student, &teacher).unwrap().sum.backward().unwrap();
    assert!(grads.get(&teacher).is_none());
    let narrow = Tensor::zeros((2, 2), DType::F32, &Device::Cpu).unwrap();
    let error = feature_distillation(&student, &narrow).unwrap_err().to_string();
    assert!(error.contains("[2, 3]") && error.contains("[2, 2]"), "{error}");
}

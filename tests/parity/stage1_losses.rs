//! Parity of the stage 1 losses and their gradients.

use candle_core::{DType, Device, Tensor, Var};
use haplovl::batch::IGNORE_INDEX;
use haplovl::loss::{LossSum, current_token_prediction, feature_distillation, vision_distillation};

use crate::{Case, Summary, cases, folders, max_diff, relative_diff};

fn all_cases() -> Vec<(String, Case)> {
    let named = |folder: std::path::PathBuf| {
        let name = folder.display().to_string();
        cases(&folder).into_iter().map(move |(case, tensors)| (format!("{name} {case}"), tensors))
    };
    folders("stage1_losses").into_iter().flat_map(named).collect()
}

#[test]
fn losses_and_gradients_match_reference() {
    let mut summary = Summary::default();
    for (context, case) in all_cases() {
        let [vision, text] = ["student_vision", "student_text"].map(|s| Var::from_tensor(&case.get(s)).unwrap());
        let losses = losses(&case, &vision, &text, &case.get("embed_tokens"), &case.get("logit_scale"));
        let [vision_loss, feature, token] = losses.map(|loss| loss.mean().unwrap().reshape(1).unwrap());
        let total = ((&vision_loss + &feature).unwrap() + &token).unwrap();
        for (name, found) in [
            ("loss_vision", &vision_loss),
            ("loss_feature", &feature),
            ("loss_current_token", &token),
            ("loss_total", &total),
        ] {
            summary.check(name, max_diff(found, &case.get(name).reshape(1).unwrap()), 1e-5, &context);
        }
        let grads = total.backward().unwrap();
        for (name, student) in [("grad_student_vision", &vision), ("grad_student_text", &text)] {
            summary.check(name, relative_diff(grads.get(student).unwrap(), &case.get(name)), 1e-4, &context);
        }
        summary.case();
    }
    summary.print("stage1_losses");
}

/// Computes the vision, feature and current-token losses of a case. Text losses use positions with `text_mask` 1 only.
fn losses(case: &Case, vision: &Tensor, text: &Tensor, table: &Tensor, logit_scale: &Tensor) -> [LossSum; 3] {
    let flat = |tensor: &Tensor| tensor.flatten_to(tensor.rank() - 2).unwrap();
    let mask = case.get("text_mask").flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let rows: Vec<u32> = (0u32..).zip(&mask).filter(|(_, m)| **m == 1.0).map(|(row, _)| row).collect();
    let rows = Tensor::new(rows, &Device::Cpu).unwrap();
    let selected = |tensor: &Tensor| flat(tensor).index_select(&rows, 0).unwrap();
    let ids = case.get("token_ids").flatten_all().unwrap().to_vec1::<i64>().unwrap();
    let ids: Vec<u32> =
        ids.iter().zip(&mask).map(|(id, m)| if *m == 1.0 { *id as u32 } else { IGNORE_INDEX }).collect();
    let ids = Tensor::new(ids, &Device::Cpu).unwrap();
    [
        vision_distillation(&flat(vision), &flat(&case.get("teacher_vision"))).unwrap(),
        feature_distillation(&selected(text), &selected(&case.get("teacher_text"))).unwrap(),
        current_token_prediction(&flat(text), table, &ids, logit_scale).unwrap(),
    ]
}

#[test]
fn logit_scale_gradient_matches_finite_differences() {
    let (_, case) = all_cases().remove(0);
    let value = |scale: &Tensor| {
        let [_, _, loss] =
            losses(&case, &case.get("student_vision"), &case.get("student_text"), &case.get("embed_tokens"), scale);
        loss.mean().unwrap()
    };
    let scale = Var::new(&[1.5f32], &Device::Cpu).unwrap();
    let analytic = value(&scale).backward().unwrap().get(&scale).unwrap().to_vec1::<f32>().unwrap()[0];
    let at = |x: f32| value(&Tensor::new(&[x], &Device::Cpu).unwrap()).to_scalar::<f32>().unwrap();
    let numeric = (at(1.51) - at(1.49)) / 0.02;
    assert!((analytic - numeric).abs() < 1e-3 * analytic.abs(), "{analytic} and {numeric}");
}

#[test]
fn bf16_embedding_table_adds_only_its_own_rounding() {
    let (_, case) = all_cases().remove(0);
    let value = |table: &Tensor| {
        let (vision, text) = (case.get("student_vision"), case.get("student_text"));
        let [_, _, loss] = losses(&case, &vision, &text, table, &case.get("logit_scale"));
        loss.mean().unwrap().to_scalar::<f32>().unwrap()
    };
    let half = case.get("embed_tokens").to_dtype(DType::BF16).unwrap();
    assert_eq!(value(&half), value(&half.to_dtype(DType::F32).unwrap()));
}

//! The stage-1 losses at their edges.
#![allow(clippy::unwrap_used, reason = "a failing helper fails its test")]

use candle_core::{DType, Device, Tensor, Var};
use haplovl::loss::{feature_distillation, vision_distillation};

fn largest(x: &Tensor) -> f32 {
    x.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
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

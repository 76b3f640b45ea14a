//! Edge cases of the stage 1 losses.
#![allow(clippy::unwrap_used, reason = "a failing helper fails its test")]

use candle_core::{DType, Device, Tensor, Var};
use haplovl::loss::{feature_distillation, vision_distillation};

fn largest(x: &Tensor) -> f32 {
    x.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

#[test]
fn identical_and_zero_students_have_finite_gradients() {
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
fn teachers_get_no_gradient_and_shape_mismatches_are_errors() {
    let student = Var::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
    let teacher = Var::ones((2, 3), DType::F32, &Device::Cpu).unwrap();
    let grads = vision_distillation(&student, &teacher).unwrap().sum.backward().unwrap();
    assert!(grads.get(&teacher).is_none());
    let narrow = Tensor::zeros((2, 2), DType::F32, &Device::Cpu).unwrap();
    let error = feature_distillation(&student, &narrow).unwrap_err().to_string();
    assert!(error.contains("[2, 3]") && error.contains("[2, 2]"), "{error}");
}

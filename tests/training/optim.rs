//! Optimizer, gradients and gradient clipping, through the public API.
#![allow(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use haplovl::optim::{AdamW, AdamWConfig, Gradients, ParamGroup, clip_scale, global_norm};

type Params = BTreeMap<String, Var>;

fn params(values: &[(&str, &[f32])]) -> Params {
    let var = |values: &[f32]| Var::from_slice(values, values.len(), &Device::Cpu).unwrap();
    values.iter().map(|(name, values)| (name.to_string(), var(values))).collect()
}

fn gradients(values: &[(&str, &[f32])]) -> Gradients {
    let mut gradients = Gradients::default();
    for (name, values) in values {
        gradients.insert(name.to_string(), &Tensor::new(*values, &Device::Cpu).unwrap()).unwrap();
    }
    gradients
}

fn values(params: &Params, name: &str) -> Vec<f32> {
    params[name].to_vec1().unwrap()
}

/// `torch.optim.AdamW` in scalar f64, written from its documentation:
///
/// ```python
/// p = torch.tensor([..], requires_grad=True)
/// optimizer = torch.optim.AdamW([p], lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.05)
/// for g in gradients: p.grad = torch.tensor(g); optimizer.step()
/// ```
fn reference(mut theta: f64, gradients: &[f64], lr: f64, weight_decay: f64) -> f64 {
    let (mut m, mut v) = (0f64, 0f64);
    for (t, g) in (1i32..).zip(gradients) {
        theta *= 1.0 - lr * weight_decay;
        m = 0.9 * m + 0.1 * g;
        v = 0.95 * v + 0.05 * g * g;
        let m_hat = m / (1.0 - 0.9f64.powi(t));
        let v_hat = v / (1.0 - 0.95f64.powi(t));
        theta -= lr * m_hat / (v_hat.sqrt() + 1e-8);
    }
    theta
}

/// Three steps with learning rate 0.1 move the values by about 0.3; the largest f32 error measured is 5.4e-8.
const TOLERANCE: f64 = 2e-7;

#[test]
fn steps_match_the_reference_with_groups_and_scale() {
    let start = [1.0f32, -2.0, 0.25];
    let steps = [[0.5f32, -1.0, 2.0], [0.25, 1.0, -4.0], [-1.0, 0.125, 0.0]];
    let params = params(&[("body.weight", &start), ("head.bias", &start)]);
    let groups = vec![
        ParamGroup { pattern: "*.bias".into(), lr_scale: None, weight_decay: Some(0.0) },
        ParamGroup { pattern: "head.*".into(), lr_scale: Some(0.5), weight_decay: None },
    ];
    let mut optimizer = AdamW::new(&params, AdamWConfig { groups, ..AdamWConfig::default() }).unwrap();
    for step in &steps {
        optimizer.step(&gradients(&[("body.weight", step), ("head.bias", step)]), 0.1, 0.5).unwrap();
    }
    assert_eq!(optimizer.steps(), 3);
    for (name, lr, weight_decay) in [("body.weight", 0.1, 0.05), ("head.bias", 0.05, 0.0)] {
        for (i, found) in values(&params, name).into_iter().enumerate() {
            let scaled = steps.map(|step| f64::from(step[i]) * 0.5);
            let expected = reference(start[i].into(), &scaled, lr, weight_decay);
            assert!((f64::from(found) - expected).abs() < TOLERANCE, "{name}[{i}]: {found}, expected {expected}");
        }
    }
}

/// The tensor implementation, which runs on a GPU; gradients that are not f32 select it here.
#[test]
fn tensor_updates_match_the_fused_update() {
    let numbers = [0.5f32, -1.25, 3.0, 0.0];
    let half = |gradients: &Gradients| {
        let mut half = Gradients::default();
        let cast = |gradient: &Tensor| gradient.to_dtype(candle_core::DType::BF16).unwrap();
        gradients.iter().for_each(|(name, gradient)| half.insert(name.clone(), &cast(gradient)).unwrap());
        half
    };
    let exact = gradients(&[("w", &numbers)]);
    let (fused, tensors) = (params(&[("w", &[1.0; 4])]), params(&[("w", &[1.0; 4])]));
    for (params, gradients) in [(&fused, &exact), (&tensors, &half(&exact))] {
        let mut optimizer = AdamW::new(params, AdamWConfig::default()).unwrap();
        (0..3).for_each(|_| optimizer.step(gradients, 0.1, 0.5).unwrap());
    }
    for (a, b) in values(&fused, "w").into_iter().zip(values(&tensors, "w")) {
        assert!((a - b).abs() < 2e-7, "{a} and {b}");
    }
    assert_eq!(global_norm(&exact).unwrap() as f32, global_norm(&half(&exact)).unwrap() as f32);
    let mut sum = half(&exact);
    sum.accumulate(half(&exact)).unwrap();
    let sum = sum.get("w").unwrap().to_dtype(candle_core::DType::F32).unwrap();
    assert_eq!(sum.to_vec1::<f32>().unwrap(), numbers.map(|x| 2.0 * x));
}

#[test]
fn the_ema_follows_its_formula_and_can_be_swapped() {
    let params = params(&[("w", &[1.0, -2.0])]);
    let decay = 0.25;
    let mut optimizer = AdamW::new(&params, AdamWConfig { ema_decay: Some(decay), ..AdamWConfig::default() }).unwrap();
    let mut expected = values(&params, "w");
    for step in 1..5 {
        optimizer.step(&gradients(&[("w", &[0.5, -1.0])]), 0.1, 1.0).unwrap();
        // The decay rate is lower in the first steps.
        let keep = (decay as f32).min((1.0 + step as f32) / (10.0 + step as f32));
        let now = values(&params, "w");
        expected.iter_mut().zip(now).for_each(|(mean, now)| *mean = keep * *mean + (1.0 - keep) * now);
    }
    let moving = values(&params, "w");
    optimizer.swap_averages().unwrap();
    for (mean, expected) in values(&params, "w").into_iter().zip(&expected) {
        assert!((mean - expected).abs() < 1e-6, "{mean}, expected {expected}");
    }
    assert_ne!(values(&params, "w"), moving);
    optimizer.swap_averages().unwrap();
    assert_eq!(values(&params, "w"), moving);
    let wrong = AdamWConfig { ema_decay: Some(1.0), ..AdamWConfig::default() };
    assert!(AdamW::new(&params, wrong).unwrap_err().to_string().contains("ema_decay"));
}

#[test]
fn a_resumed_optimizer_continues_bit_for_bit() {
    let config = || AdamWConfig { ema_decay: Some(0.5), ..AdamWConfig::default() };
    let step = |n: usize| gradients(&[("w", &[0.3 * n as f32, -0.7, 1e-4, 5.0 / (n + 1) as f32])]);
    let start: &[(&str, &[f32])] = &[("w", &[1.0, 2.0, 3.0, 4.0])];
    let through = params(start);
    let mut optimizer = AdamW::new(&through, config()).unwrap();
    (0..5).for_each(|n| optimizer.step(&step(n), 0.01, 1.0).unwrap());
    let saved_values = values(&through, "w");
    let saved: BTreeMap<_, _> =
        optimizer.state().unwrap().into_iter().map(|(name, tensor)| (name, tensor.copy().unwrap())).collect();
    (5..10).for_each(|n| optimizer.step(&step(n), 0.01, 1.0).unwrap());

    optimizer.swap_averages().unwrap();
    let mean = values(&through, "w");
    optimizer.swap_averages().unwrap();

    let resumed = params(&[("w", &saved_values)]);
    let mut optimizer = AdamW::new(&resumed, config()).unwrap();
    optimizer.load_state(&saved).unwrap();
    assert_eq!(optimizer.steps(), 5);
    (5..10).for_each(|n| optimizer.step(&step(n), 0.01, 1.0).unwrap());
    let bits = |params| values(params, "w").into_iter().map(f32::to_bits).collect::<Vec<_>>();
    assert_eq!(bits(&through), bits(&resumed));
    optimizer.swap_averages().unwrap();
    assert_eq!(mean, values(&resumed, "w"));
}

#[test]
fn a_mismatched_state_is_rejected_unchanged() {
    let params = params(&[("w", &[1.0, 2.0])]);
    let mut optimizer = AdamW::new(&params, AdamWConfig::default()).unwrap();
    let mut state = optimizer.state().unwrap();
    state.remove("v.w");
    state.insert("m.other".into(), Tensor::new(1f32, &Device::Cpu).unwrap());
    state.insert("m.w".into(), Tensor::new(&[1f32], &Device::Cpu).unwrap());
    let error = optimizer.load_state(&state).unwrap_err().to_string();
    for part in ["`v.w` is missing", "`m.other` is not expected", "`m.w` is F32 [1], expected F32 [2]"] {
        assert!(error.contains(part), "{part} not in: {error}");
    }
}

#[test]
fn a_missing_or_misshapen_gradient_fails_before_any_update() {
    let params = params(&[("a", &[1.0]), ("b", &[1.0])]);
    let mut optimizer = AdamW::new(&params, AdamWConfig::default()).unwrap();
    let missing = optimizer.step(&gradients(&[("a", &[1.0])]), 0.1, 1.0).unwrap_err().to_string();
    assert!(missing.contains("`b` received no gradient"), "{missing}");
    let misshapen = optimizer.step(&gradients(&[("a", &[1.0]), ("b", &[1.0, 2.0])]), 0.1, 1.0).unwrap_err();
    assert!(misshapen.to_string().contains("gradient of `b` has shape [2]"), "{misshapen}");
    let scale = optimizer.step(&gradients(&[("a", &[1.0]), ("b", &[1.0])]), 0.1, f64::NAN).unwrap_err();
    assert!(scale.to_string().contains("gradient scale"), "{scale}");
    assert_eq!((values(&params, "a"), values(&params, "b"), optimizer.steps()), (vec![1.0], vec![1.0], 0));
}

#[test]
fn frozen_parameters_need_no_gradient_and_have_no_moments() {
    let params = params(&[("teacher.w", &[1.0]), ("w", &[1.0])]);
    let groups = vec![ParamGroup { pattern: "teacher.*".into(), lr_scale: Some(0.0), weight_decay: None }];
    let mut optimizer = AdamW::new(&params, AdamWConfig { groups, ..AdamWConfig::default() }).unwrap();
    optimizer.step(&gradients(&[("w", &[1.0])]), 0.1, 1.0).unwrap();
    assert_eq!(values(&params, "teacher.w"), [1.0]);
    assert!(values(&params, "w")[0] < 1.0);
    assert_eq!(optimizer.names().collect::<Vec<_>>(), ["w"]);
    assert_eq!(optimizer.state().unwrap().into_keys().collect::<Vec<_>>(), ["m.w", "step", "v.w"]);
}

#[test]
fn half_precision_tied_and_unmatched_parameters_are_rejected() {
    let error = |params: &Params, config| AdamW::new(params, config).unwrap_err().to_string();
    let half = Var::zeros(2, candle_core::DType::BF16, &Device::Cpu).unwrap();
    assert!(error(&BTreeMap::from([("w".into(), half)]), AdamWConfig::default()).contains("`w` is BF16"));
    let tied = Var::zeros(2, candle_core::DType::F32, &Device::Cpu).unwrap();
    let tied = BTreeMap::from([("embed".into(), tied.clone()), ("head".into(), tied)]);
    assert!(error(&tied, AdamWConfig::default()).contains("`embed` and `head` are the same variable"));
    let eps = AdamWConfig { eps: 0.0, ..AdamWConfig::default() };
    assert!(error(&params(&[("w", &[1.0])]), eps).contains("optimizer.eps"));
}

#[test]
fn collected_gradients_are_detached_complete_and_summed() {
    let params = params(&[("a", &[1.0, 2.0]), ("b", &[3.0, 4.0]), ("unused", &[5.0, 6.0])]);
    let collect = || {
        let loss = (params["a"].as_tensor() * params["b"].as_tensor()).unwrap().sum_all().unwrap();
        Gradients::of(loss, &params).unwrap()
    };
    let mut sum = collect();
    assert_eq!(sum.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert!(sum.iter().all(|(_, gradient)| !gradient.track_op()));
    sum.accumulate(collect()).unwrap();
    assert_eq!(sum.get("a").unwrap().to_vec1::<f32>().unwrap(), [6.0, 8.0]);
    sum.fill_missing(&params, |name| name == "unused").unwrap();
    assert_eq!(sum.get("unused").unwrap().to_vec1::<f32>().unwrap(), [0.0, 0.0]);
    assert!(sum.accumulate(gradients(&[("a", &[1.0])])).unwrap_err().to_string().contains("`a`"));
}

#[test]
fn the_global_norm_covers_all_tensors_and_names_the_first_non_finite_one() {
    let long = vec![0.01f32; 40_003];
    let fine = gradients(&[("a", &[3.0]), ("b", &[4.0]), ("long", &long)]);
    let expected = (25.0 + 40_003.0 * f64::from(0.01f32).powi(2)).sqrt();
    assert!((global_norm(&fine).unwrap() - expected).abs() < 1e-12);
    assert_eq!(global_norm(&Gradients::default()).unwrap(), 0.0);
    let bad = gradients(&[("a", &[3.0]), ("b", &[f32::INFINITY]), ("c", &[f32::NAN])]);
    assert!(global_norm(&bad).unwrap_err().to_string().contains("gradient of `b`"));
    assert_eq!((clip_scale(0.5, 1.0), clip_scale(4.0, 1.0), clip_scale(0.0, 1.0)), (1.0, 0.25, 1.0));
}

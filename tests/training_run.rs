//! Whole training runs by recipes, on a model of a few thousand parameters.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor};
use haplovl::config::{GenerationConfig, HaploVlConfig, VisionConfig};
use haplovl::data::shapes::{Scene, ShapesConfig, token_ids};
use haplovl::model::HaploVl;
use haplovl::optim::ParamGroup;
use haplovl::options::{DeviceChoice, Precision};
use haplovl::pipeline::{Captioner, LoadOptions, LoadedModel};
use haplovl::train::{FloatType, Recipe, Run, on_large_stack};
use haplovl::weights::Parameters;

/// A model of shapes world's words, tiles of 32 pixels and patches of 8.
fn write_config(folder: &Path) -> PathBuf {
    let ids = token_ids();
    let tiny = HaploVlConfig::tiny();
    let config = HaploVlConfig {
        vocab_size: ids.vocab_size,
        image_token_index: ids.image,
        video_token_index: ids.video,
        max_position_embeddings: 512,
        vision: VisionConfig {
            patch_size: 8,
            image_size: 32,
            image_grid_pinpoints: vec![[32, 32]],
            ..tiny.vision.clone()
        },
        ..tiny
    };
    let path = folder.join("config.json");
    std::fs::write(&path, serde_json::to_string(&config).unwrap()).unwrap();
    path
}

/// A recipe of `stage` with `steps` steps of 4 rows, checkpoints every 2 steps.
fn recipe(folder: &Path, name: &str, stage: &str, content: &str, steps: u64) -> Recipe {
    let config = write_config(folder);
    let source =
        |split| format!(r#"{{ kind = "shapes", split = "{split}", scenes = 50, side = 32, content = "{content}" }}"#);
    let text = format!(
        r#"
        output = "{output}"
        config = "{config}"
        tokenizer = "shapes"
        seed = 5
        stage = {stage}
        data = {{ max_length = 512, validation_samples = 6, train = [{train}], validation = {validation} }}
        update = {{ steps = {steps}, rows = 4, learning_rate = 1e-3 }}
        run = {{ checkpoint_every = 2, evaluate_every = 2, show = 1 }}
        "#,
        output = folder.join(name).display(),
        config = config.display(),
        train = source("train"),
        validation = source("validation"),
    );
    let path = folder.join(format!("{name}.toml"));
    std::fs::write(&path, text).unwrap();
    Recipe::read(&path, &[]).unwrap()
}

fn train(recipe: Recipe, resume: bool) -> haplovl::Result<PathBuf> {
    on_large_stack(|| Run::new(recipe, Device::Cpu)?.train(resume))
}

fn tensors(export: &Path) -> Vec<(String, Vec<u32>)> {
    let files = candle_core::safetensors::load(export.join("model.safetensors"), &Device::Cpu).unwrap();
    let bits = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect();
    let mut tensors: Vec<(String, Vec<u32>)> = files.into_iter().map(|(name, t)| (name, bits(t))).collect();
    tensors.sort();
    tensors
}

#[test]
fn a_resumed_run_equals_one_run_through_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let averaged = |name| {
        let mut recipe = recipe(folder.path(), name, r#"{ kind = "tune" }"#, "mixed", 6);
        recipe.optimizer.ema_decay = Some(0.5);
        recipe
    };
    let whole = train(averaged("whole"), false).unwrap();
    let halves = averaged("halves");
    let measured = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&measured);
    // Stopped one step behind its last checkpoint, which that step must not leave a trace in.
    let stopped = on_large_stack(|| {
        let mut run = Run::new(halves.clone(), Device::Cpu)?;
        run.stop_after(3);
        run.on_evaluation(move |evaluation| {
            let names = evaluation.parameters.names();
            seen.lock().unwrap().push((evaluation.step, evaluation.loss.is_finite(), names.len()));
            Ok(vec![("validation/answer".into(), 42.0)])
        });
        run.train(false)
    });
    assert!(stopped.is_err());
    assert!(matches!(measured.lock().unwrap()[..], [(2, true, 1..)]));
    let lines = std::fs::read_to_string(folder.path().join("halves/metrics.jsonl")).unwrap();
    assert!(lines.lines().nth(1).unwrap().contains(r#""validation/answer":42"#), "{lines}");
    let refused = train(halves.clone(), false).unwrap_err().to_string();
    assert!(refused.contains("--resume"), "{refused}");
    let halves = train(halves, true).unwrap();
    assert_eq!(tensors(&whole), tensors(&halves));
    // What is exported is the mean of the parameters, not the last ones.
    let last = folder.path().join("whole/checkpoints/step-00000006/parameters.safetensors");
    let last = candle_core::safetensors::load(last, &Device::Cpu).unwrap();
    let head = |tensors: &[(String, Vec<u32>)]| tensors.iter().find(|t| t.0 == "lm_head.weight").unwrap().1.clone();
    let last_head = last["lm_head.weight"].flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_ne!(head(&tensors(&whole)), last_head.into_iter().map(f32::to_bits).collect::<Vec<_>>());
    let metrics = |run: &str| std::fs::read_to_string(folder.path().join(run).join("metrics.jsonl")).unwrap();
    assert_eq!(metrics("whole").lines().count(), 6);
    assert_eq!(metrics("halves").lines().count(), 6);
    for file in ["recipe.toml", "loss.svg", "samples.md"] {
        assert!(folder.path().join("whole").join(file).exists(), "no {file}");
    }
}

#[test]
fn a_checkpoint_can_be_looked_at_while_another_process_trains() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = recipe(folder.path(), "run", r#"{ kind = "tune" }"#, "mixed", 4);
    recipe.optimizer.ema_decay = Some(0.5);
    let look = |name: &str| {
        let (recipe, folder) = (recipe.clone(), folder.path().join(name));
        on_large_stack(|| Ok((Run::new(recipe, Device::Cpu)?.export_checkpoint(&folder)?, folder)))
    };
    let none = look("early").unwrap_err().to_string();
    assert!(none.contains("there is none") && !folder.path().join("run").exists(), "{none}");
    let whole = train(recipe.clone(), false).unwrap();
    let lock = std::fs::File::open(folder.path().join("run/lock")).unwrap();
    lock.lock().unwrap();
    let alone = train(recipe.clone(), true).unwrap_err().to_string();
    assert!(alone.contains("another process is training"), "{alone}");
    let (step, found) = look("late").unwrap();
    assert_eq!((step, tensors(&found)), (4, tensors(&whole)));
}

/// Names the folder in which [`trains_until_killed`] works; it does nothing without.
const VICTIM: &str = "HAPLOVL_TEST_RUN_FOLDER";

#[test]
fn trains_until_killed() {
    let Some(folder) = std::env::var_os(VICTIM) else { return };
    train(recipe(Path::new(&folder), "killed", r#"{ kind = "tune" }"#, "mixed", 40), true).unwrap();
}

#[test]
fn a_run_that_is_killed_by_signal_9_goes_on_in_another_process_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let whole = train(recipe(folder.path(), "whole", r#"{ kind = "tune" }"#, "mixed", 40), false).unwrap();
    let start = || {
        let mut process = std::process::Command::new(std::env::current_exe().unwrap());
        process.args(["--exact", "trains_until_killed"]).env(VICTIM, folder.path());
        process.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap()
    };
    let killed = folder.path().join("killed");
    let newest = || {
        let entries = std::fs::read_dir(killed.join("checkpoints")).ok()?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter(|name| name.starts_with("step-")).max()
    };
    let mut kills = 0;
    for wanted in ["step-00000004", "step-00000012"] {
        let mut victim = start();
        while newest().is_none_or(|name| name.as_str() < wanted) && victim.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        kills += usize::from(victim.try_wait().unwrap().is_none());
        victim.kill().unwrap();
        victim.wait().unwrap();
    }
    assert!(kills > 0, "every process was done before it could be killed");
    assert!(start().wait().unwrap().success());
    assert_eq!(tensors(&whole), tensors(&killed.join("export")));
    let metrics = std::fs::read_to_string(killed.join("metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().count(), 40);
}

#[test]
fn frozen_groups_do_not_move_and_leave_no_moments() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = recipe(folder.path(), "frozen", r#"{ kind = "tune" }"#, "mixed", 2);
    let frozen = ParamGroup { pattern: "model.layers.0.*".into(), lr_scale: Some(0.0), weight_decay: None };
    recipe.optimizer.groups.push(frozen);
    let run = Run::new(recipe.clone(), Device::Cpu).unwrap();
    let trained: usize = run.facts().parts.values().map(|(_, trained)| trained).sum();
    let all: usize = run.facts().parts.values().map(|(all, _)| all).sum();
    assert!(trained < all, "{trained} of {all}");
    drop(run);
    let export = train(recipe.clone(), false).unwrap();
    let fresh = Parameters::new();
    HaploVl::new(&recipe.model_config().unwrap(), fresh.var_builder(recipe.seed, DType::F32, &Device::Cpu)).unwrap();
    for (name, values) in tensors(&export) {
        let start = fresh.get(&name).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let still = start.into_iter().map(f32::to_bits).collect::<Vec<_>>() == values;
        assert_eq!(still, name.starts_with("model.layers.0."), "{name}");
    }
}

#[test]
fn the_stages_build_on_each_other_and_the_last_one_captions() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, stage: &str, content: &str| {
        train(recipe(folder.path(), name, stage, content, 2), false).unwrap().display().to_string()
    };
    let vision = run("vision", r#"{ kind = "vision", projection_dim = 8 }"#, "captions");
    let language = run("language", r#"{ kind = "language" }"#, "text");
    let teachers = format!(
        r#"{{ kind = "distill", vision_teacher = "{vision}", text_teacher = "{language}",
             inherit = {{ clip = "{vision}", llm = "{language}" }} }}"#
    )
    .replace('\n', " ");
    let distill = run("distill", &teachers, "mixed");
    let align = run(
        "align",
        &format!(r#"{{ kind = "align", inherit = {{ llm = "{language}", stage = "{distill}" }} }}"#),
        "captions",
    );
    let tune = run("tune", &format!(r#"{{ kind = "tune", inherit = {{ stage = "{align}" }} }}"#), "mixed");

    // Only the connector, which distillation has given a start, moved between distillation and alignment.
    let (before, after) = (tensors(Path::new(&distill)), tensors(Path::new(&align)));
    assert!(before.iter().any(|(name, _)| name == "model.pre_connector.weight"));
    for (name, values) in &before {
        let (_, now) = after.iter().find(|(other, _)| other == name).unwrap();
        assert_eq!(values == now, name != "model.pre_connector.weight", "{name}");
    }
    let model = LoadedModel::from_folder(&tune, LoadOptions::default().with_device(DeviceChoice::Cpu)).unwrap();
    let picture = Scene::generate(1, &ShapesConfig::default()).render(32);
    let generation = GenerationConfig { max_new_tokens: Some(4), ..model.generation().clone() };
    let answer = Captioner::new(&model).with_generation(generation).caption(picture).unwrap();
    assert!(answer.timings.new_tokens >= 1);
}

#[test]
fn products_are_rounded_in_training_where_the_processor_can() {
    let folder = tempfile::tempdir().unwrap();
    let last_loss = |compute| {
        let name = format!("{compute:?}");
        let mut recipe = recipe(folder.path(), &name, r#"{ kind = "tune" }"#, "captions", 4);
        recipe.update.compute = compute;
        let export = train(recipe, false)?;
        let metrics = std::fs::read_to_string(export.parent().unwrap().join("metrics.jsonl")).unwrap();
        let lines = metrics.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        Ok(lines.filter_map(|line| line["loss"].as_f64()).next_back().unwrap())
    };
    let rounded: haplovl::Result<f64> = last_loss(FloatType::Bf16);
    if Precision::has_fast_bf16() {
        let (exact, rounded) = (last_loss(FloatType::F32).unwrap(), rounded.unwrap());
        // Rounding to 8 bits moves it by far less than learning does.
        assert!(exact != rounded && (exact - rounded).abs() < 0.01, "{exact} {rounded}");
    } else {
        assert!(rounded.unwrap_err().to_string().contains("set it to f32"));
    }
}

#[test]
fn every_recipe_of_the_project_reads() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    let mut count = 0;
    for folder in std::fs::read_dir(root).unwrap() {
        for file in std::fs::read_dir(folder.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|e| e == "toml") {
                let recipe = Recipe::read(&path, &[]).unwrap_or_else(|e| panic!("{e}"));
                recipe.model_config().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                count += 1;
            }
        }
    }
    assert!(count >= 6, "found only {count} recipes");
}

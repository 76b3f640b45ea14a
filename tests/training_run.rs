//! Complete training runs from recipes, on a model of a few thousand parameters.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor};
use candle_nn::{Init, VarBuilder};
use haplovl::batch::MultimodalBatch;
use haplovl::config::{GenerationConfig, HaploVlConfig, VisionConfig};
use haplovl::data::FilesSource;
use haplovl::data::shapes::{Scene, ShapesConfig, token_ids};
use haplovl::model::{HaploVl, LanguageModel};
use haplovl::optim::ParamGroup;
use haplovl::options::{DeviceChoice, Precision};
use haplovl::pipeline::{Captioner, LoadOptions, LoadedModel};
use haplovl::train::metrics::Record;
use haplovl::train::{
    CheckpointChoice, Counts, DataLayout, DataSource, Evaluation, FloatType, Loss, Measures, Objective, Outcome,
    Recipe, Run, RunStart, SkippedSample, StepReport, TrainObserver, TrainSource, next_token_counts, next_token_loss,
};
use haplovl::weights::{LlmConfig, Parameters};

#[cfg(feature = "mpi")]
#[path = "training_run/mpi.rs"]
mod mpi;
#[path = "training_run/ranks.rs"]
mod ranks;
#[path = "../examples/common/signals.rs"]
mod signals;

/// A model for shapes world with tiles of 32 pixels and patches of 8.
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
        data = {{ max_length = 512, max_eval_samples = 6, train = [{train}], validation = {validation} }}
        update = {{ steps = {steps}, batch_size = 4, learning_rate = 1e-3 }}
        run = {{ save_steps = 2, eval_steps = 2, num_eval_samples = 1 }}
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
    let outcome = Run::new(recipe, Device::Cpu)?.with_default_observers().train(resume)?;
    let Outcome::Finished { export } = outcome else { panic!("{outcome:?}") };
    Ok(export)
}

fn entries(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Observer that returns a value at every evaluation, and fails at one step.
struct Meddler {
    seen: Arc<Mutex<Vec<(u64, bool, usize)>>>,
    fails_at: u64,
}

impl TrainObserver for Meddler {
    fn on_evaluation(&mut self, evaluation: &Evaluation<'_>) -> haplovl::Result<Measures> {
        let names = evaluation.parameters.names();
        self.seen.lock().unwrap().push((evaluation.step, evaluation.loss.is_finite(), names.len()));
        Ok(Measures::default().with("validation/answer", 42.0))
    }

    fn on_step(&mut self, step: &StepReport, _: &Record) -> haplovl::Result<()> {
        if step.step == self.fails_at { Err(haplovl::Error::training("on purpose")) } else { Ok(()) }
    }
}

fn tensors(export: &Path) -> Vec<(String, Vec<u32>)> {
    let files = candle_core::safetensors::load(export.join("model.safetensors"), &Device::Cpu).unwrap();
    let bits = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect();
    let mut tensors: Vec<(String, Vec<u32>)> = files.into_iter().map(|(name, t)| (name, bits(t))).collect();
    tensors.sort();
    tensors
}

#[test]
fn a_resumed_run_equals_an_uninterrupted_run_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let averaged = |name| {
        let mut recipe = recipe(folder.path(), name, r#"{ kind = "tune" }"#, "mixed", 6);
        recipe.optimizer.ema_decay = Some(0.5);
        recipe
    };
    let whole = train(averaged("whole"), false).unwrap();
    let halves = averaged("halves");
    let measured = Arc::new(Mutex::new(Vec::new()));
    // The run fails one step after its last checkpoint, and that step must have no effect.
    let meddler = Meddler { seen: Arc::clone(&measured), fails_at: 3 };
    let run = Run::new(halves.clone(), Device::Cpu).unwrap().with_default_observers();
    let failed = run.with_observer(Box::new(meddler)).train(false).unwrap_err().to_string();
    assert!(failed.contains("on purpose"), "{failed}");
    assert!(matches!(measured.lock().unwrap()[..], [(2, true, 1..)]));
    let lines = std::fs::read_to_string(folder.path().join("halves/metrics.jsonl")).unwrap();
    assert!(lines.lines().nth(1).unwrap().contains(r#""validation/answer":42"#), "{lines}");
    let refused = train(halves.clone(), false).unwrap_err().to_string();
    assert!(refused.contains("resume it"), "{refused}");
    let halves = train(halves, true).unwrap();
    assert_eq!(tensors(&whole), tensors(&halves));
    // The export holds the EMA of the parameters, not their last values.
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
fn a_checkpoint_can_be_read_while_another_process_trains() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = recipe(folder.path(), "run", r#"{ kind = "tune" }"#, "mixed", 4);
    recipe.optimizer.ema_decay = Some(0.5);
    let look = |name: &str| -> haplovl::Result<_> {
        let folder = folder.path().join(name);
        Ok((Run::new(recipe.clone(), Device::Cpu)?.export_checkpoint(&folder, CheckpointChoice::Newest)?, folder))
    };
    let none = look("early").unwrap_err().to_string();
    assert!(none.contains("there is no checkpoint") && !folder.path().join("run").exists(), "{none}");
    let whole = train(recipe.clone(), false).unwrap();
    let lock = std::fs::File::open(folder.path().join("run/lock")).unwrap();
    lock.lock().unwrap();
    let alone = train(recipe.clone(), true).unwrap_err().to_string();
    assert!(alone.contains("another process is training"), "{alone}");
    let (step, found) = look("late").unwrap();
    assert_eq!((step, tensors(&found)), (4, tensors(&whole)));
}

#[test]
fn the_newest_the_best_or_any_checkpoint_is_exported_to_a_new_folder() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = recipe(folder.path(), "run", r#"{ kind = "tune" }"#, "mixed", 6);
    recipe.run.save_total_limit = 9;
    let whole = train(recipe.clone(), false).unwrap();
    let mut run = Run::new(recipe.clone(), Device::Cpu).unwrap();
    let mut export = |name: &str, choice| run.export_checkpoint(folder.path().join(name), choice);
    assert_eq!(export("four", CheckpointChoice::Step(4)).unwrap(), 4);
    assert_eq!(export("six", CheckpointChoice::Newest).unwrap(), 6);
    let best = export("best", CheckpointChoice::Best).unwrap();
    assert!([2, 4, 6].contains(&best), "{best}");
    let four = tensors(&folder.path().join("four"));
    assert!(tensors(&folder.path().join("six")) == tensors(&whole) && four != tensors(&whole));
    let missing = export("none", CheckpointChoice::Step(3)).unwrap_err().to_string();
    assert!(missing.contains("no checkpoint of step 3") && missing.ends_with("steps 2, 4, 6"), "{missing}");
    let used = export("four", CheckpointChoice::Newest).unwrap_err().to_string();
    assert!(used.contains("four") && used.contains("is not empty"), "{used}");
    assert_eq!(tensors(&folder.path().join("four")), four);
    recipe.data.validation = None;
    recipe.output = folder.path().join("blind");
    train(recipe.clone(), false).unwrap();
    let mut blind = Run::new(recipe, Device::Cpu).unwrap();
    let none = blind.export_checkpoint(folder.path().join("x"), CheckpointChoice::Best).unwrap_err().to_string();
    assert!(none.contains("validation loss") && !folder.path().join("x").exists(), "{none}");
}

/// The notices of a run, and its outcome.
fn notices(recipe: Recipe, resume: bool) -> (Vec<String>, Outcome) {
    let (sender, received) = std::sync::mpsc::channel();
    let mut run = Run::new(recipe, Device::Cpu).unwrap().with_observer(Box::new(Notices(sender)));
    let outcome = run.train(resume).unwrap();
    (received.try_iter().collect(), outcome)
}

#[test]
fn a_finished_run_goes_on_if_it_is_extended() {
    let folder = tempfile::tempdir().unwrap();
    let tune = |steps| recipe(folder.path(), "run", r#"{ kind = "tune" }"#, "mixed", steps);
    assert_eq!(tune(4).finished_run().unwrap(), None);
    let export = train(tune(4), false).unwrap();
    let four = tensors(&export);
    let finished = tune(4).finished_run().unwrap().unwrap();
    assert_eq!((finished.export, finished.step, finished.is_longer), (export.clone(), Some(4), false));
    assert_eq!(tune(8).finished_run().unwrap(), None);
    let (notices, _) = notices(tune(8), true);
    assert!(notices.iter().any(|n| n.contains("8 steps now instead of 4") && n.contains("schedule")), "{notices:?}");
    assert_ne!(tensors(&export), four);
    assert_eq!(tune(8).finished_run().unwrap().unwrap().step, Some(8));
    // Fewer steps than are done.
    assert!(tune(3).finished_run().unwrap().unwrap().is_longer);
    let (said, outcome) = self::notices(tune(3), true);
    assert!(matches!(outcome, Outcome::Finished { .. }));
    assert!(
        said.iter().any(|notice| notice.contains("8 steps are done already, more than the recipe's 3")),
        "{said:?}"
    );
    // Without checkpoints there is nothing to go on from.
    std::fs::remove_dir_all(folder.path().join("run/checkpoints")).unwrap();
    train(tune(3), true).unwrap();
    std::fs::remove_dir_all(folder.path().join("run/checkpoints")).unwrap();
    assert_eq!(tune(3).finished_run().unwrap().unwrap().step, Some(3));
    let error = tune(9).finished_run().unwrap_err().to_string();
    assert!(error.contains("cannot go on to 9") && error.contains("init_from"), "{error}");
}

#[test]
fn an_extended_run_trains_the_steps_that_are_left() {
    let folder = tempfile::tempdir().unwrap();
    let tune = |steps| {
        let mut recipe = recipe(folder.path(), "run", r#"{ kind = "tune" }"#, "mixed", steps);
        recipe.schedule.decay = haplovl::optim::Decay::Constant;
        recipe.schedule.warmup_ratio = 0.0;
        recipe
    };
    // With a constant learning rate, the parts of an extended run make up the whole run, bit for bit.
    train(tune(4), false).unwrap();
    let extended = tensors(&train(tune(8), true).unwrap());
    let metrics = std::fs::read_to_string(folder.path().join("run/metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().count(), 8);
    std::fs::remove_dir_all(folder.path().join("run")).unwrap();
    assert_eq!(extended, tensors(&train(tune(8), false).unwrap()));
}

#[test]
fn a_run_that_ended_early_goes_on_if_it_is_extended() {
    let folder = tempfile::tempdir().unwrap();
    let stale = |steps| {
        let mut recipe = recipe(folder.path(), "run", r#"{ kind = "tune" }"#, "captions", steps);
        recipe.update.learning_rate = 1e-30;
        recipe.run.early_stopping_patience = Some(2);
        recipe
    };
    let (_, outcome) = notices(stale(50), false);
    assert!(matches!(outcome, Outcome::GaveUp { step: 6, .. }), "{outcome:?}");
    assert_eq!(stale(50).finished_run().unwrap().unwrap().step, Some(6));
    assert_eq!(stale(60).finished_run().unwrap(), None);
    let (said, outcome) = notices(stale(60), true);
    assert!(matches!(outcome, Outcome::GaveUp { step: 10, .. }), "{outcome:?}");
    assert!(said.iter().any(|notice| notice.contains("ended early and is extended")), "{said:?}");
}

#[test]
fn epochs_are_resolved_to_steps_and_resume() {
    let folder = tempfile::tempdir().unwrap();
    let tune = |epochs: f64, layout: DataLayout| {
        let mut recipe = recipe(folder.path(), "run", r#"{ kind = "tune" }"#, "mixed", 1);
        (recipe.update.steps, recipe.update.epochs) = (None, Some(epochs));
        recipe.data.layout = layout;
        recipe
    };
    // 50 scenes in batches of 4 are 13 batches.
    let facts = Run::new(tune(2.0, DataLayout::ByLength), Device::Cpu).unwrap().facts().data.clone();
    assert_eq!((facts.steps, facts.steps_per_epoch, facts.is_estimated), (26, 13.0, false));
    let packed = Run::new(tune(2.0, DataLayout::Packed), Device::Cpu).unwrap().facts().data.clone();
    assert!(packed.is_estimated && (1..26).contains(&packed.steps), "{packed:?}");
    let mut run = Run::new(tune(0.5, DataLayout::InOrder), Device::Cpu).unwrap();
    run.stop_after(3);
    run.train(false).unwrap();
    let written = Recipe::read(folder.path().join("run/recipe.toml"), &[]).unwrap();
    assert_eq!((written.update.steps, written.update.epochs), (Some(7), None));
    assert_eq!(run.data_report().seen, 12);
    train(tune(0.5, DataLayout::InOrder), true).unwrap();
    assert_eq!(tune(0.5, DataLayout::InOrder).finished_run().unwrap().unwrap().step, Some(7));
    assert_eq!(tune(1.0, DataLayout::InOrder).finished_run().unwrap(), None);
    let (said, _) = notices(tune(1.0, DataLayout::InOrder), true);
    assert!(said.iter().any(|notice| notice.contains("13 steps now instead of 7")), "{said:?}");
}

/// A recipe whose only source are the records of a JSON lines file, beside images of 32 pixels called `0.png` and `1.png`.
fn records(folder: &Path, lines: &[String], steps: u64) -> Recipe {
    for index in 0..2 {
        let image = Scene::generate(index, &ShapesConfig::default()).render(32);
        image.save(folder.join(format!("{index}.png"))).unwrap();
    }
    std::fs::write(folder.join("records.jsonl"), lines.join("\n")).unwrap();
    let base = recipe(folder, "run", r#"{ kind = "tune" }"#, "captions", steps);
    let text = std::fs::read_to_string(folder.join("run.toml")).unwrap();
    let validation = format!(r#"{{ kind = "files", path = "{}" }}"#, folder.join("records.jsonl").display());
    let path = folder.join("files.toml");
    std::fs::write(&path, text).unwrap();
    let settings = [format!("data.train=[{validation}]"), format!("data.validation={validation}")];
    let recipe = Recipe::read(&path, &settings).unwrap();
    assert_eq!(recipe.output, base.output);
    recipe
}

/// A record about an image; its answer has this many words.
fn record(image: &str, words: usize) -> String {
    let answer = vec!["red"; words].join(" ");
    format!(
        r#"{{"image":"{image}","conversations":[{{"from":"human","value":"describe the image."}},{{"from":"gpt","value":"{answer}"}}]}}"#
    )
}

#[test]
fn a_broken_image_below_the_limit_never_stops_a_run_and_is_skipped_in_validation() {
    let folder = tempfile::tempdir().unwrap();
    let mut lines = vec![record("0.png", 2); 119];
    lines.insert(3, record("broken.png", 2));
    std::fs::write(folder.path().join("broken.png"), "no image").unwrap();
    let mut recipe = records(folder.path(), &lines, 20);
    recipe.update.batch_size = 16;
    (recipe.run.save_steps, recipe.run.eval_steps) = (1000, 1000);
    let (sender, received) = std::sync::mpsc::channel();
    let run = Run::new(recipe.clone(), Device::Cpu).unwrap();
    let data = &run.facts().data;
    assert_eq!((data.validation, data.skipped_validation.len()), (5, 1));
    assert!(data.skipped_validation[0].contains("broken.png"), "{data:?}");
    let text = run.facts().to_string();
    assert!(text.contains("120 records, 120 with images, 0 text only") && text.contains("broken.png"), "{text}");
    assert!(text.contains("starts from random weights"), "{text}");
    let mut run = run.with_observer(Box::new(Skips(sender.clone()))).with_observer(Box::new(Notices(sender)));
    run.train(false).unwrap();
    let said: Vec<String> = received.try_iter().collect();
    assert_eq!(said.iter().filter(|line| line.contains("broken.png")).count(), 1, "{said:?}");
    assert!(said.contains(&"120 samples seen; bad and skipped: 1; answers cut at the end: 0".to_string()), "{said:?}");
    assert_eq!((run.data_report().bad, run.data_report().seen), (1, 120));
    // Without a good validation sample there is no validation loss.
    std::fs::write(folder.path().join("bad.jsonl"), record("broken.png", 2)).unwrap();
    recipe.data.validation = Some(DataSource::Files(FilesSource::new(folder.path().join("bad.jsonl"))));
    let error = Run::new(recipe, Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("none of the 1 validation samples can be used") && error.contains("broken.png"), "{error}");
}

/// Observer that sends the names of skipped samples to the test.
struct Skips(std::sync::mpsc::Sender<String>);

impl TrainObserver for Skips {
    fn on_skipped_sample(&mut self, sample: &SkippedSample) {
        self.0.send(format!("{}: {}", sample.sample, sample.reason)).unwrap();
    }
}

#[test]
fn a_template_that_ends_no_turn_is_named_before_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = records(folder.path(), &[record("0.png", 2), record("1.png", 3)], 1);
    assert_eq!(Run::new(recipe.clone(), Device::Cpu).unwrap().facts().warnings, Vec::<String>::new());
    let tokenizer = folder.path().join("tokenizer");
    std::fs::create_dir(&tokenizer).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json", "processor_config.json"] {
        let builtin = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/builtin").join(file);
        std::fs::copy(builtin, tokenizer.join(file)).unwrap();
    }
    recipe.tokenizer = tokenizer.to_string_lossy().as_ref().into();
    let config = tokenizer.join("tokenizer_config.json");
    let mut settings: serde_json::Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    settings["chat_template"] = settings["chat_template"].as_str().unwrap().replace("<|im_end|>", "").into();
    std::fs::write(&config, settings.to_string()).unwrap();
    let warnings = Run::new(recipe.clone(), Device::Cpu).unwrap().facts().warnings.clone();
    assert!(
        matches!(&warnings[..], [one] if one.contains("ends no turn") && one.contains("<|im_end|>")),
        "{warnings:?}"
    );
    // Without an end token, answers have no end.
    settings.as_object_mut().unwrap().remove("eos_token");
    std::fs::write(&config, settings.to_string()).unwrap();
    let warnings = Run::new(recipe, Device::Cpu).unwrap().facts().warnings.clone();
    assert!(matches!(&warnings[..], [one] if one.contains("set `eos_token`")), "{warnings:?}");
}

#[test]
fn long_answers_are_cut_on_request_and_never_learn_an_early_end() {
    let folder = tempfile::tempdir().unwrap();
    let lines = [record("0.png", 3), record("1.png", 90), record("0.png", 3)];
    let mut recipe = records(folder.path(), &lines, 2);
    recipe.data.max_length = 80;
    recipe.data.max_bad_share = 0.2;
    let strict = Run::new(recipe.clone(), Device::Cpu).unwrap().facts().to_string();
    assert!(strict.contains("warning: about 33.3 % of the samples cannot be used"), "{strict}");
    recipe.data.max_bad_share = 0.5;
    recipe.data.max_length = 1000;
    let beyond = Run::new(recipe.clone(), Device::Cpu).unwrap().facts().warnings.clone();
    assert!(matches!(&beyond[..], [warning] if warning.contains("context has 512 tokens")), "{beyond:?}");
    recipe.data.max_length = 80;
    let mut whole = Run::new(recipe.clone(), Device::Cpu).unwrap();
    assert_eq!((whole.facts().data.sources[0].too_long, whole.facts().data.sources[0].cut), (1, 0));
    whole.train(false).unwrap();
    assert_eq!((whole.data_report().bad, whole.data_report().cut), (1, 0));
    recipe.output = folder.path().join("cut");
    recipe.data.truncate_answers = true;
    let (sender, received) = std::sync::mpsc::channel();
    let mut cut = Run::new(recipe, Device::Cpu).unwrap().with_observer(Box::new(Notices(sender)));
    assert_eq!((cut.facts().data.sources[0].too_long, cut.facts().data.sources[0].cut), (0, 1));
    cut.train(false).unwrap();
    assert_eq!((cut.data_report().bad, cut.data_report().cut), (0, 1));
    let said: Vec<String> = received.try_iter().collect();
    assert!(said.iter().any(|notice| notice.contains("the end of its last answer is cut")), "{said:?}");
    assert!(said.iter().any(|notice| notice.contains("answers cut at the end: 1")), "{said:?}");
}

#[test]
fn weighted_sources_train_and_resume_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let tune = |name: &str| {
        let mut recipe = recipe(folder.path(), name, r#"{ kind = "tune" }"#, "mixed", 6);
        recipe.data.train[0].weight = 0.1;
        let again = recipe.data.train[0].source.clone();
        recipe.data.train.push(TrainSource::new(again, 0.06));
        recipe
    };
    let facts = Run::new(tune("whole"), Device::Cpu).unwrap().facts().data.clone();
    assert_eq!((facts.samples_per_epoch, facts.steps_per_epoch), (8, 2.0));
    let whole = train(tune("whole"), false).unwrap();
    let mut run = Run::new(tune("halves"), Device::Cpu).unwrap();
    run.stop_after(3);
    run.train(false).unwrap();
    assert_eq!(tensors(&whole), tensors(&train(tune("halves"), true).unwrap()));
}

#[test]
fn checkpoints_of_the_first_version_resume() {
    let folder = tempfile::tempdir().unwrap();
    let tune = |name| recipe(folder.path(), name, r#"{ kind = "tune" }"#, "mixed", 6);
    let whole = train(tune("whole"), false).unwrap();
    let mut run = Run::new(tune("run"), Device::Cpu).unwrap();
    run.stop_after(2);
    run.train(false).unwrap();
    // Version 1 had no checksum, and its state no length and no indices of bad samples.
    let path = folder.path().join("run/checkpoints/step-00000002/state.json");
    let mut state: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    state["version"] = 1.into();
    state.as_object_mut().unwrap().remove("checksum");
    assert!(state["state"].as_object_mut().unwrap().remove("length").is_some(), "{state}");
    std::fs::write(&path, state.to_string()).unwrap();
    assert_eq!(tensors(&whole), tensors(&train(tune("run"), true).unwrap()));
}

/// Environment variable with the folder of [`trains_until_killed`], which does nothing without it.
const VICTIM: &str = "HAPLOVL_TEST_RUN_FOLDER";

#[test]
fn trains_until_killed() {
    let Some(folder) = std::env::var_os(VICTIM) else { return };
    train(recipe(Path::new(&folder), "killed", r#"{ kind = "tune" }"#, "mixed", 40), true).unwrap();
}

#[test]
fn a_run_killed_by_sigkill_resumes_bit_for_bit() {
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
fn frozen_groups_are_unchanged_and_have_no_moments() {
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
fn each_stage_starts_from_the_previous_export_and_the_last_captions() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, stage: &str, content: &str| {
        train(recipe(folder.path(), name, stage, content, 2), false).unwrap().display().to_string()
    };
    let vision = run("vision", r#"{ kind = "vision", projection_dim = 8 }"#, "captions");
    let language = run("language", r#"{ kind = "language" }"#, "text");
    let teachers = format!(
        r#"{{ kind = "distill", vision_teacher = "{vision}", text_teacher = "{language}",
             init_from = {{ clip = "{vision}", llm = "{language}" }} }}"#
    )
    .replace('\n', " ");
    let distill = run("distill", &teachers, "mixed");
    let align = run(
        "align",
        &format!(r#"{{ kind = "align", init_from = {{ llm = "{language}", stage = "{distill}" }} }}"#),
        "captions",
    );
    let tune = run("tune", &format!(r#"{{ kind = "tune", init_from = {{ stage = "{align}" }} }}"#), "mixed");

    // Between distillation and alignment, only the connector changed, whose initial values come from distillation.
    let (before, after) = (tensors(Path::new(&distill)), tensors(Path::new(&align)));
    assert!(before.iter().any(|(name, _)| name == "model.pre_connector.weight"));
    // Every export with an embedding table holds its tokenizer, by which the next stage finds rows.
    for export in [&language, &distill, &align, &tune] {
        assert!(Path::new(export).join("tokenizer.json").exists(), "{export}");
    }
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
fn matmuls_are_computed_in_bf16_if_the_cpu_supports_it() {
    let folder = tempfile::tempdir().unwrap();
    let last_loss = |compute| {
        let name = format!("{compute:?}");
        let mut recipe = recipe(folder.path(), &name, r#"{ kind = "tune" }"#, "captions", 4);
        recipe.update.compute_dtype = compute;
        let export = train(recipe, false)?;
        let metrics = std::fs::read_to_string(export.parent().unwrap().join("metrics.jsonl")).unwrap();
        let lines = metrics.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        Ok(lines.filter_map(|line| line["loss"].as_f64()).next_back().unwrap())
    };
    let rounded: haplovl::Result<f64> = last_loss(FloatType::Bf16);
    if Precision::has_fast_bf16() {
        let (exact, rounded) = (last_loss(FloatType::F32).unwrap(), rounded.unwrap());
        // Rounding to 8 mantissa bits changes the loss by far less than training does.
        assert!(exact != rounded && (exact - rounded).abs() < 0.01, "{exact} {rounded}");
    } else {
        assert!(rounded.unwrap_err().to_string().contains("set it to f32"));
    }
}

#[test]
fn without_observers_a_run_writes_only_checkpoints_recipe_and_export() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(folder.path(), "bare", r#"{ kind = "tune" }"#, "captions", 2);
    let outcome = Run::new(recipe, Device::Cpu).unwrap().train(false).unwrap();
    let run = folder.path().join("bare");
    assert_eq!(outcome, Outcome::Finished { export: run.join("export") });
    assert_eq!(entries(&run), ["checkpoints", "export", "lock", "recipe.toml"]);
}

/// Observer that cancels the run at its first step.
struct Canceller(haplovl::generation::CancelToken);

impl TrainObserver for Canceller {
    fn on_step(&mut self, _: &StepReport, _: &Record) -> haplovl::Result<()> {
        self.0.cancel();
        Ok(())
    }
}

#[test]
fn a_cancelled_run_writes_a_checkpoint_and_resumes_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let tune = |name| recipe(folder.path(), name, r#"{ kind = "tune" }"#, "mixed", 5);
    let whole = train(tune("whole"), false).unwrap();
    let checkpoint = |step: u64| folder.path().join(format!("halves/checkpoints/step-{step:08}"));
    let run = Run::new(tune("halves"), Device::Cpu).unwrap();
    let cancel = Canceller(run.cancel_token());
    let outcome = run.with_observer(Box::new(cancel)).train(false).unwrap();
    assert_eq!(outcome, Outcome::Stopped { step: 1, checkpoint: Some(checkpoint(1)) });
    let mut run = Run::new(tune("halves"), Device::Cpu).unwrap().with_default_observers();
    run.stop_after(3);
    assert_eq!(run.train(true).unwrap(), Outcome::Stopped { step: 3, checkpoint: Some(checkpoint(3)) });
    // There are no steps left up to step 3.
    assert_eq!(run.train(true).unwrap(), Outcome::Stopped { step: 3, checkpoint: Some(checkpoint(3)) });
    assert_eq!(tensors(&whole), tensors(&train(tune("halves"), true).unwrap()));
    let mut early = Run::new(tune("early"), Device::Cpu).unwrap();
    early.stop_after(0);
    assert_eq!(early.train(false).unwrap(), Outcome::Stopped { step: 0, checkpoint: None });
}

#[test]
fn early_stopping_exports_the_best_parameters() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = recipe(folder.path(), "stale", r#"{ kind = "tune" }"#, "captions", 50);
    // A learning rate too small to change any parameter.
    recipe.update.learning_rate = 1e-30;
    recipe.run.early_stopping_patience = Some(2);
    let outcome = Run::new(recipe, Device::Cpu).unwrap().train(false).unwrap();
    assert_eq!(outcome, Outcome::GaveUp { step: 6, best_step: 6, export: folder.path().join("stale/export") });
}

/// Observer that sends notices to the test.
struct Notices(std::sync::mpsc::Sender<String>);

impl TrainObserver for Notices {
    fn on_notice(&mut self, notice: &str) {
        self.0.send(notice.into()).unwrap();
    }
}

#[test]
fn a_damaged_checkpoint_is_skipped_with_a_notice() {
    let folder = tempfile::tempdir().unwrap();
    let tune = || recipe(folder.path(), "run", r#"{ kind = "tune" }"#, "captions", 4);
    train(tune(), false).unwrap();
    let state = folder.path().join("run/checkpoints/step-00000004/state.json");
    let text = std::fs::read_to_string(&state).unwrap();
    for (from, to) in
        [("\"position\": ", "\"position\": 1"), ("\"position\"", "\"positio~\""), ("\"stale\": ", "\"stale\": 1")]
    {
        assert!(text.contains(from), "{text}");
        std::fs::write(&state, text.replacen(from, to, 1)).unwrap();
        let (notices, received) = std::sync::mpsc::channel();
        let run = Run::new(tune(), Device::Cpu).unwrap().with_observer(Box::new(Notices(notices)));
        let mut run = run;
        run.stop_after(2);
        assert!(matches!(run.train(true).unwrap(), Outcome::Stopped { step: 2, .. }));
        let notices: Vec<String> = received.try_iter().collect();
        assert!(
            notices[0].contains("skipped checkpoint") && notices[0].contains("state.json is damaged"),
            "{notices:?}"
        );
        assert!(notices[1].contains("resumed from") && notices[1].ends_with("step-00000002"), "{notices:?}");
    }
    // A checkpoint of version 1, which has no checksum, is skipped if its state cannot be deserialised.
    let old: Vec<&str> = text.lines().filter(|line| !line.contains("\"checksum\"")).collect();
    let old = old.join("\n").replace("\"version\": 2", "\"version\": 1").replacen("\"position\"", "\"positio~\"", 1);
    std::fs::write(&state, old).unwrap();
    let mut run = Run::new(tune(), Device::Cpu).unwrap();
    run.stop_after(2);
    assert!(matches!(run.train(true).unwrap(), Outcome::Stopped { step: 2, .. }));
}

#[cfg(unix)]
#[test]
fn pipes_and_devices_among_the_files_of_a_run_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let tune = || recipe(folder.path(), "run", r#"{ kind = "tune" }"#, "captions", 2);
    train(tune(), false).unwrap();
    let run = folder.path().join("run");
    let fifo = |path: &Path| assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    let zero = |path: &Path| std::os::unix::fs::symlink("/dev/zero", path).unwrap();
    for name in ["metrics.jsonl", "lock"] {
        let path = run.join(name);
        let whole = std::fs::read(&path).unwrap();
        for make in [&fifo as &dyn Fn(&Path), &zero] {
            std::fs::remove_file(&path).unwrap();
            make(&path);
            let error = train(tune(), true).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("expected a regular file"), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, whole).unwrap();
    }
    std::fs::remove_file(run.join("samples.md")).unwrap();
    fifo(&run.join("samples.md"));
    let (notices, received) = std::sync::mpsc::channel();
    let notices = Box::new(Notices(notices));
    let mut resumed = Run::new(tune(), Device::Cpu).unwrap().with_default_observers().with_observer(notices);
    assert!(matches!(resumed.train(true).unwrap(), Outcome::Finished { .. }));
    let notices: Vec<String> = received.try_iter().collect();
    assert!(
        notices.iter().any(|notice| notice.contains("samples.md") && notice.contains("regular file")),
        "{notices:?}"
    );
    let path = folder.path().join("pipe.toml");
    fifo(&path);
    assert!(Recipe::read(&path, &[]).unwrap_err().to_string().contains("expected a regular file"));
}

#[cfg(target_os = "linux")]
#[test]
fn sizes_beyond_the_memory_are_rejected_by_field() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |recipe: Recipe| Run::new(recipe, Device::Cpu).err().expect("refused").to_string();
    let tune = |name| recipe(folder.path(), name, r#"{ kind = "tune" }"#, "captions", 2);
    let deep = |decoder: &str| {
        let text = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config[decoder]["num_hidden_layers"] = (1 << 12).into();
        config[decoder]["intermediate_size"] = (1 << 20).into();
        let path = folder.path().join("large.json");
        std::fs::write(&path, config.to_string()).unwrap();
        path.display().to_string()
    };
    let mut large = tune("large");
    large.config = deep("post_decoder");
    let error = refused(large);
    assert!(error.contains("`config`") && error.contains("parameters"), "{error}");
    let mut rows = tune("rows");
    (rows.update.batch_size, rows.update.gradient_accumulation_steps) = (1 << 16, 1 << 16);
    let error = refused(rows);
    assert!(error.contains("`update.") && error.contains("memory"), "{error}");
    let mut vision = recipe(folder.path(), "vision", r#"{ kind = "vision", projection_dim = 8 }"#, "captions", 2);
    vision.config = deep("pre_decoder");
    assert!(refused(vision).contains("`config`"));
}

#[test]
fn recipes_of_the_first_version_train_and_resume() {
    let folder = tempfile::tempdir().unwrap();
    let new = recipe(folder.path(), "run", r#"{ kind = "tune" }"#, "captions", 4);
    let mut run = Run::new(new, Device::Cpu).unwrap();
    run.stop_after(2);
    run.train(false).unwrap();
    let text = std::fs::read_to_string(folder.path().join("run.toml")).unwrap();
    let former = [
        ("max_eval_samples", "validation_samples"),
        ("batch_size", "rows"),
        ("save_steps", "checkpoint_every"),
        ("eval_steps", "evaluate_every"),
        ("num_eval_samples", "show"),
    ];
    let text = former.iter().fold(text, |text, (new, old)| text.replace(&format!("{new} ="), &format!("{old} =")));
    let path = folder.path().join("old.toml");
    std::fs::write(&path, text).unwrap();
    let old = Recipe::read(&path, &["run.log_every=1".into()]).unwrap();
    train(old, true).unwrap();
}

/// Environment variables of the child process of the signal tests: its folder, and whether it hangs after the first
/// step.
const SIGNALLED: &str = "HAPLOVL_TEST_SIGNAL_FOLDER";
const HANGS: &str = "HAPLOVL_TEST_HANGS";

/// Observer that creates a file after a step.
struct Mark(PathBuf);

impl TrainObserver for Mark {
    fn on_start(&mut self, _: &RunStart<'_>) -> haplovl::Result<()> {
        std::fs::write(self.0.join("started"), "").unwrap();
        Ok(())
    }

    fn on_step(&mut self, _: &StepReport, _: &Record) -> haplovl::Result<()> {
        std::fs::write(self.0.join("stepped"), "").unwrap();
        while std::env::var_os(HANGS).is_some() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Ok(())
    }
}

#[test]
fn trains_until_signalled() {
    let Some(folder) = std::env::var_os(SIGNALLED).map(PathBuf::from) else { return };
    let signals = signals::Signals::default();
    signals.register().unwrap();
    let run = Run::new(recipe(&folder, "run", r#"{ kind = "tune" }"#, "mixed", 100_000), Device::Cpu).unwrap();
    let stop = signals.stop(run.cancel_token());
    let outcome = run.with_observer(Box::new(Mark(folder))).with_observer(stop).train(true).unwrap();
    assert!(matches!(outcome, Outcome::Stopped { .. }));
    std::process::exit(signals.exit_code().unwrap().into());
}

#[cfg(unix)]
#[test]
fn the_first_signal_stops_with_a_checkpoint_and_the_second_immediately() {
    for (signal, code, hangs) in [("INT", 130, false), ("TERM", 143, false), ("INT", 130, true)] {
        let folder = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "trains_until_signalled"]).env(SIGNALLED, folder.path());
        child.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        if hangs {
            child.env(HANGS, "1");
        }
        let mut child = child.spawn().unwrap();
        while !folder.path().join("stepped").exists() {
            assert!(child.try_wait().unwrap().is_none(), "ended before its first step");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        let kill = |child: &std::process::Child| {
            let kill = std::process::Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status();
            assert!(kill.unwrap().success());
        };
        kill(&child);
        if hangs {
            std::thread::sleep(std::time::Duration::from_millis(50));
            assert!(child.try_wait().unwrap().is_none(), "the first signal must not end the process");
            kill(&child);
        }
        assert_eq!(child.wait().unwrap().code(), Some(code), "{signal}, hanging: {hangs}");
        let checkpoints = entries(&folder.path().join("run/checkpoints"));
        assert_eq!(checkpoints.is_empty(), hangs, "{checkpoints:?}");
    }
}

#[test]
fn every_recipe_of_the_repository_is_valid() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    let mut count = 0;
    for folder in std::fs::read_dir(root).unwrap() {
        for file in std::fs::read_dir(folder.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            // The plan of the comparison says what changes in the recipes beside it.
            if path.extension().is_some_and(|e| e == "toml") && !path.ends_with("plan.toml") {
                let recipe = Recipe::read(&path, &[]).unwrap_or_else(|e| panic!("{e}"));
                recipe.model_config().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                count += 1;
            }
        }
    }
    assert!(count >= 6, "found only {count} recipes");
}

/// A model that is no HaploVL: a language model alone, with a parameter that its loss may not depend on.
struct Own {
    model: LanguageModel,
    scale: Option<Tensor>,
}

impl Own {
    fn build(config: &HaploVlConfig, uses_scale: bool, vb: VarBuilder) -> haplovl::Result<Box<dyn Objective>> {
        let (decoder, vocab_size) = (config.post_decoder.clone(), config.vocab_size);
        let max_position_embeddings = config.max_position_embeddings;
        let config = LlmConfig { decoder, vocab_size, max_position_embeddings, tie_word_embeddings: false };
        let scale = vb.get_with_hints(1, "scale", Init::Const(1.0))?;
        Ok(Box::new(Self { model: LanguageModel::new(&config, vb)?, scale: uses_scale.then_some(scale) }))
    }
}

impl Objective for Own {
    fn name(&self) -> &'static str {
        "own"
    }

    fn counts(&self, batch: &MultimodalBatch) -> haplovl::Result<Counts> {
        next_token_counts(batch)
    }

    fn loss(&self, batch: &MultimodalBatch, step: &Counts) -> haplovl::Result<Loss> {
        let hidden = self.model.hidden_states(&self.model.embed(&batch.input_ids)?, &batch.layout)?;
        let hidden = self.scale.as_ref().map_or(Ok(hidden.clone()), |scale| hidden.broadcast_mul(scale))?;
        next_token_loss(&hidden, self.model.lm_head(), &batch.next_token_labels()?, step)
    }

    fn may_lack_gradient(&self, _parameter: &str, _step: &Counts) -> bool {
        false
    }
}

fn own_run(recipe: Recipe, uses_scale: bool) -> haplovl::Result<Run> {
    Run::with_objective(recipe, Device::Cpu, move |config, vb| Own::build(config, uses_scale, vb))
}

#[test]
fn a_model_of_ones_own_is_trained_resumed_and_continued() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = |name, stage: &str| recipe(folder.path(), name, stage, "text", 4);
    let tune = r#"{ kind = "tune" }"#;
    let mut halves = own_run(recipe("halves", tune), true).unwrap().with_default_observers();
    halves.stop_after(2);
    assert!(matches!(halves.train(false).unwrap(), Outcome::Stopped { step: 2, .. }));
    let finish = |name, stage: &str| {
        let outcome = own_run(recipe(name, stage), true).unwrap().train(true).unwrap();
        outcome.export().unwrap().to_path_buf()
    };
    let (halves, whole) = (finish("halves", tune), finish("whole", tune));
    assert_eq!(tensors(&halves), tensors(&whole));
    assert!(tensors(&whole).iter().any(|(name, value)| name == "scale" && *value != [1f32.to_bits()]));
    // Parameters of equal name are copied, so that the loss goes on where it was.
    let stage = format!(r#"{{ kind = "tune", init_from = {{ stage = "{}" }} }}"#, whole.display());
    let next = own_run(recipe("next", &stage), true).unwrap();
    let copied = next.facts().inheritance.as_ref().unwrap();
    assert!(copied.contains("\n0 parameters fresh\n0 tensors of the source unused"), "{copied}");
}

#[test]
fn an_own_model_must_use_its_parameters_and_fit_the_stage() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = |name, stage: &str| recipe(folder.path(), name, stage, "text", 2);
    let unused = own_run(recipe("unused", r#"{ kind = "tune" }"#), false).unwrap().train(false).unwrap_err();
    assert!(unused.to_string().contains("scale"), "{unused}");
    let refused = |stage: &str| own_run(recipe("refused", stage), true).err().unwrap().to_string();
    let language = refused(r#"{ kind = "language" }"#);
    assert!(language.contains("stage.kind") && language.contains("expected `tune`"), "{language}");
    let half = refused(r#"{ kind = "tune", init_from = { llm = "some/llm" } }"#);
    assert!(half.contains("stage.init_from.llm") && half.contains("init_from.stage"), "{half}");
}

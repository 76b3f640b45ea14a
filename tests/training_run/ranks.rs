//! Runs on several ranks, which are threads here: equal to one process, whatever the stage; resumed on other numbers of
//! ranks; ended with the name of a rank that fails or hangs.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use haplovl::distributed::{DEFAULT_TIMEOUT, DeviceLink, PollLink, World};
use haplovl::train::AdapterConfig;

use super::*;

/// Runs `f` on each rank of a world of threads.
fn on_ranks<T: Send>(size: usize, timeout: Duration, f: impl Fn(World) -> T + Sync) -> Vec<T> {
    let f = &f;
    std::thread::scope(|scope| {
        let worlds = World::threads(size).into_iter().map(|world| world.with_timeout(timeout));
        let running: Vec<_> = worlds.map(|world| scope.spawn(move || f(world))).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Trains a recipe on `size` ranks; returns the folder of the export.
fn train_on(size: usize, recipe: &Recipe, resume: bool) -> PathBuf {
    let train = |world: World| {
        let run = Run::in_world(recipe.clone(), Device::Cpu, world).unwrap();
        run.with_default_observers().train(resume).unwrap()
    };
    let outcomes = on_ranks(size, DEFAULT_TIMEOUT, train);
    assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]), "{outcomes:?}");
    outcomes[0].export().unwrap().to_path_buf()
}

/// A recipe of 4 steps of `micro_batches` micro-batches of 2 rows on each rank. The large `eps` keeps AdamW from making
/// steps of rounding errors.
pub(super) fn shared(folder: &Path, name: &str, stage: &str, micro_batches: usize) -> Recipe {
    let mut recipe = recipe(folder, name, stage, "mixed", 4);
    (recipe.data.max_eval_samples, recipe.run.num_eval_samples) = (2, 0);
    (recipe.update.batch_size, recipe.update.gradient_accumulation_steps) = (2, micro_batches);
    recipe.optimizer.eps = 1e-3;
    recipe
}

/// Largest difference between the tensors of two exports.
pub(super) fn difference(a: &Path, b: &Path) -> f32 {
    let load = |export: &Path| {
        let file = entries(export).into_iter().find(|name| name.ends_with("model.safetensors")).unwrap();
        candle_core::safetensors::load(export.join(file), &Device::Cpu).unwrap()
    };
    let (a, b) = (load(a), load(b));
    assert_eq!(a.len(), b.len());
    let of = |(name, tensor): (&String, &Tensor)| {
        let change = (tensor - &b[name]).unwrap().abs().unwrap().flatten_all().unwrap();
        change.max(0).unwrap().to_scalar::<f32>().unwrap()
    };
    a.iter().map(of).fold(0.0, f32::max)
}

/// Losses, gradient norms and further metrics of a run, without its speed.
fn metrics(folder: &Path, name: &str) -> Vec<Vec<f64>> {
    let text = std::fs::read_to_string(folder.join(name).join("metrics.jsonl")).unwrap();
    let values = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let known = ["step", "loss", "learning_rate", "grad_norm", "validation/loss"];
        known.iter().filter_map(|name| line[name].as_f64()).collect()
    };
    text.lines().map(values).collect()
}

fn assert_close(a: &[Vec<f64>], b: &[Vec<f64>]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().flatten().zip(b.iter().flatten()) {
        assert!((a - b).abs() <= 1e-4 * a.abs().max(1.0), "{a} and {b}");
    }
}

/// Most that rounding in another order may change a parameter in four steps.
const TOLERANCE: f32 = 2e-5;

#[test]
fn ranks_train_as_one_process_does_and_twice_the_same() {
    let folder = tempfile::tempdir().unwrap();
    for layout in [DataLayout::InOrder, DataLayout::ByLength, DataLayout::Packed] {
        let run = |name: &str, ranks: usize, micro_batches: usize| {
            let mut recipe =
                shared(folder.path(), &format!("{name}-{layout:?}"), r#"{ kind = "tune" }"#, micro_batches);
            recipe.data.layout = layout;
            recipe.optimizer.ema_decay = Some(0.5);
            recipe.update.gradient_checkpointing = ranks == 4;
            train_on(ranks, &recipe, false)
        };
        let of = |name: &str| metrics(folder.path(), &format!("{name}-{layout:?}"));
        let (one, four) = (run("one", 1, 4), run("four", 4, 1));
        assert!(difference(&one, &four) < TOLERANCE, "{layout:?}: {}", difference(&one, &four));
        assert_close(&of("one"), &of("four"));
        if layout == DataLayout::ByLength {
            let (two, again) = (run("two", 2, 2), run("again", 2, 2));
            assert_eq!(tensors(&two), tensors(&again), "the same ranks, other bits");
            assert!(difference(&one, &two) < TOLERANCE, "{}", difference(&one, &two));
            assert_close(&of("one"), &of("two"));
        }
    }
    let [one, three] = [(1, 3), (3, 1)].map(|(ranks, micro_batches)| {
        let name = format!("of-{ranks}");
        train_on(ranks, &shared(folder.path(), &name, r#"{ kind = "tune" }"#, micro_batches), false)
    });
    assert!(difference(&one, &three) < TOLERANCE);
}

#[test]
fn ranks_train_every_stage() {
    let folder = tempfile::tempdir().unwrap();
    let compare = |name: &str, stage: &str| {
        let [one, two] = [(1, 2), (2, 1)].map(|(ranks, micro_batches)| {
            train_on(ranks, &shared(folder.path(), &format!("{name}-{ranks}"), stage, micro_batches), false)
        });
        let difference = difference(&one, &two);
        assert!(difference < TOLERANCE, "{name}: {difference}");
        assert_close(&metrics(folder.path(), &format!("{name}-1")), &metrics(folder.path(), &format!("{name}-2")));
        one.display().to_string()
    };
    let vision = compare("vision", r#"{ kind = "vision", projection_dim = 8 }"#);
    let language = compare("language", r#"{ kind = "language" }"#);
    let init = format!(r#"init_from = {{ clip = "{vision}", llm = "{language}" }}"#);
    let distill =
        format!(r#"{{ kind = "distill", vision_teacher = "{vision}", text_teacher = "{language}", {init} }}"#);
    let distill = compare("distill", &distill);
    let start = format!(r#"init_from = {{ llm = "{language}", stage = "{distill}" }}"#);
    compare("align", &format!(r#"{{ kind = "align", {start} }}"#));
    compare("tune", &format!(r#"{{ kind = "tune", {start} }}"#));
}

/// Tensors under way between ranks, by sender, receiver and number of the exchange.
type Board = Arc<Mutex<HashMap<(usize, usize, usize), Tensor>>>;

/// A link of threads, as NCCL is one of GPUs.
struct BoardLink {
    rank: usize,
    started: AtomicUsize,
    board: Board,
}

impl DeviceLink for BoardLink {
    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn start(&self, parts: Vec<Tensor>, counts: &[usize]) -> haplovl::Result<PollLink> {
        let (at, own) = (self.started.fetch_add(1, Ordering::Relaxed), self.rank);
        let sent = parts.into_iter().enumerate().map(|(to, part)| ((own, to, at), part));
        self.board.lock().unwrap().extend(sent);
        let (board, counts) = (Arc::clone(&self.board), counts.to_vec());
        Ok(Box::new(move || {
            let mut board = board.lock().unwrap();
            let keys = Vec::from_iter((0..counts.len()).map(|from| (from, own, at)));
            if !keys.iter().all(|key| board.contains_key(key)) {
                return Ok(None);
            }
            let tensors = Vec::from_iter(keys.iter().filter_map(|key| board.remove(key)));
            let others = tensors.iter().zip(&counts).enumerate().filter(|(rank, _)| *rank != own);
            others.for_each(|(_, (tensor, count))| assert_eq!(tensor.elem_count(), *count));
            Ok(Some(tensors))
        }))
    }
}

#[test]
fn tensors_may_go_by_a_link_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = |name: &str| shared(folder.path(), name, r#"{ kind = "tune" }"#, 2);
    let by_messages = train_on(2, &recipe("messages"), false);
    // Made once: a recipe writes its configuration beside it.
    let (by_link, board) = (recipe("link"), Board::default());
    let exports = on_ranks(2, DEFAULT_TIMEOUT, |world| {
        let link = BoardLink { rank: world.rank(), started: AtomicUsize::new(0), board: Arc::clone(&board) };
        let mut run = Run::in_world(by_link.clone(), Device::Cpu, world.with_link(link)).unwrap();
        run.train(false).unwrap().export().unwrap().to_path_buf()
    });
    assert_eq!(tensors(&by_messages), tensors(&exports[0]));
    assert!(board.lock().unwrap().is_empty());

    let errors = on_ranks(2, Duration::from_millis(300), |world| {
        let link = BoardLink { rank: world.rank(), started: AtomicUsize::new(0), board: Board::default() };
        let parts = vec![Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap(); 2];
        world.with_link(link).exchange(parts, vec![1; 2]).unwrap().wait().unwrap_err().to_string()
    });
    assert!(errors.iter().all(|error| error.contains("tensors of all ranks")), "{errors:?}");
}

#[test]
fn ranks_train_groups_and_micro_batches_in_parallel() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, ranks: usize, micro_batches: usize, parallel: usize| {
        let mut recipe = shared(folder.path(), name, r#"{ kind = "tune" }"#, micro_batches);
        let group = |pattern: &str, lr_scale| ParamGroup { pattern: pattern.into(), lr_scale, weight_decay: None };
        recipe.optimizer.groups = vec![group("model.layers.0.*", Some(0.0)), group("lm_head.*", Some(0.5))];
        recipe.update.parallel_micro_batches = parallel;
        train_on(ranks, &recipe, false)
    };
    let one = run("one", 1, 4, 1);
    for (name, parallel) in [("two", 1), ("parallel", 2)] {
        let difference = difference(&one, &run(name, 2, 2, parallel));
        assert!(difference < TOLERANCE, "{name}: {difference}");
    }
}

#[test]
fn ranks_train_an_adapter_with_dropout() {
    let folder = tempfile::tempdir().unwrap();
    let base = train(shared(folder.path(), "base", r#"{ kind = "tune" }"#, 1), false).unwrap();
    let stage = format!(r#"{{ kind = "tune", init_from = {{ stage = "{}" }} }}"#, base.display());
    let [one, two] = [(1, 4), (2, 2)].map(|(ranks, micro_batches)| {
        let mut recipe = shared(folder.path(), &format!("adapter-{ranks}"), &stage, micro_batches);
        let mut adapter = AdapterConfig::new(4);
        (adapter.dropout, adapter.quantize) = (0.1, Some("q8_0".into()));
        recipe.adapter = Some(adapter);
        train_on(ranks, &recipe, false)
    });
    let difference = difference(&one, &two);
    assert!(difference < TOLERANCE, "{difference}");
}

/// Stops a run on `size` ranks after some steps.
fn stop_after(size: usize, recipe: &Recipe, steps: u64, resume: bool) {
    let outcomes = on_ranks(size, DEFAULT_TIMEOUT, |world| {
        let mut run = Run::in_world(recipe.clone(), Device::Cpu, world).unwrap().with_default_observers();
        run.stop_after(steps);
        run.train(resume).unwrap()
    });
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Stopped { step, .. } if *step == steps)));
}

#[test]
fn a_run_resumes_on_any_number_of_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let averaged = |name: &str, micro_batches| {
        let mut recipe = shared(folder.path(), name, r#"{ kind = "tune" }"#, micro_batches);
        recipe.optimizer.ema_decay = Some(0.5);
        recipe
    };
    let whole = train_on(1, &averaged("whole", 4), false);
    // The same recipe on other numbers of ranks keeps the four micro-batches of a step.
    let moved = averaged("moved", 2);
    stop_after(2, &moved, 1, false);
    let checkpoint = folder.path().join("moved/checkpoints/step-00000001");
    let shards = ["optimizer-00001-of-00002.safetensors", "optimizer-00002-of-00002.safetensors"];
    assert_eq!(entries(&checkpoint), [shards[0], shards[1], "parameters.safetensors", "state.json"]);
    stop_after(4, &moved, 2, true);
    stop_after(1, &moved, 3, true);
    let moved = train_on(2, &moved, true);
    assert!(difference(&whole, &moved) < TOLERANCE);
    assert_close(&metrics(folder.path(), "whole"), &metrics(folder.path(), "moved"));
    // A checkpoint of one process on several ranks, and the other way round, by recipes of as many micro-batches.
    stop_after(1, &averaged("grown", 4), 2, false);
    assert!(difference(&whole, &train_on(2, &averaged("grown", 2), true)) < TOLERANCE);
    // One process exports what several have trained.
    let mut run = Run::new(averaged("moved", 2), Device::Cpu).unwrap();
    let alone = folder.path().join("alone");
    assert_eq!(run.export_checkpoint(&alone, CheckpointChoice::Newest).unwrap(), 4);
    assert_eq!(tensors(&alone), tensors(&moved));
    assert_eq!(averaged("moved", 2).finished_run().unwrap().unwrap().step, Some(4));
    let error =
        Run::in_world(averaged("moved", 2), Device::Cpu, World::threads(3).remove(0)).err().unwrap().to_string();
    assert!(error.contains("gradient_accumulation_steps") && error.contains("4 micro-batches"), "{error}");
}

#[test]
fn a_damaged_shard_of_a_checkpoint_is_named_and_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let tune = shared(folder.path(), "run", r#"{ kind = "tune" }"#, 1);
    stop_after(2, &tune, 3, false);
    let shard = "optimizer-00002-of-00002.safetensors";
    std::fs::remove_file(folder.path().join("run/checkpoints/step-00000003").join(shard)).unwrap();
    let notices = on_ranks(2, DEFAULT_TIMEOUT, |world| {
        let (sender, received) = std::sync::mpsc::channel();
        let run = Run::in_world(tune.clone(), Device::Cpu, world).unwrap();
        run.with_observer(Box::new(Notices(sender))).train(true).unwrap();
        received.try_iter().collect::<Vec<String>>()
    });
    assert!(notices[0][0].contains("skipped checkpoint") && notices[0][0].contains(shard), "{notices:?}");
    assert!(notices[0][1].contains("step-00000002"), "{notices:?}");
}

/// Observer that calls a function after a step.
struct After(u64, fn() -> haplovl::Result<()>);

impl TrainObserver for After {
    fn on_step(&mut self, step: &StepReport, _: &Record) -> haplovl::Result<()> {
        if step.step == self.0 { (self.1)() } else { Ok(()) }
    }
}

/// Trains on three ranks until `after` is called on rank 1 after step 3; returns the errors of the ranks.
fn ended(recipe: &Recipe, timeout: Duration, after: fn() -> haplovl::Result<()>) -> Vec<String> {
    on_ranks(3, timeout, |world| {
        let is_faulty = world.rank() == 1;
        let run = Run::in_world(recipe.clone(), Device::Cpu, world).unwrap().with_default_observers();
        let mut run = if is_faulty { run.with_observer(Box::new(After(3, after))) } else { run };
        run.train(false).unwrap_err().to_string()
    })
}

#[test]
fn a_rank_that_fails_ends_all_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let tune = |name: &str| shared(folder.path(), name, r#"{ kind = "tune" }"#, 1);
    let whole = train_on(3, &tune("whole"), false);
    for (name, after) in [
        ("fails", (|| Err(haplovl::Error::training("on purpose"))) as fn() -> haplovl::Result<()>),
        ("panics", || panic!("on purpose")),
    ] {
        let began = std::time::Instant::now();
        let errors = ended(&tune(name), DEFAULT_TIMEOUT, after);
        assert!(began.elapsed() < Duration::from_secs(600), "{name} took {:?}", began.elapsed());
        for other in [&errors[0], &errors[2]] {
            assert!(other.contains("rank 1 failed"), "{name}: {errors:?}");
        }
        assert_eq!(tensors(&whole), tensors(&train_on(3, &tune(name), true)), "{name}");
    }
}

#[test]
fn a_rank_that_hangs_ends_all_in_the_set_time() {
    let folder = tempfile::tempdir().unwrap();
    let tune = shared(folder.path(), "run", r#"{ kind = "tune" }"#, 1);
    let errors = ended(&tune, Duration::from_secs(8), || {
        std::thread::sleep(Duration::from_secs(20));
        Ok(())
    });
    for waiting in [&errors[0], &errors[2]] {
        assert!(waiting.contains("rank 1 has been silent"), "{errors:?}");
    }
}

#[test]
fn skipped_and_cut_samples_of_all_ranks_are_reported_by_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let mut lines = vec![record("0.png", 2); 57];
    for (place, image) in [(3, "broken.png"), (20, "missing.png"), (40, "none.png")] {
        lines.insert(place, record(image, 2));
    }
    lines.push(record("1.png", 90));
    std::fs::write(folder.path().join("broken.png"), "no image").unwrap();
    for layout in [DataLayout::InOrder, DataLayout::ByLength] {
        let mut recipe = records(folder.path(), &lines, 16);
        (recipe.data.layout, recipe.output) = (layout, folder.path().join(format!("{layout:?}")));
        (recipe.data.max_bad_share, recipe.data.max_length, recipe.data.truncate_answers) = (0.2, 80, true);
        (recipe.run.save_steps, recipe.run.eval_steps) = (1000, 1000);
        let said = on_ranks(2, DEFAULT_TIMEOUT, |world| {
            let (sender, received) = std::sync::mpsc::channel();
            let run = Run::in_world(recipe.clone(), Device::Cpu, world).unwrap();
            let run = run.with_observer(Box::new(Skips(sender.clone())));
            let mut run = run.with_observer(Box::new(Notices(sender)));
            run.train(false).unwrap();
            (run.data_report().clone(), received.try_iter().collect::<Vec<String>>())
        });
        let (report, lines) = &said[0];
        assert_eq!((report.seen, report.bad, report.cut), (61, 3, 1), "{layout:?}");
        for image in ["broken.png", "missing.png", "none.png"] {
            assert_eq!(lines.iter().filter(|line| line.contains(image)).count(), 1, "{layout:?} {image}: {lines:?}");
        }
        assert!(lines.iter().any(|line| line.contains("the end of its last answer is cut")), "{lines:?}");
        assert_eq!(&said[1].0, report);
    }
}

#[test]
fn optimizer_state_is_spread_over_the_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = shared(folder.path(), "run", r#"{ kind = "tune" }"#, 1);
    recipe.optimizer.ema_decay = Some(0.5);
    let bytes = |size: usize| {
        on_ranks(size, DEFAULT_TIMEOUT, |world| {
            Run::in_world(recipe.clone(), Device::Cpu, world).unwrap().state_bytes()
        })
    };
    let one = bytes(1)[0];
    for ranks in [2, 4] {
        let shares = bytes(ranks);
        assert_eq!(shares.iter().sum::<usize>(), one);
        let most = *shares.iter().max().unwrap() as f64 * ranks as f64;
        assert!(most < 1.2 * one as f64, "{shares:?} of {one}");
    }
}

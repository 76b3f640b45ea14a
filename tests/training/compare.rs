//! The example `compare`: equal costs, every design through a few steps, and going on after a stop.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../../examples/compare/comparison/mod.rs"]
mod comparison;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use comparison::{Cost, FORMULA, Options, Outcome, Plan, Results, Suite, costs, report, run};

fn options(out: &Path, setting: &str, suite: Suite, designs: &[&str]) -> Options {
    let designs = designs.iter().map(|design| design.to_string()).collect();
    let recipes = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("recipes/compare");
    Options { out: out.into(), recipes, setting: setting.into(), suite, designs, seeds: 1 }
}

/// Names of all designs of the plan.
fn all(options: &Options) -> Vec<String> {
    Plan::read(&options.recipes).unwrap().designs.into_iter().map(|design| design.name).collect()
}

#[test]
fn designs_have_equal_parameters_and_operations_in_every_setting() {
    assert!(FORMULA.starts_with("FLOPs = 2"));
    let recipes = options(Path::new(""), "", Suite::Designs, &[]).recipes;
    for setting in Plan::read(&recipes).unwrap().settings.keys() {
        let options = options(Path::new(""), setting, Suite::Designs, &[]);
        let costs: BTreeMap<String, Cost> = costs(&options, None, &all(&options)).unwrap().into_iter().collect();
        assert_eq!(costs.len(), all(&options).len(), "{setting}");
        let reference = costs["haplovl"];
        for (name, cost) in &costs {
            let ratio = cost.parameters as f64 / reference.parameters as f64;
            assert!((0.95..=1.05).contains(&ratio), "{setting} {name}: {ratio}");
            assert_eq!(cost.frozen > 0, name.starts_with("llava"), "{setting} {name}");
        }
        // Only the mask differs, so that only attention costs less.
        assert_eq!(costs["causal"].parameters, reference.parameters);
        assert!(costs["causal"].question() < reference.question());
    }
    for (setting, size) in ["hard", "easy"].into_iter().flat_map(|setting| [(setting, "small"), (setting, "smallest")])
    {
        let scaled = options(Path::new(""), setting, Suite::Scaling, &[]);
        let designs = Plan::read(&scaled.recipes).unwrap().scaling.designs;
        costs(&scaled, Some(size), &designs).unwrap();
    }
}

#[test]
fn operations_are_counted_by_hand() {
    let options = options(Path::new(""), "tiny", Suite::Designs, &[]);
    let [(_, haplovl), (_, llava)] = costs(&options, None, &["haplovl".into(), "llava".into()]).unwrap()[..] else {
        panic!("two designs")
    };
    // Pre-decoder: one layer of width 32 with an MLP of 96. Post-decoder: four of width 48, one of three heads for keys
    // and values, a gated MLP of 160. 16 patches of 8 x 8 pixels, 110 words.
    let pre = 4 * 32 * 32 + 2 * 32 * 96;
    let post = 4 * (2 * 48 * 48 + 2 * 48 * 16 + 3 * 48 * 160);
    let (patches, text) = (16, 10);
    let tokens = patches + text;
    let matrices = tokens * (pre + 32 * 48 + post) + text * 48 * 32 + patches * 192 * 32 + 110 * 48;
    let pairs = tokens * (tokens + 1) / 2 + patches * (patches - 1) / 2;
    let expected = 2 * matrices + 4 * pairs * (32 + 4 * 48);
    let flops = haplovl.flops(text as f64);
    assert_eq!((flops.forward(), flops.frozen), (expected as f64, 0.0));
    assert_eq!(flops.training(), 3.0 * expected as f64);
    // The teacher also has a class token; the MLP is 32 x 96 x 48.
    let teacher = 2 * (17 * pre + patches * 192 * 32) + 4 * 17 * 17 * 32;
    let trained = 2 * (tokens * post + patches * (32 * 96 + 96 * 48) + 110 * 48) + 2 * tokens * (tokens + 1) * 4 * 48;
    let flops = llava.flops(text as f64);
    assert_eq!((flops.frozen, flops.trained), (teacher as f64, trained as f64));
}

#[test]
fn a_share_of_steps_is_above_0_and_at_most_1() {
    let plan =
        std::fs::read_to_string(options(Path::new(""), "tiny", Suite::Designs, &[]).recipes.join("plan.toml")).unwrap();
    for share in ["0.0", "1.5", "nan", "-0.5"] {
        let folder = tempfile::tempdir().unwrap();
        let changed = plan.replacen("share = 0.5", &format!("share = {share}"), 1);
        std::fs::write(folder.path().join("plan.toml"), changed).unwrap();
        let error = Plan::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("design haplovl: `share` of stage distill"), "{error}");
    }
}

/// Runs a comparison, counting how often it asks whether to stop; it is stopped at the given time.
fn run_until(options: &Options, stop_at: usize) -> (Outcome, Vec<String>, usize) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let notes = RefCell::new(Vec::new());
    let stop = move || counter.fetch_add(1, Ordering::Relaxed) >= stop_at;
    let outcome = run(options, stop, |note| notes.borrow_mut().push(note.to_string())).unwrap();
    (outcome, notes.into_inner(), asked.load(Ordering::Relaxed))
}

#[test]
fn every_design_is_trained_and_a_stopped_comparison_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path(), "tiny", Suite::Designs, &[]);
    // Stopped inside a run, then again later, then finished.
    for stop_at in [7, 40, usize::MAX] {
        let (outcome, ..) = run_until(&options, stop_at);
        let expected = if stop_at == usize::MAX { Outcome::Finished } else { Outcome::Stopped };
        assert_eq!(outcome, expected, "stopped at {stop_at}");
    }
    let results = |design: &str| Results::read(&folder.path().join("tiny/seed-1").join(design)).unwrap().unwrap();
    for design in all(&options) {
        let results = results(&design);
        let last = results.stages.last().unwrap();
        assert_eq!((last.name.as_str(), last.steps), ("tune", 3), "{design}");
        assert!(results.loss().unwrap().is_finite() && results.curve.len() == 2, "{design}");
        assert!(results.correctness.accuracy().overall().total > 8, "{design}");
        assert!(results.flops_sample > 0.0 && last.tokens > 0.0 && last.seconds > 0.0, "{design}");
    }
    // Designs that begin with another one's stage 1 use its folder.
    let names = |design| results(design).stages.into_iter().map(|stage| stage.name).collect::<Vec<_>>();
    assert_eq!(names("haplovl"), ["distill", "align", "tune"]);
    assert_eq!(results("haplovl").stages.iter().map(|stage| stage.steps).collect::<Vec<_>>(), [2, 2, 3]);
    assert_eq!(names("connector-aligned"), ["distill", "align", "tune"]);
    assert!(!folder.path().join("tiny/seed-1/connector-aligned/distill").exists());
    assert!(folder.path().join("tiny/seed-1/causal/distill/export").exists());
    // Fields of the configuration differ in the designs that say so, and not in what they share.
    let config = |stage: &str| std::fs::read_to_string(folder.path().join(format!("tiny/{stage}.json"))).unwrap();
    let has_rope = |stage: &str| !config(stage).contains(r#""rope": "none""#);
    assert!(has_rope("shared/vision") && has_rope("seed-1/haplovl/tune"), "{}", config("shared/vision"));
    assert!(!has_rope("seed-1/no-rope/distill") && !has_rope("seed-1/no-rope-no-stage-1/tune"));
    // Nothing is left to do.
    let weights = folder.path().join("tiny/seed-1/llava/tune/export/model.safetensors");
    let before = std::fs::metadata(&weights).unwrap().modified().unwrap();
    let (outcome, notes, asked) = run_until(&options, 0);
    assert_eq!((outcome, notes.len(), asked), (Outcome::Finished, all(&options).len(), 0));
    assert_eq!(std::fs::metadata(&weights).unwrap().modified().unwrap(), before);
    // The page has every design and its charts.
    let page = folder.path().join("page/results.md");
    let text = report(&options, &page).unwrap();
    assert_eq!(std::fs::read_to_string(&page).unwrap(), text);
    for design in all(&options) {
        assert_eq!(text.matches(&format!("\n| {design} | ")).count(), 4, "{design} in {text}");
    }
    let verdicts = ["yes", "no", "open"].map(|verdict| text.matches(&format!("| **{verdict}** | ")).count());
    assert_eq!(verdicts.iter().sum::<usize>(), Plan::read(&options.recipes).unwrap().claims.len(), "{text}");
    for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        let chart = std::fs::read_to_string(folder.path().join("page").join(link)).unwrap();
        assert!(chart.starts_with("<svg"), "{link}");
    }
    assert_eq!(text.matches("](images/").count(), 4, "{text}");
    assert!(!text.contains("Made by other recipes"), "{text}");
    // The results alone give the same page elsewhere, and are not made again.
    let kept = tempfile::tempdir().unwrap();
    let kept_results = |design: &str| kept.path().join("tiny/seed-1").join(design).join("results.json");
    for design in all(&options) {
        std::fs::create_dir_all(kept_results(&design).parent().unwrap()).unwrap();
        std::fs::copy(folder.path().join("tiny/seed-1").join(&design).join("results.json"), kept_results(&design))
            .unwrap();
    }
    let options = Options { out: kept.path().into(), ..options };
    assert_eq!(report(&options, &page).unwrap(), text);
    assert_eq!(run_until(&options, 0).0, Outcome::Finished);
    // Results of other recipes are named on the page and not gone on with.
    let changed = std::fs::read_to_string(kept_results("llava")).unwrap();
    let changed = changed.replace(&results("llava").provenance, "another plan");
    std::fs::write(kept_results("llava"), changed).unwrap();
    let text = report(&options, &page).unwrap();
    assert!(text.contains("**Made by other recipes than the present ones**: llava of seed 1."), "{text}");
    let error = run(&options, || true, |_| ()).unwrap_err().to_string();
    assert!(error.contains("llava/results.json was made by other recipes than those in"), "{error}");
    // So are those in another folder than their own, and those of another test.
    let aside = kept.path().join("tiny/seed-1/llava-before");
    std::fs::rename(kept_results("llava").parent().unwrap(), &aside).unwrap();
    let error = report(&options, &page).unwrap_err().to_string();
    assert!(error.contains("llava-before/results.json is of seed-1/llava: move its folder there"), "{error}");
    std::fs::rename(&aside, kept_results("llava").parent().unwrap()).unwrap();
    let mut changed: serde_json::Value =
        serde_json::from_slice(&std::fs::read(kept_results("llava")).unwrap()).unwrap();
    changed["correctness"].as_object_mut().unwrap().remove("shape");
    std::fs::write(kept_results("llava"), changed.to_string()).unwrap();
    let error = report(&options, &page).unwrap_err().to_string();
    assert!(error.contains("llava of seed 1: `correctness` in its results.json is not of the questions"), "{error}");
    changed.as_object_mut().unwrap().remove("correctness");
    std::fs::write(kept_results("llava"), changed.to_string()).unwrap();
    let error = report(&options, &page).unwrap_err().to_string();
    assert!(error.contains("missing field `correctness`") && error.contains("remove it"), "{error}");
}

#[test]
fn data_and_parameters_are_scaled() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), "tiny", Suite::Scaling, &[]);
    // The sizes of plan.toml are those of `hard`, with smaller ones for the test.
    options.recipes = folder.path().join("recipes");
    std::fs::create_dir(&options.recipes).unwrap();
    for entry in std::fs::read_dir(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("recipes/compare")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, options.recipes.join(path.file_name().unwrap())).unwrap();
    }
    let plan = std::fs::read_to_string(options.recipes.join("plan.toml")).unwrap();
    let (plan, _) = plan.split_once("[scaling]").unwrap();
    let scaling = "[scaling]\ndesigns = ['haplovl', 'no-stage-1']\nscenes = [4]\n[scaling.sizes.less]\n\
                   pre_decoder = { hidden_size = 16, num_attention_heads = 1, num_key_value_heads = 1 }\n";
    std::fs::write(options.recipes.join("plan.toml"), format!("{plan}{scaling}")).unwrap();
    assert_eq!(run_until(&options, usize::MAX).0, Outcome::Finished);
    let results = |name: &str| Results::read(&folder.path().join("tiny/seed-1").join(name)).unwrap().unwrap();
    let [full, few, less] = ["haplovl", "haplovl-4-images", "haplovl-less"].map(results);
    assert_eq!((full.images(), few.images(), few.scenes), (12, 4, Some(4)));
    assert!(less.parameters < full.parameters && few.parameters == full.parameters);
    // Stage 1 is that of all images; another size has its own teachers.
    assert!(!folder.path().join("tiny/seed-1/haplovl-4-images/distill").exists());
    assert!(folder.path().join("tiny/shared-less/vision/export").exists());
    let text = report(&options, &folder.path().join("page.md")).unwrap();
    for what in ["images", "parameters"] {
        let (_, table) =
            text.split_once(&format!("| design | {what} | accuracy, % | difference from haplovl |")).unwrap();
        assert!(table.contains(&format!("- no-stage-1: loss proportional to {what}^")), "{table}");
        assert!(table.contains("the lines of the losses of haplovl and no-stage-1 "), "{table}");
        // One line of each design and size has a difference from the first design of the same size.
        let lines = Vec::from_iter(table.lines().filter(|line| line.starts_with("| ")).take(4));
        for (line, design) in lines.iter().zip(["haplovl", "haplovl", "no-stage-1", "no-stage-1"]) {
            let cells = Vec::from_iter(line.split(" | "));
            let is_zero = cells[3] == "0.0 (0.0 to 0.0)";
            assert!(
                cells[0] == format!("| {design}") && cells[3].contains(" to ") && (is_zero || design != "haplovl"),
                "{line}"
            );
        }
    }
    // Only seeds that every size has are in these tables.
    let mut second = full.clone();
    second.seed = 2;
    let second = serde_json::to_vec(&second).unwrap();
    std::fs::create_dir_all(folder.path().join("tiny/seed-2/haplovl")).unwrap();
    std::fs::write(folder.path().join("tiny/seed-2/haplovl/results.json"), second).unwrap();
    let text = report(&options, &folder.path().join("page.md")).unwrap();
    assert!(text.contains("\n| haplovl | 2 | ") && text.matches(", seed 1:").count() == 2, "{text}");
    std::fs::remove_dir_all(folder.path().join("tiny/seed-2")).unwrap();
    // A finished stage is not taken for one of changed recipes, even if its results are removed.
    let tune = std::fs::read_to_string(options.recipes.join("tune.toml")).unwrap();
    std::fs::write(options.recipes.join("tune.toml"), tune.replace("ema_decay = 0.99", "ema_decay = 0.9")).unwrap();
    let error = run(&options, || true, |_| ()).unwrap_err().to_string();
    assert!(error.contains("haplovl/results.json was made by other recipes"), "{error}");
    std::fs::remove_file(folder.path().join("tiny/seed-1/haplovl/results.json")).unwrap();
    let error = run(&options, || true, |_| ()).unwrap_err().to_string();
    let expected = "haplovl/tune: `optimizer.ema_decay` was 0.99 when it began and is 0.9 now: move it away";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn unknown_names_are_errors_that_list_the_known_ones() {
    let folder = tempfile::tempdir().unwrap();
    let error = |setting: &str, designs: &[&str]| {
        let options = options(folder.path(), setting, Suite::Designs, designs);
        run(&options, || true, |_| ()).unwrap_err().to_string()
    };
    let setting = error("harder", &[]);
    assert!(setting.contains("`harder`, only easy, hard, long, tiny"), "{setting}");
    let design = error("tiny", &["haplovl", "flamingo"]);
    assert!(design.contains("`flamingo`, only haplovl, no-stage-1"), "{design}");
    let none = options(folder.path(), "tiny", Suite::Designs, &[]);
    let none = report(&none, &folder.path().join("page.md")).unwrap_err();
    assert!(format!("{none:#}").contains("tiny"), "{none:#}");
}

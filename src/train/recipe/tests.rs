//! Tests of reading, overriding and identifying recipes.

use super::*;

const RECIPE: &str = r#"
        output = "runs/x"
        config = "tiny"
        tokenizer = "shapes"
        [stage]
        kind = "tune"
        inherit.llm = "runs/llm"
        [data]
        max_length = 100
        train = [{ kind = "shapes", split = "train", scenes = 10, side = 28, content = "mixed" }]
        [update]
        steps = 10
        rows = 2
        learning_rate = 1e-3
    "#;

const VALIDATION: &str =
    r#"data.validation={ kind = "shapes", split = "validation", scenes = 4, side = 28, content = "mixed" }"#;

fn read(text: &str, overrides: &[&str]) -> Result<Recipe> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    Recipe::read(file.path(), &overrides.iter().map(ToString::to_string).collect::<Vec<_>>())
}

#[test]
fn what_cannot_work_together_is_refused_by_name() {
    for (setting, field) in [
        ("run.patience=0", "run.early_stopping_patience"),
        ("run.patience=1", "run.early_stopping_patience"),
        ("data.max_bad_share=2", "data.max_bad_share"),
        ("update.parallel=2", "update.parallel_micro_batches"),
        ("update.accumulation=1000000000000000000", "update.gradient_accumulation_steps"),
        (
            r#"stage={ kind = "distill", vision_teacher = "v", text_teacher = "t", weights = { vision = -1.0 } }"#,
            "stage.weights.vision",
        ),
    ] {
        let error = read(RECIPE, &[setting]).unwrap_err().to_string();
        assert!(error.contains(&format!("`{field}`")), "{setting}: {error}");
    }
}

#[test]
fn a_run_stays_the_same_when_what_it_is_judged_by_changes() {
    let identity = |settings: &[&str]| read(RECIPE, settings).unwrap().identity().unwrap();
    let same = identity(&[VALIDATION, "data.max_bad_share=0.5", "data.workers=7", "run.patience=2"]);
    assert_eq!(identity(&[]), same);
    assert_ne!(identity(&[]), identity(&["data.max_length=99"]));
}

#[test]
fn defaults_overrides_and_the_way_back() {
    let recipe = read(RECIPE, &["update.steps=7", "run.patience=3", "output=elsewhere", VALIDATION]).unwrap();
    assert_eq!((recipe.update.steps, recipe.run.early_stopping_patience), (Some(7), Some(3)));
    assert_eq!(recipe.output, Path::new("elsewhere"));
    let echoed = toml::to_string(&recipe).unwrap();
    assert_eq!(read(&echoed, &[]).unwrap(), recipe);
}

#[test]
fn mistakes_are_named() {
    let message = |overrides: &[&str]| read(RECIPE, overrides).unwrap_err().to_string();
    assert!(message(&["update.stepz=7"]).contains("stepz"));
    assert!(message(&["stage.kind=tuna"]).contains("tuna"));
    assert!(message(&["stage.inherit.lmm=x"]).contains("lmm"));
    assert!(message(&["update.rows=0"]).contains("update.batch_size"));
    assert!(message(&["update.learning_rate=-1.0"]).contains("learning_rate"));
    let vision = ["stage={ kind = 'vision', projection_dim = 8 }", "update.compute=bf16"];
    assert!(message(&vision).contains("update.compute_dtype"));
    assert!(message(&["update.compute=f16"]).contains("use bf16"));
    assert!(message(&["steps"]).contains("KEY=VALUE"));
}

const QUICK: &str = r#"
        output = "runs/shapes/quick"
        config = "recipes/shapes/quick.json"
        tokenizer = "shapes"
        seed = 1
        [stage]
        kind = "tune"
        [data]
        max_length = 160
        layout = "by_length"
        validation_samples = 128
        [[data.train]]
        kind = "shapes"
        split = "train"
        scenes = 1000000
        side = 64
        content = "captions"
        config = { min_objects = 1, max_objects = 1 }
        [update]
        steps = 1000
        rows = 8
        accumulation = 2
        parallel = 2
        learning_rate = 2e-3
        [run]
        evaluate_every = 500
        checkpoint_every = 500
        log_every = 100
    "#;

const FILES: &str = r#"
        output = "out"
        config = "quick.json"
        tokenizer = "shapes"
        seed = 7
        stage = { kind = "tune", inherit = { text = "random" } }
        data = { max_length = 160, layout = "packed", workers = 3, max_bad_share = 0.25, train = [{ kind = "files", path = "data/pictures" }, { kind = "shapes", split = "train", first = 5, scenes = 40, side = 64, content = "questions", rounds = 2, kinds = ["counting", "spatial"], config = { min_objects = 2, max_objects = 3 } }] }
        update = { steps = 1, rows = 2, accumulation = 3, learning_rate = 1e-3 }
        schedule = { hold_ratio = 0.5 }
    "#;

/// The expected identities are those in checkpoints of the first version of recipes.
#[test]
fn identities_of_the_first_version_stay() {
    let found = |text: &str, settings: &[&str]| read(text, settings).unwrap().identity().unwrap();
    let quick = "tune of recipes/shapes/quick.json with seed 1, 2 x 8 rows a step, samples 6c828484";
    assert_eq!(found(QUICK, &[]), quick);
    assert_eq!(found(QUICK, &["root=elsewhere", "data.num_workers=9", "data.max_eval_samples=3"]), quick);
    let smaller = ["data.validation_samples=3", "update.rows=2", "update.accumulation=3", "update.parallel=1"];
    let expected = "tune of recipes/shapes/quick.json with seed 1, 3 x 2 rows a step, samples 6c828484";
    assert_eq!(found(QUICK, &smaller), expected);
    assert_eq!(found(FILES, &[]), "tune of quick.json with seed 7, 3 x 2 rows a step, samples 0a4df81e");
}

#[test]
fn former_names_work_in_files_and_overrides() {
    let recipe =
        read(QUICK, &["update.rows=3", "update.compute_dtype=f32", "run.show=9", "update.compute=bf16"]).unwrap();
    assert_eq!((recipe.update.batch_size, recipe.run.num_eval_samples, recipe.run.save_steps), (3, 9, 500));
    assert_eq!(recipe.update.compute_dtype, FloatType::Bf16);
    let direct: Recipe = toml::from_str(FILES).unwrap();
    let from_file = read(FILES, &[]).unwrap();
    assert_eq!(Recipe { root: from_file.root.clone(), ..direct.clone() }, from_file);
    assert_eq!(direct.schedule.stable_ratio, 0.5);
    let both = read(&QUICK.replace("rows = 8", "rows = 8\nbatch_size = 8"), &[]).unwrap_err().to_string();
    assert!(both.contains("`update.rows`") && both.contains("`update.batch_size`"), "{both}");
}

#[test]
fn errors_name_the_override_or_the_file() {
    let error = |text: &str, settings: &[&str]| read(text, settings).unwrap_err().to_string();
    let setting = error(RECIPE, &["update.steps=7", "update.stepz=7"]);
    assert!(setting.contains("override `update.stepz=7`") && !setting.contains(".toml"), "{setting}");
    assert!(setting.ends_with("did you mean `steps`?"), "{setting}");
    let address = error(RECIPE, &["data.train=[{kind=\"files\",path=\"https://a.b/c.json\"}]"]);
    assert!(address.contains("is the address https://a.b/c.json, which is not fetched: download it"), "{address}");
    let range = error(RECIPE, &["data.max_bad_share=-1e308"]);
    assert!(range.contains("override `data.max_bad_share=-1e308`") && range.contains("is -1e308"), "{range}");
    let file = error(&RECIPE.replace("rows = 2", "rows = 0"), &["update.steps=7"]);
    assert!(file.contains("field `update.batch_size` is 0") && !file.contains("override"), "{file}");
    let kind = error(RECIPE, &["data.layout=0"]);
    assert!(kind.contains("`data.layout` is 0, expected one of its names"), "{kind}");
    for field in ["output", "config", "tokenizer", "stage.init_from.llm", "stage.inherit.stage"] {
        assert!(error(RECIPE, &[&format!("{field}=")]).contains("is empty, expected a path"), "{field}");
    }
    assert!(error(RECIPE, &["stage={kind=\"vision\",projection_dim=0}"]).contains("stage.projection_dim"));
    assert!(error(RECIPE, &["stage={kind=\"vision\",projection_dim=1000000000}"]).contains("at most"));
}

#[test]
fn paths_are_relative_to_the_root() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("recipe.toml");
    std::fs::write(&path, RECIPE).unwrap();
    let without = Recipe::read(&path, &[]).unwrap();
    assert_eq!((without.output_folder(), without.notice()), (folder.path().join("runs/x"), None));
    let with = Recipe::read(&path, &["root=.".to_string()]).unwrap();
    assert_eq!(with.output_folder(), folder.path().join("runs/x"));
    let error = with.open_model_source("tokenizer", "./llm").unwrap_err().to_string();
    assert!(error.contains("`tokenizer`") && error.contains(&folder.path().display().to_string()), "{error}");
    std::fs::create_dir_all(folder.path().join("runs/llm")).unwrap();
    assert_eq!(with.open_model_source("x", "runs/llm").unwrap().path(), folder.path().join("runs/llm"));
    // The copy in the run's folder means the same.
    let copy = folder.path().join("runs/recipe.toml");
    std::fs::write(&copy, toml::to_string(&with).unwrap()).unwrap();
    assert_eq!(Recipe::read(&copy, &[]).unwrap(), with);
}

#[test]
fn a_tokenizer_is_a_string_or_a_table_with_words() {
    let plain = read(RECIPE, &[]).unwrap();
    assert_eq!(plain.tokenizer, TokenizerConfig::new("shapes"));
    let grown = read(RECIPE, &["tokenizer.add=[\"cat\"]", "tokenizer.add_missing=5"]).unwrap();
    assert_eq!((grown.tokenizer.source.as_str(), grown.tokenizer.add_missing), ("shapes", 5));
    assert_eq!(read(&toml::to_string(&grown).unwrap(), &[]).unwrap(), grown);
    // Words are part of the run's identity, and a run without any keeps its identity.
    assert_ne!(grown.identity().unwrap(), plain.identity().unwrap());
    assert!(!plain.identity().unwrap().contains("added words"));
    let table = RECIPE.replace(r#"tokenizer = "shapes""#, r#"tokenizer = { source = "shapes" }"#);
    assert_eq!(read(&table, &[]).unwrap(), plain);
    let message = |setting: &str| read(RECIPE, &[setting]).unwrap_err().to_string();
    assert!(message("tokenizer.add=[\"a \"]").contains("tokenizer.add"));
    assert!(message("tokenizer.ad=[]").contains("`ad`"), "{}", message("tokenizer.ad=[]"));
    assert!(message("tokenizer=5").contains("a string, or a table with `source`"), "{}", message("tokenizer=5"));
    assert!(message("data.max_unknown_share=1.5").contains("data.max_unknown_share"));
}

#[test]
fn without_a_root_paths_start_from_the_recipe_or_else_from_the_current_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("recipe.toml");
    std::fs::write(&path, QUICK).unwrap();
    // The current folder of tests is that of the crate, which has the configuration.
    let current = std::env::current_dir().unwrap();
    let fallback = Recipe::read(&path, &[]).unwrap();
    assert_eq!(fallback.output_folder(), current.join("runs/shapes/quick"));
    let notice = fallback.notice().unwrap();
    assert!(
        notice.contains("recipes/shapes/quick.json") && notice.contains(&current.display().to_string()),
        "{notice}"
    );
    std::fs::create_dir_all(folder.path().join("recipes/shapes")).unwrap();
    std::fs::write(folder.path().join("recipes/shapes/quick.json"), "{}").unwrap();
    let own = Recipe::read(&path, &[]).unwrap();
    assert_eq!((own.root.as_deref(), own.notice()), (Some(folder.path()), None));
    assert_eq!(own.identity().unwrap(), fallback.identity().unwrap());
    let missing = own.in_field("config", Error::io(own.resolve("x.json"), std::io::ErrorKind::NotFound.into()));
    let missing = missing.to_string();
    assert!(missing.contains("`config`") && missing.contains("x.json"), "{missing}");
    assert!(missing.ends_with(&format!("start from {}", folder.path().display())), "{missing}");
}

#[test]
fn exactly_one_of_steps_and_epochs_is_set() {
    let epochs = RECIPE.replace("steps = 10", "epochs = 3");
    let recipe = read(&epochs, &[]).unwrap();
    assert_eq!((recipe.update.steps, recipe.update.epochs), (None, Some(3.0)));
    assert_eq!(recipe.identity().unwrap(), read(RECIPE, &[]).unwrap().identity().unwrap());
    let both = read(&RECIPE.replace("steps = 10", "steps = 10\nepochs = 0.5"), &[]).unwrap_err().to_string();
    assert!(both.contains("`update.steps` is 10") && both.contains("`update.epochs` is 0.5"), "{both}");
    let none = read(&RECIPE.replace("steps = 10", ""), &[]).unwrap_err().to_string();
    assert!(none.contains("set `update.steps` or `update.epochs`"), "{none}");
    for wrong in ["0", "-1", "nan", "inf", "1e300"] {
        let error = read(&epochs, &[&format!("update.epochs={wrong}")]).unwrap_err().to_string();
        assert!(error.contains("update.epochs"), "{error}");
    }
    // An override is meant instead of the other field.
    let update = |text: &str, setting: &str| read(text, &[setting]).unwrap().update;
    assert_eq!(
        update(RECIPE, "update.epochs=2.5"),
        UpdateConfig { steps: None, epochs: Some(2.5), ..recipe.update.clone() }
    );
    assert_eq!(update(&epochs, "update.steps=7"), UpdateConfig { steps: Some(7), epochs: None, ..recipe.update });
}

#[test]
fn weights_and_cut_answers_belong_to_the_identity_of_a_run_only_if_they_are_set() {
    let identity = |text: &str, settings: &[&str]| read(text, settings).unwrap().identity().unwrap();
    let weighted = |weight: &str| RECIPE.replace("kind = \"shapes\"", &format!("kind = \"shapes\", weight = {weight}"));
    assert_eq!(identity(RECIPE, &[]), identity(&weighted("1"), &["data.truncate_answers=false"]));
    assert_ne!(identity(RECIPE, &[]), identity(&weighted("1.5"), &[]));
    assert_ne!(identity(RECIPE, &[]), identity(RECIPE, &["data.truncate_answers=true"]));
    let recipe = read(&weighted("2"), &[]).unwrap();
    assert_eq!(recipe.data.train[0].weight, 2.0);
    assert_eq!(read(&toml::to_string(&recipe).unwrap(), &[]).unwrap(), recipe);
    let error = read(&weighted("0"), &[]).unwrap_err().to_string();
    assert!(error.contains("`data.train.weight`") && error.contains("above 0"), "{error}");
    let near = read(&RECIPE.replace("side = 28", "side = 28, wieght = 2"), &[]).unwrap_err().to_string();
    assert!(near.ends_with("unknown field `wieght`: did you mean `weight`?"), "{near}");
    let unknown = read(&RECIPE.replace("side = 28", "side = 28, wxyz = 2"), &[]).unwrap_err().to_string();
    assert!(unknown.contains("unknown field `wxyz`, expected") && unknown.contains("data.train"), "{unknown}");
    let vision = ["stage={kind=\"vision\",projection_dim=8}", "data.truncate_answers=true"];
    assert!(read(RECIPE, &vision).unwrap_err().to_string().contains("data.truncate_answers"));
}

//! Fine-tuning on words that the vocabulary lacks.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use haplovl::pipeline::{LoadOptions, LoadedModel};
use haplovl::processor::{RgbImage, TextTokenizer};
use haplovl::train::{Outcome, Recipe, Run, Stage};

const CAPTIONS: [&str; 4] =
    ["a dachshund wears an earring.", "an earring and a ring.", "a dachshund!", "A Dachshund with a red ring."];

fn builtin() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/builtin")
}

/// A folder of images with texts.
fn images(folder: &Path) -> PathBuf {
    let images = folder.join("images");
    std::fs::create_dir(&images).unwrap();
    for (n, caption) in CAPTIONS.iter().enumerate() {
        RgbImage::from_pixel(64, 64, image::Rgb([40 * n as u8, 9, 99])).save(images.join(format!("{n}.png"))).unwrap();
        std::fs::write(images.join(format!("{n}.txt")), caption).unwrap();
    }
    images
}

/// A recipe that fine-tunes the built-in model on the images; `tokenizer` is TOML.
fn recipe(folder: &Path, name: &str, tokenizer: &str) -> Recipe {
    let builtin = builtin();
    let text = format!(
        r#"
        output = "{name}"
        root = "."
        config = "{builtin}/config.json"
        tokenizer = {tokenizer}
        stage = {{ kind = "tune", init_from = {{ stage = "{builtin}" }} }}
        data = {{ max_length = 512, train = [{{ kind = "files", path = "images" }}] }}
        update = {{ steps = 2, batch_size = 2, learning_rate = 1e-6 }}
        run = {{ save_steps = 1 }}
        "#,
        builtin = builtin.display()
    );
    let path = folder.join(format!("{name}.toml"));
    std::fs::write(&path, text).unwrap();
    Recipe::read(&path, &[]).unwrap()
}

fn grown(more: &str) -> String {
    format!(r#"{{ source = "{}", {more} }}"#, builtin().display())
}

fn table(folder: &Path, name: &str) -> Vec<Vec<f32>> {
    let tensors: std::collections::HashMap<String, Tensor> =
        candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
    tensors[name].to_dtype(candle_core::DType::F32).unwrap().to_vec2().unwrap()
}

fn export(recipe: Recipe, resume: bool) -> PathBuf {
    let outcome = Run::new(recipe, Device::Cpu).unwrap().train(resume).unwrap();
    let Outcome::Finished { export } = outcome else { panic!("{outcome:?}") };
    export
}

#[test]
fn new_words_of_a_folder_of_images_become_tokens_and_old_rows_stay() {
    let folder = tempfile::tempdir().unwrap();
    images(folder.path());
    let recipe = recipe(folder.path(), "run", &grown("add = [\"collie\"], add_missing = 20"));
    let run = Run::new(recipe.clone(), Device::Cpu).unwrap();
    let facts = run.facts().to_string();
    assert!(facts.contains("added: \"collie\"") && facts.contains("\"dachshund\""), "{facts}");
    assert!(
        facts.contains("0.00 % unknown") && facts.contains("rows kept, 0 moved, 0 new from their pieces"),
        "{facts}"
    );
    let export = export(recipe, false);
    let (old, new) = (TextTokenizer::from_folder(builtin()).unwrap(), TextTokenizer::from_folder(&export).unwrap());
    for word in ["dachshund", "Dachshund", "earring", "wears", "collie"] {
        let ids = new.encode(word).unwrap();
        assert!(ids.len() == 1 && ids[0] as usize >= old.size(), "{word}: {ids:?}");
    }
    assert_eq!(new.encode("ring").unwrap(), old.encode("ring").unwrap());
    assert_eq!(new.decode(&new.encode("a dachshund wears an earring.").unwrap(), true).unwrap(), CAPTIONS[0]);
    let model = LoadedModel::from_folder(&export, LoadOptions::default()).unwrap();
    assert_eq!(model.model().config().vocab_size, new.size());
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        let (old, new) = (table(&builtin(), name), table(&export, name));
        // Two steps at this learning rate hardly move a row.
        let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 2e-3);
        assert!(old.iter().zip(&new).all(|(old, new)| near(old, new)), "{name}");
        let mean: Vec<f32> =
            (0..old[0].len()).map(|i| old.iter().map(|row| row[i]).sum::<f32>() / old.len() as f32).collect();
        assert!(new[old.len()..].iter().all(|row| near(row, &mean)), "{name}");
    }
}

#[test]
fn a_next_stage_may_have_more_words() {
    let folder = tempfile::tempdir().unwrap();
    images(folder.path());
    // A next stage with more words than the export it starts from.
    let first = recipe(folder.path(), "first", &grown("add_missing = 20"));
    let export = export(first, false);
    let mut next = recipe(folder.path(), "next", &grown("add = [\"poodle\"], add_missing = 20"));
    let Stage::Tune { init_from, .. } = &mut next.stage else { panic!("{:?}", next.stage) };
    init_from.stage = Some(export.display().to_string());
    let facts = Run::new(next, Device::Cpu).unwrap().facts().to_string();
    let (old, grown) = (TextTokenizer::from_folder(&export).unwrap(), TextTokenizer::from_folder(builtin()).unwrap());
    // `poodle` comes first, and moves the words that were added before.
    let moved = old.size() - grown.size();
    let expected =
        format!("{} rows kept, {moved} moved, 0 new from their pieces, 1 new from the mean, 0 dropped", grown.size());
    assert!(facts.contains(&expected), "{expected}: {facts}");
}

#[cfg(feature = "builtin")]
#[test]
fn the_builtin_model_grows_by_its_name_alone() {
    let folder = tempfile::tempdir().unwrap();
    images(folder.path());
    let path = folder.path().join("run.toml");
    recipe(folder.path(), "run", &grown("add_missing = 20"));
    let settings = ["config=builtin", "tokenizer.source=builtin", "stage.init_from.stage=builtin"].map(String::from);
    let run = Run::new(Recipe::read(path, &settings).unwrap(), Device::Cpu).unwrap();
    assert!(run.facts().to_string().contains("\"dachshund\""), "{}", run.facts());
}

#[test]
fn a_resumed_run_has_the_words_of_its_start() {
    let folder = tempfile::tempdir().unwrap();
    images(folder.path());
    let mut recipe = recipe(folder.path(), "run", &grown("add_missing = 2"));
    recipe.data.max_unknown_share = 1.0;
    let mut run = Run::new(recipe.clone(), Device::Cpu).unwrap();
    run.stop_after(1);
    run.train(false).unwrap();
    // Other words are the most frequent ones now.
    for n in 0..CAPTIONS.len() {
        std::fs::write(folder.path().join(format!("images/{n}.txt")), "a dachshund a poodle poodle poodle").unwrap();
    }
    let tokenizer = TextTokenizer::from_folder(export(recipe, true)).unwrap();
    assert!(tokenizer.id("dachshund").is_some() && tokenizer.id("poodle").is_none());
}

#[test]
fn a_vocabulary_that_lacks_the_words_is_refused_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    images(folder.path());
    let plain = format!("{:?}", builtin().display().to_string());
    let error = Run::new(recipe(folder.path(), "run", &plain), Device::Cpu).err().unwrap().to_string();
    for part in ["% of the words to learn", "dachshund", "tokenizer.add_missing", "tokenizer.add", "max_unknown_share"]
    {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(error.len() < 300, "{error}");
    let mut allowed = recipe(folder.path(), "run", &plain);
    allowed.data.max_unknown_share = 1.0;
    let facts = Run::new(allowed, Device::Cpu).unwrap().facts().to_string();
    assert!(facts.contains("% unknown: ") && facts.contains("earring"), "{facts}");
}

/// A copy of the built-in model whose tokenizer was changed by `change`.
fn changed(folder: &Path, change: impl FnOnce(&mut serde_json::Value)) -> PathBuf {
    let copy = folder.join("model");
    std::fs::create_dir(&copy).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(builtin().join(name), copy.join(name)).unwrap();
    }
    let path = copy.join("tokenizer.json");
    let mut tokenizer = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut tokenizer);
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    copy
}

#[test]
fn rows_follow_tokens_whose_ids_differ() {
    let folder = tempfile::tempdir().unwrap();
    images(folder.path());
    // The same words under other ids: two of them are swapped.
    let swapped = changed(folder.path(), |tokenizer| {
        let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        let (red, blue) = (vocab["red"].clone(), vocab["blue"].clone());
        vocab.insert("red".into(), blue);
        vocab.insert("blue".into(), red);
    });
    let more = format!(r#"{{ source = "{}", add_missing = 20 }}"#, swapped.display());
    let recipe = recipe(folder.path(), "run", &more);
    let run = Run::new(recipe.clone(), Device::Cpu).unwrap();
    assert!(run.facts().to_string().contains(", 2 moved,"), "{}", run.facts());
    let export = export(recipe, false);
    let (old, new) = (TextTokenizer::from_folder(builtin()).unwrap(), TextTokenizer::from_folder(&export).unwrap());
    let (from, to) = (table(&builtin(), "lm_head.weight"), table(&export, "lm_head.weight"));
    for word in ["red", "blue", "circle"] {
        let (from, to) = (&from[old.id(word).unwrap() as usize], &to[new.id(word).unwrap() as usize]);
        assert!(from.iter().zip(to).all(|(a, b)| (a - b).abs() < 2e-3), "{word}");
    }
    assert_eq!(old.id("red"), new.id("blue"));
}

#[test]
fn an_unknown_token_that_is_a_control_token_stands_for_unknown_text() {
    let folder = tempfile::tempdir().unwrap();
    let model = changed(folder.path(), |tokenizer| {
        let id = tokenizer["model"]["vocab"]["<unk>"].clone();
        let added = tokenizer["added_tokens"].as_array_mut().unwrap();
        added.push(serde_json::json!({ "id": id, "content": "<unk>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true }));
    });
    let model = LoadedModel::from_folder(model, LoadOptions::default()).unwrap();
    let processor = model.processor();
    let unknown = processor.tokenizer().id("<unk>").unwrap();
    let count = |text: &str| {
        let sequence = processor.sequence(&haplovl::processor::Conversation::ask([], text), true).unwrap();
        sequence.input_ids.iter().filter(|&&id| id == unknown).count()
    };
    assert_eq!(count("a zorp ∑ ring"), 2);
    // Spelt out it is plain text, of three unknown words.
    assert_eq!(count("a <unk> ring"), 3);
    assert!(!processor.eos_ids().contains(&unknown));
}

#[test]
fn words_that_are_there_already_are_not_added_again() {
    let tokenizer = || TextTokenizer::from_folder(fixtures("sentencepiece")).unwrap();
    let old = tokenizer();
    // A piece that is found behind others only, and a control token.
    let piece = old.id("old").unwrap();
    assert_ne!(old.encode("old").unwrap(), [piece]);
    let words = ["old", "</s>", "zebra", "zebra"].map(String::from);
    let (new, added) = tokenizer().with_tokens(&[], &words).unwrap();
    assert_eq!((added, new.size()), (vec!["zebra".to_string()], old.size() + 1));
    assert!(new.encode("old").unwrap().contains(&piece) && new.is_special(new.id("</s>").unwrap()));
    assert_eq!(new.encode("told").unwrap(), old.encode("told").unwrap());
}

/// The tokenizer of the SentencePiece fixture, after a change of its `tokenizer.json`.
fn sentencepiece(change: impl FnOnce(&mut serde_json::Value)) -> TextTokenizer {
    let plain = TextTokenizer::from_folder(fixtures("sentencepiece")).unwrap();
    let mut file = serde_json::from_str(&plain.inner().to_string(false).unwrap()).unwrap();
    change(&mut file);
    TextTokenizer::new(file.to_string().parse().unwrap(), serde_json::Map::new()).unwrap()
}

#[test]
fn texts_around_added_words_keep_their_spaces() {
    let metaspace = |scheme: &str| serde_json::json!({ "type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": false });
    let replace =
        |from: serde_json::Value, to: &str| serde_json::json!({ "type": "Replace", "pattern": from, "content": to });
    let spaces = replace(serde_json::json!({ "String": " " }), "\u{2581}");
    let forms = [
        sentencepiece(|_| ()),
        // As published with Llama 2, and as converted from vocabularies that take spaces off the ends.
        sentencepiece(|file| {
            file["pre_tokenizer"] = serde_json::Value::Null;
            let prefix = serde_json::json!({ "type": "Prepend", "prepend": "\u{2581}" });
            file["normalizer"] = serde_json::json!({ "type": "Sequence", "normalizers": [prefix, spaces.clone()] });
        }),
        sentencepiece(|file| {
            file["pre_tokenizer"] = metaspace("always");
            let strip = replace(serde_json::json!({ "Regex": "\u{2581}+\\z" }), "");
            file["normalizer"] = serde_json::json!({ "type": "Sequence", "normalizers": [spaces.clone(), strip] });
        }),
    ];
    for (form, tokenizer) in forms.into_iter().enumerate() {
        let text = "a zebra, the red zebra. (zebra) zebra's is a zebra";
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap(), true).unwrap(), text, "{form}");
        let (grown, added) = tokenizer.with_tokens(&[], &["zebra".into(), "red".into()]).unwrap();
        let ids = grown.encode(text).unwrap();
        // `red` is a word of the vocabulary, with the space before it.
        assert_eq!(added, ["zebra"], "{form}");
        assert_eq!(ids.iter().filter(|id| Some(**id) == grown.id("zebra")).count(), 5, "{form}");
        assert_eq!(grown.decode(&ids, true).unwrap(), text, "{form}");
    }
}

fn fixtures(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bring").join(name)
}

#[test]
fn placeholders_and_control_tokens_are_added_and_other_words_for_placeholders_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    images(folder.path());
    let without = changed(folder.path(), |tokenizer| {
        let missing = ["<image>", "<video>", "<|im_start|>"];
        let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        missing.iter().for_each(|token| drop(vocab.remove(*token)));
        // Without holes, as a published vocabulary.
        let words = vocab.len();
        vocab.values_mut().enumerate().for_each(|(id, value)| *value = id.into());
        let ids: BTreeMap<String, serde_json::Value> = vocab.clone().into_iter().collect();
        let added = tokenizer["added_tokens"].as_array_mut().unwrap();
        added.retain(|token| !missing.contains(&token["content"].as_str().unwrap()));
        added.iter_mut().for_each(|token| token["id"] = ids[token["content"].as_str().unwrap()].clone());
        assert!(words > 90);
    });
    // Its template says <image>.
    std::fs::write(without.join("tokenizer_config.json"), r#"{"eos_token": "<|im_end|>"}"#).unwrap();
    std::fs::write(without.join("processor_config.json"), r#"{"image_token": "<picture>"}"#).unwrap();
    let recipe = recipe(folder.path(), "run", &format!(r#"{{ source = "{}", add_missing = 20 }}"#, without.display()));
    let export = export(recipe, false);
    let model = LoadedModel::from_folder(&export, LoadOptions::default()).unwrap();
    let tokenizer = model.processor().tokenizer();
    for token in ["<picture>", "<video>", "<|im_start|>", "<|im_end|>"] {
        assert!(tokenizer.id(token).is_some_and(|id| tokenizer.is_special(id)), "{token}");
    }
    assert_eq!(tokenizer.id("<picture>"), Some(model.model().config().image_token_index));
}

//! The built-in model.

#![cfg(feature = "builtin")]
#![allow(clippy::unwrap_used, reason = "a failed test helper should panic")]

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Device;
use haplovl::data::shapes::{Scene, ShapesConfig, Split, check_caption};
use haplovl::eval::Accuracy;
use haplovl::generation::GeneratedSequence;
use haplovl::options::DeviceChoice;
use haplovl::options::Quantization;
use haplovl::pipeline::{Captioner, LoadOptions, LoadedModel, ModelSource, OptionScorer, VisualQuestionAnswerer};
use haplovl::processor::{Content, Conversation, Message, RgbImage};
use haplovl::train::{Recipe, Run};
use image::Rgb;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

fn options(quantization: Option<Quantization>) -> LoadOptions {
    LoadOptions::default().with_device(DeviceChoice::Cpu).with_quantization(quantization)
}

fn builtin(quantization: Option<Quantization>) -> LoadedModel {
    LoadedModel::load(&ModelSource::Builtin, options(quantization)).unwrap()
}

/// Held-out scenes.
fn scenes(count: u64) -> impl Iterator<Item = Scene> {
    (0..count).map(|index| Split::Test.scene(index, &ShapesConfig::default()))
}

/// Accuracy over one question of every kind for each scene, with images of this side.
fn accuracy(model: &LoadedModel, count: u64, side: u32) -> f64 {
    let mut accuracy = Accuracy::default();
    for scene in scenes(count) {
        let questions = scene.questions(&mut ChaCha8Rng::seed_from_u64(scene.seed));
        let image = Content::from(scene.render(side));
        let asked = questions.iter().map(|q| (vec![image.clone()], q.question.clone()));
        let answers = VisualQuestionAnswerer::new(model).ask_all(asked).unwrap();
        for (question, answer) in questions.iter().zip(&answers.sequences) {
            accuracy.add(question.kind, &answer.text, &question.answer);
        }
    }
    accuracy.overall().accuracy()
}

#[test]
fn the_builtin_model_equals_its_folder() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/builtin");
    let models = [builtin(None), LoadedModel::from_folder(folder, options(None)).unwrap()];
    // An image larger than a tile, and not square.
    let image = Content::from(RgbImage::from_fn(200, 90, |x, y| Rgb([x as u8, y as u8, (x ^ y) as u8])));
    let [ours, of_folder] = models.map(|model| {
        let batch = model.batch(&[Message::user([image.clone(), "what is in this image?".into()]).into()]).unwrap();
        let logits = model.model().forward(&batch).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let words = model.processor().tokenizer().inner().get_vocab(true);
        (
            model.processor().template().source().to_string(),
            BTreeMap::from_iter(words),
            model.generation().clone(),
            logits,
        )
    });
    assert_eq!(ours, of_folder);
}

#[test]
fn it_answers_questions_about_held_out_scenes() {
    // At the training size, and at the larger size of the `caption` example.
    for side in [64, 336] {
        let right = accuracy(&builtin(None), 40, side);
        eprintln!("side {side}: {right}");
        assert!(right > 0.95, "{side}: {right}");
    }
    let right = accuracy(&builtin(Some(Quantization::Q8_0)), 20, 64);
    eprintln!("q8_0: {right}");
    assert!(right > 0.95, "q8_0: {right}");
}

#[test]
fn it_captions_held_out_scenes() {
    let model = builtin(None);
    let captioner = Captioner::new(&model);
    let captions = captioner.caption_all(scenes(40).map(|scene| Content::from(scene.render(64)))).unwrap();
    let all_right = |(scene, caption): &(Scene, &GeneratedSequence)| check_caption(scene, &caption.text).all_right();
    let right = scenes(40).zip(&captions.sequences).filter(all_right).count();
    assert!(right >= 33, "{right} of 40 captions are right");
}

/// A recipe that fine-tunes the built-in model, named `builtin` in every field.
fn fine_tuning(folder: &Path, fields: &[(&str, &str)]) -> haplovl::Result<Recipe> {
    let text = r#"
        output = "run"
        config = "builtin"
        tokenizer = "builtin"
        stage = { kind = "tune", init_from = { stage = "builtin" } }
        update = { steps = 1, batch_size = 1, learning_rate = 1e-9 }
        [data]
        max_length = 512
        train = [{ kind = "shapes", split = "train", scenes = 8, side = 64, content = "captions" }]
    "#;
    let path = folder.join("recipe.toml");
    std::fs::write(&path, text).unwrap();
    let overrides = fields.iter().chain(&[("root", ".")]).map(|(field, value)| format!("{field}={value}"));
    Recipe::read(&path, &overrides.collect::<Vec<_>>())
}

fn refused(folder: &Path, field: &str, source: &str) -> String {
    let recipe = fine_tuning(folder, &[(field, source)]).unwrap();
    Run::new(recipe, Device::Cpu).err().unwrap().to_string()
}

#[test]
fn it_is_named_alike_in_every_field_of_a_recipe() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = fine_tuning(folder.path(), &[]).unwrap();
    assert_eq!(recipe.model_config().unwrap().vocab_size, 104);
    let facts = Run::new(recipe, Device::Cpu).unwrap().facts().to_string();
    assert!(facts.contains("0 parameters fresh"), "{facts}");
}

#[test]
fn names_behind_a_trainers_prefix_and_files_of_weights_are_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/builtin");
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(own.join(name), folder.path().join(name)).unwrap();
    }
    let tensors = candle_core::safetensors::load(own.join("model.safetensors"), &Device::Cpu).unwrap();
    for prefix in ["module.", "_orig_mod.", "base_model.model."] {
        let renamed = tensors.iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor.clone())).collect();
        let file = folder.path().join("model.safetensors");
        candle_core::safetensors::save(&renamed, &file).unwrap();
        LoadedModel::from_folder(&file, options(None)).unwrap();
        let stage = file.display().to_string();
        let recipe = fine_tuning(folder.path(), &[("stage.init_from.stage", &stage)]).unwrap();
        let facts = Run::new(recipe, Device::Cpu).unwrap().facts().to_string();
        assert!(facts.contains("0 parameters fresh") && facts.contains("0 tensors of the source unused"), "{facts}");
    }
    let error = LoadedModel::from_folder(folder.path().join("config.json"), options(None)).err().unwrap().to_string();
    assert!(error.contains("config.json: is no file of weights by its name"), "{error}");
}

#[test]
fn fields_that_name_no_model_are_named_with_the_folder_looked_in() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().display().to_string();
    for field in ["config", "tokenizer", "stage.init_from.stage", "stage.init_from.llm", "stage.init_from.clip"] {
        let error = refused(folder.path(), field, "./none");
        assert!(error.contains(&format!("`{field}`")) && error.contains(&inside), "{field}: {error}");
    }
    for field in ["stage.init_from.llm", "stage.init_from.clip"] {
        let error = refused(folder.path(), field, "builtin");
        assert!(error.contains(&format!("`{field}`")) && error.contains("`init_from.stage`"), "{field}: {error}");
    }
}

#[test]
fn the_right_option_is_the_likeliest_whatever_was_asked_before() {
    let model = builtin(None);
    let ask = |index: u64, question: &str| {
        let scene = Split::Test.scene(index, &ShapesConfig::default()).render(64);
        Conversation::ask([scene], question)
    };
    let options = ["two", "four", "seven"];
    let mut scorer = OptionScorer::new(&model);
    let first = scorer.log_likelihoods(&ask(4, "how many objects are there?"), &options).unwrap();
    assert!(first[1] > -0.7 && first[1] > first[0] && first[1] > first[2], "{first:?}");
    // Another question about the image, and another image.
    scorer.log_likelihoods(&ask(4, "is there a ring?"), &["yes", "no"]).unwrap();
    scorer.log_likelihoods(&ask(5, "how many objects are there?"), &options).unwrap();
    let again = scorer.log_likelihoods(&ask(4, "how many objects are there?"), &options).unwrap();
    let near = first.iter().zip(&again).all(|(a, b)| (a - b).abs() < 1e-4);
    assert!(near, "{first:?} {again:?}");
    assert!(scorer.log_likelihoods::<&str>(&ask(4, "?"), &[]).unwrap().is_empty());
}

#[test]
fn an_answers_first_token_attends_to_the_image() {
    let model = builtin(None);
    let (heads, layer) = {
        let decoder = &model.model().config().pre_decoder;
        (decoder.num_attention_heads, decoder.num_hidden_layers - 1)
    };
    let scene = Split::Test.scene(4, &ShapesConfig::default()).render(64);
    let asked = Conversation::ask([scene], "how many objects are there?");
    let maps = model.answer_attention(&asked, layer, None).unwrap();
    let total = maps[0].total();
    assert!(maps.len() == 1 && total > 0.0 && total <= 1.0, "{total}");
    let by_head =
        Vec::from_iter((0..heads).map(|head| model.answer_attention(&asked, layer, Some(head)).unwrap()[0].total()));
    assert!((by_head.iter().sum::<f32>() / heads as f32 - total).abs() < 1e-4, "{by_head:?} {total}");
    assert!(model.answer_attention(&asked, 99, None).is_err());
}

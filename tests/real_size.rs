//! Both training stages with real models, opt-in by environment variables:
//!
//! - `HAPLOVL_CLIP`: a Hugging Face folder of a CLIP with a vision transformer
//! - `HAPLOVL_LLM`: a Hugging Face folder of a Qwen2 or Llama model, or a GGUF file
//! - `HAPLOVL_TOKENIZER`: a folder with a tokenizer that has `<image>` and `<video>` (default: `HAPLOVL_LLM`)
//! - `HAPLOVL_DEVICE`: `cpu` (default) or `cuda`
//!
//! The test builds a HaploVL of their shapes, trains two steps of each stage, saves and loads the model, and generates
//! a caption. Parameters, gradients and optimizer moments in f32 take 16 bytes per parameter.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing helper fails its test")]

use std::path::Path;

use haplovl::config::{DecoderConfig, GenerationConfig, HaploVlConfig, VisionConfig};
use haplovl::data::shapes::{ShapesConfig, Split};
use haplovl::options::DeviceChoice;
use haplovl::pipeline::{Captioner, LoadOptions, LoadedModel};
use haplovl::processor::TextTokenizer;
use haplovl::train::{Recipe, Run};
use haplovl::weights::{ClipSource, LlmSource};

/// Builds a configuration whose pre-decoder has the shapes of the CLIP and whose post-decoder those of the LLM.
fn config(clip: &ClipSource, llm: &LlmSource, tokenizer: &TextTokenizer) -> HaploVlConfig {
    let preset = HaploVlConfig::haplovl_7b_pro();
    let (vision, words) = (clip.config(), llm.config());
    let side = vision.image_size;
    let id = |token: &str| tokenizer.id(token).unwrap_or_else(|| panic!("the tokenizer has no {token}"));
    HaploVlConfig {
        vocab_size: words.vocab_size.max(tokenizer.inner().get_vocab_size(true)),
        image_token_index: id("<image>"),
        video_token_index: id("<video>"),
        max_position_embeddings: words.max_position_embeddings.min(4096),
        tie_word_embeddings: words.tie_word_embeddings,
        vision: VisionConfig {
            image_size: side,
            patch_size: vision.patch_size,
            image_grid_pinpoints: vec![[side, side]],
            ..preset.vision.clone()
        },
        pre_decoder: DecoderConfig {
            rope_theta: words.decoder.rope_theta,
            rope_scaling: None,
            ..vision.decoder.clone()
        },
        post_decoder: words.decoder.clone(),
        ..preset
    }
}

fn train(text: &str, name: &str, folder: &Path) -> std::path::PathBuf {
    let path = folder.join(format!("{name}.toml"));
    std::fs::write(&path, text).unwrap();
    let recipe = Recipe::read(&path, &[]).unwrap();
    let device = std::env::var("HAPLOVL_DEVICE").unwrap_or_else(|_| "cpu".into());
    let device = device.parse::<DeviceChoice>().unwrap().open().unwrap();
    let mut run = Run::new(recipe, device).unwrap().with_default_observers();
    eprintln!("{}", run.facts());
    run.train(false).unwrap().export().unwrap().to_path_buf()
}

#[test]
fn real_models_train_in_both_stages() {
    let (Ok(clip), Ok(llm)) = (std::env::var("HAPLOVL_CLIP"), std::env::var("HAPLOVL_LLM")) else {
        eprintln!("skipped: HAPLOVL_CLIP and HAPLOVL_LLM are not set");
        return;
    };
    let tokenizer = std::env::var("HAPLOVL_TOKENIZER").unwrap_or_else(|_| llm.clone());
    let folder = tempfile::tempdir().unwrap();
    let (vision, words) = (ClipSource::open(&clip).unwrap(), LlmSource::open(&llm).unwrap());
    let config = config(&vision, &words, &TextTokenizer::from_folder(Path::new(&tokenizer)).unwrap());
    let side = config.vision.image_size;
    let config_path = folder.path().join("config.json");
    std::fs::write(&config_path, serde_json::to_string(&config).unwrap()).unwrap();
    let recipe = |name: &str, stage: &str| {
        format!(
            r#"
            output = "{output}"
            config = "{config}"
            tokenizer = "{tokenizer}"
            stage = {stage}
            data = {{ max_length = 4096, train = [
                {{ kind = "shapes", split = "train", scenes = 10, side = {side}, content = "mixed" }}] }}
            update = {{ steps = 2, batch_size = 1, learning_rate = 1e-5, gradient_checkpointing = true }}
            "#,
            output = folder.path().join(name).display(),
            config = config_path.display(),
        )
    };
    let distill = format!(
        r#"{{ kind = "distill", vision_teacher = "{clip}", text_teacher = "{llm}", init_from = {{ clip = "{clip}", llm = "{llm}" }} }}"#
    );
    let distilled = train(&recipe("distill", &distill), "distill", folder.path());
    let tune = format!(r#"{{ kind = "tune", init_from = {{ llm = "{llm}", stage = "{}" }} }}"#, distilled.display());
    let tuned = train(&recipe("tune", &tune), "tune", folder.path());
    let model = LoadedModel::from_folder(tuned, LoadOptions::default().with_device(DeviceChoice::Cpu)).unwrap();
    let generation = GenerationConfig { max_new_tokens: Some(4), ..model.generation().clone() };
    let image = Split::Test.scene(0, &ShapesConfig::default()).render(side as u32);
    let answer = Captioner::new(&model).with_generation(generation).caption(image).unwrap();
    println!("{}", answer.text());
    assert!(answer.timings.new_tokens >= 1);
}

//! Initialisation from the CLIP and language models of the parity fixtures.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{DType, Device, IndexOp, Tensor};
use candle_nn::Init;
use haplovl::config::{DecoderConfig, HaploVlConfig, MlpKind, NormKind, Rope, TextEmbedding};
use haplovl::model::{DistillationHeads, PreDecoderModel};
use haplovl::weights::{
    ClipSource, LlmSource, Parameters, SaveOptions, TensorSource, TextInit, check_source, init_from_clip,
    init_from_llm, init_text_embedding, open_weights, principal_components, save_safetensors,
};

pub fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity").join(path)
}

fn llm(name: &str) -> LlmSource {
    LlmSource::open(fixture("llm").join(name)).unwrap()
}

fn clip() -> ClipSource {
    ClipSource::open(fixture("clip_vit/tiny")).unwrap()
}

/// A configuration with the sizes and structure of both sources.
fn config(llm: &LlmSource, clip: &ClipSource) -> HaploVlConfig {
    let mut config = HaploVlConfig::tiny();
    config.text_embedding = TextEmbedding::Projected;
    config.vocab_size = 164;
    config.vision.image_size = clip.config().image_size;
    config.pre_decoder = DecoderConfig { rope: Rope::Own, ..clip.config().decoder.clone() };
    config.post_decoder = llm.config().decoder.clone();
    config
}

/// The structure of the released model: no embedding projection, gated MLPs, biases in all layers.
fn pro(llm: &LlmSource, clip: &ClipSource) -> HaploVlConfig {
    let mut config = config(llm, clip);
    config.text_embedding = TextEmbedding::Direct;
    config.pre_decoder.mlp = MlpKind::Gated;
    let post = &mut config.post_decoder;
    (post.qkv_bias, post.output_bias, post.mlp_bias) = (true, true, true);
    config
}

/// All parameters of a model, with random values.
fn parameters(config: &HaploVlConfig) -> Parameters {
    let (pre, post) = (&config.pre_decoder, &config.post_decoder);
    let (d, p) = (pre.hidden_size, config.vision.patch_size);
    let mut shapes: Vec<(String, Vec<usize>)> = vec![
        ("model.embed_tokens.weight".into(), vec![config.vocab_size, config.embedding_size()]),
        ("model.patch_embed.proj.weight".into(), vec![d, 3, p, p]),
        ("model.pre_pos_embed".into(), vec![1, config.vision.patches_per_tile(), d]),
        ("model.image_newline".into(), vec![d]),
        ("model.pre_norm.weight".into(), vec![d]),
        ("model.pre_norm.bias".into(), vec![d]),
        ("model.pre_connector.weight".into(), vec![post.hidden_size, d]),
        ("model.norm.weight".into(), vec![post.hidden_size]),
        ("lm_head.weight".into(), vec![config.vocab_size, post.hidden_size]),
    ];
    if config.text_embedding == TextEmbedding::Projected {
        shapes.push(("model.embed_proj.weight".into(), vec![d, post.hidden_size]));
    }
    for layer in 0..pre.num_hidden_layers + post.num_hidden_layers {
        let decoder = if layer < pre.num_hidden_layers { pre } else { post };
        for (name, shape) in layer_shapes(decoder) {
            shapes.push((format!("model.layers.{layer}.{name}"), shape));
        }
    }
    let parameters = Parameters::new();
    let vb = parameters.var_builder(3, DType::F32, &Device::Cpu);
    for (name, shape) in shapes {
        vb.get_with_hints(shape, &name, Init::Randn { mean: 0.0, stdev: 0.02 }).unwrap();
    }
    parameters
}

fn layer_shapes(decoder: &DecoderConfig) -> Vec<(String, Vec<usize>)> {
    let (h, m) = (decoder.hidden_size, decoder.intermediate_size);
    let kv = decoder.head_dim() * decoder.num_key_value_heads;
    let mut linear = vec![
        ("self_attn.q_proj", h, h, decoder.qkv_bias),
        ("self_attn.k_proj", kv, h, decoder.qkv_bias),
        ("self_attn.v_proj", kv, h, decoder.qkv_bias),
        ("self_attn.o_proj", h, h, decoder.output_bias),
    ];
    linear.extend(match decoder.mlp {
        MlpKind::Plain => vec![("mlp.fc1", m, h, decoder.mlp_bias), ("mlp.fc2", h, m, decoder.mlp_bias)],
        MlpKind::Gated => vec![
            ("mlp.gate_proj", m, h, decoder.mlp_bias),
            ("mlp.up_proj", m, h, decoder.mlp_bias),
            ("mlp.down_proj", h, m, decoder.mlp_bias),
        ],
        other => panic!("the names of {other:?} are not listed here"),
    });
    let mut shapes = Vec::new();
    for (name, out, into, biased) in linear {
        shapes.push((format!("{name}.weight"), vec![out, into]));
        shapes.extend(biased.then(|| (format!("{name}.bias"), vec![out])));
    }
    for name in ["input_layernorm", "post_attention_layernorm"] {
        shapes.push((format!("{name}.weight"), vec![h]));
        shapes.extend((decoder.norm_mode == NormKind::LayerNorm).then(|| (format!("{name}.bias"), vec![h])));
    }
    shapes
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn ours(parameters: &Parameters, name: &str) -> Tensor {
    parameters.get(name).unwrap_or_else(|| panic!("{name}")).as_tensor().clone()
}

fn theirs(source: &dyn TensorSource, name: &str) -> Tensor {
    source.load_tensor(name, DType::F32, &Device::Cpu).unwrap()
}

fn close(a: &Tensor, b: &Tensor, tolerance: f32) {
    assert_eq!(a.dims(), b.dims());
    for (a, b) in values(a).into_iter().zip(values(b)) {
        assert!((a - b).abs() <= tolerance, "{a} {b}");
    }
}

#[test]
fn every_layer_of_the_llm_is_copied_after_the_pre_decoder() {
    for name in ["llama", "qwen2"] {
        let (llm, clip) = (llm(name), clip());
        let config = config(&llm, &clip);
        let parameters = parameters(&config);
        let report = init_from_llm(&llm, &config, &parameters, TextInit::Random).unwrap();
        for from in llm.tensors().tensor_names() {
            let to = match from.strip_prefix("model.layers.") {
                Some(rest) => {
                    let (layer, rest) = rest.split_once('.').unwrap();
                    format!("model.layers.{}.{rest}", layer.parse::<usize>().unwrap() + 3)
                }
                None => from.clone(),
            };
            let (a, b) = (ours(&parameters, &to), theirs(llm.tensors(), &from));
            assert_eq!(values(&a.narrow(0, 0, b.dims()[0]).unwrap()), values(&b), "{to}");
            assert!(report.copied.contains(&to), "{to}");
        }
        assert!(report.unused.is_empty() && report.zero_filled.is_empty(), "{report}");
        for fresh in ["model.embed_proj.weight", "model.pre_connector.weight", "model.layers.2.mlp.fc1.weight"] {
            assert!(report.fresh.iter().any(|name| name == fresh), "{report}");
        }
    }
}

#[test]
fn a_tied_table_becomes_the_head_and_new_tokens_are_its_mean() {
    let (llm, clip) = (llm("qwen2"), clip());
    let config = config(&llm, &clip);
    let parameters = parameters(&config);
    init_from_llm(&llm, &config, &parameters, TextInit::Random).unwrap();
    let table = llm.embedding(llm.config().vocab_size, DType::F32, &Device::Cpu).unwrap();
    for name in ["lm_head.weight", "model.embed_tokens.weight"] {
        let rows = ours(&parameters, name);
        assert_eq!(values(&rows.i(..160).unwrap()), values(&table));
        for row in 160..164 {
            close(&rows.i(row).unwrap(), &table.mean(0).unwrap(), 1e-7);
        }
    }
}

#[test]
fn missing_biases_are_zero_in_the_released_form() {
    let (llm, clip) = (llm("llama"), clip());
    let config = pro(&llm, &clip);
    let parameters = parameters(&config);
    let report = init_from_llm(&llm, &config, &parameters, TextInit::Random).unwrap();
    assert_eq!(report.zero_filled.len(), 3 * 7, "{report}");
    for name in &report.zero_filled {
        assert!(name.ends_with(".bias") && values(&ours(&parameters, name)).iter().all(|v| *v == 0.0), "{name}");
    }
}

#[test]
fn text_embeddings_survive_the_principal_components() {
    let (llm, clip) = (llm("llama"), clip());
    let table = llm.embedding(llm.config().vocab_size, DType::F32, &Device::Cpu).unwrap();
    let down = principal_components(&table, 32).unwrap();
    let narrow = table.matmul(&down.t().unwrap()).unwrap();

    let projected = config(&llm, &clip);
    let store = parameters(&projected);
    init_from_llm(&llm, &projected, &store, TextInit::PrincipalComponents).unwrap();
    close(&ours(&store, "model.embed_proj.weight"), &down, 0.0);

    let direct = pro(&llm, &clip);
    let store = parameters(&direct);
    init_from_llm(&llm, &direct, &store, TextInit::PrincipalComponents).unwrap();
    close(&ours(&store, "model.embed_tokens.weight").i(..160).unwrap(), &narrow, 1e-6);
    // After the pre-decoder's normalisation, the connector restores the length of an embedding.
    let scale = narrow.sqr().unwrap().mean_all().unwrap().sqrt().unwrap();
    let back = narrow.broadcast_div(&scale).unwrap().matmul(&ours(&store, "model.pre_connector.weight").t().unwrap());
    close(&back.unwrap(), &narrow.matmul(&down).unwrap(), 1e-5);
}

#[test]
fn clip_is_copied_into_a_plain_mlp() {
    let (llm, clip) = (llm("llama"), clip());
    let config = config(&llm, &clip);
    let parameters = parameters(&config);
    let report = init_from_clip(&clip, &config, &parameters).unwrap();
    let files = clip.tensors();
    for (to, from) in [
        ("model.patch_embed.proj.weight", "embeddings.patch_embedding.weight"),
        ("model.pre_norm.weight", "pre_layrnorm.weight"),
        ("model.pre_norm.bias", "pre_layrnorm.bias"),
        ("model.layers.2.input_layernorm.bias", "encoder.layers.2.layer_norm1.bias"),
        ("model.layers.1.post_attention_layernorm.weight", "encoder.layers.1.layer_norm2.weight"),
        ("model.layers.1.self_attn.o_proj.weight", "encoder.layers.1.self_attn.out_proj.weight"),
        ("model.layers.0.self_attn.k_proj.bias", "encoder.layers.0.self_attn.k_proj.bias"),
        ("model.layers.0.mlp.fc1.weight", "encoder.layers.0.mlp.fc1.weight"),
        ("model.layers.2.mlp.fc2.bias", "encoder.layers.2.mlp.fc2.bias"),
    ] {
        let from = theirs(files, &format!("vision_model.{from}"));
        assert_eq!(values(&ours(&parameters, to)), values(&from), "{to}");
    }
    let positions = theirs(files, "vision_model.embeddings.position_embedding.weight");
    assert_eq!(values(&ours(&parameters, "model.pre_pos_embed")), values(&positions.i(1..).unwrap()));
    let unused = ["embeddings.class_embedding", "post_layernorm.bias", "post_layernorm.weight"];
    assert_eq!(report.unused, unused.map(|name| format!("vision_model.{name}")));
    assert!(report.zero_filled.is_empty(), "{report}");
}

#[test]
fn clip_in_a_gated_mlp_computes_the_same() {
    let (llm, clip) = (llm("llama"), clip());
    let config = pro(&llm, &clip);
    let parameters = parameters(&config);
    let report = init_from_clip(&clip, &config, &parameters).unwrap();
    assert_eq!(report.zero_filled.len(), 2 * 3);
    let layer = |name: &str, x: &Tensor| {
        let weight = ours(&parameters, &format!("model.layers.1.mlp.{name}.weight"));
        let bias = ours(&parameters, &format!("model.layers.1.mlp.{name}.bias"));
        x.matmul(&weight.t().unwrap()).unwrap().broadcast_add(&bias).unwrap()
    };
    let fc = |name: &str, x: &Tensor| {
        let part = |kind| theirs(clip.tensors(), &format!("vision_model.encoder.layers.1.mlp.{name}.{kind}"));
        x.matmul(&part("weight").t().unwrap()).unwrap().broadcast_add(&part("bias")).unwrap()
    };
    let act = |x: Tensor| (&x * candle_nn::ops::sigmoid(&(&x * 1.702).unwrap()).unwrap()).unwrap();
    let x = theirs(clip.tensors(), "vision_model.embeddings.position_embedding.weight");
    let gated = (act(layer("gate_proj", &x)) * layer("up_proj", &x)).unwrap();
    assert_eq!(values(&layer("down_proj", &gated)), values(&fc("fc2", &act(fc("fc1", &x)))));
}

#[test]
fn another_tile_size_resamples_the_positions() {
    let (llm, clip) = (llm("llama"), clip());
    let mut config = config(&llm, &clip);
    config.vision.image_size = 84;
    let parameters = parameters(&config);
    init_from_clip(&clip, &config, &parameters).unwrap();
    let positions = ours(&parameters, "model.pre_pos_embed").reshape((6, 6, 32)).unwrap();
    let grid = theirs(clip.tensors(), "vision_model.embeddings.position_embedding.weight");
    let grid = grid.i(1..).unwrap().reshape((4, 4, 32)).unwrap();
    // Bicubic interpolation is local: each corner is most similar to the same corner of the source.
    for (y, x) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let distance = |v: usize, u: usize| {
            let difference = (positions.i((5 * y, 5 * x)).unwrap() - grid.i((3 * v, 3 * u)).unwrap()).unwrap();
            difference.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()
        };
        let nearest = [(0, 0), (0, 1), (1, 0), (1, 1)]
            .into_iter()
            .min_by(|a, b| distance(a.0, a.1).total_cmp(&distance(b.0, b.1)));
        assert_eq!(nearest, Some((y, x)));
    }
}

#[test]
fn clip_and_llm_together_leave_only_unmatched_parameters_fresh() {
    let (llm, clip) = (llm("qwen2"), clip());
    let config = config(&llm, &clip);
    let parameters = parameters(&config);
    let report = init_from_clip(&clip, &config, &parameters).unwrap();
    let report = report.merge(init_from_llm(&llm, &config, &parameters, TextInit::PrincipalComponents).unwrap());
    assert_eq!(report.fresh, ["model.image_newline"]);
    assert_eq!(report.copied.len() + 1, parameters.len());
}

#[test]
fn heads_of_stage_1_start_from_what_is_inherited() {
    let (llm, clip) = (llm("qwen2"), clip());
    let mut config = config(&llm, &clip);
    config.vision.image_grid_pinpoints = vec![[config.vision.image_size; 2]];
    let (width, words) = (config.pre_decoder.hidden_size, config.post_decoder.hidden_size);
    let heads = |store: &Parameters| {
        let vb = store.var_builder(1, DType::F32, &Device::Cpu);
        PreDecoderModel::new(&config, vb.clone()).unwrap();
        DistillationHeads::new(width, width, words, vb).unwrap()
    };
    let states = Tensor::randn(0f32, 1.0, (5, width), &Device::Cpu).unwrap();
    let store = Parameters::new();
    let random = values(&heads(&store).text(&states).unwrap());
    let report = init_from_clip(&clip, &config, &store).unwrap();
    let report = report.merge(init_text_embedding(&llm, &config, &store, TextInit::Random).unwrap());
    assert_eq!(values(&heads(&store).text(&states).unwrap()), random);
    let report = report.merge(init_text_embedding(&llm, &config, &store, TextInit::PrincipalComponents).unwrap());
    let heads = heads(&store);
    // What the norm leaves of a state goes through the vision head as it is.
    let normalised = |x: &Tensor| {
        let centred = x.broadcast_sub(&x.mean_keepdim(1).unwrap()).unwrap();
        let spread = (centred.sqr().unwrap().mean_keepdim(1).unwrap() + 1e-5).unwrap().sqrt().unwrap();
        centred.broadcast_div(&spread).unwrap()
    };
    close(&heads.vision(&states).unwrap(), &normalised(&states), 1e-5);
    // The text head turns the projected embeddings back, as long as they were.
    let table = theirs(llm.tensors(), "model.embed_tokens.weight");
    let down = ours(&store, "model.embed_proj.weight");
    let narrow = table.matmul(&down.t().unwrap()).unwrap();
    let length = narrow.sqr().unwrap().mean_all().unwrap().sqrt().unwrap();
    let back = normalised(&states).matmul(&down).unwrap().broadcast_mul(&length).unwrap();
    close(&heads.text(&states).unwrap(), &back, 1e-5);
    for name in ["distillation.vision.proj.weight", "distillation.text.proj.weight"] {
        assert!(report.copied.iter().any(|copied| copied == name), "{report}");
    }
}

#[test]
fn all_incompatibilities_are_listed_at_once() {
    let (llm, clip) = (llm("qwen2"), clip());
    let mut config = config(&llm, &clip);
    config.vocab_size = 100;
    config.tie_word_embeddings = true;
    config.post_decoder.num_hidden_layers = 2;
    config.post_decoder.rope_theta = 1e4;
    config.post_decoder.qkv_bias = false;
    let message = init_from_llm(&llm, &config, &Parameters::new(), TextInit::Random).unwrap_err().to_string();
    for part in ["num_hidden_layers is 2, not 3", "rope_theta", "qkv_bias is false", "vocab_size is 100"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    config.pre_decoder.mlp = MlpKind::Gated;
    config.pre_decoder.mlp_bias = false;
    config.vision.patch_size = 7;
    let message = init_from_clip(&clip, &config, &Parameters::new()).unwrap_err().to_string();
    for part in ["pre_decoder.mlp_bias is false", "vision.patch_size is 7, not 14"] {
        assert!(message.contains(part), "{part}: {message}");
    }
}

#[test]
fn errors_of_broken_sources_name_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let open = || LlmSource::open(folder.path()).map(|_| ()).unwrap_err().to_string();
    assert!(open().contains("config.json"));
    std::fs::write(folder.path().join("config.json"), "{").unwrap();
    assert!(open().contains("not JSON"));
    std::fs::copy(fixture("llm/llama/config.json"), folder.path().join("config.json")).unwrap();
    assert!(open().contains("model.safetensors"));
    let message = ClipSource::open(folder.path()).map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("`llama`"), "{message}");
}

/// Writes a copy of a fixture's language model with other names and additional tensors.
fn renamed(name: &str, rename: impl Fn(&str) -> Option<String>, more: &[&str]) -> tempfile::TempDir {
    let (folder, source) = (tempfile::tempdir().unwrap(), llm(name));
    let names = source.tensors().tensor_names();
    let tensors = names.iter().filter_map(|name| Some((rename(name)?, theirs(source.tensors(), name))));
    let one = || Tensor::new(&[1f32], &Device::Cpu).unwrap();
    let all = tensors.chain(more.iter().map(|name| (name.to_string(), one()))).collect();
    save_safetensors(folder.path(), &all, &SaveOptions::default()).unwrap();
    std::fs::copy(fixture("llm").join(name).join("config.json"), folder.path().join("config.json")).unwrap();
    folder
}

#[test]
fn the_language_half_of_a_larger_model_is_the_model() {
    let buffer = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq";
    let prefixed = |name: &str| Some(format!("language_model.{name}"));
    let folder = renamed("llama", prefixed, &[buffer, "multi_modal_projector.bias"]);
    let (half, alone) = (LlmSource::open(folder.path()).unwrap(), llm("llama"));
    assert_eq!(half.config(), alone.config());
    let config = config(&alone, &clip());
    let both = [&half, &alone].map(|source| {
        let parameters = parameters(&config);
        (init_from_llm(source, &config, &parameters, TextInit::Random).unwrap(), parameters)
    });
    let [(report, found), (reference, expected)] = &both;
    assert_eq!(report.copied, reference.copied);
    assert_eq!(report.unused, ["multi_modal_projector.bias"]);
    assert_eq!(report.ignored, ["model.layers.0.self_attn.rotary_emb.inv_freq"]);
    assert_eq!(report.renamed, ["`language_model.model.*` as `model.*`"]);
    assert!(report.to_string().contains("1 buffers and tied heads of the source ignored"), "{report}");
    for (name, var) in expected.iter() {
        close(found.get(&name).unwrap().as_tensor(), var.as_tensor(), 0.0);
    }
}

#[test]
fn a_model_without_a_head_has_the_embedding_table_as_its_head() {
    let folder = renamed("llama", |name| (name != "lm_head.weight").then(|| name.to_string()), &[]);
    let source = LlmSource::open(folder.path()).unwrap();
    assert!(source.config().tie_word_embeddings);
    let ours = config(&source, &clip());
    let parameters = self::parameters(&ours);
    init_from_llm(&source, &ours, &parameters, TextInit::Random).unwrap();
    let head = parameters.get("lm_head.weight").unwrap().narrow(0, 0, source.config().vocab_size).unwrap();
    close(&head, &theirs(source.tensors(), "model.embed_tokens.weight"), 0.0);
    // The stored head of a tied model is not used, and said to be ignored.
    let folder = renamed("qwen2", |name| Some(name.to_string()), &["lm_head.weight"]);
    let source = LlmSource::open(folder.path()).unwrap();
    assert!(source.config().tie_word_embeddings);
    let ours = config(&source, &clip());
    let report = init_from_llm(&source, &ours, &self::parameters(&ours), TextInit::Random).unwrap();
    assert_eq!(report.ignored, ["lm_head.weight"]);
}

#[test]
fn models_of_other_kinds_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let clip = || ClipSource::open(folder.path()).map(|_| ()).unwrap_err().to_string();
    std::fs::write(folder.path().join("open_clip_config.json"), "{}").unwrap();
    assert!(clip().contains("open_clip"), "{}", clip());
    std::fs::write(folder.path().join("config.json"), r#"{"model_type": "clip"}"#).unwrap();
    let visual = [("visual.conv1.weight".to_string(), Tensor::new(&[1f32], &Device::Cpu).unwrap())];
    save_safetensors(folder.path(), &visual.into(), &SaveOptions::default()).unwrap();
    assert!(clip().contains("open_clip"), "{}", clip());
    std::fs::write(folder.path().join("config.json"), r#"{"model_type": "haplo"}"#).unwrap();
    assert!(clip().contains("init_from.stage"), "{}", clip());
    let llm = LlmSource::open(folder.path()).map(|_| ()).unwrap_err().to_string();
    assert!(llm.contains("init_from.stage"), "{llm}");
}

#[test]
fn extra_tensors_of_a_model_are_errors_unless_they_hold_nothing_of_their_own() {
    let one = |value: f32| Tensor::new(&[value], &Device::Cpu).unwrap();
    let expected = BTreeMap::from([("model.embed_tokens.weight".to_string(), vec![1])]);
    let check = |extra: &str, value: f32| {
        let folder = tempfile::tempdir().unwrap();
        let tensors = [("model.embed_tokens.weight".to_string(), one(1.0)), (extra.to_string(), one(value))];
        save_safetensors(folder.path(), &tensors.into(), &SaveOptions::default()).unwrap();
        check_source(&*open_weights(folder.path()).unwrap(), &expected).map_err(|e| e.to_string())
    };
    check("model.layers.0.self_attn.rotary_emb.inv_freq", 3.0).unwrap();
    check("vision_model.embeddings.position_ids", 3.0).unwrap();
    check("lm_head.weight", 1.0).unwrap();
    assert!(check("lm_head.weight", 2.0).unwrap_err().contains("tie_word_embeddings"));
    assert!(check("model.layers.9.mlp.up_proj.weight", 1.0).unwrap_err().contains("1 unexpected"));
}

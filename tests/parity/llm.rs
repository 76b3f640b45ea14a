//! Parity of language models: standalone, and as the initialisation of a post-decoder.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use haplovl::batch::{Sample, SequenceLayout};
use haplovl::config::{DecoderConfig, HaploVlConfig, ImageAttention, TextEmbedding};
use haplovl::model::{HaploVl, LanguageHead, LanguageModel, Pass, PostDecoder};
use haplovl::nn::{RotaryEmbedding, key_ranges};
use haplovl::weights::{LlmSource, Parameters, SafetensorsFiles, TextInit, init_from_llm};

use crate::{Case, Summary, cases, folders, max_diff};

/// Builds a layout of one sequence per row, without padding if the case has an `attention_mask`.
fn layout(case: &Case) -> SequenceLayout {
    let (batch, seq_len) = case.get("input_ids").dims2().unwrap();
    let mut layout = SequenceLayout::text(batch, seq_len);
    if case.find("attention_mask").is_some() {
        for (row, mask) in layout.rows.iter_mut().zip(case.ints("attention_mask")) {
            let first = mask.iter().position(|&m| m == 1).unwrap();
            let last = mask.iter().rposition(|&m| m == 1).unwrap();
            *row = vec![Sample { range: first..last + 1, visual_blocks: vec![], visuals: vec![] }];
        }
    }
    layout
}

/// Selects the positions that are not padding.
fn unpadded(x: &Tensor, layout: &SequenceLayout) -> Tensor {
    let rows = layout.rows.iter().enumerate();
    let spans = rows.map(|(r, row)| x.get(r).unwrap().narrow(0, row[0].range.start, row[0].range.len()).unwrap());
    Tensor::cat(&spans.collect::<Vec<_>>(), 0).unwrap()
}

#[test]
fn language_model_matches_reference() {
    let mut summary = Summary::default();
    for folder in folders("llm") {
        let source = LlmSource::open(&folder).unwrap();
        let files = Arc::new(SafetensorsFiles::open(&folder).unwrap());
        let model = LanguageModel::new(source.config(), files.var_builder(DType::F32, &Device::Cpu)).unwrap();
        for (name, case) in cases(&folder) {
            let context = format!("{} {name}", folder.display());
            let layout = layout(&case);
            let mut check = |measure, found: &Tensor, tolerance| {
                let error = max_diff(&unpadded(found, &layout), &unpadded(&case.get(measure), &layout));
                summary.check(measure, error, tolerance, &context);
            };
            let embeddings = model.embed(&case.get("input_ids").to_dtype(DType::U32).unwrap()).unwrap();
            check("inputs_embeds", &embeddings, 0.0);
            let states = model.hidden_states(&embeddings, &layout).unwrap();
            check("last_hidden_state", &states, 1e-4);
            check("logits", &model.lm_head().forward(&states).unwrap(), 1e-4);
            summary.case();
        }
    }
    summary.print("llm");
}

/// Builds HaploVL configurations that can be initialised from the language model: tied, untied, in the released form.
fn configs_from_llm(source: &LlmSource) -> Vec<HaploVlConfig> {
    let llm = source.config();
    let own = HaploVlConfig {
        vocab_size: llm.vocab_size,
        image_token_index: llm.vocab_size as u32 - 2,
        video_token_index: llm.vocab_size as u32 - 1,
        text_embedding: TextEmbedding::Projected,
        tie_word_embeddings: llm.tie_word_embeddings,
        post_decoder: llm.decoder.clone(),
        ..HaploVlConfig::tiny()
    };
    let untied = HaploVlConfig { tie_word_embeddings: false, ..own.clone() };
    let biased = DecoderConfig { qkv_bias: true, output_bias: true, mlp_bias: true, ..own.post_decoder.clone() };
    let released = HaploVlConfig { text_embedding: TextEmbedding::Direct, post_decoder: biased, ..untied.clone() };
    vec![own, untied, released]
}

#[test]
fn post_decoder_initialized_from_llm_matches_reference() {
    let mut summary = Summary::default();
    for folder in folders("llm") {
        let source = LlmSource::open(&folder).unwrap();
        for (config, (name, case)) in configs_from_llm(&source)
            .into_iter()
            .flat_map(|c| cases(&folder).into_iter().map(move |case| (c.clone(), case)))
        {
            let parameters = Parameters::new();
            let vb = || parameters.var_builder(0, DType::F32, &Device::Cpu);
            HaploVl::new(&config, vb()).unwrap();
            init_from_llm(&source, &config, &parameters, TextInit::Random).unwrap();
            let post = &config.post_decoder;
            let decoder = PostDecoder::new(post, config.pre_decoder.num_hidden_layers, vb()).unwrap();
            let head = match config.tie_word_embeddings {
                true => LanguageHead::tied(parameters.get("model.embed_tokens.weight").unwrap().as_tensor()),
                false => LanguageHead::new(post.hidden_size, config.vocab_size, vb()).unwrap(),
            };
            let layout = layout(&case);
            let ranges = key_ranges(&layout, ImageAttention::Bidirectional);
            let angles = RotaryEmbedding::new(post).angles(&layout.positions(), &Device::Cpu).unwrap();
            let mut pass = Pass::new(&ranges, Some(angles));
            let (states, _) = decoder.forward(&case.get("inputs_embeds"), &mut pass).unwrap();
            let logits = head.forward(&states).unwrap();
            for (measure, found) in [("last_hidden_state", states), ("logits", logits)] {
                let error = max_diff(&unpadded(&found, &layout), &unpadded(&case.get(measure), &layout));
                summary.check(measure, error, 1e-4, &format!("{} {name}", folder.display()));
            }
            summary.case();
        }
    }
    summary.print("llm, post-decoder initialised from it");
}

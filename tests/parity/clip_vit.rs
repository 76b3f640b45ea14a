//! Parity of CLIP vision transformers: standalone, and as the initialisation of a pre-decoder.

use candle_core::{DType, Device, Tensor};
use haplovl::config::{DecoderConfig, HaploVlConfig, MlpKind, Rope, VisionConfig};
use haplovl::model::{ClipVision, DecoderStack, HaploVl, MultimodalEmbeddings, Pass, PreDecoder};
use haplovl::nn::KvStore;
use haplovl::nn::ops::KeyRanges;
use haplovl::weights::{ClipSource, Parameters, init_from_clip};

use crate::{Case, Summary, cases, folders, max_diff};

const TOLERANCE: f64 = 1e-4;

fn sources() -> Vec<(String, ClipSource, Case)> {
    let open = |folder: std::path::PathBuf| {
        let source = ClipSource::open(&folder).unwrap();
        let context = folder.display().to_string();
        cases(&folder).into_iter().map(move |(name, case)| (format!("{context} {name}"), source.clone(), case))
    };
    folders("clip_vit").into_iter().flat_map(open).collect()
}

fn states_of(case: &Case, layers: usize) -> Vec<Tensor> {
    (0..=layers).map(|layer| case.get(&format!("hidden_states.{layer}"))).collect()
}

#[test]
fn clip_matches_reference() {
    let mut summary = Summary::default();
    for (context, source, case) in sources() {
        let vb = source.var_builder(DType::F32, &Device::Cpu);
        let clip = ClipVision::new(source.config(), vb).unwrap();
        let layers = source.config().decoder.num_hidden_layers;
        let pixels = case.get("pixel_values");
        let states = clip.hidden_states(&pixels, layers).unwrap();
        assert_eq!(states.len(), layers + 1);
        for (found, expected) in states.iter().zip(states_of(&case, layers)) {
            summary.check("hidden_states", max_diff(found, &expected), TOLERANCE, &context);
        }
        let last = max_diff(&states[layers], &case.get("last_hidden_state"));
        summary.check("last_hidden_state", last, TOLERANCE, &context);
        let pooled = max_diff(&clip.pooled(&pixels).unwrap(), &case.get("pooler_output"));
        summary.check("pooler_output", pooled, TOLERANCE, &context);
        summary.case();
    }
    summary.print("clip_vit");
}

/// Builds a HaploVL configuration whose pre-decoder has the sizes of the CLIP, without rotary positions.
fn config_from_clip(source: &ClipSource, mlp: MlpKind) -> HaploVlConfig {
    let clip = source.config();
    HaploVlConfig {
        vision: VisionConfig {
            patch_size: clip.patch_size,
            image_size: clip.image_size,
            image_grid_pinpoints: VisionConfig::default_pinpoints(clip.image_size),
            ..HaploVlConfig::tiny().vision
        },
        pre_decoder: DecoderConfig { mlp, rope: Rope::None, ..clip.decoder.clone() },
        ..HaploVlConfig::tiny()
    }
}

/// Checks that a pre-decoder initialised from CLIP embeds patches as CLIP does (without class token), and that its
/// layers reproduce CLIP's hidden states.
#[test]
fn pre_decoder_initialized_from_clip_matches_reference() {
    let mut summary = Summary::default();
    for (context, source, case) in sources() {
        let states = states_of(&case, source.config().decoder.num_hidden_layers);
        let (tiles, tokens, _) = states[0].dims3().unwrap();
        let outputs = [MlpKind::Plain, MlpKind::Gated].map(|mlp| {
            let config = config_from_clip(&source, mlp);
            let parameters = Parameters::new();
            let vb = || parameters.var_builder(0, DType::F32, &Device::Cpu);
            HaploVl::new(&config, vb()).unwrap();
            init_from_clip(&source, &config, &parameters).unwrap();

            let layers = DecoderStack::new(&config.pre_decoder, 0, vb().pp("model.layers")).unwrap();
            let all = KeyRanges::full(tiles, tokens, tokens);
            let mut x = states[0].clone();
            for (layer, expected) in layers.layers().iter().zip(&states[1..]) {
                x = layer.forward(&x, None, &all, KvStore::None).unwrap();
                summary.check("hidden_states", max_diff(&x, expected), TOLERANCE, &context);
            }

            let patches = MultimodalEmbeddings::new(&config, vb()).unwrap().patches(&case.get("pixel_values")).unwrap();
            let patch_ranges = KeyRanges::full(tiles, tokens - 1, tokens - 1);
            let pre_decoder = PreDecoder::new(&config, vb()).unwrap();
            let found = pre_decoder.forward(&patches, &mut Pass::new(&patch_ranges, None)).unwrap();
            let without_class = states[0].narrow(1, 1, tokens - 1).unwrap();
            summary.check("embedded patches", max_diff(&found.input, &without_class), TOLERANCE, &context);
            found.output
        });
        let [plain, gated] = &outputs;
        summary.check("gated against plain", max_diff(gated, plain), 1e-6, &context);
        summary.case();
    }
    summary.print("clip_vit, pre-decoder initialised from it");
}

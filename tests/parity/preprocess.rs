//! Preprocessing against numbers computed by independent code.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use haplovl::batch::Visual;
use haplovl::config::{HaploVlConfig, ImageAspectRatio, PreprocessorConfig, VisionConfig};
use haplovl::patch_grid::{PatchGrid, Size, video_tokens};
use haplovl::processor::{ImageDecoder, ImageProcessor, VideoProcessor};
use serde_json::Value;

/// Most of the values that may be one 8-bit level off. Ours resizes exactly as Pillow does: none is.
const SHARE_OFF: f64 = 0.01;

/// Folders of the kind, in the repository's fixtures and under `$HAPLOVL_PARITY_DIR`.
fn cases(kind: &str) -> Vec<PathBuf> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity");
    let roots = [Some(fixtures), std::env::var_os("HAPLOVL_PARITY_DIR").map(PathBuf::from)];
    let folders = roots.into_iter().flatten().filter_map(|root| std::fs::read_dir(root.join(kind)).ok());
    let mut found: Vec<_> = folders.flatten().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    found.sort();
    assert!(!found.is_empty(), "no `{kind}` cases");
    found
}

fn json(path: PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

fn tensors(path: PathBuf) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(&path, &Device::Cpu).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[derive(Default)]
struct Worst {
    cases: usize,
    levels: f64,
    share: f64,
}

impl Worst {
    fn compare(&mut self, name: &str, ours: &Tensor, expected: &Tensor, config: &PreprocessorConfig) {
        assert_eq!(ours.dims(), expected.dims(), "{name}: tiles");
        let plane = ours.dims()[2] * ours.dims()[3];
        let values = |t: &Tensor| t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (ours, expected) = (values(ours), values(expected));
        let level = |i: usize| config.image_std[i / plane % 3] / config.rescale_factor;
        let off: Vec<f64> = (0..ours.len()).map(|i| f64::from((ours[i] - expected[i]).abs()) * level(i)).collect();
        let levels = off.iter().copied().fold(0.0, f64::max);
        let share = off.iter().filter(|&&levels| levels > 0.5).count() as f64 / off.len() as f64;
        assert!(levels < 1.01, "{name}: {levels:.2} levels off");
        assert!(share < SHARE_OFF, "{name}: {:.3} % of the values off", 100.0 * share);
        println!("{name}: {levels:.4} levels, {:.4} %", 100.0 * share);
        *self = Self { cases: self.cases + 1, levels: self.levels.max(levels), share: self.share.max(share) };
    }
}

fn configs(folder: &Path) -> (PreprocessorConfig, VisionConfig, Value) {
    let json = json(folder.join("preprocess.json"));
    let pinpoints: Vec<[usize; 2]> = serde_json::from_value(json["image_grid_pinpoints"].clone()).unwrap();
    let vision = VisionConfig {
        patch_size: 14,
        image_size: json["size"]["height"].as_u64().unwrap() as usize,
        image_aspect_ratio: ImageAspectRatio::AnyRes,
        image_grid_pinpoints: pinpoints,
        image_newline: true,
    };
    (PreprocessorConfig::from_json(json.clone(), &vision).unwrap(), vision, json)
}

#[test]
fn pixels_match_the_reference() {
    let (decoder, mut images, mut videos) = (ImageDecoder::default(), Worst::default(), Worst::default());
    for folder in cases("preprocess") {
        let (config, vision, json) = configs(&folder);
        let processor = ImageProcessor::new(&config, &vision).unwrap();
        for case in json["cases"].as_array().unwrap() {
            let file = folder.join(case["image"].as_str().unwrap());
            let expected = tensors(file.with_extension("safetensors"));
            let Visual::Image { pixel_values, size } = processor.process(&decoder.open(&file).unwrap()).unwrap() else {
                panic!("not an image")
            };
            assert_eq!(pixel_values.dim(0).unwrap() as u64, case["tiles"].as_u64().unwrap(), "{}", file.display());
            let sizes = expected["image_sizes"].to_vec2::<i64>().unwrap();
            assert_eq!(sizes, [[size.height as i64, size.width as i64]]);
            let name = file.display().to_string();
            images.compare(&name, &pixel_values, &expected["pixel_values"].squeeze(0).unwrap(), &config);
        }
        let Some(names) = json["video_frames"].as_array() else { continue };
        let frames: Vec<_> = names.iter().map(|f| decoder.open(folder.join(f.as_str().unwrap())).unwrap()).collect();
        let visual = VideoProcessor::new(&config, &vision).unwrap().process(&frames).unwrap();
        let expected = tensors(folder.join("video.safetensors"))["pixel_values_videos"].squeeze(0).unwrap();
        videos.compare(&folder.join("video").display().to_string(), visual.pixel_values(), &expected, &config);
    }
    for (kind, worst) in [("image", images), ("video", videos)] {
        let Worst { cases, levels, share } = worst;
        println!("preprocess, {kind}: {cases} cases, worst {levels:.4} levels on {:.4} % of the values", 100.0 * share);
    }
}

#[test]
fn token_counts_match_the_reference() {
    let mut counted = 0;
    for folder in cases("model") {
        let config = HaploVlConfig::from_json(json(folder.join("config.json"))).unwrap();
        for name in json(folder.join("cases.json")).as_object().unwrap().keys() {
            let case = tensors(folder.join(format!("{name}.safetensors")));
            let mut expected = Vec::new();
            if let Some(sizes) = case.get("image_sizes") {
                for size in sizes.to_vec2::<i64>().unwrap() {
                    let size = Size::new(size[0] as usize, size[1] as usize);
                    expected.push(PatchGrid::new(&config.vision, size).unwrap().tokens());
                }
            }
            if let Some(videos) = case.get("pixel_values_videos") {
                let (videos, frames) = (videos.dim(0).unwrap(), videos.dim(1).unwrap());
                expected.extend(vec![video_tokens(&config.vision, frames); videos]);
            }
            let ids = case["input_ids"].flatten_all().unwrap().to_vec1::<i64>().unwrap();
            let visual = |id: &i64| [config.image_token_index, config.video_token_index].contains(&(*id as u32));
            let runs: Vec<_> = ids.chunk_by(|a, b| visual(a) == visual(b)).filter(|run| visual(&run[0])).collect();
            let lengths: Vec<_> = runs.iter().map(|run| run.len()).collect();
            assert_eq!(lengths, expected, "{} {name}", folder.display());
            counted += expected.len();
        }
    }
    println!("token counts: {counted} pictures and videos");
}

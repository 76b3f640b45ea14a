//! Parity of preprocessing: pixels of images and videos, and their token counts.

use std::path::Path;

use candle_core::{DType, Tensor};
use haplovl::batch::Visual;
use haplovl::config::{HaploVlConfig, ImageAspectRatio, PreprocessorConfig, VisionConfig};
use haplovl::patch_grid::{PatchGrid, Size, video_tokens};
use haplovl::processor::{ImageDecoder, ImageProcessor, VideoProcessor};
use serde_json::Value;

use crate::{Case, Summary, cases, folders, read_json};

/// Maximum share of values that may differ by one 8-bit level. Resizing here is exact as in Pillow, so none differs.
const MAX_SHARE_OFF: f64 = 0.01;

/// Compares pixel values in 8-bit levels, undoing the processor's scaling and normalisation.
fn compare(summary: &mut Summary, name: &str, ours: &Tensor, expected: &Tensor, config: &PreprocessorConfig) {
    assert_eq!(ours.dims(), expected.dims(), "{name}: tiles");
    let plane = ours.dims()[2] * ours.dims()[3];
    let values = |t: &Tensor| t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (ours, expected) = (values(ours), values(expected));
    let level = |i: usize| config.image_std[i / plane % 3] / config.rescale_factor;
    let off: Vec<f64> = (0..ours.len()).map(|i| f64::from((ours[i] - expected[i]).abs()) * level(i)).collect();
    let share = off.iter().filter(|&&levels| levels > 0.5).count() as f64 / off.len() as f64;
    summary.case();
    summary.check("8-bit levels", off.into_iter().fold(0.0, f64::max), 1.01, name);
    summary.check("share of values off", share, MAX_SHARE_OFF, name);
}

fn configs(folder: &Path) -> (PreprocessorConfig, VisionConfig, Value) {
    let json = read_json(&folder.join("preprocess.json"));
    let pinpoints: Vec<[usize; 2]> = serde_json::from_value(json["image_grid_pinpoints"].clone()).unwrap();
    let image_size = json["size"]["height"].as_u64().unwrap() as usize;
    let vision = VisionConfig {
        // Pixels do not depend on the patch size, but it must divide the tile size.
        patch_size: if image_size.is_multiple_of(14) { 14 } else { 1 },
        image_size,
        image_aspect_ratio: ImageAspectRatio::AnyRes,
        image_grid_pinpoints: pinpoints,
        image_newline: true,
    };
    (PreprocessorConfig::from_json(json.clone(), &vision).unwrap(), vision, json)
}

#[test]
fn pixels_match_the_reference() {
    let (decoder, mut images, mut videos) = (ImageDecoder::default(), Summary::default(), Summary::default());
    for folder in folders("preprocess") {
        let (config, vision, json) = configs(&folder);
        let processor = ImageProcessor::new(&config, &vision).unwrap();
        for case in json["cases"].as_array().unwrap() {
            let file = folder.join(case["image"].as_str().unwrap());
            let expected = Case::open(&file.with_extension("safetensors"));
            let Visual::Image { pixel_values, size } = processor.process(&decoder.open(&file).unwrap()).unwrap() else {
                panic!("not an image")
            };
            assert_eq!(pixel_values.dim(0).unwrap() as u64, case["tiles"].as_u64().unwrap(), "{}", file.display());
            assert_eq!(expected.ints("image_sizes"), [[size.height as i64, size.width as i64]]);
            let expected = expected.get("pixel_values").squeeze(0).unwrap();
            compare(&mut images, &file.display().to_string(), &pixel_values, &expected, &config);
        }
        let Some(names) = json["video_frames"].as_array() else { continue };
        let frames: Vec<_> = names.iter().map(|f| decoder.open(folder.join(f.as_str().unwrap())).unwrap()).collect();
        let visual = VideoProcessor::new(&config, &vision).unwrap().process(&frames).unwrap();
        let file = folder.join("video.safetensors");
        let expected = Case::open(&file).get("pixel_values_videos").squeeze(0).unwrap();
        compare(&mut videos, &file.display().to_string(), visual.pixel_values(), &expected, &config);
    }
    images.print("preprocess, images");
    videos.print("preprocess, videos");
}

#[test]
fn token_counts_match_the_reference() {
    let mut summary = Summary::default();
    for folder in folders("model") {
        let config = HaploVlConfig::from_json(read_json(&folder.join("config.json"))).unwrap();
        for (name, case) in cases(&folder) {
            let (image, video) = (i64::from(config.image_token_index), i64::from(config.video_token_index));
            let count = |token| case.ints("input_ids").iter().flatten().filter(|&&id| id == token).count();
            let sizes = if case.find("image_sizes").is_some() { case.ints("image_sizes") } else { vec![] };
            let size = |size: &Vec<i64>| Size::new(size[0] as usize, size[1] as usize);
            let images = sizes.iter().map(|s| PatchGrid::new(&config.vision, size(s)).unwrap().tokens());
            assert_eq!(count(image), images.sum::<usize>(), "{} {name}", folder.display());
            let videos = case.find("pixel_values_videos").map(|videos| videos.dims().to_vec());
            let videos = videos.map_or(0, |dims| dims[0] * video_tokens(&config.vision, dims[1]));
            assert_eq!(count(video), videos, "{} {name}", folder.display());
            summary.case();
        }
    }
    summary.print("token counts");
}

//! Patch grids of any image size and pinpoints: tiles, patches, tokens and pixels agree.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use haplovl::batch::Visual;
use haplovl::config::{HaploVlConfig, ImageAspectRatio, PreprocessorConfig, VisionConfig};
use haplovl::patch_grid::{PatchGrid, Size};
use haplovl::processor::{ImageProcessor, RgbImage};
use image::Rgb;
use proptest::prelude::*;

fn vision(tile: usize, pinpoints: &[(usize, usize)], max_tiles: Option<usize>) -> VisionConfig {
    VisionConfig {
        patch_size: 2,
        image_size: tile,
        image_aspect_ratio: max_tiles.map_or(ImageAspectRatio::AnyRes, ImageAspectRatio::AnyResMax),
        image_grid_pinpoints: pinpoints.iter().map(|(h, w)| [h * tile, w * tile]).collect(),
        ..HaploVlConfig::tiny().vision
    }
}

fn process(vision: &VisionConfig, width: u32, height: u32) -> Visual {
    let processor = ImageProcessor::new(&PreprocessorConfig::image(vision), vision).unwrap();
    processor.process(&RgbImage::from_pixel(width, height, Rgb([200, 100, 50]))).unwrap()
}

#[test]
fn empty_tiles_of_narrow_strips_are_black() {
    for n in 1..=8 {
        for pinpoint in [(1, n), (n, 1)] {
            for (width, height) in [(64, 64), (1, 64), (64, 1), (1, 4000), (4000, 1), (63, 65)] {
                let vision = vision(16, &[pinpoint], Some(6));
                let visual = process(&vision, width, height);
                assert_eq!(visual.pixel_values().dim(0).unwrap(), n, "{pinpoint:?} {width}x{height}");
            }
        }
    }
}

#[test]
fn unbounded_layouts_are_rejected_by_field() {
    let mut vision = vision(16, &[(1, 1)], Some(6));
    for [height, width] in [[8192, 8192], [16384, 4096], [65536, 1024], [16, 1 << 21]] {
        vision.image_grid_pinpoints = vec![[16, 16], [height, width]];
        let message = match ImageProcessor::new(&PreprocessorConfig::image(&vision), &vision) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        };
        assert!(message.contains("vision.image_grid_pinpoints[1]"), "{message}");
        vision.image_grid_pinpoints.remove(0);
        assert!(PatchGrid::new(&vision, Size::new(64, 64)).unwrap_err().to_string().contains("image_grid_pinpoints"));
    }
}

#[test]
fn tiles_of_one_pixel_are_laid_out() {
    let vision = VisionConfig { patch_size: 1, ..vision(1, &[(4, 7)], None) };
    for (width, height) in [(3, 5), (7, 4), (1, 9), (9, 1), (10, 3)] {
        assert_eq!(process(&vision, width, height).pixel_values().dims(), [28, 3, 1, 1]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// The processor produces as many tiles as the grid has, and all cells are within the grid.
    #[test]
    fn grids_and_pixels_agree(
        pinpoints in prop::collection::vec((1usize..7, 1usize..7), 1..5),
        tile in 1usize..9,
        max_tiles in prop::option::of(1usize..5),
        (width, height) in (1u32..70, 1u32..70),
    ) {
        let vision = vision(2 * tile, &pinpoints, max_tiles);
        let grid = PatchGrid::new(&vision, Size::new(height as usize, width as usize)).unwrap();
        let visual = process(&vision, width, height);
        prop_assert_eq!(visual.pixel_values().dims(), [grid.num_tiles(), 3, 2 * tile, 2 * tile]);
        prop_assert_eq!(visual.tokens(&vision).unwrap(), grid.tokens());
        let full = Size::new(grid.tiles.height * tile, grid.tiles.width * tile);
        prop_assert!(grid.offset.height + grid.unpadded.height <= full.height, "{:?}", grid);
        prop_assert!(grid.offset.width + grid.unpadded.width <= full.width, "{:?}", grid);
        prop_assert!(grid.unpadded.area() > 0 && grid.rows_cols.area() > 0, "{:?}", grid);
        prop_assert!(grid.rows_cols.height <= grid.unpadded.height && grid.rows_cols.width <= grid.unpadded.width);
        let pixels: Vec<f32> = visual.pixel_values().flatten_all().unwrap().to_vec1().unwrap();
        prop_assert!(pixels.iter().all(|value| value.is_finite()));
    }

    /// Extreme sizes and pinpoints yield a grid or an error, never a panic.
    #[test]
    fn extreme_sizes_never_panic(
        pinpoints in prop::collection::vec((any::<usize>(), any::<usize>()), 0..3),
        (tile, patch) in (0usize..70_000, 0usize..70_000),
        (width, height) in (any::<usize>(), any::<usize>()),
    ) {
        let config = VisionConfig {
            patch_size: patch,
            image_size: tile,
            image_grid_pinpoints: pinpoints.iter().map(|&(h, w)| [h, w]).collect(),
            ..HaploVlConfig::tiny().vision
        };
        let _ = PatchGrid::new(&config, Size::new(height, width)).map(|grid| grid.tokens());
    }
}

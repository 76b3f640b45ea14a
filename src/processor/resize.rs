//! Resizing of 8-bit RGB images, bit-identical to Pillow 13: two passes in 22-bit fixed point, rounded to 8 bits in
//! between.
//!
//! Libraries that keep 16-bit weights or swap the passes differ from Pillow by a level or two. A model trained on
//! Pillow's pixels should see exactly these, and the arithmetic is short.

use std::f64::consts::PI;

use image::RgbImage;
use rayon::prelude::*;

use crate::config::Resample;
use crate::{Error, Result};

/// Fractional bits of a weight: 32 bits less 8-bit levels and the overshoot of a cubic.
const PRECISION: u32 = 32 - 8 - 2;
/// Rounding term: half of a level in fixed point.
const HALF: i32 = 1 << (PRECISION - 1);
/// Maximum side of an image; beyond it the buffer between the passes could be many times larger than the image.
const MAX_SIDE: u32 = 1 << 17;
/// Elements of a row that the second pass sums at a time: they stay in registers and L1.
const BLOCK: usize = 256;

/// Resizes an image, bit-identical to Pillow's `Image.resize`.
///
/// # Errors
/// [`Error::Image`] if either size has no pixels, or a side exceeds 131,072.
pub fn resize(image: &RgbImage, width: u32, height: u32, resample: Resample) -> Result<RgbImage> {
    for side in [image.width(), image.height(), width, height] {
        if !(1..=MAX_SIDE).contains(&side) {
            return Err(Error::image(
                format!("of {}x{} (height x width)", image.height(), image.width()),
                format!("cannot be resized to {height}x{width}: sides must be 1 to {MAX_SIDE} pixels"),
            ));
        }
    }
    let passes = if height_first(image.dimensions(), (width, height)) {
        [resize_height as Pass, resize_width]
    } else {
        [resize_width as Pass, resize_height]
    };
    let target = (width, height);
    let once = passes[0](image, target, resample);
    let resized = passes[1](once.as_ref().unwrap_or(image), target, resample);
    Ok(resized.or(once).unwrap_or_else(|| image.clone()))
}

/// Runs one pass towards `(width, height)`; `None` if the image has that width or height already.
type Pass = fn(&RgbImage, (u32, u32), Resample) -> Option<RgbImage>;

/// Pillow 13 shrinks the height first if that saves more than twice the pixels; earlier versions never do. The order
/// affects the rounding between the passes.
fn height_first((width, height): (u32, u32), (new_width, new_height): (u32, u32)) -> bool {
    let saved = |from: u32, to: u32| i64::from(from) - i64::from(to);
    saved(height, new_height) > (2 * saved(width, new_width)).max(0)
}

fn resize_width(image: &RgbImage, (width, _): (u32, u32), resample: Resample) -> Option<RgbImage> {
    if image.width() == width {
        return None;
    }
    let windows: Vec<Window> = (0..width).map(|x| Window::new(resample, image.width(), width, x)).collect();
    let mut resized = RgbImage::new(width, image.height());
    let source_rows = image.par_chunks_exact(3 * image.width() as usize);
    resized.par_chunks_exact_mut(3 * width as usize).zip(source_rows).for_each(|(row, source)| {
        for (pixel, window) in row.chunks_exact_mut(3).zip(&windows) {
            let mut sums = [HALF; 3];
            for (&weight, levels) in window.weights.iter().zip(source[3 * window.start..].chunks_exact(3)) {
                for (sum, &level) in sums.iter_mut().zip(levels) {
                    *sum += weight * i32::from(level);
                }
            }
            pixel.copy_from_slice(&sums.map(clip));
        }
    });
    Some(resized)
}

fn resize_height(image: &RgbImage, (_, height): (u32, u32), resample: Resample) -> Option<RgbImage> {
    if image.height() == height {
        return None;
    }
    let row_len = 3 * image.width() as usize;
    let mut resized = RgbImage::new(image.width(), height);
    resized.par_chunks_exact_mut(row_len).enumerate().for_each(|(y, row)| {
        let window = Window::new(resample, image.height(), height, y as u32);
        let rows = &image.as_raw()[row_len * window.start..];
        for (block, levels) in row.chunks_mut(BLOCK).enumerate() {
            let mut sums = [HALF; BLOCK];
            for (&weight, source) in window.weights.iter().zip(rows.chunks_exact(row_len)) {
                for (sum, &level) in sums.iter_mut().zip(&source[block * BLOCK..]) {
                    *sum += weight * i32::from(level);
                }
            }
            for (level, sum) in levels.iter_mut().zip(sums) {
                *level = clip(sum);
            }
        }
    });
    Some(resized)
}

fn clip(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Source pixels of one resized pixel along one axis, with their weights.
struct Window {
    start: usize,
    /// Weights in fixed point; they sum to one.
    weights: Vec<i32>,
}

impl Window {
    fn new(resample: Resample, source: u32, target: u32, index: u32) -> Self {
        let scale = f64::from(source) / f64::from(target);
        // Shrinking widens the filter, so that every source pixel contributes; enlarging does not narrow it.
        let stretch = scale.max(1.0);
        let support = resample.support() * stretch;
        let center = (f64::from(index) + 0.5) * scale;
        let start = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(source as usize);
        let weight = |n: usize| resample.weight((n as f64 - center + 0.5) * (1.0 / stretch));
        let weights: Vec<f64> = (start..end).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |weight: f64| (weight / sum * f64::from(1 << PRECISION)).round() as i32;
        Self { start, weights: weights.into_iter().map(fixed).collect() }
    }
}

impl Resample {
    /// Radius of the filter's support, in pixels.
    fn support(self) -> f64 {
        match self {
            Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    /// Value of the filter at a distance from its centre.
    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
        let distance = x.abs();
        match self {
            // Half open, so that a pixel on the edge between two windows counts once.
            Self::Box => f64::from(x > -0.5 && x <= 0.5),
            _ if distance >= self.support() => 0.0,
            Self::Bilinear => 1.0 - distance,
            Self::Hamming => sinc(x) * (0.54 + 0.46 * (x * PI).cos()),
            Self::Bicubic if distance < 1.0 => (1.5 * distance - 2.5) * distance * distance + 1.0,
            Self::Bicubic => -0.5 * (((distance - 5.0) * distance + 8.0) * distance - 4.0),
            Self::Lanczos => sinc(x) * sinc(x / 3.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hashes of Pillow 13's output:
    /// ```python
    /// y, x = np.mgrid[0:17, 0:23].astype(np.uint64)
    /// v = np.stack([(x*x*7 + y*131 + x*y*3 + np.uint64(c*57)) * 2654435761 >> 24 & 255 for c in range(3)], -1)
    /// fnv1a(Image.fromarray(v.astype(np.uint8)).resize((width, height), resample).tobytes())
    /// ```
    #[test]
    fn every_filter_equals_pillow_to_the_bit() {
        let source = RgbImage::from_fn(23, 17, |x, y| {
            let (x, y) = (u64::from(x), u64::from(y));
            let level = |c: u64| ((((x * x * 7 + y * 131 + x * y * 3) + c * 57) * 2_654_435_761) >> 24) as u8;
            image::Rgb([level(0), level(1), level(2)])
        });
        for (resample, width, height, expected) in [
            (Resample::Lanczos, 11, 9, 0x6270_f4d2_93a3_f735),
            (Resample::Lanczos, 40, 31, 0xb13d_24cc_7c68_039a),
            (Resample::Lanczos, 23, 5, 0x1464_819f_cd0a_c114),
            (Resample::Lanczos, 21, 6, 0x01db_0de6_a4f1_11e9),
            (Resample::Bilinear, 11, 9, 0x650a_edce_56c8_788e),
            (Resample::Bilinear, 40, 31, 0x736a_8584_a801_3bc8),
            (Resample::Bilinear, 23, 5, 0x0dc4_aa70_15b8_4c13),
            (Resample::Bilinear, 21, 6, 0xfe99_9a43_fbe3_9e5b),
            (Resample::Bicubic, 11, 9, 0x0e88_ef9f_6d2d_a6f3),
            (Resample::Bicubic, 40, 31, 0xe6f3_e8c4_c075_826d),
            (Resample::Bicubic, 23, 5, 0x303b_b0ea_833d_20a9),
            (Resample::Bicubic, 21, 6, 0xea2a_23a4_0462_352d),
            (Resample::Box, 11, 9, 0x7c5c_5b32_6615_d2ef),
            (Resample::Box, 40, 31, 0x8625_c90b_5e76_5f4e),
            (Resample::Box, 23, 5, 0x01cd_998a_af4b_3d35),
            (Resample::Box, 21, 6, 0x7e64_e9e0_cad9_8b25),
            (Resample::Hamming, 11, 9, 0xc9df_7af5_0d4c_21ba),
            (Resample::Hamming, 40, 31, 0xf0f8_2898_ce16_6da7),
            (Resample::Hamming, 23, 5, 0x9d0f_03b1_fd55_3d45),
            (Resample::Hamming, 21, 6, 0x2c85_ad72_9ff3_4b9e),
        ] {
            let resized = resize(&source, width, height, resample).unwrap();
            let hash = resized.as_raw().iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, &byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
            assert_eq!(hash, expected, "{resample:?} {width}x{height}");
        }
    }

    #[test]
    fn absurd_sizes_are_refused() {
        let message = |w, h, to| resize(&RgbImage::new(w, h), to, 1, Resample::Bicubic).unwrap_err().to_string();
        assert!(message(0, 5, 7).contains("sides must be 1 to 131072"));
        assert!(message(5, 5, MAX_SIDE + 1).contains("sides must be 1 to 131072"));
    }
}

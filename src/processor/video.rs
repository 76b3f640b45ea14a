//! Videos: evenly sampled frames, each one tile.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use image::RgbImage;
use rayon::prelude::*;

use super::decode::ImageDecoder;
use super::pixels::PixelPipeline;
use crate::batch::Visual;
use crate::config::{PreprocessorConfig, VisionConfig};
use crate::{Error, Result};

/// Default number of sampled frames.
const DEFAULT_FRAMES: usize = 12;
/// Maximum number of frames, a limit of the released model.
const MAX_FRAMES: usize = 16;

/// Video preprocessing: samples frames evenly and resizes each to one tile, whatever its aspect ratio.
#[derive(Debug, Clone)]
pub struct VideoProcessor {
    image_size: usize,
    num_frames: usize,
    pixels: PixelPipeline,
}

impl VideoProcessor {
    /// A processor for a model with the tiles of `vision`; it samples 12 frames.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration is invalid or does not fit the tiles.
    pub fn new(config: &PreprocessorConfig, vision: &VisionConfig) -> Result<Self> {
        vision.validate()?;
        config.validate(vision)?;
        let pixels = PixelPipeline::new(config);
        Ok(Self { image_size: vision.image_size, num_frames: DEFAULT_FRAMES, pixels })
    }

    /// The same processor with another number of sampled frames.
    ///
    /// # Errors
    /// [`Error::Config`] unless `num_frames` is in 1..=16.
    pub fn with_num_frames(self, num_frames: usize) -> Result<Self> {
        if !(1..=MAX_FRAMES).contains(&num_frames) {
            let message = format!("is {num_frames}, expected 1 to {MAX_FRAMES}");
            return Err(Error::config("video.num_frames", message));
        }
        Ok(Self { num_frames, ..self })
    }

    /// Reads the sampled frames of a video file (an animated GIF, WebP or PNG) or of a folder of images in natural
    /// order of file names (`frame2` before `frame10`).
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read, [`Error::Image`] for an invalid image or a folder without images.
    pub fn load(&self, path: impl AsRef<Path>, decoder: &ImageDecoder) -> Result<Vec<RgbImage>> {
        let path = path.as_ref();
        if path.is_dir() {
            let files = frame_files(path)?;
            return self.sample(files.len()).into_par_iter().map(|n| decoder.open(&files[n])).collect();
        }
        self.decode(&decoder.read(path)?, &path.display().to_string(), decoder)
    }

    /// Decodes the sampled frames of a video file's content. `name` names the video in messages.
    ///
    /// # Errors
    /// [`Error::Image`] if the content is invalid.
    pub fn decode(&self, bytes: &[u8], name: &str, decoder: &ImageDecoder) -> Result<Vec<RgbImage>> {
        // Counting frames decodes the file a second time, but only the sampled frames are held in memory.
        let total = decoder.frames(bytes, name)?.try_fold(0, |n, frame| frame.map(|_| n + 1))?;
        let wanted = self.sample(total);
        let numbered = decoder.frames(bytes, name)?.enumerate();
        numbered.filter(|(n, _)| wanted.contains(n)).map(|(_, frame)| frame).collect()
    }

    /// Preprocesses frames to [`Visual::Video`], `(frames, 3, image_size, image_size)`, f32, on the CPU. If there are
    /// more frames than this processor takes, they are sampled evenly.
    ///
    /// # Errors
    /// [`Error::Image`] if there is no frame, or a frame has no pixels.
    pub fn process(&self, frames: &[RgbImage]) -> Result<Visual> {
        let wanted = self.sample(frames.len());
        let empty = |&n: &usize| frames[n].as_raw().is_empty();
        if wanted.is_empty() || wanted.iter().any(empty) {
            let message = "has no frame, or one without pixels: give at least one image";
            return Err(Error::image("video", message));
        }
        let side = self.image_size;
        let mut values = vec![0f32; wanted.len() * 3 * side * side];
        values.par_chunks_exact_mut(3 * side * side).zip(&wanted).try_for_each(|(tile, &n)| {
            self.pixels.write(&self.pixels.resize(&frames[n], side, side)?, (0, 0), side, tile);
            Ok::<_, Error>(())
        })?;
        let pixel_values = Tensor::from_vec(values, (wanted.len(), 3, side, side), &Device::Cpu)?;
        Ok(Visual::Video { pixel_values })
    }

    /// Indices of the sampled frames of `total`: all if there are few enough, else evenly from the first to the last.
    pub(crate) fn sample(&self, total: usize) -> Vec<usize> {
        let count = total.min(self.num_frames);
        (0..count).map(|n| n * total.saturating_sub(1) / count.saturating_sub(1).max(1)).collect()
    }
}

/// The images of a folder in natural order; hidden files and folders are skipped.
fn frame_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if path.is_file() && !hidden {
            files.push(path);
        }
    }
    if files.is_empty() {
        let message = "is a folder without images: give a folder that holds the video's frames";
        return Err(Error::image(folder.display().to_string(), message));
    }
    files.sort_by(|a, b| natural_order(&a.to_string_lossy(), &b.to_string_lossy()).then_with(|| a.cmp(b)));
    Ok(files)
}

/// Compares texts in natural order: runs of digits compare as numbers, so that `frame2` precedes `frame10`.
fn natural_order(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    while let (Some((&x, rest_a)), Some((&y, rest_b))) = (a.split_first(), b.split_first()) {
        let order = if x.is_ascii_digit() && y.is_ascii_digit() {
            let (number_a, after_a) = leading_number(a);
            let (number_b, after_b) = leading_number(b);
            (a, b) = (after_a, after_b);
            number_a.len().cmp(&number_b.len()).then_with(|| number_a.cmp(number_b))
        } else {
            (a, b) = (rest_a, rest_b);
            x.cmp(&y)
        };
        if order.is_ne() {
            return order;
        }
    }
    a.len().cmp(&b.len())
}

/// The leading digits without leading zeros, and the rest.
fn leading_number(text: &[u8]) -> (&[u8], &[u8]) {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let zeros = text.iter().take(digits).take_while(|&&byte| byte == b'0').count();
    (&text[zeros..digits], &text[digits..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_sampled_evenly_and_include_both_ends() {
        let vision = crate::config::HaploVlConfig::tiny().vision;
        let processor = VideoProcessor::new(&PreprocessorConfig::video(&vision), &vision).unwrap();
        assert_eq!(processor.sample(3), [0, 1, 2]);
        assert_eq!(processor.sample(12), Vec::from_iter(0..12));
        assert_eq!(processor.sample(100), [0, 9, 18, 27, 36, 45, 54, 63, 72, 81, 90, 99]);
        assert!(processor.sample(0).is_empty());
        assert_eq!(processor.clone().with_num_frames(1).unwrap().sample(9), [0]);
        assert!(processor.with_num_frames(17).unwrap_err().to_string().contains("expected 1 to 16"));
    }

    #[test]
    fn numbers_in_names_are_compared_as_numbers() {
        let mut names = ["f10.png", "f9.png", "f009b.png", "g1.png", "f1.png"];
        names.sort_by(|a, b| natural_order(a, b));
        assert_eq!(names, ["f1.png", "f9.png", "f009b.png", "f10.png", "g1.png"]);
    }
}

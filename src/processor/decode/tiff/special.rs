//! TIFF pixels that the `image` crate does not convert: palettes, YCbCr, float, signed and 32-bit samples, grey of 2 and
//! 4 bits, and grey with an alpha channel.

use std::borrow::Cow;
use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, Rgb, RgbImage, Rgba, RgbaImage};
use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::{TiffError, TiffResult};

use super::directory::{Directory, tag};

/// Luma weights of red, green and blue in Rec. 601, the default of `YCbCrCoefficients`.
const REC_601: [f64; 3] = [0.299, 0.587, 0.114];
/// Default of `ReferenceBlackWhite` for YCbCr: the full range, with chroma around 128.
const FULL_RANGE: [f64; 6] = [0.0, 255.0, 128.0, 255.0, 128.0, 255.0];

/// A TIFF of one of these kinds.
pub(in crate::processor::decode) struct SpecialTiff<'a> {
    directory: Directory<'a>,
    kind: Kind,
    width: u32,
    height: u32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// Indices into a colour map.
    Palette,
    /// Luma and chroma, with one chroma sample for `h` x `v` pixels.
    YCbCr { h: u32, v: u32 },
    /// Grey or RGB samples that are scaled to 8 bits; see [`full_scale`].
    Scaled { channels: usize },
    /// Grey with an alpha channel.
    GreyAlpha,
}

impl<'a> SpecialTiff<'a> {
    /// The TIFF, if it is of one of these kinds.
    pub fn of(bytes: &'a [u8]) -> Option<Self> {
        let directory = Directory::first(bytes)?;
        let kind = kind(&directory)?;
        let side = |tag| directory.integer_of(tag).and_then(|side| u32::try_from(side).ok());
        Some(Self { width: side(tag::WIDTH)?, height: side(tag::HEIGHT)?, directory, kind })
    }

    /// Width and height in pixels.
    pub fn dimensions(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    /// Orientation of the image.
    pub fn orientation(&self) -> Orientation {
        let stored = self.directory.integer_of(tag::ORIENTATION).and_then(|value| u8::try_from(value).ok());
        stored.and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms)
    }

    /// Bytes of memory for decoding besides the file: its samples, a copy with changed tags, and 8-bit RGB(A).
    pub fn working_bytes(&self) -> u64 {
        let bits = self.directory.integers(tag::BITS_PER_SAMPLE).into_iter().max().unwrap_or(1).max(8);
        let samples = self.directory.integer_of(tag::SAMPLES_PER_PIXEL).unwrap_or(1).max(3);
        let pixels = u64::from(self.width).saturating_mul(self.height.into());
        let stored = pixels.saturating_mul(samples.saturating_mul(bits).div_ceil(8));
        stored.saturating_add(pixels.saturating_mul(4)).saturating_add(self.directory.bytes.len() as u64)
    }

    /// Decodes the first image, with at most `limit` bytes for its samples.
    pub fn decode(&self, limit: u64) -> TiffResult<DynamicImage> {
        let bytes = self.readable().ok_or_else(|| unsupported("its tags contradict each other"))?;
        let samples = Samples::read(&bytes, limit, &self.directory)?;
        match self.kind {
            Kind::Palette => self.palette(&samples),
            Kind::YCbCr { h: 1, v: 1 } => Ok(self.ycbcr(|x, y, channel| samples.get(x, y, channel))),
            Kind::YCbCr { h, v } => Ok(self.ycbcr(|x, y, channel| {
                // A unit of h x v luma samples and two chroma samples is stored as so many grey pixels.
                let within = if channel == 0 { y % v * h + x % h } else { h * v + channel as u32 - 1 };
                samples.get(x / h * (h * v + 2) + within, y / v, 0)
            })),
            Kind::Scaled { channels } => Ok(self.scaled(&samples, channels)),
            Kind::GreyAlpha => Ok(self.grey_alpha(&samples)),
        }
    }

    /// The file, changed where the decoder refuses a kind whose samples it could read.
    fn readable(&self) -> Option<Cow<'_, [u8]>> {
        const BLACK_IS_ZERO: u32 = 1;
        let changed = match self.kind {
            Kind::Palette => self.directory.with_values(&[(tag::PHOTOMETRIC, BLACK_IS_ZERO)])?,
            Kind::YCbCr { h, v } if h * v > 1 && self.directory.integer_of(tag::COMPRESSION) != Some(7) => {
                let rows = self.directory.integer_of(tag::ROWS_PER_STRIP).unwrap_or(u64::from(u32::MAX));
                let rows = u32::try_from(rows).ok()?.min(self.height.next_multiple_of(v));
                let units = self.width.div_ceil(h).checked_mul(h * v + 2)?;
                self.directory.with_values(&[
                    (tag::PHOTOMETRIC, BLACK_IS_ZERO),
                    (tag::WIDTH, units),
                    (tag::HEIGHT, self.height.div_ceil(v)),
                    (tag::ROWS_PER_STRIP, if rows.is_multiple_of(v) { rows / v } else { return None }),
                    (tag::SAMPLES_PER_PIXEL, 1),
                    (tag::BITS_PER_SAMPLE, 8),
                ])?
            }
            _ => return Some(Cow::Borrowed(&self.directory.bytes)),
        };
        Some(Cow::Owned(changed))
    }

    fn rgb(&self, pixel: impl Fn(u32, u32) -> [f64; 3]) -> DynamicImage {
        // `as` rounds towards zero and keeps 0 to 255; NaN becomes 0.
        let level = |value: f64| (value + 0.5) as u8;
        RgbImage::from_fn(self.width, self.height, |x, y| Rgb(pixel(x, y).map(level))).into()
    }

    /// Colour maps hold 16-bit red, then green, then blue values; some writers store 8-bit values.
    fn palette(&self, indices: &Samples) -> TiffResult<DynamicImage> {
        let map = self.directory.integers(tag::COLOR_MAP);
        let colors = map.len() / 3;
        if colors == 0 {
            return Err(unsupported("a palette image without a colour map"));
        }
        let shift = if map.iter().all(|&value| value < 256) { 0 } else { 8 };
        let level =
            |channel: usize, index: usize| map.get(channel * colors + index).map_or(0.0, |&v| (v >> shift) as f64);
        Ok(self.rgb(|x, y| {
            let index = (indices.get(x, y, 0) as usize).min(colors - 1);
            [0, 1, 2].map(|channel| level(channel, index))
        }))
    }

    /// Conversion of TIFF 6.0, section 21.
    fn ycbcr(&self, sample: impl Fn(u32, u32, usize) -> f64) -> DynamicImage {
        let [red, green, blue] = self.directory.fractions(tag::YCBCR_COEFFICIENTS).unwrap_or(REC_601);
        let range: [f64; 6] = self.directory.fractions(tag::REFERENCE_BLACK_WHITE).unwrap_or(FULL_RANGE);
        let full = |value: f64, channel: usize, scale: f64| {
            let (black, white) = (range[2 * channel], range[2 * channel + 1]);
            if white > black { (value - black) * scale / (white - black) } else { value - black }
        };
        self.rgb(|x, y| {
            let luma = full(sample(x, y, 0), 0, 255.0);
            let (cb, cr) = (full(sample(x, y, 1), 1, 127.0), full(sample(x, y, 2), 2, 127.0));
            let (r, b) = (cr * (2.0 - 2.0 * red) + luma, cb * (2.0 - 2.0 * blue) + luma);
            [r, (luma - blue * b - red * r) / green, b]
        })
    }

    fn scaled(&self, samples: &Samples, channels: usize) -> DynamicImage {
        let factor = 255.0 / samples.full_scale();
        let level = |x, y, channel| samples.get(x, y, channel) * factor;
        match channels {
            1 => self.rgb(|x, y| [level(x, y, 0); 3]),
            _ => self.rgb(|x, y| [0, 1, 2].map(|channel| level(x, y, channel))),
        }
    }

    fn grey_alpha(&self, samples: &Samples) -> DynamicImage {
        let factor = 255.0 / samples.full_scale();
        let level = |x, y, channel| (samples.get(x, y, channel) * factor + 0.5) as u8;
        let pixel = |x, y| {
            let grey = level(x, y, 0);
            Rgba([grey, grey, grey, level(x, y, 1)])
        };
        RgbaImage::from_fn(self.width, self.height, pixel).into()
    }
}

fn kind(directory: &Directory<'_>) -> Option<Kind> {
    const FLOAT_OR_SIGNED: [u64; 2] = [2, 3];
    let bits = directory.integers(tag::BITS_PER_SAMPLE).into_iter().max().unwrap_or(1);
    let samples = directory.integer_of(tag::SAMPLES_PER_PIXEL).unwrap_or(1);
    let format = directory.integer_of(tag::SAMPLE_FORMAT).unwrap_or(1);
    let is_wide = FLOAT_OR_SIGNED.contains(&format) || bits > 16;
    match (directory.integer_of(tag::PHOTOMETRIC)?, samples) {
        (3, 1..) => Some(Kind::Palette),
        (6, 3) if bits == 8 => {
            let chroma = directory.integers(tag::YCBCR_SUBSAMPLING);
            let is_jpeg = directory.integer_of(tag::COMPRESSION) == Some(7);
            match chroma.as_slice() {
                // A JPEG decoder returns chroma for every pixel.
                _ if is_jpeg => Some(Kind::YCbCr { h: 1, v: 1 }),
                [] => Some(Kind::YCbCr { h: 2, v: 2 }),
                &[h @ (1 | 2 | 4), v @ (1 | 2 | 4)] => Some(Kind::YCbCr { h: h as u32, v: v as u32 }),
                _ => None,
            }
        }
        (0 | 1, 1) if is_wide || !matches!(bits, 1 | 8 | 16) => Some(Kind::Scaled { channels: 1 }),
        (1, 2) if directory.integer_of(tag::EXTRA_SAMPLES).is_some_and(|kind| kind > 0) => Some(Kind::GreyAlpha),
        (2, 3..) if is_wide => Some(Kind::Scaled { channels: 3 }),
        _ => None,
    }
}

/// Decoded samples of an image.
struct Samples {
    values: DecodingResult,
    bits: usize,
    /// Distance in samples between two rows, pixels and channels; rows of less than 8 bits begin at whole bytes.
    row: usize,
    pixel: usize,
    channel: usize,
}

impl Samples {
    fn read(bytes: &[u8], limit: u64, original: &Directory<'_>) -> TiffResult<Self> {
        let mut limits = Limits::default();
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        (limits.decoding_buffer_size, limits.intermediate_buffer_size) = (limit, limit);
        let mut decoder = Decoder::new(Cursor::new(bytes))?.with_limits(limits);
        let mut values = DecodingResult::U8(Vec::new());
        let layout = decoder.read_image_to_buffer(&mut values)?;
        if values.as_buffer(0).as_bytes().len() < layout.complete_len {
            return Err(TiffError::LimitsExceeded);
        }
        let (width, height) = decoder.dimensions()?;
        let (width, height) = (width as usize, height as usize);
        let directory = Directory::first(bytes);
        let first = |tag| directory.as_ref().and_then(|directory| directory.integer_of(tag)).unwrap_or(1) as usize;
        let (bits, samples) = (first(tag::BITS_PER_SAMPLE), first(tag::SAMPLES_PER_PIXEL));
        if bits < 8 && !matches!(bits, 1 | 2 | 4) {
            return Err(unsupported(&format!("samples of {bits} bits")));
        }
        let is_planar = samples > 1 && original.integer_of(tag::PLANAR) == Some(2);
        let pixel = if is_planar { 1 } else { samples };
        let row = if bits < 8 { (width * pixel * bits).div_ceil(8) * 8 / bits.max(1) } else { width * pixel };
        Ok(Self { values, bits, row, pixel, channel: if is_planar { row * height } else { 1 } })
    }

    /// Sample of a channel; 0 outside of what was decoded.
    fn get(&self, x: u32, y: u32, channel: usize) -> f64 {
        let at = y as usize * self.row + x as usize * self.pixel + channel * self.channel;
        if self.bits < 8 {
            let DecodingResult::U8(bytes) = &self.values else { return 0.0 };
            let (byte, shift) = (at * self.bits / 8, 8 - self.bits - at * self.bits % 8);
            return f64::from(bytes.get(byte).map_or(0, |byte| byte >> shift & ((1 << self.bits) - 1)));
        }
        self.value(at).unwrap_or(0.0)
    }

    fn value(&self, at: usize) -> Option<f64> {
        match &self.values {
            DecodingResult::U8(v) => v.get(at).map(|&v| v.into()),
            DecodingResult::U16(v) => v.get(at).map(|&v| v.into()),
            DecodingResult::U32(v) => v.get(at).map(|&v| v.into()),
            DecodingResult::U64(v) => v.get(at).map(|&v| v as f64),
            DecodingResult::F16(v) => v.get(at).map(|&v| v.into()),
            DecodingResult::F32(v) => v.get(at).map(|&v| v.into()),
            DecodingResult::F64(v) => v.get(at).copied(),
            DecodingResult::I8(v) => v.get(at).map(|&v| v.into()),
            DecodingResult::I16(v) => v.get(at).map(|&v| v.into()),
            DecodingResult::I32(v) => v.get(at).map(|&v| v.into()),
            DecodingResult::I64(v) => v.get(at).map(|&v| v as f64),
        }
    }

    /// Sample value that becomes white. The full range of an unsigned sample of up to 16 bits; for wider, signed and
    /// float samples, whose files do not say their range, the smallest of 1 (floats only), 255, 65,535 and 2^32 - 1
    /// that no sample exceeds.
    fn full_scale(&self) -> f64 {
        let steps: &[f64] = match &self.values {
            DecodingResult::U8(_) => return f64::from((1u32 << self.bits.min(8)) - 1),
            DecodingResult::U16(_) => return f64::from(u16::MAX),
            DecodingResult::F16(_) | DecodingResult::F32(_) | DecodingResult::F64(_) => &[1.0, 255.0, 65_535.0],
            _ => &[255.0, 65_535.0],
        };
        let largest = (0..).map_while(|at| self.value(at)).filter(|value| value.is_finite()).fold(0.0, f64::max);
        steps.iter().copied().find(|&step| largest <= step).unwrap_or(f64::from(u32::MAX))
    }
}

fn unsupported(message: &str) -> TiffError {
    TiffError::IoError(std::io::Error::new(std::io::ErrorKind::Unsupported, message.to_string()))
}

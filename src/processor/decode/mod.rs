//! Image decoding: bytes of an image file to 8-bit RGB.

mod convert;
mod gif;
mod jpeg;
mod png;
mod riff;
mod signatures;
mod tiff;

use std::borrow::Cow;
use std::io::{Cursor, ErrorKind};
use std::path::Path;

use image::codecs::{gif::GifDecoder, png::PngDecoder, webp::WebPDecoder};
use image::metadata::Orientation;
use image::{
    AnimationDecoder, ColorType, DynamicImage, ImageDecoder as _, ImageError, ImageFormat, ImageReader, ImageResult,
    Limits, RgbImage,
};

use crate::{Error, Result, files};
use ::tiff::TiffError;
use convert::{Alpha, on_white, to_rgb};
use tiff::SpecialTiff;

/// Frames of an animation, decoded one by one on demand.
pub type Frames<'a> = Box<dyn Iterator<Item = Result<RgbImage>> + 'a>;

/// Reason why a file is invalid, to follow "is damaged or truncated".
type Checked<T> = std::result::Result<T, String>;

/// Memory of decoders besides the image and the file, for example for colour profiles.
const OVERHEAD: u64 = 16 << 20;

/// Decoder of PNG, JPEG, WebP, GIF, BMP and TIFF files, recognised by content, never by file name.
///
/// The image is rotated by its EXIF orientation. Grey, palette and 16-bit images become 8-bit RGB. TIFFs with float,
/// signed or 32-bit samples do not say what white is: it is the smallest of 1 (floats only), 255, 65,535 and 2^32 - 1 that
/// no sample exceeds. Transparent pixels
/// are blended with white, the page that most of these images are drawn for; dropping the alpha channel would reveal
/// colours that were never meant to be seen. A truncated file is an error in every format, even if its first part could
/// be shown.
///
/// Both limits are checked against the file's header before decoding, so a small file cannot exhaust memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageDecoder {
    /// Maximum number of pixels (width times height) of an image.
    pub max_pixels: u64,
    /// Maximum bytes of memory for one image: its file, its pixels as stored, the decoder's buffers, and the conversion
    /// to 8-bit RGB.
    pub max_bytes: u64,
}

impl Default for ImageDecoder {
    /// Limits of 178,956,970 pixels (half a gigabyte of RGB), and 1.25 GiB of memory.
    fn default() -> Self {
        Self { max_pixels: (1 << 29) / 3, max_bytes: 5 << 28 }
    }
}

impl ImageDecoder {
    /// Reads and decodes a file; of an animation, the first frame.
    ///
    /// # Errors
    /// The errors of [`Self::read`] and [`Self::decode`].
    pub fn open(&self, path: impl AsRef<Path>) -> Result<RgbImage> {
        let path = path.as_ref();
        self.decode(&self.read(path)?, &path.display().to_string())
    }

    /// Reads a regular file, if it is no larger than an image within the limits can be.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read or is no regular file, and [`Error::Image`] if it is too large.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<Vec<u8>> {
        let path = path.as_ref();
        let most = self.max_file_bytes();
        let file = files::open(path).map_err(|e| address(path).unwrap_or(e))?;
        let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
        if length > most {
            let message = format!("is {length} bytes, expected at most {most}: shrink it, or raise `max_pixels`");
            return Err(Error::image(path.display().to_string(), message));
        }
        files::read(path, most)
    }

    /// Decodes the content of a file; of an animation, the first frame. `name` names the image in messages.
    ///
    /// # Errors
    /// [`Error::Image`] if it is empty, of an unknown format, above a limit, damaged or truncated.
    pub fn decode(&self, bytes: &[u8], name: &str) -> Result<RgbImage> {
        let format = self.format(bytes, name)?;
        if let Some(kind) = unsupported(format, bytes) {
            return Err(Error::image(name, format!("is {kind}, which is not supported: convert it to PNG or JPEG")));
        }
        let bytes = complete(format, bytes);
        let named = |e| image_error(name, e);
        let alpha = if format == ImageFormat::Tiff { tiff::alpha(&bytes) } else { Alpha::Straight };
        if let Some(tiff) = SpecialTiff::of(&bytes).filter(|_| format == ImageFormat::Tiff) {
            return self.special_tiff(&tiff, &bytes, name);
        }
        let mut reader = ImageReader::with_format(Cursor::new(&*bytes), format);
        reader.limits(self.limits(format, &bytes));
        let mut decoder = reader.into_decoder().map_err(named)?;
        self.check_size(decoder.dimensions(), name)?;
        let orientation = decoder.orientation().map_err(named)?;
        let extra = working_bytes(format, &bytes, &decoder).saturating_add(bytes.len() as u64);
        self.check_memory(&decoder, orientation, extra, name)?;
        check(format, &bytes).map_err(|message| damaged(name, &message))?;
        let mut rgb = DynamicImage::ImageRgb8(to_rgb(DynamicImage::from_decoder(decoder).map_err(named)?, alpha));
        rgb.apply_orientation(orientation);
        Ok(rgb.into_rgb8())
    }

    /// Decodes a TIFF of a kind that the `image` crate does not convert.
    fn special_tiff(&self, tiff: &SpecialTiff<'_>, bytes: &[u8], name: &str) -> Result<RgbImage> {
        self.check_size(tiff.dimensions(), name)?;
        let needed = tiff.working_bytes().saturating_add(2 * bytes.len() as u64);
        if needed > self.max_bytes {
            return Err(self.too_much_memory(needed, tiff.dimensions(), "TIFF", name));
        }
        check(ImageFormat::Tiff, bytes).map_err(|message| damaged(name, &message))?;
        let image = tiff.decode(self.max_bytes).map_err(|e| tiff_error(name, e))?;
        let mut rgb = DynamicImage::ImageRgb8(to_rgb(image, tiff::alpha(bytes)));
        rgb.apply_orientation(tiff.orientation());
        Ok(rgb.into_rgb8())
    }

    /// Returns the frames of an animated GIF, WebP or PNG, or the single image of any other file.
    ///
    /// # Errors
    /// The errors of [`Self::decode`], immediately or from the iterator.
    pub fn frames<'a>(&self, bytes: &'a [u8], name: &'a str) -> Result<Frames<'a>> {
        let format = self.format(bytes, name)?;
        let limits = self.limits(format, bytes);
        // Only once the size is known to be within the limits, since the check takes memory by the size.
        let whole = || check(format, bytes).map_err(|message| damaged(name, &message));
        let frames = match format {
            ImageFormat::Gif => {
                let decoder = self.animation(GifDecoder::new(Cursor::new(bytes)), limits, name)?;
                whole()?;
                decoder.into_frames()
            }
            ImageFormat::WebP => {
                let decoder = self.animation(WebPDecoder::new(Cursor::new(bytes)), limits, name)?;
                if !decoder.has_animation() {
                    return Ok(Box::new(std::iter::once(self.decode(bytes, name))));
                }
                whole()?;
                decoder.into_frames()
            }
            ImageFormat::Png => {
                let decoder = PngDecoder::with_limits(Cursor::new(bytes), limits);
                // Frames have another limit than chunks.
                let decoder = self.animation(decoder, self.frame_limits(), name)?;
                if !decoder.is_apng().map_err(|e| image_error(name, e))? {
                    return Ok(Box::new(std::iter::once(self.decode(bytes, name))));
                }
                whole()?;
                decoder.apng().map_err(|e| image_error(name, e))?.into_frames()
            }
            _ => return Ok(Box::new(std::iter::once(self.decode(bytes, name)))),
        };
        let rgb = |frame: image::Frame| on_white(frame.into_buffer(), Alpha::Straight);
        Ok(Box::new(frames.map(move |frame| frame.map(rgb).map_err(|e| image_error(name, e)))))
    }

    /// A decoder of animations whose size and memory are within the limits.
    fn animation<D: image::ImageDecoder>(&self, decoder: ImageResult<D>, limits: Limits, name: &str) -> Result<D> {
        let mut decoder = decoder.map_err(|e| image_error(name, e))?;
        self.check_size(decoder.dimensions(), name)?;
        decoder.set_limits(limits).map_err(|e| image_error(name, e))?;
        Ok(decoder)
    }

    fn format(&self, bytes: &[u8], name: &str) -> Result<ImageFormat> {
        if bytes.is_empty() {
            return Err(Error::image(name, "is empty (0 bytes): copy or download it again"));
        }
        let is_big_tiff = bytes.starts_with(b"II+\0") || bytes.starts_with(b"MM\0+");
        match image::guess_format(bytes) {
            _ if is_big_tiff => Ok(ImageFormat::Tiff),
            Ok(format) if format.reading_enabled() => Ok(format),
            found => Err(Error::image(name, signatures::problem(bytes, found.ok()))),
        }
    }

    fn check_size(&self, (width, height): (u32, u32), name: &str) -> Result<()> {
        let pixels = u64::from(width) * u64::from(height);
        let message = if pixels == 0 {
            format!("is {width} pixels wide and {height} high, expected at least 1 each")
        } else if pixels > self.max_pixels {
            format!(
                "is {width} pixels wide and {height} high, {pixels} in all, more than the limit of {}: shrink it, or \
                 raise `max_pixels` if the file can be trusted",
                self.max_pixels
            )
        } else {
            return Ok(());
        };
        Err(Error::image(name, message))
    }

    /// Rejects an image whose decoding takes too much memory; `extra` bytes are allocated besides the pixels.
    fn check_memory(
        &self,
        decoder: &impl image::ImageDecoder,
        orientation: Orientation,
        extra: u64,
        name: &str,
    ) -> Result<()> {
        let (width, height) = decoder.dimensions();
        let pixels = u64::from(width) * u64::from(height);
        let converted = match decoder.color_type() {
            ColorType::Rgb8 | ColorType::Rgba8 => 0,
            color if color.has_alpha() => 4 * pixels,
            _ => 3 * pixels,
        };
        let turned = if orientation == Orientation::NoTransforms { 0 } else { 3 * pixels };
        let needed = decoder.total_bytes().saturating_add(converted.max(turned)).saturating_add(extra);
        if needed <= self.max_bytes {
            return Ok(());
        }
        Err(self.too_much_memory(needed, (width, height), &format!("{:?}", decoder.color_type()), name))
    }

    fn too_much_memory(&self, needed: u64, (width, height): (u32, u32), kind: &str, name: &str) -> Error {
        Error::image(
            name,
            format!(
                "takes {needed} bytes of memory to decode ({width}x{height}, {kind}), more than the limit of {}: shrink \
                 it, or raise `max_bytes` if the file can be trusted",
                self.max_bytes
            ),
        )
    }

    /// Bytes of the largest allowed image, with four 16-bit channels, plus headers.
    fn max_file_bytes(&self) -> u64 {
        self.max_pixels.saturating_mul(8).saturating_add(1 << 20).min(self.max_bytes)
    }

    /// Allocation limits of the decoder. PNG decoders count chunks only, which a small file can expand.
    fn limits(&self, format: ImageFormat, bytes: &[u8]) -> Limits {
        let mut limits = self.frame_limits();
        if format == ImageFormat::Png {
            limits.max_alloc = Some(OVERHEAD.saturating_add(bytes.len() as u64));
        }
        limits
    }

    fn frame_limits(&self) -> Limits {
        let mut limits = Limits::no_limits();
        limits.max_alloc = Some(self.max_bytes);
        limits
    }
}

/// The error for an address in the place of a file's name: nothing is downloaded.
fn address(path: &Path) -> Option<Error> {
    let name = path.to_string_lossy();
    let problem = match name.split_once("://")?.0 {
        "file" => "is an address: name the file by its path, without `file://`",
        _ => "is an address, which is not fetched: download it, and name the file",
    };
    Some(Error::image(name, problem))
}

/// Memory that a decoder allocates besides the file and its output.
fn working_bytes(format: ImageFormat, bytes: &[u8], decoder: &impl image::ImageDecoder) -> u64 {
    let (width, height) = decoder.dimensions();
    match format {
        // A copy of the file.
        ImageFormat::Jpeg => jpeg::coefficient_bytes(bytes).saturating_add(bytes.len() as u64),
        // Luma of each pixel, and chroma of every fourth.
        ImageFormat::WebP => 2 * u64::from(width) * u64::from(height),
        // The decoder's output buffer.
        ImageFormat::Tiff => decoder.total_bytes(),
        _ => 0,
    }
}

/// Repairs the end of a file where other programs tolerate missing bytes.
fn complete(format: ImageFormat, bytes: &[u8]) -> Cow<'_, [u8]> {
    match format {
        ImageFormat::Png => png::complete(bytes),
        ImageFormat::Tiff => tiff::complete(bytes),
        _ => Cow::Borrowed(bytes),
    }
}

/// Kind of a file that the decoder would take for another one, or for a damaged one.
fn unsupported(format: ImageFormat, bytes: &[u8]) -> Option<&'static str> {
    match format {
        ImageFormat::Jpeg => jpeg::unsupported(bytes),
        ImageFormat::Tiff => tiff::unsupported(bytes),
        _ => None,
    }
}

/// Rejects truncated files whose decoder would fill in the rest.
fn check(format: ImageFormat, bytes: &[u8]) -> Checked<()> {
    match format {
        ImageFormat::Jpeg => jpeg::check(bytes),
        ImageFormat::WebP => riff::check(bytes),
        ImageFormat::Gif => gif::check(bytes),
        ImageFormat::Png => png::check(bytes),
        ImageFormat::Tiff => tiff::check(bytes),
        _ => Ok(()),
    }
}

fn damaged(name: &str, message: &str) -> Error {
    Error::image(name, format!("is damaged or truncated ({message}): copy or download it again"))
}

fn tiff_error(name: &str, error: TiffError) -> Error {
    match &error {
        TiffError::LimitsExceeded => Error::image(name, "needs more memory than `max_bytes` allows: shrink it"),
        TiffError::UnsupportedError(e) => unsupported_tiff(name, e),
        TiffError::IoError(e) if e.kind() == ErrorKind::Unsupported => unsupported_tiff(name, e),
        e => damaged(name, &e.to_string()),
    }
    .caused_by(error)
}

fn unsupported_tiff(name: &str, kind: &dyn std::fmt::Display) -> Error {
    Error::image(name, format!("is a TIFF of a kind that is not supported ({kind}): convert it to PNG or JPEG"))
}

fn image_error(name: &str, error: ImageError) -> Error {
    match &error {
        ImageError::Limits(e) => {
            Error::image(name, format!("needs more memory than `max_bytes` allows ({e}): shrink it"))
        }
        ImageError::Unsupported(e) => {
            Error::image(name, format!("uses a feature that is not supported ({e}): convert it to PNG or JPEG"))
        }
        e => damaged(name, &e.to_string()),
    }
    .caused_by(error)
}

//! From the bytes of a picture file to 8-bit RGB.

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

use image::codecs::{gif::GifDecoder, png::PngDecoder, webp::WebPDecoder};
use image::{
    AnimationDecoder, DynamicImage, ImageDecoder as _, ImageError, ImageFormat, ImageReader, ImageResult, Limits, Rgb,
    RgbImage, RgbaImage,
};

use crate::{Error, Result};

/// The frames of an animation, decoded one by one as they are asked for.
pub type Frames<'a> = Box<dyn Iterator<Item = Result<RgbImage>> + 'a>;

/// Reads PNG, JPEG, WebP, GIF, BMP and TIFF, told apart by content and never by file name.
///
/// The picture is turned as its EXIF orientation says. Grey, palette and 16-bit pictures become 8-bit RGB. What is
/// transparent is laid on white, the page that such pictures are mostly drawn for; dropping the alpha channel instead
/// would bring out colours that nobody was meant to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageDecoder {
    /// Most pixels (width times height) that a picture may have. It is compared with the file's header before
    /// anything is decoded, so that a small file cannot claim all memory.
    pub max_pixels: u64,
}

impl Default for ImageDecoder {
    /// At most 178,956,970 pixels: half a gigabyte of RGB.
    fn default() -> Self {
        Self { max_pixels: (1 << 29) / 3 }
    }
}

impl ImageDecoder {
    /// Reads and decodes a file; of an animation the first frame.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, and as [`Self::decode`].
    pub fn open(&self, path: impl AsRef<Path>) -> Result<RgbImage> {
        let path = path.as_ref();
        self.decode(&self.read(path)?, &path.display().to_string())
    }

    /// The bytes of a file, if it is not larger than any picture within the pixel limit can be.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, and [`Error::Image`] if it is too large.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<Vec<u8>> {
        let path = path.as_ref();
        let io = |e| Error::io(path, e);
        let most = self.max_bytes();
        let mut bytes = Vec::new();
        File::open(path).map_err(io)?.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 > most {
            let message = format!("is larger than {most} bytes: shrink it, or raise `max_pixels`");
            return Err(Error::image(path.display().to_string(), message));
        }
        Ok(bytes)
    }

    /// Decodes a file's content; of an animation the first frame. `name` is what messages call it.
    ///
    /// # Errors
    /// [`Error::Image`] if it is empty, of an unknown format, above the pixel limit, damaged or truncated.
    pub fn decode(&self, bytes: &[u8], name: &str) -> Result<RgbImage> {
        let mut reader = ImageReader::with_format(Cursor::new(bytes), self.format(bytes, name)?);
        reader.limits(self.limits());
        let named = |e| image_error(name, e);
        let mut decoder = reader.into_decoder().map_err(named)?;
        self.check_size(decoder.dimensions(), name)?;
        let orientation = decoder.orientation().map_err(named)?;
        let mut picture = DynamicImage::from_decoder(decoder).map_err(named)?;
        picture.apply_orientation(orientation);
        Ok(to_rgb(picture))
    }

    /// The frames of an animated GIF, WebP or PNG, or the one picture of any other file.
    ///
    /// # Errors
    /// As [`Self::decode`], at once or from the iterator.
    pub fn frames<'a>(&self, bytes: &'a [u8], name: &'a str) -> Result<Frames<'a>> {
        let frames = match self.format(bytes, name)? {
            ImageFormat::Gif => self.animation(GifDecoder::new(Cursor::new(bytes)), name)?.into_frames(),
            ImageFormat::WebP => {
                let decoder = self.animation(WebPDecoder::new(Cursor::new(bytes)), name)?;
                if !decoder.has_animation() {
                    return Ok(Box::new(std::iter::once(self.decode(bytes, name))));
                }
                decoder.into_frames()
            }
            ImageFormat::Png => {
                let decoder = self.animation(PngDecoder::with_limits(Cursor::new(bytes), self.limits()), name)?;
                if !decoder.is_apng().map_err(|e| image_error(name, e))? {
                    return Ok(Box::new(std::iter::once(self.decode(bytes, name))));
                }
                decoder.apng().map_err(|e| image_error(name, e))?.into_frames()
            }
            _ => return Ok(Box::new(std::iter::once(self.decode(bytes, name)))),
        };
        let rgb = |frame: image::Frame| on_white(&frame.into_buffer());
        Ok(Box::new(frames.map(move |frame| frame.map(rgb).map_err(|e| image_error(name, e)))))
    }

    /// A decoder of animations whose size and memory are within the limits.
    fn animation<D: image::ImageDecoder>(&self, decoder: ImageResult<D>, name: &str) -> Result<D> {
        let mut decoder = decoder.map_err(|e| image_error(name, e))?;
        self.check_size(decoder.dimensions(), name)?;
        decoder.set_limits(self.limits()).map_err(|e| image_error(name, e))?;
        Ok(decoder)
    }

    fn format(&self, bytes: &[u8], name: &str) -> Result<ImageFormat> {
        let bad = |message: &str| Err(Error::image(name, message));
        if bytes.is_empty() {
            return bad("is empty (0 bytes): copy or download it again");
        }
        match image::guess_format(bytes) {
            Ok(format) if format.reading_enabled() => Ok(format),
            Ok(format) => bad(&format!("is {format:?}, which is not supported: convert it to PNG or JPEG")),
            Err(_) => bad("is not a PNG, JPEG, WebP, GIF, BMP or TIFF picture: convert it to one of these"),
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

    /// Bytes of the largest picture that is allowed: four 16-bit channels, and a little for headers.
    fn max_bytes(&self) -> u64 {
        self.max_pixels.saturating_mul(8).saturating_add(1 << 20)
    }

    fn limits(&self) -> Limits {
        let mut limits = Limits::no_limits();
        limits.max_alloc = Some(self.max_bytes().saturating_mul(2));
        limits
    }
}

fn to_rgb(picture: DynamicImage) -> RgbImage {
    if picture.color().has_alpha() { on_white(&picture.into_rgba8()) } else { picture.into_rgb8() }
}

fn on_white(picture: &RgbaImage) -> RgbImage {
    let mut rgb = RgbImage::new(picture.width(), picture.height());
    for (to, from) in rgb.pixels_mut().zip(picture.pixels()) {
        let [r, g, b, alpha] = from.0.map(u32::from);
        let blend = |level: u32| ((level * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
        *to = Rgb([blend(r), blend(g), blend(b)]);
    }
    rgb
}

fn image_error(name: &str, error: ImageError) -> Error {
    let message = match error {
        ImageError::Limits(e) => format!("needs more memory than its size limit allows ({e}): shrink it"),
        ImageError::Unsupported(e) => format!("uses a feature that is not supported ({e}): convert it to PNG or JPEG"),
        e => format!("is damaged or truncated ({e}): copy or download it again"),
    };
    Error::image(name, message)
}

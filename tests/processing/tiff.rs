//! TIFF kinds beyond those of the `image` crate: palettes, YCbCr, float and wide samples, in both byte orders.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use haplovl::processor::ImageDecoder;
use image::RgbImage;
use proptest::prelude::*;

const WIDTH: u32 = 5;
const HEIGHT: u32 = 3;

/// Writer of a TIFF with one directory and strips of one or all rows.
#[derive(Clone)]
struct Tiff {
    big_endian: bool,
    big: bool,
    /// Tag, field type and values; offsets and lengths of strips are added.
    tags: Vec<(u16, u16, Vec<u64>)>,
    strips: Vec<Vec<u8>>,
}

impl Tiff {
    fn new(photometric: u64, bits: &[u64], strips: Vec<Vec<u8>>) -> Self {
        let tags = vec![
            (256, 3, vec![WIDTH.into()]),
            (257, 3, vec![HEIGHT.into()]),
            (258, 3, bits.to_vec()),
            (259, 3, vec![1]),
            (262, 3, vec![photometric]),
            (277, 3, vec![bits.len() as u64]),
            (278, 3, vec![HEIGHT.into()]),
        ];
        Self { big_endian: false, big: false, tags, strips }
    }

    fn with(mut self, tag: u16, kind: u16, values: &[u64]) -> Self {
        self.tags.retain(|(found, _, _)| *found != tag);
        self.tags.push((tag, kind, values.to_vec()));
        self
    }

    fn integer(&self, value: u64, size: usize) -> Vec<u8> {
        if self.big_endian { value.to_be_bytes()[8 - size..].to_vec() } else { value.to_le_bytes()[..size].to_vec() }
    }

    /// The file: header, strips, values of tags, directory.
    fn bytes(&self) -> Vec<u8> {
        let mut file = if self.big_endian { b"MM".to_vec() } else { b"II".to_vec() };
        let (word, header) = if self.big { (8, 16) } else { (4, 8) };
        file.extend(self.integer(if self.big { 43 } else { 42 }, 2));
        if self.big {
            file.extend(self.integer(8, 2));
        }
        file.resize(header, 0);
        let mut tags = self.tags.clone();
        let mut offsets = Vec::new();
        for strip in &self.strips {
            offsets.push(file.len() as u64);
            file.extend(strip);
        }
        let has_tiles = tags.iter().any(|(tag, _, _)| *tag == 322);
        tags.push((if has_tiles { 324 } else { 273 }, 4, offsets));
        let lengths = self.strips.iter().map(|strip| strip.len() as u64).collect();
        tags.push((if has_tiles { 325 } else { 279 }, 4, lengths));
        tags.sort();
        let mut directory = self.integer(tags.len() as u64, if self.big { 8 } else { 2 });
        for (tag, kind, values) in tags {
            let size = if kind == 3 { 2 } else { 4 };
            // A fraction is two integers.
            let count = if kind == 5 { values.len() / 2 } else { values.len() };
            let mut field: Vec<u8> = values.iter().flat_map(|&value| self.integer(value, size)).collect();
            if field.len() > word {
                let at = file.len() as u64;
                file.extend(field);
                field = self.integer(at, word);
            }
            field.resize(word, 0);
            for part in
                [self.integer(tag.into(), 2), self.integer(kind.into(), 2), self.integer(count as u64, word), field]
            {
                directory.extend(part);
            }
        }
        let at = self.integer(file.len() as u64, word);
        file[header - word..header].copy_from_slice(&at);
        file.extend(directory);
        file.extend(self.integer(0, word));
        file
    }

    fn decode(&self) -> RgbImage {
        ImageDecoder::default().decode(&self.bytes(), "a.tif").unwrap()
    }
}

/// A picture whose pixel n has the level n * 16.
fn levels() -> Vec<u8> {
    (0..WIDTH * HEIGHT).map(|n| (n * 16) as u8).collect()
}

fn grey(levels: &[u8]) -> RgbImage {
    RgbImage::from_raw(WIDTH, HEIGHT, levels.iter().flat_map(|&level| [level; 3]).collect()).unwrap()
}

fn palette(bits: u64) -> Tiff {
    let indices: Vec<u8> = (0..(WIDTH * HEIGHT) as u8).collect();
    let row = |row: &[u8]| -> Vec<u8> {
        match bits {
            4 => row.chunks(2).map(|pair| pair[0] << 4 | pair.get(1).unwrap_or(&0)).collect(),
            _ => row.to_vec(),
        }
    };
    let strip = indices.chunks(WIDTH as usize).flat_map(row).collect();
    let map: Vec<u64> =
        (0..3u64).flat_map(|channel| (0..1 << bits).map(move |n: u64| (n * 16 + channel) % 256 * 257)).collect();
    Tiff::new(3, &[bits], vec![strip]).with(320, 3, &map)
}

#[test]
fn palettes_are_looked_up_in_every_form_of_the_file() {
    let expected = RgbImage::from_fn(WIDTH, HEIGHT, |x, y| {
        let index = (y * WIDTH + x) as u8;
        image::Rgb([0, 1, 2].map(|channel| index * 16 + channel))
    });
    for bits in [4, 8] {
        for (big_endian, big) in [(false, false), (true, false), (false, true), (true, true)] {
            let tiff = Tiff { big_endian, big, ..palette(bits) };
            assert_eq!(tiff.decode(), expected, "{bits} bits, {big_endian} {big}");
        }
    }
}

#[test]
fn ycbcr_is_converted_with_and_without_subsampling() {
    let neutral: Vec<u8> = levels().into_iter().flat_map(|level| [level, 128, 128]).collect();
    assert_eq!(Tiff::new(6, &[8; 3], vec![neutral]).with(530, 3, &[1, 1]).decode(), grey(&levels()));
    // Pure red in Rec. 601.
    let red: Vec<u8> = [76, 85, 255].repeat((WIDTH * HEIGHT) as usize);
    let pixel = Tiff::new(6, &[8; 3], vec![red]).with(530, 3, &[1, 1]).decode().get_pixel(0, 0).0;
    assert!(pixel[0] > 250 && pixel[1] < 4 && pixel[2] < 4, "{pixel:?}");

    // Units of 2 x 2 luma samples; the right and lower ones reach over the image.
    let at = |x: u32, y: u32| levels()[(y.min(HEIGHT - 1) * WIDTH + x.min(WIDTH - 1)) as usize];
    let unit = |x: u32, y: u32| [at(x, y), at(x + 1, y), at(x, y + 1), at(x + 1, y + 1), 128, 128];
    let units: Vec<u8> = [0, 2].into_iter().flat_map(|y| [0, 2, 4].into_iter().flat_map(move |x| unit(x, y))).collect();
    let tiff = Tiff::new(6, &[8; 3], vec![units]).with(530, 3, &[2, 2]).with(278, 3, &[4]);
    assert_eq!(tiff.decode(), grey(&levels()));
}

#[test]
fn float_and_wide_samples_are_scaled_by_their_largest_value() {
    let tiff = |bits: u64, format: u64, bytes: Vec<u8>| Tiff::new(1, &[bits], vec![bytes]).with(339, 3, &[format]);
    let encode = |scale: f32| levels().iter().flat_map(|&level| (f32::from(level) * scale).to_le_bytes()).collect();
    // 0 to 1, and 0 to 255.
    assert_eq!(tiff(32, 3, encode(1.0 / 255.0)).decode(), grey(&levels()));
    assert_eq!(tiff(32, 3, encode(1.0)).decode(), grey(&levels()));
    let doubles = levels().iter().flat_map(|&level| f64::from(level).to_le_bytes()).collect();
    assert_eq!(tiff(64, 3, doubles).decode(), grey(&levels()));
    let integers = levels().iter().flat_map(|&level| u32::from(level).to_le_bytes()).collect();
    assert_eq!(tiff(32, 1, integers).decode(), grey(&levels()));
    let hostile = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0, 1.0].repeat(3);
    let hostile = hostile.iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(tiff(32, 3, hostile).decode(), grey(&[0, 255, 0, 0, 255].repeat(3)));

    let planes = (0..3).map(|_| levels().iter().flat_map(|&level| f32::from(level).to_le_bytes()).collect()).collect();
    let planar = Tiff::new(2, &[32; 3], planes).with(339, 3, &[3, 3, 3]).with(284, 3, &[2]);
    assert_eq!(planar.decode(), grey(&levels()));
}

#[test]
fn grey_of_few_bits_and_with_alpha_is_read() {
    let rows: Vec<u8> = (0..HEIGHT).flat_map(|_| [0b0001_1011, 0b0100_0000]).collect();
    assert_eq!(Tiff::new(1, &[2], vec![rows]).decode(), grey(&[0, 85, 170, 255, 85].repeat(3)));
    let pairs: Vec<u8> = levels().into_iter().flat_map(|level| [level, 0]).collect();
    let clear = Tiff::new(1, &[8, 8], vec![pairs]).with(338, 3, &[2]);
    assert_eq!(clear.decode(), grey(&[255; 15]), "transparent pixels are white");
    // Colours of associated alpha are multiplied by it: black and white of half the weight.
    let rgba = |level: u8| [level, level, level, 128].repeat(15);
    for (level, stored, kind) in [(127, 0, 1), (255, 128, 1), (127, 0, 2), (191, 128, 2)] {
        let tiff = Tiff::new(2, &[8; 4], vec![rgba(stored)]).with(338, 3, &[kind]);
        assert_eq!(tiff.decode(), grey(&[level; 15]), "{stored} {kind}");
    }
    let odd = Tiff::new(1, &[6], vec![vec![0; 12]]).bytes();
    let message = ImageDecoder::default().decode(&odd, "a.tif").unwrap_err().to_string();
    assert!(message.contains("not supported"), "{message}");
}

/// LZW data of literals alone, with a clear code before the codes need more than 9 bits.
fn lzw(bytes: &[u8]) -> Vec<u8> {
    let clear = std::iter::once(256);
    let codes = bytes.chunks(200).flat_map(|part| clear.clone().chain(part.iter().map(|&byte| u16::from(byte))));
    let bits = codes.chain([257]).flat_map(|code| (0..9).rev().map(move |bit| code >> bit & 1));
    let bits = Vec::from_iter(bits);
    bits.chunks(8).map(|byte| byte.iter().enumerate().fold(0, |sum, (n, &bit)| sum | (bit as u8) << (7 - n))).collect()
}

#[test]
fn lzw_tiles_are_read_to_their_last_bytes() {
    // The decoder is asked for rows of 16 pixels.
    let tile: Vec<u8> = (0..=255).collect();
    for (big_endian, big) in [(false, false), (true, false), (false, true), (true, true)] {
        let tiff = Tiff::new(1, &[8], vec![lzw(&tile)]).with(259, 3, &[5]).with(322, 3, &[16]).with(323, 3, &[16]);
        let tiff = Tiff { big_endian, big, ..tiff.with(256, 3, &[16]).with(257, 3, &[16]) };
        let expected = RgbImage::from_fn(16, 16, |x, y| image::Rgb([(16 * y + x) as u8; 3]));
        assert_eq!(tiff.decode(), expected, "{big_endian} {big}");
        let bytes = tiff.bytes();
        let cut = Tiff { strips: vec![lzw(&tile[..200])], ..tiff }.bytes();
        assert!(ImageDecoder::default().decode(&cut, "a.tif").is_err());
        assert!(ImageDecoder::default().decode(&bytes[..bytes.len() - 9], "a.tif").is_err());
    }
}

#[test]
fn truncated_files_are_rejected_at_every_length() {
    for tiff in [palette(8), palette(4), Tiff::new(6, &[8; 3], vec![vec![128; 45]]).with(530, 3, &[1, 1])] {
        let bytes = tiff.bytes();
        for length in 8..bytes.len() - 3 {
            let message = ImageDecoder::default().decode(&bytes[..length], "a.tif").unwrap_err().to_string();
            assert!(message.contains("damaged or truncated"), "{length}: {message}");
        }
    }
}

#[test]
fn a_strip_outside_of_the_file_and_a_missing_palette_are_named() {
    let message = |tiff: Tiff| ImageDecoder::default().decode(&tiff.bytes(), "a.tif").unwrap_err().to_string();
    let mut bare = palette(8);
    bare.tags.retain(|(tag, _, _)| *tag != 320);
    assert!(message(bare).contains("without a colour map"));
    let lab = Tiff::new(8, &[8; 3], vec![vec![0; 45]]);
    assert!(message(lab).contains("convert it to PNG or JPEG"));
    let huge = palette(8).with(256, 4, &[1 << 31]).with(257, 4, &[1 << 31]);
    assert!(message(huge).contains("more than the limit"));
}

#[test]
fn other_kinds_of_files_are_named_with_a_remedy() {
    let message = |bytes: &[u8]| ImageDecoder::default().decode(bytes, "a.jpg").unwrap_err().to_string();
    for (bytes, name) in [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic".as_slice(), "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0avifmif1", "AVIF"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", "AVIF"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"8BPS\0\x01", "Photoshop"),
        (b"<?xml version='1.0'?><svg/>", "SVG"),
        (b"<!DOCTYPE html><html>", "web page instead of an image (a failed download?): download it again"),
        (b"<!-- by a program -->\n<svg/>", "SVG"),
        (b"{\n \"error\": 404}", "JSON text instead of an image (a failed download?): download it again"),
        (b"PK\x03\x04", "a zip archive, not an image: unpack it"),
        (b"\xff\xd8\xff\xc9\0\x0b\x08\0\x08\0\x08\x01\x01\x11\0", "a JPEG with arithmetic coding, which is not"),
        (b"\xff\xd8\xff\xc0\0\x0b\x0c\0\x08\0\x08\x01\x01\x11\0", "a JPEG of 12 bits per sample, which is not"),
        (b"\xff\xd8\xff\xf7\0\x0b\x08\0\x08\0\x08\x01\x01\x11\0", "a JPEG-LS image, which is not"),
    ] {
        let message = message(bytes);
        assert!(message.contains(name) && message.len() < 300, "{message}");
    }
    // A preview, with the image proper in a directory below.
    let raw = palette(8).with(254, 4, &[1]).with(330, 4, &[8]).bytes();
    assert!(message(&raw).contains("a camera's raw image, which is not supported: convert"), "{}", message(&raw));
    assert!(message(b"\0\0\0\x18ftypisom\0\0\0\0isommp42").contains("extract frames"));
    assert!(message(b"version https://git-lfs.github.com/spec/v1\n").contains("git lfs pull"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Files with changed bytes decode to an image or an error, never a panic.
    #[test]
    fn damaged_files_never_panic(
        kind in 0usize..6,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let floats = vec![0; 60];
        let tiff = match kind {
            0 => palette(8),
            1 => Tiff { big: true, ..palette(4) },
            2 => Tiff::new(6, &[8; 3], vec![vec![128; 45]]).with(530, 3, &[1, 1]),
            3 => Tiff::new(6, &[8; 3], vec![vec![128; 36]]).with(530, 3, &[2, 2]).with(278, 3, &[4]),
            4 => Tiff::new(1, &[32], vec![floats]).with(339, 3, &[3]),
            _ => Tiff::new(1, &[8, 8], vec![vec![9; 30]]).with(338, 3, &[2]),
        };
        let mut bytes = tiff.bytes();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let decoder = ImageDecoder { max_pixels: 1 << 16, ..ImageDecoder::default() };
        let _ = decoder.decode(&bytes, "mutated");
    }
}

//! Truncated, damaged and hostile image files: each is an error that names the file, while unusual but valid files are
//! read. All files are generated here, by the encoders of the `image` crate and by hand.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::Cursor;

use haplovl::processor::{ImageDecoder, RgbImage};
use image::{DynamicImage, ExtendedColorType, Frame, ImageEncoder, ImageFormat, Rgb};
use proptest::prelude::*;

fn gradient(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([(x * 7 + y) as u8, (y * 5) as u8, (x * y / 7) as u8]))
}

fn encode(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn decode(bytes: &[u8]) -> Result<RgbImage, String> {
    ImageDecoder::default().decode(bytes, "photo").map_err(|e| e.to_string())
}

/// Error message of a file that must be rejected as damaged.
fn damage(what: &str, bytes: &[u8]) -> String {
    let message = decode(bytes).expect_err(what);
    assert!(message.starts_with("image photo: is damaged or truncated"), "{what}: {message}");
    assert!(message.chars().count() < 300, "{what}: {message}");
    message
}

fn animation() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = image::codecs::gif::GifEncoder::new(&mut bytes);
    for n in 0..3 {
        encoder.encode_frame(Frame::new(DynamicImage::from(gradient(20 + n, 15)).into_rgba8())).unwrap();
    }
    drop(encoder);
    bytes
}

/// An animated WebP of two frames, assembled from two still images.
fn animated_webp() -> Vec<u8> {
    let frame = |n: u8| {
        let still = encode(
            gradient(16, 16).enumerate_pixels().fold(gradient(16, 16), |mut image, (x, y, _)| {
                image.get_pixel_mut(x, y)[0] ^= n;
                image
            }),
            ImageFormat::WebP,
        );
        let chunk = [&[0; 6][..], &[15, 0, 0, 15, 0, 0], &[100, 0, 0, 0], &still[12..]].concat();
        [b"ANMF", &(chunk.len() as u32).to_le_bytes()[..], &chunk].concat()
    };
    let extended = [&b"VP8X\x0a\0\0\0\x02\0\0\0"[..], &[15, 0, 0, 15, 0, 0]].concat();
    let chunks = [&extended[..], b"ANIM\x06\0\0\0\0\0\0\0\0\0", &frame(0), &frame(9)].concat();
    [b"RIFF", &(chunks.len() as u32 + 4).to_le_bytes()[..], b"WEBP", &chunks].concat()
}

mod cut {
    use super::*;

    #[test]
    fn truncated_jpeg_webp_and_gif_are_rejected_at_every_length() {
        let picture = gradient(33, 21);
        let jpeg = encode(picture.clone(), ImageFormat::Jpeg);
        let grey = encode(DynamicImage::from(picture.clone()).into_luma8(), ImageFormat::Jpeg);
        let webp = encode(picture.clone(), ImageFormat::WebP);
        for (what, bytes) in
            [("jpeg", jpeg), ("grey", grey), ("webp", webp), ("gif", animation()), ("frames", animated_webp())]
        {
            decode(&bytes).unwrap();
            for length in 14..bytes.len() {
                let found = ImageDecoder::default().decode(&bytes[..length], "photo");
                assert!(found.is_err(), "{what} cut to {length} of {}", bytes.len());
            }
            damage(what, &bytes[..bytes.len() - 1]);
        }
    }

    #[test]
    fn truncated_png_bmp_and_tiff_are_rejected_except_for_trailing_bytes() {
        let picture = gradient(33, 21);
        // The end chunk of PNG and the offset of the next image in TIFF are not pixel data.
        for (format, spare) in [(ImageFormat::Png, 12), (ImageFormat::Bmp, 0), (ImageFormat::Tiff, 3)] {
            let bytes = encode(picture.clone(), format);
            for length in 8..bytes.len() - spare {
                assert!(decode(&bytes[..length]).is_err(), "{format:?} cut to {length} of {}", bytes.len());
            }
            for length in bytes.len() - spare..=bytes.len() {
                assert_eq!(decode(&bytes[..length]).as_ref(), Ok(&picture), "{format:?} cut to {length}");
            }
        }
    }

    #[test]
    fn frames_of_truncated_animations_are_rejected() {
        for bytes in [animation(), animated_webp()] {
            let frames = |bytes: &[u8]| ImageDecoder::default().frames(bytes, "clip").map(|frames| frames.count());
            assert!(frames(&bytes).unwrap() >= 2);
            assert!(frames(&bytes[..bytes.len() - 3]).is_err());
        }
    }

    #[test]
    fn trailing_bytes_are_ignored() {
        use ImageFormat::*;
        for format in [Png, Jpeg, WebP, Gif, Bmp, Tiff] {
            let bytes = encode(gradient(20, 10), format);
            assert_eq!(decode(&[&bytes[..], b"junk\xff\xd8\xff\xda"].concat()), decode(&bytes), "{format:?}");
        }
    }
}

mod jpeg {
    use super::*;

    fn find(bytes: &[u8], marker: u8) -> usize {
        bytes.windows(2).position(|pair| pair == [0xFF, marker]).unwrap()
    }

    #[test]
    fn an_early_end_marker_is_detected() {
        let bytes = encode(gradient(97, 61), ImageFormat::Jpeg);
        let data = find(&bytes, 0xDA) + 14;
        for tenths in 1..10 {
            let cut = data + (bytes.len() - 2 - data) * tenths / 10;
            let message = damage("cut", &[&bytes[..cut], &[0xFF, 0xD9]].concat());
            assert!(message.contains("image data"), "{message}");
        }
    }

    #[test]
    fn a_header_with_another_size_is_rejected() {
        let mut bytes = encode(gradient(8, 8), ImageFormat::Jpeg);
        let size = find(&bytes, 0xC0) + 5;
        for side in [16u16, 640, 13000] {
            bytes[size..size + 2].copy_from_slice(&side.to_be_bytes());
            bytes[size + 2..size + 4].copy_from_slice(&side.to_be_bytes());
            assert!(damage("size", &bytes).contains("before the image does"));
        }
    }

    #[test]
    fn a_progressive_scan_cannot_claim_memory_through_frames() {
        // One component of 65535 x 65535 pixels, a table with one code, and a scan of all but the first coefficient: to
        // look into it takes 8 bytes for each of 67 million blocks.
        let frame = b"\xFF\xC2\x00\x0B\x08\xFF\xFF\xFF\xFF\x01\x01\x11\x00";
        let table = [b"\xFF\xC4\x00\x14\x10\x01", &[0; 15][..], b"\x00"].concat();
        let scan = b"\xFF\xDA\x00\x08\x01\x01\x00\x01\x3F\x00";
        let bytes = [b"\xFF\xD8", &frame[..], &table, scan, b"\x55\xFF\xD9"].concat();
        let frames = ImageDecoder::default().frames(&bytes, "clip");
        let message = frames.and_then(|frames| frames.collect::<Result<Vec<_>, _>>()).unwrap_err().to_string();
        assert!(message.contains("65535 pixels wide and 65535 high, 4294836225 in all, more than"), "{message}");
    }

    #[test]
    fn unusual_but_complete_files_are_read() {
        let bytes = encode(gradient(40, 30), ImageFormat::Jpeg);
        let whole = decode(&bytes).unwrap();
        let scan = find(&bytes, 0xDA);
        // A comment, fill bytes before a marker, and an unknown application segment.
        let extra = [&bytes[..scan], b"\xFF\xFE\x00\x06abcd\xFF\xEB\x00\x03x\xFF\xFF", &bytes[scan..]].concat();
        assert_eq!(decode(&extra).unwrap(), whole);
    }

    #[test]
    fn inconsistent_segments_are_rejected() {
        let bytes = encode(gradient(40, 30), ImageFormat::Jpeg);
        let (frame, scan, table) = (find(&bytes, 0xC0), find(&bytes, 0xDA), find(&bytes, 0xC4));
        for (what, at, value) in [
            ("components", frame + 9, 9),
            ("sampling", frame + 11, 0),
            ("sampling", frame + 11, 0x51),
            ("scan of no component", scan + 4, 0),
            ("scan of an unknown component", scan + 5, 77),
            ("segment length", table + 3, 1),
            ("codes", table + 5, 255),
        ] {
            let mut broken = bytes.clone();
            broken[at] = value;
            assert!(decode(&broken).is_err(), "{what}");
        }
        damage("no image at all", b"\xFF\xD8\xFF\xE0\x00\x04ab\xFF\xD9");
    }
}

mod memory {
    use super::*;

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 })
        })
    }

    fn chunk(kind: &[u8; 4], content: &[u8]) -> Vec<u8> {
        let named = [&kind[..], content].concat();
        [&(content.len() as u32).to_be_bytes()[..], &named, &crc32(&named).to_be_bytes()].concat()
    }

    fn png(side: u32, depth: u8, colour: u8, interlaced: u8, chunks: &[Vec<u8>]) -> Vec<u8> {
        let header = [&side.to_be_bytes()[..], &side.to_be_bytes(), &[depth, colour, 0, 0, interlaced]].concat();
        [&b"\x89PNG\r\n\x1a\n"[..], &chunk(b"IHDR", &header), &chunks.concat(), &chunk(b"IEND", &[])].concat()
    }

    #[test]
    fn a_small_png_cannot_claim_a_large_image() {
        for interlaced in [0, 1] {
            let message = damage("74 bytes", &png(13000, 8, 2, interlaced, &[chunk(b"IDAT", &[120, 156, 3, 0])]));
            assert!(message.contains("cannot hold"), "{message}");
        }
    }

    /// The file with half of its compressed data, in a complete chunk.
    fn with_half_the_data(bytes: &[u8]) -> Vec<u8> {
        let at = bytes.windows(4).position(|kind| kind == b"IDAT").unwrap();
        let length = u32::from_be_bytes(bytes[at - 4..at].try_into().unwrap()) as usize;
        let half = chunk(b"IDAT", &bytes[at + 4..at + 4 + length / 2]);
        [&bytes[..at - 4], &half, &bytes[at + 4 + length + 4..]].concat()
    }

    #[test]
    fn a_png_with_truncated_data_is_rejected() {
        let bytes = encode(gradient(60, 40), ImageFormat::Png);
        damage("half of the data", &with_half_the_data(&bytes));
        // Uncompressed data in one block, for an interlaced image of 8x8 pixels: seven passes with 15 rows in total.
        let rows = vec![0u8; 15 + 3 * 64];
        let stored = |rows: &[u8]| {
            let length = rows.len() as u16;
            [&[0x78, 0x01, 0x01][..], &length.to_le_bytes(), &(!length).to_le_bytes(), rows].concat()
        };
        for kept in [rows.len() - 1, rows.len() / 2, 1, 0] {
            let short = png(8, 8, 2, 1, &[chunk(b"IDAT", &stored(&rows[..kept]))]);
            assert!(decode(&short).is_err(), "{kept} of {} bytes", rows.len());
        }
    }

    #[test]
    fn memory_is_estimated_from_the_header() {
        // The length of the data is plausible for this image size.
        let deep = png(13000, 16, 6, 0, &[chunk(b"IDAT", &vec![0; 1_400_000])]);
        let message = decode(&deep).unwrap_err();
        assert!(message.contains("bytes of memory") && message.contains("`max_bytes`"), "{message}");
        let narrow = ImageDecoder { max_bytes: 10_000, ..ImageDecoder::default() };
        let small = encode(gradient(40, 40), ImageFormat::Png);
        narrow.decode(&small, "x").unwrap();
        let deep = encode(DynamicImage::from(gradient(40, 40)).into_rgba16(), ImageFormat::Png);
        assert!(narrow.decode(&deep, "x").unwrap_err().to_string().contains("Rgba16"));
    }

    #[test]
    fn an_icc_profile_bomb_is_ignored() {
        let image = gradient(9, 9);
        let plain = encode(image.clone(), ImageFormat::Png);
        // 64 MB of zeros, which an encoder stores as a profile of about 64 KB.
        let mut bytes = Vec::new();
        let mut encoder = image::codecs::png::PngEncoder::new(&mut bytes);
        encoder.set_icc_profile(vec![0; 64 << 20]).unwrap();
        encoder.write_image(image.as_raw(), 9, 9, ExtendedColorType::Rgb8).unwrap();
        assert!(bytes.len() < 1 << 20);
        assert_eq!(decode(&bytes), decode(&plain));
    }

    #[cfg(unix)]
    #[test]
    fn only_regular_files_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("zero.png");
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        for path in [link.as_path(), folder.path()] {
            assert!(ImageDecoder::default().open(path).unwrap_err().to_string().contains("expected a regular file"));
        }
    }
}

mod mutations {
    use super::*;

    fn files() -> Vec<Vec<u8>> {
        use ImageFormat::*;
        let still = [Png, Jpeg, WebP, Gif, Bmp, Tiff].map(|format| encode(gradient(13, 9), format));
        still.into_iter().chain([animation(), animated_webp()]).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

        /// Files with changed, removed and inserted bytes decode to an image or an error, never a panic.
        #[test]
        fn never_panic(
            file in 0usize..8,
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 1..6),
        ) {
            let mut bytes = files().swap_remove(file);
            for (at, value, kind) in edits {
                let at = at.index(bytes.len());
                match kind {
                    0 => bytes[at] = value,
                    1 => bytes[at] ^= 1 << (value % 8),
                    2 => bytes.insert(at, value),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            let decoder = ImageDecoder { max_pixels: 1 << 16, ..ImageDecoder::default() };
            let _ = decoder.decode(&bytes, "mutated");
            let _ = decoder.frames(&bytes, "mutated").map(|frames| frames.take(4).count());
        }
    }
}

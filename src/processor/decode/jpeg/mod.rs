//! Completeness check of JPEG files: every segment, every scan, and the data of every block.
//!
//! The decoder silently fills missing data with grey, so the file is parsed here first: markers up to the end of the
//! image, and the Huffman codes of all scans, without computing coefficients.

mod bits;
mod huffman;
mod scan;

use std::collections::BTreeMap;

use bits::BitReader;
use huffman::HuffmanTable;
use scan::{BlockHistory, Scan};

use super::Checked;

/// Maximum number of scans of a file, as in the decoder. A scan of a few bytes can stand for millions of blocks.
const MAX_SCANS: u32 = 100;

/// Rejects a JPEG that is truncated, whose segments contradict each other, or whose scans hold too little data for the
/// size in its header. JPEGs of unsupported kinds (arithmetic, lossless) pass.
pub(super) fn check(bytes: &[u8]) -> Checked<()> {
    Parser::new(bytes).run()
}

/// Kind of a JPEG that the decoder takes for a damaged one.
pub(super) fn unsupported(bytes: &[u8]) -> Option<&'static str> {
    let mut parser = Parser::new(bytes);
    loop {
        match parser.next_segment().ok()? {
            (0xDA | 0xD9, _) | (0xC0..=0xC2, [8, ..]) => return None,
            (0xC0..=0xC2, _) => return Some("a JPEG of 12 bits per sample"),
            (0xC3, _) => return Some("a lossless JPEG"),
            (0xC9..=0xCB | 0xCD..=0xCF, _) => return Some("a JPEG with arithmetic coding"),
            (0xC5..=0xC7, _) => return Some("a hierarchical JPEG"),
            (0xF7, _) => return Some("a JPEG-LS image"),
            _ => {}
        }
    }
}

/// Bytes of coefficients that the decoder holds besides the image: progressive files, and files with one scan per
/// component, are decoded after all scans are read.
pub(super) fn coefficient_bytes(bytes: &[u8]) -> u64 {
    let mut parser = Parser::new(bytes);
    loop {
        match parser.next_segment() {
            Ok((0xDA, scan)) => {
                let parts = usize::from(scan.first().copied().unwrap_or(0));
                let all = |frame: &&Frame| frame.progressive || parts < frame.components.len();
                return parser.frame.as_ref().filter(all).map_or(0, Frame::coefficient_bytes);
            }
            Ok((0xD9, _)) | Err(_) => return 0,
            Ok((marker, segment)) if parser.read_segment(marker, segment).is_err() => return 0,
            Ok(_) => {}
        }
    }
}

/// Component of the frame header.
#[derive(Debug, Clone)]
struct Component {
    id: u8,
    /// Sampling factors.
    horizontal: usize,
    vertical: usize,
    /// Bit mask per block of the coefficients known to be nonzero, for refinement scans.
    history: BlockHistory,
    /// Whether a scan held the first coefficients.
    seen: bool,
}

#[derive(Debug)]
struct Frame {
    width: usize,
    height: usize,
    progressive: bool,
    components: Vec<Component>,
    /// Arithmetic or lossless coding.
    foreign: bool,
}

impl Frame {
    fn parse(marker: u8, segment: &[u8]) -> Checked<Self> {
        let [_, h1, h0, w1, w0, count, components @ ..] = segment else {
            return Err("its frame header is too short".into());
        };
        let components = components.as_chunks::<3>().0;
        if components.len() != usize::from(*count) || !(1..=4).contains(count) {
            return Err(format!("its frame header is for {count} components, but describes {}", components.len()));
        }
        let component = |&[id, factors, _]: &[u8; 3]| Component {
            id,
            horizontal: usize::from(factors >> 4),
            vertical: usize::from(factors & 15),
            history: BlockHistory::default(),
            seen: false,
        };
        let components: Vec<_> = components.iter().map(component).collect();
        if components.iter().any(|c| !(1..=4).contains(&c.horizontal) || !(1..=4).contains(&c.vertical)) {
            return Err("its frame header has sampling factors other than 1 to 4".into());
        }
        Ok(Self {
            width: usize::from(u16::from_be_bytes([*w1, *w0])),
            height: usize::from(u16::from_be_bytes([*h1, *h0])),
            progressive: marker == 0xC2,
            components,
            foreign: marker > 0xC2,
        })
    }

    /// Maximum sampling factors, horizontal and vertical.
    fn max_factors(&self) -> (usize, usize) {
        let most = |factor: fn(&Component) -> usize| self.components.iter().map(factor).max().unwrap_or(1);
        (most(|c| c.horizontal), most(|c| c.vertical))
    }

    /// Columns and rows of minimum coded units in a scan of all components.
    fn units(&self) -> (usize, usize) {
        let (horizontal, vertical) = self.max_factors();
        (self.width.div_ceil(8 * horizontal), self.height.div_ceil(8 * vertical))
    }

    fn coefficient_bytes(&self) -> u64 {
        let (columns, rows) = self.units();
        let blocks: usize = self.components.iter().map(|c| c.horizontal * c.vertical).sum();
        (columns * rows * blocks * 64 * size_of::<i16>()) as u64
    }
}

struct Parser<'a> {
    bytes: &'a [u8],
    /// Offset of the first unread byte.
    at: usize,
    frame: Option<Frame>,
    /// Huffman tables by class and number, as in the segments.
    tables: BTreeMap<u8, HuffmanTable>,
    /// Number of minimum coded units between restart markers; 0 for none.
    restart_interval: usize,
    scans: u32,
}

impl<'a> Parser<'a> {
    /// A parser positioned after the start marker.
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 2, frame: None, tables: BTreeMap::new(), restart_interval: 0, scans: 0 }
    }

    fn run(mut self) -> Checked<()> {
        loop {
            let (marker, segment) = self.next_segment()?;
            match marker {
                0xD9 => return self.finish(),
                0xDA if self.scan(segment)? => {}
                // Data of an unsupported kind, which the decoder must judge.
                0xDA => return Ok(()),
                _ => self.read_segment(marker, segment)?,
            }
        }
    }

    /// Checks at the end of the image that every component was in a scan.
    fn finish(&self) -> Checked<()> {
        match &self.frame {
            Some(frame) if frame.foreign || frame.components.iter().all(|c| c.seen) => Ok(()),
            Some(_) => Err("it ends before all of its components".into()),
            None => Err("it ends without an image".into()),
        }
    }

    /// Reads the next marker and its segment, without the length field.
    fn next_segment(&mut self) -> Checked<(u8, &'a [u8])> {
        let marker = self.next_marker()?;
        if matches!(marker, 0x01 | 0xD0..=0xD9) {
            return Ok((marker, &[]));
        }
        let cut = || format!("it ends at byte {}, within a segment", self.bytes.len());
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let (&length, _) = rest.split_first_chunk::<2>().ok_or_else(cut)?;
        let length = usize::from(u16::from_be_bytes(length));
        if length < 2 {
            return Err(format!("the segment at byte {} is {length} bytes long, expected at least 2", self.at));
        }
        let segment = rest.get(2..length).ok_or_else(cut)?;
        self.at += length;
        Ok((marker, segment))
    }

    /// Skips to the next marker, whatever precedes it.
    fn next_marker(&mut self) -> Checked<u8> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let found = rest.windows(2).position(|pair| pair[0] == 0xFF && !matches!(pair[1], 0x00 | 0xFF));
        let found = found.ok_or_else(|| format!("it ends at byte {} without its end marker", self.bytes.len()))?;
        self.at += found + 2;
        Ok(rest[found + 1])
    }

    fn read_segment(&mut self, marker: u8, segment: &[u8]) -> Checked<()> {
        match marker {
            0xC4 => HuffmanTable::parse_all(segment, &mut self.tables)?,
            0xC0..=0xC3 | 0xC5..=0xC7 | 0xC9..=0xCB | 0xCD..=0xCF => {
                if self.frame.is_some() {
                    return Err("it has two frame headers".into());
                }
                self.frame = Some(Frame::parse(marker, segment)?);
            }
            0xDD => {
                let interval = segment.first_chunk::<2>().ok_or("its restart interval is too short")?;
                self.restart_interval = usize::from(u16::from_be_bytes(*interval));
            }
            _ => {}
        }
        Ok(())
    }

    /// Checks the data of a scan; `false` for an unsupported kind.
    fn scan(&mut self, header: &[u8]) -> Checked<bool> {
        let frame = self.frame.as_mut().ok_or("its first scan comes before the frame header")?;
        if frame.foreign || frame.width == 0 || frame.height == 0 {
            return Ok(false);
        }
        self.scans += 1;
        if self.scans > MAX_SCANS {
            return Err(format!("it has more than {MAX_SCANS} scans"));
        }
        let Some(scan) = Scan::parse(header, frame, &self.tables)? else { return Ok(false) };
        let mut reader = BitReader::new(self.bytes, self.at);
        scan.read(&mut reader, frame, self.restart_interval)?;
        self.at = reader.position();
        Ok(true)
    }
}

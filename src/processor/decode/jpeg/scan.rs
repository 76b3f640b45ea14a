//! Scans: their components, and the lengths of all codes in their data.

use std::collections::BTreeMap;

use super::super::Checked;
use super::bits::BitReader;
use super::huffman::HuffmanTable;
use super::{Component, Frame};

/// Bit mask of nonzero coefficients for each block of a component.
#[derive(Debug, Clone, Default)]
pub(super) struct BlockHistory {
    blocks: Vec<u64>,
}

/// A component in a scan.
struct ScanComponent<'t> {
    /// Index of the component in the frame.
    index: usize,
    dc: Option<&'t HuffmanTable>,
    ac: Option<&'t HuffmanTable>,
}

/// Header of a scan.
pub(super) struct Scan<'t> {
    components: Vec<ScanComponent<'t>>,
    /// First and last coefficient, in zigzag order.
    first: u32,
    last: u32,
    /// Whether the scan refines coefficients by one bit.
    refines: bool,
    /// Whether the frame is progressive.
    progressive: bool,
}

impl<'t> Scan<'t> {
    /// Huffman table; `None` if it is missing, which some files leave to the decoder.
    pub(super) fn parse(header: &[u8], frame: &Frame, tables: &'t BTreeMap<u8, HuffmanTable>) -> Checked<Option<Self>> {
        let bad = || "a scan header contradicts its length or the frame header".to_string();
        let (&count, rest) = header.split_first().ok_or_else(bad)?;
        let (parts, rest) = rest.split_at_checked(2 * usize::from(count)).ok_or_else(bad)?;
        let &[first, last, approximation] = rest.first_chunk::<3>().ok_or_else(bad)?;
        let component = |&[id, numbers]: &[u8; 2]| {
            let index = frame.components.iter().position(|c| c.id == id).ok_or_else(bad)?;
            Ok(ScanComponent { index, dc: tables.get(&(numbers >> 4)), ac: tables.get(&(0x10 | numbers & 15)) })
        };
        let components: Vec<_> = parts.as_chunks::<2>().0.iter().map(component).collect::<Checked<_>>()?;
        let progressive = frame.progressive;
        let (first, last) = if progressive { (u32::from(first), u32::from(last)) } else { (0, 63) };
        let spectral = first <= last && last <= 63 && (!progressive || first > 0 || last == 0);
        if components.is_empty() || !spectral || progressive && first > 0 && components.len() > 1 {
            return Err(bad());
        }
        let scan = Self { components, first, last, refines: progressive && approximation >> 4 > 0, progressive };
        Ok(scan.has_tables().then_some(scan))
    }

    /// Whether all required tables are present.
    fn has_tables(&self) -> bool {
        let needs_dc = self.first == 0 && !self.refines;
        self.components.iter().all(|c| (!needs_dc || c.dc.is_some()) && (self.last == 0 || c.ac.is_some()))
    }

    /// Checks the data of all blocks.
    pub(super) fn read(&self, reader: &mut BitReader<'_>, frame: &mut Frame, interval: usize) -> Checked<()> {
        let (columns, rows) = frame.units();
        let blocks = self.blocks(frame);
        let units = match self.components.as_slice() {
            [one] => {
                let (columns, rows) = component_blocks(frame, &frame.components[one.index]);
                columns * rows
            }
            _ => columns * rows,
        };
        self.prepare(frame, units);
        let mut end_of_band = 0;
        for unit in 0..units {
            if interval > 0 && unit > 0 && unit % interval == 0 {
                reader.restart()?;
                end_of_band = 0;
            }
            for (part, &blocks) in self.components.iter().zip(&blocks) {
                for block in unit * blocks..(unit + 1) * blocks {
                    let history = frame.components[part.index].history.blocks.get_mut(block);
                    self.read_block(reader, part, history, &mut end_of_band)?;
                }
            }
        }
        Ok(())
    }

    /// Number of blocks of each component in a minimum coded unit.
    fn blocks(&self, frame: &Frame) -> Vec<usize> {
        let own =
            |part: &ScanComponent<'_>| frame.components[part.index].horizontal * frame.components[part.index].vertical;
        if self.components.len() == 1 { vec![1] } else { self.components.iter().map(own).collect() }
    }

    /// Allocates the masks of nonzero coefficients for refinement scans, which hold one component each; blocks are
    /// counted as in those scans.
    fn prepare(&self, frame: &mut Frame, units: usize) {
        for part in &self.components {
            let component = &mut frame.components[part.index];
            component.seen |= self.first == 0;
            if self.first > 0 {
                component.history.blocks.resize(units, 0);
            }
        }
    }

    fn read_block(
        &self,
        reader: &mut BitReader<'_>,
        part: &ScanComponent<'_>,
        history: Option<&mut u64>,
        end_of_band: &mut u32,
    ) -> Checked<()> {
        match (part.dc, part.ac, history) {
            (_, Some(ac), Some(history)) if self.first > 0 && self.refines => {
                self.refine_band(reader, ac, history, end_of_band)
            }
            (_, Some(ac), Some(history)) if self.first > 0 => self.read_band(reader, ac, history, end_of_band),
            (..) if self.refines => reader.skip(1),
            (Some(dc), ac, _) => {
                skip_first(reader, dc)?;
                match ac.filter(|_| !self.progressive) {
                    Some(ac) => skip_rest(reader, ac),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// Reads the first bits of a band of coefficients of a progressive file.
    fn read_band(
        &self,
        reader: &mut BitReader<'_>,
        table: &HuffmanTable,
        history: &mut u64,
        end_of_band: &mut u32,
    ) -> Checked<()> {
        if *end_of_band > 0 {
            *end_of_band -= 1;
            return Ok(());
        }
        let mut at = self.first;
        while at <= self.last {
            match split(table.read(reader)?) {
                (15, 0) => at += 16,
                (run, 0) => {
                    *end_of_band = (1 << run) - 1 + reader.take(run)?;
                    break;
                }
                (run, bits) => {
                    at += run;
                    reader.skip(bits)?;
                    *history |= 1u64.checked_shl(at).unwrap_or(0);
                    at += 1;
                }
            }
        }
        Ok(())
    }

    /// Reads one more bit of each nonzero coefficient of a band, and new coefficients.
    fn refine_band(
        &self,
        reader: &mut BitReader<'_>,
        table: &HuffmanTable,
        history: &mut u64,
        end_of_band: &mut u32,
    ) -> Checked<()> {
        let mut at = self.first;
        while *end_of_band == 0 && at <= self.last {
            let (run, bits) = split(table.read(reader)?);
            if bits == 0 && run < 15 {
                *end_of_band = (1 << run) + reader.take(run)?;
                break;
            }
            reader.skip(u32::from(bits > 0))?;
            at = self.refine_run(reader, *history, at, Some(run))?;
            if bits > 0 && at <= self.last {
                *history |= 1 << at;
            }
            at += 1;
        }
        if *end_of_band > 0 {
            self.refine_run(reader, *history, at, None)?;
            *end_of_band -= 1;
        }
        Ok(())
    }

    /// Skips one bit for each nonzero coefficient from `at` on, up to the coefficient after `zeros` zeros, or to the
    /// end of the band.
    fn refine_run(&self, reader: &mut BitReader<'_>, history: u64, mut at: u32, zeros: Option<u32>) -> Checked<u32> {
        let mut left = zeros;
        while at <= self.last {
            if history >> at & 1 == 1 {
                reader.skip(1)?;
            } else {
                match &mut left {
                    Some(0) => break,
                    Some(zeros) => *zeros -= 1,
                    None => {}
                }
            }
            at += 1;
        }
        Ok(at)
    }
}

/// Columns and rows of the blocks in a scan of one component.
fn component_blocks(frame: &Frame, component: &Component) -> (usize, usize) {
    let (horizontal, vertical) = frame.max_factors();
    let blocks = |length: usize, own: usize, most: usize| (length * own).div_ceil(most).div_ceil(8);
    (blocks(frame.width, component.horizontal, horizontal), blocks(frame.height, component.vertical, vertical))
}

/// Run length of zeros before a coefficient, and the coefficient's bits.
fn split(symbol: u8) -> (u32, u32) {
    (u32::from(symbol >> 4), u32::from(symbol & 15))
}

/// Reads the first coefficient of a block.
fn skip_first(reader: &mut BitReader<'_>, table: &HuffmanTable) -> Checked<()> {
    match table.read(reader)? {
        bits @ 0..=16 => reader.skip(u32::from(bits)),
        bits => Err(format!("a coefficient before byte {} has {bits} bits", reader.position())),
    }
}

/// Reads the other coefficients of a block.
fn skip_rest(reader: &mut BitReader<'_>, table: &HuffmanTable) -> Checked<()> {
    let mut at = 1;
    while at < 64 {
        match split(table.read(reader)?) {
            (15, 0) => at += 16,
            (_, 0) => break,
            (run, bits) => {
                reader.skip(bits)?;
                at += run + 1;
            }
        }
    }
    Ok(())
}

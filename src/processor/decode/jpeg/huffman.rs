//! Huffman tables, for the lengths of codes.

use std::collections::BTreeMap;

use super::super::Checked;
use super::bits::BitReader;

/// Number of bits looked up at once.
const LOOKUP_BITS: u32 = 9;

/// A Huffman table.
#[derive(Debug, Clone)]
pub(super) struct HuffmanTable {
    /// Code length and symbol for each 9-bit prefix; length 0 for longer codes.
    lookup: Vec<(u8, u8)>,
    /// For each length, the first 16-bit prefix above the codes of that length.
    limits: [u32; 17],
    /// For each length, the index of its first symbol minus its first code.
    offsets: [i32; 17],
    symbols: Vec<u8>,
}

impl HuffmanTable {
    /// Parses all tables of a segment into `tables`, by class (upper four bits) and number.
    pub(super) fn parse_all(mut segment: &[u8], tables: &mut BTreeMap<u8, Self>) -> Checked<()> {
        while let Some((&key, rest)) = segment.split_first() {
            let short = || "a Huffman table ends too early".to_string();
            let (counts, rest) = rest.split_first_chunk::<16>().ok_or_else(short)?;
            let total = counts.iter().map(|&n| usize::from(n)).sum();
            let symbols = rest.get(..total).ok_or_else(short)?;
            if key >> 4 > 1 || key & 15 > 3 {
                return Err(format!("a Huffman table has the unknown id {key:#04x}"));
            }
            tables.insert(key, Self::new(counts, symbols)?);
            segment = &rest[total..];
        }
        Ok(())
    }

    /// Builds a table; `counts` holds the number of codes of each length.
    fn new(counts: &[u8; 16], symbols: &[u8]) -> Checked<Self> {
        let mut table = Self {
            lookup: vec![(0, 0); 1 << LOOKUP_BITS],
            limits: [0; 17],
            offsets: [0; 17],
            symbols: symbols.to_vec(),
        };
        let (mut code, mut place) = (0u32, 0);
        for (length, &count) in (1u32..).zip(counts) {
            table.offsets[length as usize] = place as i32 - code as i32;
            for _ in 0..count {
                table.enter(code, length, symbols[place]);
                (code, place) = (code + 1, place + 1);
            }
            if code > 1 << length {
                return Err("a Huffman table has more codes than their lengths allow".into());
            }
            table.limits[length as usize] = code << (16 - length);
            code <<= 1;
        }
        Ok(table)
    }

    /// Stores a short code under every 9-bit prefix that starts with it.
    fn enter(&mut self, code: u32, length: u32, symbol: u8) {
        if length <= LOOKUP_BITS {
            let first = (code << (LOOKUP_BITS - length)) as usize;
            let entries = self.lookup.iter_mut().skip(first).take(1 << (LOOKUP_BITS - length));
            entries.for_each(|entry| *entry = (length as u8, symbol));
        }
    }

    /// Reads a code and returns its symbol.
    pub(super) fn read(&self, reader: &mut BitReader<'_>) -> Checked<u8> {
        let next = reader.peek();
        let (length, symbol) = match self.lookup[usize::from(next >> (16 - LOOKUP_BITS))] {
            (0, _) => self.search(next, reader)?,
            found => found,
        };
        reader.skip(u32::from(length))?;
        Ok(symbol)
    }

    /// Reads a code of more than 9 bits.
    fn search(&self, next: u16, reader: &BitReader<'_>) -> Checked<(u8, u8)> {
        let long = (LOOKUP_BITS as usize + 1..17).find(|&length| u32::from(next) < self.limits[length]);
        let symbol = long.and_then(|length| {
            let place = i32::from(next >> (16 - length)) + self.offsets[length];
            Some((length as u8, *self.symbols.get(usize::try_from(place).ok()?)?))
        });
        symbol.ok_or_else(|| format!("the image data has an unknown code before byte {}", reader.position()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_codes_are_read() {
        // Codes 0, 10, and a 12-bit code, 110000000000.
        let mut counts = [0; 16];
        (counts[0], counts[1], counts[11]) = (1, 1, 1);
        let table = HuffmanTable::new(&counts, &[7, 8, 9]).unwrap();
        let mut reader = BitReader::new(&[0b0101_1000, 0b0000_0001, 0b1111_1110], 0);
        let symbols: Vec<_> = (0..3).map(|_| table.read(&mut reader).unwrap()).collect();
        assert_eq!(symbols, [7, 8, 9]);
        assert_eq!(reader.take(1).unwrap(), 1);
        assert!(table.read(&mut reader).unwrap_err().contains("unknown code"));
    }

    #[test]
    fn impossible_tables_are_refused() {
        let mut counts = [0; 16];
        counts[0] = 3;
        assert!(HuffmanTable::new(&counts, &[1, 2, 3]).is_err());
        for segment in [&[0u8][..], &[0; 16], &[0x20; 17], &[0, 255, 1]] {
            assert!(HuffmanTable::parse_all(segment, &mut BTreeMap::new()).is_err(), "{segment:?}");
        }
    }
}

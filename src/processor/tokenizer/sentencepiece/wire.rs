//! Protocol Buffers wire format: the fields of a message, every length checked against the message.

/// Reason to reject a message.
pub(super) type Parsed<T> = Result<T, String>;

/// Value of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field<'a> {
    /// Integer, boolean or enumeration.
    Varint(u64),
    /// Bits of a 64-bit number.
    Fixed64(u64),
    /// Text, bytes, packed numbers or a message.
    Bytes(&'a [u8]),
    /// Bits of a 32-bit number.
    Fixed32(u32),
}

impl<'a> Field<'a> {
    pub(super) fn bytes(self) -> Parsed<&'a [u8]> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            other => Err(format!("has {other:?} where text or a message is expected")),
        }
    }

    pub(super) fn integer(self) -> Parsed<u64> {
        match self {
            Self::Varint(value) => Ok(value),
            _ => Err("has another value where an integer is expected".into()),
        }
    }

    pub(super) fn float(self) -> Parsed<f32> {
        match self {
            Self::Fixed32(bits) => Ok(f32::from_bits(bits)),
            _ => Err("has another value where a 32-bit float is expected".into()),
        }
    }
}

/// Iterator over the numbers and values of a message's fields, in order.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    fn next_field(&mut self) -> Parsed<(u64, Field<'a>)> {
        let tag = self.varint()?;
        let field = match tag & 7 {
            0 => Field::Varint(self.varint()?),
            1 => Field::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let length = self.varint()?;
                Field::Bytes(self.take(length)?)
            }
            5 => Field::Fixed32(u32::from_le_bytes(self.array()?)),
            other => return Err(format!("has a field of wire type {other}, expected 0, 1, 2 or 5")),
        };
        Ok((tag >> 3, field))
    }

    /// Integer in groups of 7 bits, at most 10 bytes.
    fn varint(&mut self) -> Parsed<u64> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let [byte] = self.array()?;
            value |= u64::from(byte & 0x7F).checked_shl(shift).unwrap_or_default();
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("has an integer of more than 10 bytes".into())
    }

    fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    fn take(&mut self, count: u64) -> Parsed<&'a [u8]> {
        let count = usize::try_from(count).ok().filter(|&count| count <= self.rest.len());
        let (bytes, rest) = self.rest.split_at(count.ok_or("is truncated")?);
        self.rest = rest;
        Ok(bytes)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Parsed<(u64, Field<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.next_field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_every_wire_type_are_read_and_truncation_is_an_error() {
        let message = [0x08, 0x96, 0x01, 0x12, 0x02, b'h', b'i', 0x1D, 0, 0, 0x80, 0x3F, 0x21, 1, 0, 0, 0, 0, 0, 0, 0];
        let fields = Fields::new(&message).collect::<Parsed<Vec<_>>>().unwrap();
        let expected = [Field::Varint(150), Field::Bytes(b"hi"), Field::Fixed32(0x3F80_0000), Field::Fixed64(1)];
        assert_eq!(fields, Vec::from_iter((1..).zip(expected)));
        assert_eq!(fields[2].1.float(), Ok(1.0));
        for cut in [1, 2, 4, 6, 9, 20] {
            assert!(Fields::new(&message[..cut]).any(|field| field.is_err()), "{cut}");
        }
        assert!(Fields::new(&[0xFF; 11]).next().unwrap().is_err());
        assert!(Fields::new(&[0x0B]).next().unwrap().is_err());
    }
}

//! The header of a GGUF file: metadata and tensor descriptions, every length checked against the file before use.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::quantized::GgmlDType;

use crate::nn::interleaved::interleaved_bytes;
use crate::options::Quantization;

pub(super) const MAGIC: &[u8] = b"GGUF";
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";
const DEFAULT_ALIGNMENT: usize = 32;
/// Largest number of dimensions of a tensor, as in llama.cpp.
const MAX_DIMENSIONS: u32 = 4;
/// Longest tensor name in bytes. llama.cpp allows 64; Hugging Face names are longer.
const MAX_NAME: u64 = 256;
/// Longest metadata key in bytes, from the GGUF specification.
const MAX_KEY: u64 = u16::MAX as u64;
/// GGUF codes of the metadata value types string (8) and array (9).
pub(super) const STRING: u32 = 8;
pub(super) const ARRAY: u32 = 9;
/// Added to the code of a GGML type for a matrix of its blocks that is interleaved. Readers without this layout find an
/// unknown type, and refuse the file instead of reading other weights.
const INTERLEAVED: u32 = 0x4876_0000;

type Parsed<T> = std::result::Result<T, String>;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum GgufValue {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// Any float; an f32 becomes the f64 with the same shortest decimal form, so that 1e-6 stays 1e-6.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// A string.
    Text(String),
    /// Length of an array; its elements are not kept.
    Array(u64),
}

#[derive(Debug)]
pub(super) struct TensorInfo {
    pub(super) dtype: GgmlDType,
    /// Whether the blocks are [interleaved](crate::nn::interleaved).
    pub(super) is_interleaved: bool,
    /// Shape, outermost dimension first.
    pub(super) shape: Vec<usize>,
    /// Byte range in the file.
    pub(super) bytes: Range<usize>,
}

#[derive(Debug)]
pub(super) struct Header {
    pub(super) metadata: BTreeMap<String, GgufValue>,
    pub(super) tensors: BTreeMap<String, TensorInfo>,
}

impl Header {
    pub(super) fn parse(file: &[u8]) -> Parsed<Self> {
        let mut reader = Reader { file, position: 0 };
        if reader.bytes(4).ok() != Some(MAGIC) {
            return Err("is not GGUF: the file does not begin with the magic bytes `GGUF`".into());
        }
        let version = reader.u32()?;
        if ![2, 3].contains(&version) {
            return Err(format!("is GGUF version {version}, expected 2 or 3 in little-endian order"));
        }
        let (num_tensors, num_values) = (reader.u64()?, reader.u64()?);
        let mut metadata = BTreeMap::new();
        for _ in 0..num_values {
            let key = reader.name("a metadata key", MAX_KEY)?;
            let kind = reader.u32()?;
            metadata.insert(key, reader.value(kind)?);
        }
        // Offsets are relative to the end of the header, which is known only after the last tensor description.
        let mut descriptions = Vec::new();
        for _ in 0..num_tensors {
            descriptions.push(Description::read(&mut reader)?);
        }
        let alignment = alignment(&metadata)?;
        let data = reader.position.next_multiple_of(alignment);
        let mut tensors = BTreeMap::new();
        for description in descriptions {
            let (name, info) = description.locate(data, alignment, file.len())?;
            if tensors.insert(name.clone(), info).is_some() {
                return Err(format!("has two tensors `{name}`"));
            }
        }
        check_places(&tensors, data, alignment, file.len())?;
        Ok(Self { metadata, tensors })
    }
}

/// Texts of an array of the metadata, which [`Header`] does not keep; `None` if there is no such array of texts.
pub(super) fn texts(file: &[u8], key: &str) -> Parsed<Option<Vec<String>>> {
    let mut reader = Reader { file, position: MAGIC.len() };
    let (_version, _tensors, values) = (reader.u32()?, reader.u64()?, reader.u64()?);
    for _ in 0..values {
        let (found, kind) = (reader.name("a metadata key", MAX_KEY)?, reader.u32()?);
        if found != key {
            reader.value(kind)?;
            continue;
        }
        if kind != ARRAY || reader.u32()? != STRING {
            return Ok(None);
        }
        let length = reader.u64()?;
        return (0..length).map(|_| reader.text()).collect::<Parsed<_>>().map(Some);
    }
    Ok(None)
}

/// Rejects tensors that overlap or have gaps larger than the alignment requires: a wrong offset would read another
/// tensor's data.
fn check_places(tensors: &BTreeMap<String, TensorInfo>, data: usize, alignment: usize, file: usize) -> Parsed<()> {
    let mut in_order: Vec<_> = tensors.iter().map(|(name, info)| (info.bytes.clone(), name)).collect();
    in_order.sort_unstable_by_key(|(bytes, _)| bytes.start);
    let mut free = data;
    for (bytes, name) in in_order {
        if bytes.start != free {
            return Err(format!(
                "tensor `{name}` begins at byte {}, expected {free}, the end of the previous tensor: download the file again",
                bytes.start
            ));
        }
        free = bytes.end.next_multiple_of(alignment);
    }
    if file > free {
        return Err(format!("has {} bytes after its last tensor: download it again", file - free));
    }
    Ok(())
}

/// Alignment of tensor data: at least 8, so that every quantisation block can be read in place.
fn alignment(metadata: &BTreeMap<String, GgufValue>) -> Parsed<usize> {
    match metadata.get(ALIGNMENT_KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(GgufValue::Unsigned(n @ 8..=0x10_0000)) if n.is_power_of_two() => Ok(*n as usize),
        Some(other) => Err(format!("{ALIGNMENT_KEY} is {other:?}, expected a power of two from 8")),
    }
}

struct Description {
    name: String,
    shape: Vec<u64>,
    kind: u32,
    offset: u64,
}

impl Description {
    fn read(reader: &mut Reader<'_>) -> Parsed<Self> {
        let name = reader.name("a tensor name", MAX_NAME)?;
        let dimensions = reader.u32()?;
        if dimensions > MAX_DIMENSIONS {
            return Err(format!("tensor `{name}` has {dimensions} dimensions, expected at most {MAX_DIMENSIONS}"));
        }
        // GGUF stores the innermost dimension first.
        let mut shape = (0..dimensions).map(|_| reader.u64()).collect::<Parsed<Vec<_>>>()?;
        shape.reverse();
        Ok(Self { name, shape, kind: reader.u32()?, offset: reader.u64()? })
    }

    fn locate(self, data: usize, alignment: usize, file: usize) -> Parsed<(String, TensorInfo)> {
        let Self { name, shape, kind, offset } = self;
        let (dtype, is_interleaved) = dtype(kind).ok_or_else(|| unsupported(&name, kind))?;
        let bytes = tensor_bytes(&shape, dtype, is_interleaved);
        let range =
            bytes.and_then(|bytes| byte_range(bytes, offset, data, alignment)).filter(|bytes| bytes.end <= file);
        let Some(bytes) = range else {
            return Err(format!(
                "tensor `{name}`, {shape:?} of {dtype:?} at offset {offset}, does not lie in the file: download it again"
            ));
        };
        let shape = shape.into_iter().map(|d| d as usize).collect();
        Ok((name, TensorInfo { dtype, is_interleaved, shape, bytes }))
    }
}

/// Number of bytes of a tensor; `None` for an invalid shape.
pub(super) fn tensor_bytes(shape: &[u64], dtype: GgmlDType, is_interleaved: bool) -> Option<usize> {
    let shape = shape.iter().map(|d| usize::try_from(*d).ok()).collect::<Option<Vec<usize>>>()?;
    let elements = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).filter(|elements| *elements > 0)?;
    if is_interleaved {
        let [outputs, width] = shape.try_into().ok()?;
        return interleaved_bytes(Quantization::of_blocks(dtype)?, (outputs, width));
    }
    let block = dtype.block_size();
    shape.last()?.is_multiple_of(block).then(|| (elements / block).checked_mul(dtype.type_size()))?
}

/// Byte range of a tensor in the file; `None` if offset or alignment are invalid.
fn byte_range(bytes: usize, offset: u64, data: usize, alignment: usize) -> Option<Range<usize>> {
    let offset = usize::try_from(offset).ok().filter(|offset| offset.is_multiple_of(alignment))?;
    let start = data.checked_add(offset)?;
    Some(start..start.checked_add(bytes)?)
}

/// GGML types that can be dequantised or converted to floats, by their codes.
const TYPES: [(u32, GgmlDType); 13] = [
    (0, GgmlDType::F32),
    (1, GgmlDType::F16),
    (2, GgmlDType::Q4_0),
    (3, GgmlDType::Q4_1),
    (6, GgmlDType::Q5_0),
    (7, GgmlDType::Q5_1),
    (8, GgmlDType::Q8_0),
    (10, GgmlDType::Q2K),
    (11, GgmlDType::Q3K),
    (12, GgmlDType::Q4K),
    (13, GgmlDType::Q5K),
    (14, GgmlDType::Q6K),
    (30, GgmlDType::BF16),
];

/// The type with this code, and whether its blocks are interleaved.
fn dtype(kind: u32) -> Option<(GgmlDType, bool)> {
    let plain = kind.checked_sub(INTERLEAVED);
    let (_, dtype) = TYPES.iter().find(|(code, _)| *code == plain.unwrap_or(kind))?;
    (plain.is_none() || Quantization::of_blocks(*dtype).is_some()).then_some((*dtype, plain.is_some()))
}

/// Code of a type; `None` for one that is not read either.
pub(super) fn type_code(dtype: GgmlDType, is_interleaved: bool) -> Option<u32> {
    let (code, _) = TYPES.iter().find(|(_, other)| *other == dtype)?;
    Some(if is_interleaved { INTERLEAVED + code } else { *code })
}

/// Names of the other GGML types, by their codes.
const OTHER_TYPES: [(u32, &str); 26] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (36, "IQ4_NL_4_4"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

/// The message for a tensor of a GGML type without a conversion.
fn unsupported(name: &str, kind: u32) -> String {
    let found = OTHER_TYPES.iter().find(|(code, _)| *code == kind);
    let found = found.map_or(format!("unknown GGML type {kind}"), |(_, name)| format!("GGML type {name}"));
    format!(
        "tensor `{name}` is of the {found}, which cannot be read: use the model in F16, BF16, Q8_0, Q4_0 to Q5_1 or Q2_K to \
         Q6_K"
    )
}

struct Reader<'a> {
    file: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: u64) -> Parsed<&'a [u8]> {
        let end = usize::try_from(count).ok().and_then(|count| self.position.checked_add(count));
        let bytes = end.and_then(|end| self.file.get(self.position..end));
        let bytes = bytes.ok_or_else(|| {
            format!("the header ends within the file's {} bytes: it is truncated, download it again", self.file.len())
        })?;
        self.position += bytes.len();
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N as u64)?);
        Ok(array)
    }

    fn u32(&mut self) -> Parsed<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Parsed<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Parsed<String> {
        let length = self.u64()?;
        Ok(String::from_utf8_lossy(self.bytes(length)?).into_owned())
    }

    /// Short printable string; `what` names it in messages.
    fn name(&mut self, what: &str, most: u64) -> Parsed<String> {
        let (at, length) = (self.position, self.u64()?);
        let bytes = self.bytes(length)?;
        if length > most {
            return Err(format!("{what} at byte {at} is {length} bytes long, expected at most {most}"));
        }
        let name = str::from_utf8(bytes).ok().filter(|name| !name.chars().any(char::is_control));
        name.map(String::from).ok_or_else(|| format!("{what} at byte {at} is not printable UTF-8"))
    }

    fn value(&mut self, kind: u32) -> Parsed<GgufValue> {
        Ok(match kind {
            0 => GgufValue::Unsigned(u8::from_le_bytes(self.array()?).into()),
            1 => GgufValue::Signed(i8::from_le_bytes(self.array()?).into()),
            2 => GgufValue::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => GgufValue::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => GgufValue::Unsigned(self.u32()?.into()),
            5 => GgufValue::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => GgufValue::Float(as_written(f32::from_le_bytes(self.array()?))),
            7 => GgufValue::Bool(self.array::<1>()? != [0]),
            STRING => GgufValue::Text(self.text()?),
            ARRAY => GgufValue::Array(self.skip_array()?),
            10 => GgufValue::Unsigned(self.u64()?),
            11 => GgufValue::Signed(i64::from_le_bytes(self.array()?)),
            12 => GgufValue::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("the metadata has a value of the unknown kind {other}")),
        })
    }

    /// Skips an array, for example the vocabulary, and returns its length.
    fn skip_array(&mut self) -> Parsed<u64> {
        let (kind, length) = (self.u32()?, self.u64()?);
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            STRING => {
                for _ in 0..length {
                    let length = self.u64()?;
                    self.bytes(length)?;
                }
                return Ok(length);
            }
            other => return Err(format!("the metadata has an array of the unsupported kind {other}")),
        };
        self.bytes(length.saturating_mul(size))?;
        Ok(length)
    }
}

fn as_written(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

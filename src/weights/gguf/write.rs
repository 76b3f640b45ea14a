//! Writing GGUF files, tensor by tensor: the header is known from the shapes.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;

use super::header::{ALIGNMENT_KEY, ARRAY, MAGIC, STRING, tensor_bytes, type_code};
use crate::weights::write_atomically;
use crate::{Error, Result};

/// Longest tensor name in bytes that is written, the limit of llama.cpp.
const MAX_NAME: usize = 64;
/// Alignment of tensors: a cache line, which is a line of interleaved weights.
const ALIGNMENT: u32 = 64;

/// Receiver of the bytes of a tensor.
pub(crate) type WriteBytes<'w> = dyn FnMut(&[u8]) -> Result<()> + 'w;

/// A tensor to be written, computed in parts when its turn comes.
pub(crate) struct GgufTensor<'a> {
    /// Name in the file.
    pub(crate) name: String,
    /// Shape, outermost dimension first; rows of blocks with their padding.
    pub(crate) shape: Vec<usize>,
    /// Type of the elements or blocks.
    pub(crate) dtype: GgmlDType,
    /// Whether the blocks are [interleaved](crate::nn::interleaved), which only this crate reads.
    pub(crate) is_interleaved: bool,
    /// Passes all bytes of the tensor on, in order.
    pub(crate) parts: Box<Parts<'a>>,
}

/// Passes the bytes of a tensor on.
type Parts<'a> = dyn Fn(&mut WriteBytes<'_>) -> Result<()> + 'a;

/// Writes a GGUF file atomically. Metadata keys are written in the order given.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written, [`Error::Weights`] for a tensor that GGUF cannot hold, and the errors of the
/// tensors' parts.
pub(crate) fn save_gguf(path: &Path, metadata: &[(String, Value)], tensors: &[GgufTensor<'_>]) -> Result<()> {
    let header = header(metadata, tensors)?;
    write_atomically(path, |writer| {
        let mut writer = Padded { writer, path, position: 0 };
        writer.write(&header)?;
        for tensor in tensors {
            writer.pad()?;
            let end = writer.position + bytes_of(tensor)?;
            (tensor.parts)(&mut |bytes| writer.write(bytes))?;
            if writer.position != end {
                let name = &tensor.name;
                return Err(Error::weights(format!(
                    "tensor `{name}` has another size than its shape says: open its source again"
                )));
            }
        }
        writer.pad()
    })
}

/// Writer that knows its position.
struct Padded<'a> {
    writer: &'a mut BufWriter<File>,
    path: &'a Path,
    position: usize,
}

impl Padded<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.position += bytes.len();
        self.writer.write_all(bytes).map_err(|e| Error::io(self.path, e))
    }

    fn pad(&mut self) -> Result<()> {
        let missing = self.position.next_multiple_of(ALIGNMENT as usize) - self.position;
        self.write(&[0; ALIGNMENT as usize][..missing])
    }
}

fn header(metadata: &[(String, Value)], tensors: &[GgufTensor<'_>]) -> Result<Vec<u8>> {
    let mut header = [MAGIC, &3u32.to_le_bytes(), &(tensors.len() as u64).to_le_bytes()].concat();
    header.extend((metadata.len() as u64 + 1).to_le_bytes());
    for (key, value) in metadata.iter().chain([&(ALIGNMENT_KEY.to_string(), Value::U32(ALIGNMENT))]) {
        put_text(&mut header, key);
        header.extend(value_type(value).to_le_bytes());
        put_value(&mut header, value)?;
    }
    let mut offset = 0usize;
    for tensor in tensors {
        put_description(&mut header, tensor, offset)?;
        offset = (offset + bytes_of(tensor)?).next_multiple_of(ALIGNMENT as usize);
    }
    Ok(header)
}

fn put_description(header: &mut Vec<u8>, tensor: &GgufTensor<'_>, offset: usize) -> Result<()> {
    let GgufTensor { name, shape, dtype, is_interleaved, .. } = tensor;
    if name.len() > MAX_NAME {
        let message = format!("the tensor name `{name:.80}` is longer than the {MAX_NAME} bytes that GGUF allows");
        return Err(Error::weights(message));
    }
    let code = type_code(*dtype, *is_interleaved);
    let code = code.ok_or_else(|| Error::weights(format!("tensor `{name}` of {dtype:?} cannot be written as GGUF")))?;
    put_text(header, name);
    header.extend((shape.len() as u32).to_le_bytes());
    // GGUF stores the innermost dimension first.
    shape.iter().rev().for_each(|side| header.extend((*side as u64).to_le_bytes()));
    header.extend(code.to_le_bytes());
    header.extend((offset as u64).to_le_bytes());
    Ok(())
}

fn bytes_of(tensor: &GgufTensor<'_>) -> Result<usize> {
    let GgufTensor { name, shape, dtype, is_interleaved, .. } = tensor;
    let sides: Vec<u64> = shape.iter().map(|side| *side as u64).collect();
    let bytes = tensor_bytes(&sides, *dtype, *is_interleaved);
    bytes.ok_or_else(|| Error::weights(format!("tensor `{name}` of shape {shape:?} is no matrix of {dtype:?} blocks")))
}

fn put_text(header: &mut Vec<u8>, text: &str) {
    header.extend((text.len() as u64).to_le_bytes());
    header.extend(text.as_bytes());
}

/// GGUF code of the type of a value.
fn value_type(value: &Value) -> u32 {
    match value {
        Value::U8(_) => 0,
        Value::I8(_) => 1,
        Value::U16(_) => 2,
        Value::I16(_) => 3,
        Value::U32(_) => 4,
        Value::I32(_) => 5,
        Value::F32(_) => 6,
        Value::Bool(_) => 7,
        Value::String(_) => STRING,
        Value::Array(_) => ARRAY,
        Value::U64(_) => 10,
        Value::I64(_) => 11,
        Value::F64(_) => 12,
    }
}

fn put_value(header: &mut Vec<u8>, value: &Value) -> Result<()> {
    match value {
        Value::U8(n) => header.push(*n),
        Value::I8(n) => header.extend(n.to_le_bytes()),
        Value::U16(n) => header.extend(n.to_le_bytes()),
        Value::I16(n) => header.extend(n.to_le_bytes()),
        Value::U32(n) => header.extend(n.to_le_bytes()),
        Value::I32(n) => header.extend(n.to_le_bytes()),
        Value::F32(x) => header.extend(x.to_le_bytes()),
        Value::Bool(truth) => header.push(u8::from(*truth)),
        Value::String(text) => put_text(header, text),
        Value::Array(values) => return put_array(header, values),
        Value::U64(n) => header.extend(n.to_le_bytes()),
        Value::I64(n) => header.extend(n.to_le_bytes()),
        Value::F64(x) => header.extend(x.to_le_bytes()),
    }
    Ok(())
}

fn put_array(header: &mut Vec<u8>, values: &[Value]) -> Result<()> {
    let kind = values.first().map_or(STRING, value_type);
    if kind == ARRAY || values.iter().any(|value| value_type(value) != kind) {
        return Err(Error::weights("an array of GGUF metadata must hold values of one kind"));
    }
    header.extend(kind.to_le_bytes());
    header.extend((values.len() as u64).to_le_bytes());
    values.iter().try_for_each(|value| put_value(header, value))
}

#[cfg(test)]
mod tests {
    use candle_core::DType;
    use candle_core::Device;

    use super::super::GgufFile;
    use super::*;
    use crate::weights::TensorSource;

    fn tensor<'a>(name: &str, shape: &[usize], bytes: &'a [u8]) -> GgufTensor<'a> {
        GgufTensor {
            name: name.into(),
            shape: shape.to_vec(),
            dtype: GgmlDType::F32,
            is_interleaved: false,
            parts: Box::new(move |write| bytes.chunks(5).try_for_each(&mut *write)),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        let values: Vec<u8> = [1.0f32, 2.0, -3.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let texts = Value::Array(["a", "b"].map(|text| Value::String(text.into())).into());
        let metadata = [("tokenizer.ggml.tokens".to_string(), texts), ("x".into(), Value::F32(0.1))];
        save_gguf(&path, &metadata, &[tensor("one", &[3], &values), tensor("two", &[1, 2], &values[4..])]).unwrap();
        let file = GgufFile::open(&path).unwrap();
        assert_eq!(file.tokens().unwrap().unwrap(), ["a", "b"]);
        let read = |name| file.load_tensor(name, DType::F32, &Device::Cpu).unwrap().flatten_all().unwrap();
        assert_eq!(read("one").to_vec1::<f32>().unwrap(), [1.0, 2.0, -3.0]);
        assert_eq!(read("two").to_vec1::<f32>().unwrap(), [2.0, -3.0]);
    }

    #[test]
    fn what_gguf_cannot_hold_is_named_and_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        let error = |tensor| save_gguf(&path, &[], &[tensor]).unwrap_err().to_string();
        assert!(error(tensor("short", &[3], &[0; 8])).contains("`short` has another size"));
        assert!(error(tensor(&"n".repeat(65), &[1], &[0; 4])).contains("longer than the 64 bytes"));
        let blocks = GgufTensor { dtype: GgmlDType::Q4K, ..tensor("odd", &[4, 100], &[]) };
        assert!(error(blocks).contains("`odd` of shape [4, 100]"));
        assert!(!path.exists());
    }
}

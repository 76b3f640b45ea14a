//! NaN weights, overlapping tensors, and damaged files.

use std::path::Path;

use candle_core::quantized::gguf_file;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use haplovl::weights::{GgufFile, SafetensorsFiles, SaveOptions, TensorSource, save_safetensors_file};
use proptest::prelude::*;

/// A GGUF file of three tensors with 64, 32 and 96 floats.
fn gguf(path: &Path) -> Vec<u8> {
    let tensors: Vec<_> = [("a", 64), ("b", 32), ("c", 96)]
        .map(|(name, count)| {
            (name, QTensor::quantize(&Tensor::ones(count, DType::F32, &Device::Cpu).unwrap(), GgmlDType::F32).unwrap())
        })
        .into();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let value = gguf_file::Value::String("haplovl".into());
    gguf_file::write(&mut std::fs::File::create(path).unwrap(), &[("general.architecture", &value)], &tensors).unwrap();
    std::fs::read(path).unwrap()
}

/// Position of the offset in a tensor description: after name, number of dimensions, one dimension and type.
fn offset_of(bytes: &[u8], name: u8) -> usize {
    let text = [1, 0, 0, 0, 0, 0, 0, 0, name];
    bytes.windows(9).position(|window| window == text).unwrap() + 9 + 4 + 8 + 4
}

fn open_error(path: &Path, bytes: &[u8]) -> String {
    std::fs::write(path, bytes).unwrap();
    let message = GgufFile::open(path).map(|_| ()).unwrap_err().to_string();
    assert!(message.chars().count() < 300 && !message.chars().any(char::is_control), "{message}");
    message
}

#[test]
fn gguf_tensors_must_be_contiguous() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let bytes = gguf(&path);
    GgufFile::open(&path).unwrap();
    // Overlapping completely, overlapping partly, with a gap, and all at the start.
    for (name, offset) in [(b'b', 0u64), (b'b', 224), (b'c', 352), (b'c', 0), (b'a', 256), (b'b', 288)] {
        let mut moved = bytes.clone();
        let at = offset_of(&bytes, name);
        moved[at..at + 8].copy_from_slice(&offset.to_le_bytes());
        let message = open_error(&path, &moved);
        assert!(message.contains("tensor `") && message.contains("download"), "{message}");
    }
    assert!(open_error(&path, &[&bytes[..], &[0; 200]].concat()).contains("after its last tensor"));
}

#[test]
fn gguf_names_are_short_printable_and_unique() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let bytes = gguf(&path);
    let name = |from: u8| offset_of(&bytes, from) - 4 - 8 - 4 - 1;
    for (value, expected) in [(0x1B, "printable"), (0xFF, "printable"), (b'\n', "printable"), (b'a', "two tensors `a`")]
    {
        let mut renamed = bytes.clone();
        renamed[name(b'b')] = value;
        assert!(open_error(&path, &renamed).contains(expected));
    }
    // A name length that covers the rest of the file.
    let mut long = bytes.clone();
    let length = name(b'a') - 8;
    long[length..length + 8].copy_from_slice(&300u64.to_le_bytes());
    assert!(open_error(&path, &long).contains("a tensor name"));
}

#[test]
fn nan_and_infinite_weights_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let values = Tensor::new(&[0.0, 1.0, bad, 2.0], &Device::Cpu).unwrap();
        for dtype in [DType::F32, DType::BF16, DType::F16, DType::F64] {
            let tensors = [
                ("good".to_string(), Tensor::ones(3, DType::F32, &Device::Cpu).unwrap()),
                ("bad".into(), values.clone()),
            ];
            let options = SaveOptions { dtype: Some(dtype), ..SaveOptions::default() };
            save_safetensors_file(&path, &tensors.into(), &options).unwrap();
            let files = SafetensorsFiles::open(&path).unwrap();
            files.check_finite("good").unwrap();
            let message = files.check_finite("bad").unwrap_err().to_string();
            assert!(message.contains("tensor `bad` is NaN or infinite from element 2 on"), "{dtype:?}: {message}");
        }
    }
}

#[test]
fn nan_in_gguf_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let mut bytes = gguf(&path);
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let file = GgufFile::open(&path).unwrap();
    file.check_finite("a").unwrap();
    let message = file.check_finite("c").unwrap_err().to_string();
    assert!(message.contains("tensor `c` is NaN or infinite from element 95 on"), "{message}");
}

#[cfg(unix)]
#[test]
fn devices_are_rejected() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["zero.gguf", "zero.safetensors"] {
        let link = folder.path().join(name);
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        let error = match name.ends_with("gguf") {
            true => GgufFile::open(&link).map(|_| ()).unwrap_err(),
            false => SafetensorsFiles::open(&link).map(|_| ()).unwrap_err(),
        };
        assert!(error.to_string().contains("expected a regular file"), "{error}");
    }
}

/// Changes, removes and inserts bytes near the start, where the header is.
fn edited(mut bytes: Vec<u8>, edits: &[(prop::sample::Index, u8, u8)]) -> Vec<u8> {
    for (at, value, kind) in edits {
        let at = at.index(bytes.len().clamp(1, 400));
        match kind {
            1 => bytes.insert(at, *value),
            _ if bytes.len() <= 1 => {}
            0 => bytes[at] = *value,
            2 => drop(bytes.remove(at)),
            _ => bytes.truncate(at.max(1)),
        }
    }
    bytes
}

fn edits() -> impl Strategy<Value = Vec<(prop::sample::Index, u8, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_gguf_headers_never_panic(edits in edits()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let bytes = edited(gguf(&path), &edits);
        std::fs::write(&path, bytes).unwrap();
        if let Ok(file) = GgufFile::open(&path) {
            file.tensor_names().iter().for_each(|name| drop(file.load_tensor(name, DType::F32, &Device::Cpu)));
        }
    }

    #[test]
    fn damaged_safetensors_headers_never_panic(edits in edits()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        let tensor = |count| Tensor::ones(count, DType::F32, &Device::Cpu).unwrap();
        let tensors = [("a".to_string(), tensor(3)), ("b.c".into(), tensor(40))].into();
        save_safetensors_file(&path, &tensors, &SaveOptions::default()).unwrap();
        let bytes = edited(std::fs::read(&path).unwrap(), &edits);
        std::fs::write(&path, bytes).unwrap();
        if let Ok(file) = SafetensorsFiles::open(&path) {
            file.tensor_names().iter().for_each(|name| drop(file.load(name, DType::F32, &Device::Cpu)));
        }
    }
}

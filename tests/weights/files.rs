//! Safetensors files, saving and loading, parameter stores.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use haplovl::weights::{ParameterShapes, Parameters, SafetensorsFiles, SaveOptions, save_safetensors};

type Tensors = BTreeMap<String, Tensor>;

fn tensors(entries: &[(&str, &[f32])]) -> Tensors {
    let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
    entries.iter().map(|(name, values)| (name.to_string(), tensor(values))).collect()
}

fn saved(tensors: &Tensors, options: &SaveOptions) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    save_safetensors(folder.path(), tensors, options).unwrap();
    folder
}

/// Options with shards of at most `bytes`.
fn sharded(bytes: u64) -> SaveOptions {
    SaveOptions { max_shard_bytes: bytes, ..SaveOptions::default() }
}

fn files_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn open_error(path: &Path) -> String {
    SafetensorsFiles::open(path).unwrap_err().to_string()
}

/// The error of a file with this header and this many bytes of data.
fn header_error(header: &str, data: usize) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hostile.safetensors");
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    std::fs::write(&path, bytes).unwrap();
    let message = open_error(&path);
    assert!(message.contains("hostile.safetensors"), "{message}");
    message
}

#[test]
fn save_and_load_give_identical_bits() {
    let patterns: Vec<u32> = (0..2_500_000u32).map(|i| i.wrapping_mul(2_654_435_761)).collect();
    let floats: Vec<f32> = patterns.iter().map(|bits| f32::from_bits(bits & 0xff7f_ffff)).collect();
    let source = Tensor::from_vec(floats, (1000, 2500), &Device::Cpu).unwrap();
    let tensors = Tensors::from([
        ("a.f32".to_string(), source.clone()),
        ("b.transposed".to_string(), source.narrow(0, 0, 3).unwrap().t().unwrap()),
        ("c.bf16".to_string(), source.narrow(0, 1, 1).unwrap().to_dtype(DType::BF16).unwrap()),
        ("d.f16".to_string(), Tensor::new(&[1f32, -2.5, 65504.0], &Device::Cpu).unwrap().to_dtype(DType::F16).unwrap()),
        ("e.f64".to_string(), Tensor::new(std::f64::consts::PI, &Device::Cpu).unwrap()),
        ("f.empty".to_string(), Tensor::zeros((0, 3), DType::F32, &Device::Cpu).unwrap()),
    ]);
    for options in [SaveOptions::default(), sharded(20_000)] {
        let folder = saved(&tensors, &options);
        let files = SafetensorsFiles::open(folder.path()).unwrap();
        assert_eq!(files.names().collect::<Vec<_>>(), tensors.keys().collect::<Vec<_>>());
        for (name, tensor) in &tensors {
            let loaded = files.load(name, tensor.dtype(), &Device::Cpu).unwrap();
            assert_eq!(loaded.dims(), tensor.dims());
            let bits = |t: &Tensor| -> Vec<u64> {
                let flat = t.flatten_all().unwrap().to_dtype(DType::F64).unwrap();
                flat.to_vec1::<f64>().unwrap().into_iter().map(f64::to_bits).collect()
            };
            assert_eq!(bits(&loaded), bits(tensor), "{name}");
        }
    }
}

#[test]
fn an_independent_reader_returns_the_same_tensors() {
    let tensors = tensors(&[("w", &[1.0, 2.0, 3.0]), ("v", &[4.0])]);
    let metadata = BTreeMap::from([("step".to_string(), "12".to_string())]);
    let folder = saved(&tensors, &SaveOptions { dtype: Some(DType::BF16), metadata, ..SaveOptions::default() });
    let bytes = std::fs::read(folder.path().join("model.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    assert_eq!((metadata["format"].as_str(), metadata["step"].as_str()), ("pt", "12"));
    let loaded = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
    assert_eq!(loaded["w"].dtype(), DType::BF16);
    assert_eq!(loaded["w"].to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap(), [1.0, 2.0, 3.0]);
}

#[test]
fn the_index_has_the_format_of_hf() {
    let tensors = tensors(&[("a", &[1.0; 4]), ("b", &[2.0; 4]), ("c", &[3.0; 9])]);
    let folder = saved(&tensors, &sharded(32));
    let expected =
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"];
    assert_eq!(files_in(folder.path()), expected);
    let index = std::fs::read(folder.path().join(expected[2])).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    assert_eq!(index["metadata"]["total_size"], 68);
    assert_eq!(index["weight_map"]["b"], expected[0]);
    assert_eq!(index["weight_map"]["c"], expected[1]);
}

#[test]
fn a_later_save_replaces_an_earlier_one() {
    let (old, new) = (tensors(&[("a", &[1.0; 4]), ("b", &[2.0; 4])]), tensors(&[("a", &[5.0; 4]), ("c", &[6.0; 4])]));
    for (before, after) in [(16, 1000), (1000, 16), (16, 16)] {
        let folder = saved(&old, &sharded(before));
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        save_safetensors(folder.path(), &new, &sharded(after)).unwrap();
        let files = SafetensorsFiles::open(folder.path()).unwrap();
        assert_eq!(files.names().collect::<Vec<_>>(), ["a", "c"]);
        let a = files.load("a", DType::F32, &Device::Cpu).unwrap();
        assert_eq!(a.to_vec1::<f32>().unwrap(), [5.0; 4]);
        let count = if after == 16 { 4 } else { 2 };
        assert_eq!(files_in(folder.path()).len(), count, "{:?}", files_in(folder.path()));
    }
}

#[test]
fn loading_into_a_store_is_strict() {
    let parameters = Parameters::new();
    let vb = parameters.var_builder(0, DType::F32, &Device::Cpu);
    candle_nn::linear(3, 2, vb.pp("l")).unwrap();
    let folder = saved(&parameters.tensors(), &SaveOptions { dtype: Some(DType::F64), ..SaveOptions::default() });
    let files = SafetensorsFiles::open(folder.path()).unwrap();

    let same = Parameters::new();
    candle_nn::linear(3, 2, same.var_builder(1, DType::F32, &Device::Cpu).pp("l")).unwrap();
    same.load_from(&files).unwrap();
    let weight = |p: &Parameters| p.get("l.weight").unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(weight(&same), weight(&parameters));

    let other = Parameters::new();
    let vb = other.var_builder(1, DType::F32, &Device::Cpu);
    candle_nn::linear_no_bias(2, 2, vb.pp("l")).unwrap();
    candle_nn::linear_no_bias(2, 2, vb.pp("m")).unwrap();
    let before = weight(&other);
    let message = other.load_from(&files).unwrap_err().to_string();
    for part in ["m.weight", "l.bias", "l.weight is [2, 3], expected [2, 2]"] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(weight(&other), before);
}

#[test]
fn the_builder_returns_constants() {
    let recorded = ParameterShapes::default();
    candle_nn::linear(3, 2, recorded.var_builder()).unwrap();
    let folder = saved(
        &Tensors::from([
            ("weight".to_string(), Tensor::ones((2, 3), DType::BF16, &Device::Cpu).unwrap()),
            ("bias".to_string(), Tensor::zeros(2, DType::F16, &Device::Cpu).unwrap()),
        ]),
        &SaveOptions::default(),
    );
    let files = Arc::new(SafetensorsFiles::open(folder.path().join("model.safetensors")).unwrap());
    files.check(&recorded.shapes()).unwrap();
    let vb = files.var_builder(DType::F32, &Device::Cpu);
    let layer = candle_nn::linear(3, 2, vb.clone()).unwrap();
    assert_eq!(layer.weight().dtype(), DType::F32);
    assert!(!layer.weight().is_variable());
    assert!(vb.get((3, 2), "weight").unwrap_err().to_string().contains("[2, 3], expected [3, 2]"));
    assert!(vb.get(2, "no.such").unwrap_err().to_string().contains("no.such"));
}

#[test]
fn integer_tensors_are_rejected_as_weights() {
    let folder = saved(
        &Tensors::from([("ids".to_string(), Tensor::new(&[1u32, 2], &Device::Cpu).unwrap())]),
        &SaveOptions::default(),
    );
    let files = SafetensorsFiles::open(folder.path()).unwrap();
    assert_eq!(files.load("ids", DType::U32, &Device::Cpu).unwrap().to_vec1::<u32>().unwrap(), [1, 2]);
    let message = files.load("ids", DType::F32, &Device::Cpu).unwrap_err().to_string();
    assert!(message.contains("`ids` has dtype U32"), "{message}");
}

#[test]
fn a_truncated_file_is_rejected_at_every_length() {
    let folder = saved(&tensors(&[("a", &[1.0; 8]), ("b", &[2.0])]), &SaveOptions::default());
    let path = folder.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    for length in (0..whole.len()).step_by(3) {
        std::fs::write(&path, &whole[..length]).unwrap();
        let message = open_error(&path);
        assert!(message.contains("model.safetensors") && message.contains("download it again"), "{message}");
    }
}

#[test]
fn inconsistent_headers_are_rejected() {
    let tensor = |shape: &str, start: u64, end: u64| {
        format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    };
    let one = |shape, start, end| format!(r#"{{"a":{}}}"#, tensor(shape, start, end));
    let two = |a: String, b: String| format!(r#"{{"a":{a},"b":{b}}}"#);
    let cases = [
        ("beyond the file", one("[4]", 0, 16), 8, "truncated"),
        ("trailing bytes", one("[1]", 0, 4), 8, "truncated"),
        ("shape of another size", one("[3]", 0, 16), 16, "shape, data type, or offset"),
        ("overlapping", two(tensor("[2]", 0, 8), tensor("[2]", 4, 12)), 12, "invalid offset for tensor `b`"),
        ("with a hole", two(tensor("[1]", 0, 4), tensor("[1]", 8, 12)), 12, "invalid offset for tensor `b`"),
        ("end before start", one("[1]", 4, 0), 4, "invalid offset for tensor `a`"),
        ("offsets at the limit", one("[1]", u64::MAX - 3, u64::MAX), 4, "invalid offset for tensor `a`"),
        ("elements overflow", one("[4294967296,4294967296,4]", 0, 0), 0, "overflow"),
        ("strides overflow", one("[0,9223372036854775807,9223372036854775807]", 0, 0), 0, "impossible shape"),
        ("negative size", one("[-1]", 0, 4), 4, "invalid JSON in header"),
        ("unknown type", r#"{"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}}"#.to_string(), 4, "F31"),
        ("not JSON", "not json at all!".to_string(), 4, "invalid JSON in header"),
        ("not an object", "[]".to_string(), 0, "invalid JSON in header"),
        ("deeply nested", "[".repeat(100_000), 0, "invalid JSON in header"),
    ];
    for (what, header, data, expected) in cases {
        let message = header_error(&header, data);
        assert!(message.contains(expected), "{what}: {message}");
    }
}

#[test]
fn an_impossible_header_size_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    for size in [100u64, 1 << 30, 1 << 40, u64::MAX - 4, u64::MAX] {
        std::fs::write(&path, [&size.to_le_bytes()[..], b"{}"].concat()).unwrap();
        assert!(open_error(&path).contains("x.safetensors"));
    }
}

#[test]
fn a_hostile_index_is_rejected() {
    let folder = saved(&tensors(&[("a", &[1.0; 4]), ("b", &[2.0; 4])]), &sharded(16));
    let index = folder.path().join("model.safetensors.index.json");
    let cases = [
        (r#"{"weight_map":{"a":"model-00009-of-00009.safetensors"}}"#, "download it too"),
        (r#"{"weight_map":{"b":"model-00001-of-00002.safetensors"}}"#, "tensor `b` is in model-00001"),
        (r#"{"weight_map":{"a":"../outside.safetensors"}}"#, "without folders"),
        (r#"{"weight_map":{"a":"/etc/passwd"}}"#, "without folders"),
        (r#"{"weight_map":{"a":".."}}"#, "without folders"),
        (r#"{"weight_map":{"a":""}}"#, "without folders"),
        (r#"{"weight_map":{"a":"..\\x"}}"#, "without folders"),
        (r#"{"weight_map":{"a":1}}"#, "weight_map"),
        (r#"{"metadata":{}}"#, "weight_map"),
        ("no json", "weight_map"),
    ];
    for (content, expected) in cases {
        std::fs::write(&index, content).unwrap();
        let message = open_error(folder.path());
        assert!(message.contains(expected) && message.contains("index.json"), "{content}: {message}");
    }
}

#[test]
fn a_folder_without_weights_names_the_expected_files() {
    let folder = tempfile::tempdir().unwrap();
    let message = open_error(folder.path());
    assert!(message.contains("model.safetensors.index.json"), "{message}");
    assert!(open_error(&folder.path().join("no-such-file")).contains("no-such-file"));
}

#[test]
fn a_corrupted_header_never_panics() {
    let folder = saved(&tensors(&[("a", &[1.0; 4]), ("b", &[2.0; 4])]), &SaveOptions::default());
    let path = folder.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for position in 0..header {
        for value in [0, b'0', b'9', b'{', b'"', 0xff] {
            let mut bytes = whole.clone();
            bytes[position] = value;
            std::fs::write(&path, bytes).unwrap();
            if let Ok(files) = SafetensorsFiles::open(&path) {
                for name in files.names() {
                    let _ = files.load(name, DType::F32, &Device::Cpu);
                }
            }
        }
    }
}

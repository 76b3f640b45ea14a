use super::*;

/// Two elements of f32: 1 and 2.
const DATA: &[u8] = &[0, 0, 0x80, 0x3f, 0, 0, 0, 0x40];

/// Archive for tests, whose entries are all said to be compressed by one method.
#[derive(Default)]
struct TestArchive {
    method: u8,
    bytes: Vec<u8>,
    directory: Vec<u8>,
    count: u16,
}

impl TestArchive {
    fn with(self, name: &str, content: &[u8]) -> Self {
        let at = self.bytes.len();
        self.with_entry(name, content, at)
    }

    /// An entry whose local header the directory looks for at `at`.
    fn with_entry(mut self, name: &str, content: &[u8], at: usize) -> Self {
        let sizes = [content.len() as u32; 2].map(u32::to_le_bytes).concat();
        let name_size = (name.len() as u32).to_le_bytes();
        let header = [&[20, 0, 0, 0, self.method, 0, 0, 0, 0, 0][..], &[0; 4], &sizes, &name_size].concat();
        self.bytes.extend([&b"PK\x03\x04"[..], &header, name.as_bytes(), content].concat());
        let place = [&[0; 10][..], &(at as u32).to_le_bytes()].concat();
        self.directory.extend([&b"PK\x01\x02\x14\0"[..], &header, &place, name.as_bytes()].concat());
        self.count += 1;
        self
    }

    fn build(self) -> Vec<u8> {
        let (size, start) = (self.directory.len() as u32, self.bytes.len() as u32);
        let counts = [self.count; 2].map(u16::to_le_bytes).concat();
        let end = [&counts[..], &size.to_le_bytes(), &start.to_le_bytes(), &[0; 2]].concat();
        [self.bytes, self.directory, b"PK\x05\x06\0\0\0\0".to_vec(), end].concat()
    }
}

fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

/// Tensor of two elements of the storage `key`, which is said to be on a GPU.
fn tensor(key: &str, metadata: &[u8]) -> Vec<u8> {
    let storage = [text("storage"), b"ctorch\nFloatStorage\n".to_vec(), text(key), text("cuda:0")].concat();
    let view = b"K\x02tQK\0K\x02\x85K\x01\x85\x89N";
    [b"ctorch._utils\n_rebuild_tensor_v2\n((", &storage[..], view, metadata, b"tR"].concat()
}

/// Dictionary of values under text keys.
fn dict(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let entries = entries.iter().map(|(key, value)| [&text(key)[..], value, b"s"].concat());
    [b"}".to_vec()].into_iter().chain(entries).collect::<Vec<_>>().concat()
}

fn whole(root: &[u8]) -> Vec<u8> {
    [b"\x80\x02", root, b"."].concat()
}

/// Program with the tensor `w`.
fn program(key: &str) -> Vec<u8> {
    whole(&dict(&[("w", tensor(key, b""))]))
}

fn model() -> TestArchive {
    TestArchive::default().with("x/data.pkl", &program("0"))
}

fn message(archive: TestArchive) -> String {
    read(&archive.build()).err().unwrap_or_default()
}

#[test]
fn bytes_are_little_endian_whatever_the_file_is() {
    let big = [0x3f80_0000u32, 0x4000_0000].map(u32::to_be_bytes).concat();
    for (order, data) in [("little", DATA), ("big", &big)] {
        let file = model().with("x/byteorder", order.as_bytes()).with("x/data/0", data).build();
        let contents = read(&file).unwrap();
        assert_eq!(contents.tensors["w"].layout.shape, [2]);
        assert_eq!(contents.tensors["w"].bytes(&file).unwrap().as_ref(), DATA, "{order}");
    }
}

#[test]
fn tensors_that_pytorch_would_negate_or_conjugate_are_refused() {
    for bit in ["neg", "conj"] {
        let file = |set: &[u8]| {
            let program = whole(&dict(&[("w", tensor("0", &dict(&[(bit, set.to_vec())])))]));
            TestArchive::default().with("x/data.pkl", &program).with("x/data/0", DATA)
        };
        assert!(message(file(b"\x88")).contains(&format!("save `tensor.resolve_{bit}()`")));
        assert_eq!(message(file(b"\x89")), "");
    }
}

#[test]
fn the_state_dict_is_found_under_any_key() {
    let names = |root: &[u8]| {
        let file = TestArchive::default().with("x/data.pkl", &whole(root)).with("x/data/0", DATA).build();
        read(&file).map(|contents| contents.tensors.into_keys().collect::<Vec<_>>())
    };
    let model = || dict(&[("w", tensor("0", b""))]);
    let optimizer = dict(&[("state", dict(&[("0", model())]))]);
    assert_eq!(names(&dict(&[("optimizer", optimizer), ("generator", model())])).unwrap(), ["w"]);
    assert_eq!(names(&dict(&[("ema", dict(&[("v", tensor("0", b""))])), ("model", model())])).unwrap(), ["w"]);
    assert!(names(&dict(&[("a", model()), ("b", model())])).unwrap_err().contains("begin with `a`, `b`"));
    assert_eq!(names(&dict(&[("v", tensor("0", b"")), ("b", model())])).unwrap(), ["v"]);
    let arguments = b"cargparse\nNamespace\n)\x81}b".to_vec();
    assert_eq!(names(&dict(&[("args", arguments), ("model", model())])).unwrap(), ["w"]);
}

#[test]
fn archives_that_are_not_of_torch_save_are_named() {
    let empty = TestArchive::default();
    assert!(message(empty.with("x/data/0", DATA)).contains("without data.pkl"));
    assert!(message(model().with("y/data.pkl", b"N.")).contains("several data.pkl"));
    assert!(message(model().with("x/constants.pkl", b"N.")).contains("TorchScript"));
    assert!(
        message(TestArchive { method: 8, ..Default::default() }.with("x/data.pkl", &program("0")))
            .contains("compressed")
    );
    assert!(read(b"x").unwrap_err().contains("neither a zip archive nor a pickle"));
    assert!(read(b"PK").unwrap_err().contains("truncated or damaged"));
}

#[test]
fn storages_that_do_not_fit_are_named() {
    assert!(message(model()).contains("no entry `x/data/0`"));
    assert!(message(model().with("x/data/0", &DATA[..7])).contains("has 7 bytes in the storage of tensor `w`"));
    assert!(message(model().with("x/data/0", &[DATA, DATA].concat())).contains("has 16 bytes"));
    let outside = TestArchive::default().with("x/data.pkl", &program("../../etc/passwd"));
    assert!(message(outside.with("etc/passwd", DATA)).contains("no entry `x/data/../../etc/passwd`"));
}

#[test]
fn entries_that_share_a_name_or_bytes_are_refused() {
    let twice = model().with("x/data/0", DATA).with("x/data/0", DATA);
    assert!(message(twice).contains("share a name"));
    let first = model().bytes.len();
    let overlapping = model().with("x/data/0", DATA).with_entry("x/data/1", DATA, first);
    assert!(message(overlapping).contains("overlap"));
    let far = model().with_entry("x/data/0", DATA, 1 << 30);
    assert!(message(far).contains("no readable zip archive"));
}

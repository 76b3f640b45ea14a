//! Parquet files: the Hub's forms, random access, damage.

use std::fs;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use haplovl::data::{Dataset, FilesSource, ImageSource, Records, Turn, open, summarise};
use haplovl::processor::{ImageDecoder, Role};
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use proptest::prelude::*;

const HUB: &str = "message m {
    optional group image { optional binary bytes; optional binary path (UTF8); }
    optional binary text (UTF8);
}";
const DIALOGUES: &str = "message m {
    optional group images (LIST) { repeated group list { optional group element { optional binary bytes; optional binary path (UTF8); } } }
    optional group messages (LIST) { repeated group list { optional group element { optional binary role (UTF8); optional binary content (UTF8); } } }
}";

/// Values of a column, with their definition and repetition levels.
pub type Column = (Vec<Vec<u8>>, Vec<i16>, Vec<i16>);

/// Writes a file of this schema, with one list of columns for each row group.
pub fn write(path: &Path, schema: &str, groups: impl IntoIterator<Item = Vec<Column>>) {
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::new(properties)).unwrap();
    for columns in groups {
        let mut group = writer.next_row_group().unwrap();
        for (values, definition, repetition) in columns {
            let mut column = group.next_column().unwrap().unwrap();
            let values: Vec<_> = values.into_iter().map(ByteArray::from).collect();
            column.typed::<ByteArrayType>().write_batch(&values, Some(&definition), Some(&repetition)).unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
    }
    writer.close().unwrap();
}

/// A column of one value in each row.
fn column(values: impl IntoIterator<Item = impl Into<Vec<u8>>>, level: i16) -> Column {
    let values: Vec<Vec<u8>> = values.into_iter().map(Into::into).collect();
    let levels = vec![level; values.len()];
    let repetition = vec![0; values.len()];
    (values, levels, repetition)
}

fn png(shade: u8) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let image = image::RgbImage::from_pixel(2, 2, image::Rgb([shade; 3]));
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// Images with captions `number 0`, `number 1`, .. in row groups of `rows`.
fn captions(path: &Path, count: u8, rows: usize) {
    let numbers = Vec::from_iter(0..count);
    let group = |numbers: &[u8]| {
        let text = |n: &u8| format!("number {n}");
        vec![
            column(numbers.iter().map(|&n| png(n)), 2),
            column(numbers.iter().map(|n| format!("{n}.png")), 2),
            column(numbers.iter().map(text), 1),
        ]
    };
    write(path, HUB, numbers.chunks(rows).map(group));
}

fn shade(records: &Records, index: usize) -> u8 {
    let record = records.get(index).unwrap();
    let ImageSource::Bytes(file) = &record.images[0] else { panic!("expected content") };
    ImageDecoder::default().decode(&file.bytes, &file.name).unwrap().get_pixel(0, 0).0[0]
}

#[test]
fn the_form_of_the_hub_is_read_in_any_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0.parquet");
    captions(&path, 50, 7);
    let records = open(&path, None).unwrap();
    assert_eq!(records.len(), 50);
    for n in [49, 0, 7, 6, 48, 13, 0] {
        assert_eq!(records.get(n).unwrap().turns, [Turn::user("<image>"), Turn::assistant(format!("number {n}"))]);
        assert_eq!(shade(&records, n), n as u8);
    }
    assert!(records.get(50).is_err() && records.describe(6).ends_with("0.parquet record 7"));
    let summary = summarise("hub", &records, 10);
    assert_eq!((summary.records, summary.sampled, summary.with_images, summary.bad), (50, 10, 10, 0));
    // A folder, a pattern, and columns.
    captions(&folder.path().join("1.parquet"), 3, 10);
    assert_eq!(open(folder.path(), None).unwrap().len(), 53);
    assert_eq!(open(folder.path().join("*.parquet"), None).unwrap().len(), 53);
    let columns = |column: &str| {
        let source: FilesSource =
            toml::from_str(&format!("path = '{}'\ncolumns = {{ text = '{column}' }}", path.display())).unwrap();
        source.open()
    };
    assert_eq!(columns("text").unwrap().len(), 50);
    assert!(columns("caption").map(drop).unwrap_err().to_string().contains("the first records have image, text"));
}

#[test]
fn numbers_of_classes_become_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0.parquet");
    let features =
        r#"{"info":{"features":{"label":{"names":["cat","dog"],"_type":"ClassLabel"},"n":{"_type":"Value"}}}}"#;
    let metadata = vec![KeyValue::new("huggingface".to_string(), features.to_string())];
    let properties = WriterProperties::builder().set_key_value_metadata(Some(metadata)).build();
    let schema = "message m { required binary image; required int64 label; required int64 n; }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer = SerializedFileWriter::new(File::create(&path).unwrap(), schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let images: Vec<_> = (0..3).map(|shade| ByteArray::from(png(shade))).collect();
    column.typed::<ByteArrayType>().write_batch(&images, None, None).unwrap();
    column.close().unwrap();
    for values in [[1_i64, 0, -1], [0, 1, 2]] {
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&values, None, None).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    let records = open(&path, None).unwrap();
    let label = |n| records.get(n).map(|record| record.turns[1].text.clone());
    assert_eq!((label(0).unwrap(), label(1).unwrap()), ("dog".to_string(), "cat".to_string()));
    assert!(label(2).is_err());
    assert_eq!(records.unread_fields(), ["n"]);
}

#[test]
fn a_compression_that_is_not_read_is_named() {
    // One row of text.
    const BROTLI: &str = "UEFSMRUAFRYVHiwVAhUAFQYVBhwAAAAbCgAApAECBMKGQAE0rHAVBBksNQAYBnNjaGVtYRUCABUMJQIYBHRleHQlAEwcAAAA\
        FgIZHBkcJgAcFQwZJQYAGRgEdGV4dBUIFgIWPBZEJghJHBUAFQAVAgA8FgIZBhkmAAIAAAAWPBYCJggWRAAoIHBhcnF1ZXQt\
        Y3BwLWFycm93IHZlcnNpb24gMjYuMC4xGRwcAAAAiAAAAFBBUjE=";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0.parquet");
    fs::write(&path, STANDARD.decode(BROTLI).unwrap()).unwrap();
    let message = open(&path, None).map(drop).unwrap_err().to_string();
    assert!(message.contains("is compressed with BROTLI, which is not read: write it again with ZSTD"), "{message}");
}

#[test]
fn threads_share_the_decoded_rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0.parquet");
    captions(&path, 60, 10);
    let records = open(&path, None).unwrap();
    thread::scope(|scope| {
        for start in 0..4 {
            let records = &records;
            scope.spawn(move || {
                (0..60).for_each(|n| assert_eq!(shade(records, (n * 7 + start) % 60), ((n * 7 + start) % 60) as u8))
            });
        }
    });
}

#[test]
fn lists_of_images_and_messages_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0.parquet");
    // The first record has two images, the second none.
    let list = |values: Vec<Vec<u8>>, levels: Vec<i16>, repetition: Vec<i16>| (values, levels, repetition);
    let text = |texts: &[&str]| texts.iter().map(|text| text.as_bytes().to_vec()).collect::<Vec<_>>();
    let roles = text(&["user", "assistant", "user", "assistant"]);
    let contents = text(&["<image> or <image>?", "both", "Hi", "Hello"]);
    let columns = vec![
        list(vec![png(1), png(2)], vec![4, 4, 0], vec![0, 1, 0]),
        list(vec![], vec![3, 3, 0], vec![0, 1, 0]),
        list(roles, vec![4; 4], vec![0, 1, 0, 1]),
        list(contents, vec![4; 4], vec![0, 1, 0, 1]),
    ];
    write(&path, DIALOGUES, [columns]);
    let records = open(&path, None).unwrap();
    let first = records.get(0).unwrap();
    assert_eq!((first.images.len(), first.turns[0].text.as_str()), (2, "<image> or <image>?"));
    let second = records.get(1).unwrap();
    assert!(second.images.is_empty());
    assert_eq!(second.turns.iter().map(|turn| turn.role).collect::<Vec<_>>(), [Role::User, Role::Assistant]);
}

/// A footer whose schema has a chain of this many groups within groups.
fn deep_footer(depth: usize) -> Vec<u8> {
    // Version 1; the schema, a list of structs.
    let mut footer = vec![0x15, 0x02, 0x19, 0xfc];
    let mut count = depth + 1;
    while count > 127 {
        footer.push(count as u8 | 128);
        count >>= 7;
    }
    footer.push(count as u8);
    for level in 0..=depth {
        // Repetition type (field 3), name (field 4), number of children (field 5).
        footer.extend([0x35, 0x00, 0x18, 1, b'a']);
        footer.extend(if level < depth { &[0x15, 0x02, 0x00][..] } else { &[0x00][..] });
    }
    // No rows, no row groups.
    footer.extend([0x16, 0x00, 0x19, 0x0c, 0x00]);
    let length = (footer.len() as u32).to_le_bytes();
    [b"PAR1".as_slice(), &footer, &length, b"PAR1"].concat()
}

#[test]
fn damaged_and_hostile_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0.parquet");
    captions(&path, 20, 5);
    let whole = fs::read(&path).unwrap();
    let refused = |content: &[u8]| {
        fs::write(&path, content).unwrap();
        let message = open(&path, None).map(drop).unwrap_err().to_string();
        assert!(message.chars().count() < 300 && !message.chars().any(char::is_control), "{message}");
        message
    };
    assert!(refused(&whole[..whole.len() - 1]).contains("does not end with the bytes PAR1"));
    assert!(refused(b"PAR1").contains("damaged or truncated"));
    assert!(refused(&[b"PAR1".as_slice(), &[255; 4], b"PAR1"].concat()).contains("its footer is said to have"));
    for depth in [33, 500_000] {
        assert!(refused(&deep_footer(depth)).contains("its footer is not well-formed"));
    }
    // Damage within a row group is an error of its rows only.
    let mut content = whole.clone();
    content[30..300].fill(0xff);
    fs::write(&path, &content).unwrap();
    let records = open(&path, None).unwrap();
    let reason = records.get(0).unwrap_err().to_string();
    assert!(reason.contains("row group 0 cannot be decoded"), "{reason}");
    assert_eq!(shade(&records, 19), 19);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_bytes_are_errors_or_other_records(changes in prop::collection::vec((0.0..1.0f64, any::<u8>()), 1..4), footer: bool) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.parquet");
        captions(&path, 6, 3);
        let mut content = fs::read(&path).unwrap();
        let length = u32::from_le_bytes(content[content.len() - 8..content.len() - 4].try_into().unwrap()) as usize;
        let first = if footer { content.len() - 8 - length } else { 0 };
        for (at, byte) in changes {
            let place = first + ((content.len() - first) as f64 * at) as usize;
            content[place] = byte;
        }
        fs::write(&path, &content).unwrap();
        if let Ok(records) = open(&path, None) {
            (0..records.len().min(20)).for_each(|n| drop(records.get(n)));
        }
    }
}

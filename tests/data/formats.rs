//! Records in the forms that people bring: names of fields, content parts, roles, embedded images, videos.

use std::fs;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use haplovl::Error;
use haplovl::data::{BadSample, Dataset, FilesSource, ImageSource, Record, Turn, VideoSource, open, summarise};
use haplovl::processor::{Content, Role};
use tempfile::TempDir;

use crate::common::tiny_processor;

/// Content of a small PNG file of this shade.
fn png(shade: u8) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let image = image::RgbImage::from_pixel(2, 2, image::Rgb([shade; 3]));
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// Content of an animated GIF of this many frames.
fn gif(frames: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = image::codecs::gif::GifEncoder::new(&mut bytes);
    for n in 0..frames {
        let image = image::RgbaImage::from_pixel(2, 2, image::Rgba([n * 40, 0, 0, 255]));
        encoder.encode_frame(image::Frame::new(image)).unwrap();
    }
    drop(encoder);
    bytes
}

/// A folder with images, an animation, and folders of frames.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (n, image) in
        ["a.png", "b.png", "clip/frame10.png", "clip/frame2.png", "photo.heic", "old.mp4"].iter().enumerate()
    {
        let path = folder.path().join(image);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, png(n as u8 * 40)).unwrap();
    }
    fs::write(folder.path().join("clip.gif"), gif(3)).unwrap();
    folder
}

/// The only record of a file with this line.
fn get(record: &str) -> Result<(Record, TempDir), BadSample> {
    let folder = folder();
    let path = folder.path().join("data.jsonl");
    fs::write(&path, record).unwrap();
    open(&path, None).unwrap().get(0).map(|record| (record, folder))
}

fn refused(record: &str) -> String {
    let message = get(record).expect_err(record).to_string();
    assert!(message.chars().count() < 300 && !message.chars().any(char::is_control), "{message}");
    message
}

/// Names of the images; an image that is part of the record is `bytes`.
fn images(record: &Record) -> Vec<String> {
    let name = |image: &ImageSource| match image {
        ImageSource::File(path) => path.file_name().unwrap().to_string_lossy().into_owned(),
        ImageSource::Bytes(_) => "bytes".into(),
        _ => panic!("unexpected {image:?}"),
    };
    record.images.iter().map(name).collect()
}

fn said(record: &Record) -> Vec<(Role, &str)> {
    record.turns.iter().map(|turn| (turn.role, turn.text.as_str())).collect()
}

#[test]
fn images_are_read_under_every_common_name_and_form() {
    for fields in [
        r#""file_name":"a.png""#,
        r#""image":["a.png"]"#,
        r#""images":["a.png"],"image":null"#,
        r#""image":"","img":"a.png""#,
        r#""Image_Path":"./a.png""#,
        r#""path":"a.png""#,
        r#""image":{"path":"a.png"}"#,
        r#""image":{"bytes":null,"path":"a.png"}"#,
        r#""image":{"url":"a.png"}"#,
        r#""image":[{"path":"a.png"}]"#,
        r#""image":"a.png","file_name":"a.png""#,
        r#""image":"a.png","image_url":"https://example.com/x.png""#,
        r#""image":"[\"a.png\"]""#,
        r#""image":"file://a.png""#,
        r#""image":"a.png","weight":NaN,"score":-Infinity,"size":1e999"#,
    ] {
        let (record, _folder) =
            get(&format!(r#"{{{fields},"text":"a cat"}}"#)).unwrap_or_else(|e| panic!("{fields}: {e}"));
        assert_eq!(images(&record), ["a.png"], "{fields}");
        assert_eq!(record.turns, [Turn::user("<image>"), Turn::assistant("a cat")], "{fields}");
    }
    let (two, _folder) = get(r#"{"images":[{"path":"a.png"},{"path":"b.png"}],"text":"x"}"#).unwrap();
    assert_eq!(images(&two), ["a.png", "b.png"]);
    for none in [
        r#""image":null"#,
        r#""image":"""#,
        r#""image":[]"#,
        r#""image":[null]"#,
        r#""image":{"path":null}"#,
        r#""images":[""]"#,
    ] {
        let (record, _folder) = get(&format!(r#"{{{none},"text":"only text"}}"#)).unwrap();
        assert!(record.images.is_empty() && record.turns == [Turn::assistant("only text")], "{none}");
    }
}

#[test]
fn images_in_the_record_are_decoded_and_never_shown() {
    let base64 = STANDARD.encode(png(77));
    let unpadded = base64.trim_end_matches('=').to_string();
    for value in [
        format!(r#""data:image/png;base64,{base64}""#),
        format!(r#""DATA:image/png;name=x.png;base64,{unpadded}""#),
        format!(r#""{base64}""#),
        format!(r#"{{"bytes":"{base64}"}}"#),
        format!(r#"{{"bytes":"{base64}","path":"a.png"}}"#),
        format!(r#"{{"url":"data:image/png;base64,{base64}"}}"#),
    ] {
        let (record, _folder) = get(&format!(r#"{{"image":{value},"text":"x"}}"#)).unwrap();
        assert_eq!(images(&record), ["bytes"]);
        let conversation = record.conversation(&tiny_processor()).unwrap();
        let pixel = conversation.messages[0].images().next().unwrap().get_pixel(0, 0).0;
        assert_eq!(pixel, [77; 3]);
    }
    let long = "A".repeat(100_000);
    for broken in [
        format!("data:image/png;base64,{long}!"),
        format!("data:image/png,{long}"),
        format!("data:image/png;base64{long}"),
        format!("iVBORw0KGgo{long}!"),
    ] {
        let message = refused(&format!(r#"{{"image":"{broken}","text":"x"}}"#));
        assert!(message.contains("field `image`") && !message.contains("AAAAAAAAAA"), "{message}");
    }
    // Valid base64 of something that is no image is named when it is decoded.
    let (record, _folder) = get(&format!(r#"{{"image":"data:image/png;base64,{long}","text":"x"}}"#)).unwrap();
    let message = record.conversation(&tiny_processor()).unwrap_err().to_string();
    assert!(message.contains("in field `image`") && message.len() < 300, "{message}");
}

#[test]
fn content_parts_are_read() {
    let user = |content: &str, fields: &str| {
        let record = format!(
            r#"{{"messages":[{{"role":"user","content":{content}}},{{"role":"assistant","content":[{{"type":"text","text":"A cat."}}]}}]{fields}}}"#
        );
        get(&record).unwrap_or_else(|e| panic!("{content}: {e}"))
    };
    for (content, fields) in [
        (r#"[{"type":"image"},{"type":"text","text":"What?"}]"#, r#","images":["a.png"]"#),
        (r#"[{"type":"image","text":null},{"type":"text","text":"What?","image":null}]"#, r#","images":["a.png"]"#),
        (r#"[{"type":"image","image":"a.png"},{"type":"text","text":"What?"}]"#, ""),
        (r#"[{"type":"image","path":"a.png"},{"type":"text","text":"What?"}]"#, ""),
        (r#"[{"type":"image","image":{"path":"a.png"}},"What?"]"#, ""),
        (r#"[{"type":"image_url","image_url":{"url":"a.png"}},{"type":"text","text":"What?"}]"#, ""),
        (r#"[{"type":"input_image","image_url":"a.png"},{"type":"input_text","text":"What?"}]"#, ""),
        (r#"[{"image":"a.png"},{"text":"What?"}]"#, ""),
        // The list of images that the parts name too.
        (r#"[{"type":"image","image":"a.png"},{"type":"text","text":"What?"}]"#, r#","images":["a.png"]"#),
    ] {
        let (record, _folder) = user(content, fields);
        assert_eq!(images(&record), ["a.png"], "{content}");
        assert_eq!(said(&record), [(Role::User, "<image>What?"), (Role::Assistant, "A cat.")], "{content}");
        let conversation = record.conversation(&tiny_processor()).unwrap();
        assert_eq!(conversation.messages[0].texts().collect::<Vec<_>>(), ["What?"]);
    }
    // Text that has the marker already, as in converted LLaVA records.
    let (record, _folder) = user(r#"[{"type":"image","image":"a.png"},{"type":"text","text":"<image>\nWhat?"}]"#, "");
    assert_eq!((images(&record).len(), record.turns[0].text.as_str()), (1, "<image>\nWhat?"));
    // Images of parts and of the record, in the order of the conversation.
    let mixed = r#"[{"type":"image","image":"b.png"},{"type":"text","text":"and"},{"type":"image"}]"#;
    let (record, _folder) = user(mixed, r#","image":"a.png""#);
    assert_eq!(
        (images(&record), record.turns[0].text.as_str()),
        (vec!["b.png".to_string(), "a.png".into()], "<image>and<image>")
    );
    let missing = r#"{"messages":[{"role":"user","content":[{"type":"image"}]},{"role":"assistant","content":"x"}]}"#;
    assert_eq!(refused(missing), "1 `<image>` markers for 0 images: expected one each");
    let audio = r#"{"messages":[{"role":"user","content":[{"type":"audio","audio":"x.wav"}]}]}"#;
    assert!(refused(audio).contains("turn 1: a message has a part of type `audio`"));
    let drawn = r#"{"messages":[{"role":"user","content":"x"},{"role":"assistant","content":[{"type":"image","image":"a.png"}]}]}"#;
    assert!(refused(drawn).contains("turn 2: an answer has an image"));
}

#[test]
fn roles_and_keys_of_turns_are_taken_in_every_common_form() {
    for (asked, replied) in
        [("USER", "Assistant"), ("human", "gpt"), ("Human", "model"), (" user ", "bot"), ("user", "chatgpt")]
    {
        for (role, content) in [("from", "value"), ("role", "content"), ("role", "value"), ("speaker", "text")] {
            let turn = |name: &str, text: &str| format!(r#"{{"{role}":"{name}","{content}":"{text}"}}"#);
            let turns = [turn("System", "Be brief."), turn(asked, "Hi"), turn(replied, "Hello")].join(",");
            let (record, _folder) = get(&format!(r#"{{"Conversations":[{turns}]}}"#)).unwrap();
            let expected = [(Role::System, "Be brief."), (Role::User, "Hi"), (Role::Assistant, "Hello")];
            assert_eq!(said(&record), expected, "{asked} {role}");
        }
    }
    let pairs = r#"{"texts":[{"user":"Hi","assistant":"Hello","source":"x"},{"user":"Bye","assistant":"See you"}]}"#;
    assert_eq!(get(pairs).unwrap().0.turns.len(), 4);
    let json = r#"{"conversations":"[{\"from\":\"human\",\"value\":\"Hi\"},{\"from\":\"gpt\",\"value\":\"Hello\"}]"}"#;
    assert_eq!(get(json).unwrap().0.turns, [Turn::user("Hi"), Turn::assistant("Hello")]);
    for role in ["tool", "function", "observation"] {
        let record = format!(r#"{{"messages":[{{"role":"{role}","content":"x"}}]}}"#);
        assert!(refused(&record).contains(&format!("turn 1: `{role}`: calls of tools cannot be trained on")));
    }
    let call =
        r#"{"messages":[{"role":"user","content":"x"},{"role":"assistant","content":null,"tool_calls":[{"id":1}]}]}"#;
    assert!(refused(call).contains("turn 2: `tool_calls`"));
    let nobody = r#"{"messages":[{"role":"narrator","content":"x"}]}"#;
    assert!(
        refused(nobody).contains("turn 1: the role is \"narrator\", expected system, user (human) or assistant (gpt)")
    );
}

#[test]
fn texts_are_read_under_every_common_name() {
    let turns = |fields: &str| get(&format!("{{{fields}}}")).unwrap_or_else(|e| panic!("{fields}: {e}")).0.turns;
    let pair = [Turn::user("q?"), Turn::assistant("a")];
    for fields in [
        r#""question":"q?","answer":"a""#,
        r#""prompt":"q?","response":"a""#,
        r#""Query":"q?","Output":"a""#,
        r#""instruction":"q?","input":"","output":"a""#,
        r#""input":"q?","output":"a""#,
        r#""user":"q?","assistant":"a""#,
        r#""query":"q?","label":["a"]"#,
        r#""question":"q?","answers":["b","a","a"]"#,
        r#""question":"q?","answers":[{"answer":"a"},{"answer":"a"}]"#,
    ] {
        assert_eq!(turns(fields), pair, "{fields}");
    }
    assert_eq!(turns(r#""instruction":"q","input":"i","output":"a""#)[0], Turn::user("q\ni"));
    assert_eq!(turns(r#""question":"How many?","answer":5"#)[1], Turn::assistant("5"));
    assert_eq!(turns(r#""system":"s","question":"q?","answer":"a""#).len(), 3);
    for fields in [
        r#""caption":"a","text":"""#,
        r#""caption":null,"text":"a""#,
        r#""captions":["a"]"#,
        r#""label":"a""#,
        r#""caption":"a","text":" a""#,
    ] {
        assert_eq!(turns(fields), [Turn::assistant("a")], "{fields}");
    }
    let captions = turns(r#""image":"a.png","captions":["a","b"]"#);
    assert_eq!(captions, [Turn::user("<image>"), Turn::assistant("a"), Turn::user(""), Turn::assistant("b")]);
    let differ = refused(r#"{"caption":"a","text":"b"}"#);
    assert!(
        differ.contains("`caption` and `text` are both set and differ") && differ.contains("`columns.text`"),
        "{differ}"
    );
    let differ = refused(r#"{"image":"a.png","img":"b.png","text":"x"}"#);
    assert!(differ.contains("`image` and `img` are both set and differ"), "{differ}");
    assert!(refused(r#"{"text":"a","text":"b"}"#).contains("`text` and `text` are both set"));
    assert!(refused(r#"{"image":"a.png","question":"q?"}"#).contains("question `question` has no answer"));
    assert!(refused(r#"{"a":1,"b":"x"}"#).contains("no text in the fields a, b: expected"));
    assert!(refused(&format!(r#"{{"{}":1}}"#, "k".repeat(100_000))).contains("no text in the fields kkk"));
}

#[test]
fn an_answer_that_says_image_keeps_its_words() {
    let record = r#"{"image":"a.png","conversations":[{"from":"human","value":"What is this?"},{"from":"gpt","value":"An <image> of a <video>."}]}"#;
    let (record, _folder) = get(record).unwrap();
    assert_eq!(record.turns[0].text, "<image>\nWhat is this?");
    let processor = tiny_processor();
    let conversation = record.conversation(&processor).unwrap();
    let images: Vec<_> = conversation.messages.iter().map(|message| message.images().count()).collect();
    assert_eq!(images, [1, 0]);
    assert_eq!(conversation.messages[1].texts().collect::<Vec<_>>(), ["An <image> of a <video>."]);
    let sequence = processor.training_sequence(&conversation).unwrap();
    let labels = sequence.labels.unwrap();
    // The placeholders of the test's tokenizer.
    assert!(!labels.contains(&94) && !labels.contains(&95), "{labels:?}");
    let learned: Vec<u32> = labels.into_iter().filter(|&label| label != u32::MAX && label < 1000).collect();
    let text = processor.tokenizer().decode(&learned, true).unwrap();
    assert!(text.contains("An <image> of a <video>."), "{text}");
}

#[test]
fn fields_that_name_images_are_never_ignored() {
    for record in [
        r#"{"photo":"a.png","text":"x"}"#,
        r#"{"media":[{"src":"a.png"}],"text":"x"}"#,
        r#"{"thumbnail":"https://example.com/a.jpg?size=2","text":"x"}"#,
        r#"{"movie":"old.mp4","text":"x"}"#,
        r#"{"scan":"photo.heic","text":"x"}"#,
        r#"{"photo":"data:image/png;base64,iVBORw0KGgo","text":"x"}"#,
    ] {
        assert!(matches!(get(record), Err(BadSample::UnreadMedia { .. })), "{record}");
        assert!(refused(record).contains("but is not read: name it `image` or `video`"));
    }
    // Beside an image that is read, a name counts if the file exists and is another one.
    assert!(refused(r#"{"image":"a.png","image2":"b.png","text":"x"}"#).starts_with("field `image2` names \"b.png\""));
    for record in [
        r#"{"video":"clip\\frame2.png","text":"written on Windows"}"#,
        r#"{"image":"a.png","original":"a.png","text":"x"}"#,
        r#"{"image":"a.png","source":"elsewhere/c.jpg","text":"x"}"#,
        r#"{"id":"none.png","text":"see a.png"}"#,
    ] {
        get(record).unwrap_or_else(|e| panic!("{record}: {e}"));
    }
}

#[test]
fn records_without_image_that_refer_to_one_are_bad() {
    let base64 = STANDARD.encode([png(9), vec![0; 64]].concat());
    for (fields, problem) in [
        (r#""image_id":391895,"caption":"x""#.to_string(), "field `image_id` is the number 391895, which is no file"),
        (r#""imageId":"0000","question":"q","answer":"x""#.into(), "field `imageId` is \"0000\""),
        (r#""id":"a.png","caption":"x""#.into(), "field `id` names \"a.png\""),
        (r#""prompt":"a.png","completion":"x""#.into(), "field `prompt` names \"a.png\""),
        (format!(r#""pic_b64":"{base64}","caption":"x""#), "field `pic_b64` names"),
        (r#""audio":"a.wav","caption":"x""#.into(), "field `audio` names \"a.wav\", but sound is not read"),
        (r#""scan":"a.pdf","caption":"x""#.into(), "field `scan` names \"a.pdf\", but is not read"),
    ] {
        let message = refused(&format!("{{{fields}}}"));
        assert!(message.contains(problem), "{message}");
    }
    for fields in [
        r#""id":"none.png","text":"see none.png""#,
        r#""image":null,"image_width":5,"images_id":null,"text":"x""#,
        r#""image":"a.png","image_id":7,"text":"a.png""#,
    ] {
        get(&format!("{{{fields}}}")).unwrap();
    }
}

#[test]
fn forms_of_other_tools_are_read() {
    let turns = |line: &str| get(line).unwrap().0;
    let qwen = turns(
        r#"{"conversations":[{"from":"user","value":"Picture 1: <img>a.png</img>\n<img>b.png</img> What?"},{"from":"assistant","value":"<img>b.png</img>"}]}"#,
    );
    assert_eq!(images(&qwen), ["a.png", "b.png"]);
    assert_eq!(said(&qwen), [(Role::User, "Picture 1: <image>\n<image> What?"), (Role::Assistant, "<img>b.png</img>")]);
    let alpaca = turns(r#"{"instruction":"c?","input":"","output":"d","history":[["a?","b"]],"image":"a.png"}"#);
    let texts: Vec<_> = said(&alpaca).into_iter().map(|(_, text)| text).collect();
    assert_eq!(texts, ["<image>\na?", "b", "c?", "d"]);
    let video = turns(
        r#"{"video":"clip.gif","conversations":[{"from":"human","value":"<image>\nq"},{"from":"gpt","value":"an <image>"}]}"#,
    );
    assert_eq!((said(&video)[0].1, said(&video)[1].1, video.videos.len()), ("<video>\nq", "an <image>", 1));
    let several = turns(r#"{"image_2":"b.png","image_1":"a.png","image_3":null,"question":"q","answer":"x"}"#);
    assert_eq!(images(&several), ["a.png", "b.png"]);
    let camel = turns(r#"{"imagePath":"a.png","question":"q","answer":"x"}"#);
    assert_eq!(images(&camel), ["a.png"]);
    let query = refused(r#"{"image":"a.png","query":{"en":"q"},"answer":"x"}"#);
    assert!(query.contains("field `query`: "), "{query}");
}

#[test]
fn names_from_addresses_are_decoded_if_only_that_file_exists() {
    let folder = folder();
    fs::write(folder.path().join("my cat é.png"), png(1)).unwrap();
    fs::write(folder.path().join("100%25.png"), png(1)).unwrap();
    let name = |name: &str| {
        fs::write(folder.path().join("data.jsonl"), format!(r#"{{"image":"{name}","text":"x"}}"#)).unwrap();
        open(folder.path().join("data.jsonl"), None).unwrap().get(0).map(|record| images(&record).remove(0))
    };
    assert_eq!(name("my%20cat%20%c3%A9.png").unwrap(), "my cat é.png");
    assert_eq!(name(&format!("file://{}/my%20cat%20é.png", folder.path().display())).unwrap(), "my cat é.png");
    assert_eq!(name("100%25.png").unwrap(), "100%25.png");
    for bad in ["%2e%2e/a.png", "no%zz.png", "50%", "%"] {
        assert!(matches!(name(bad), Err(BadSample::MissingImage(_))), "{bad}");
    }
}

#[test]
fn what_cannot_be_read_is_said_with_the_remedy() {
    for (image, problem) in [
        ("https://example.com/a.png", "is an address, which is not fetched: download it"),
        ("s3://bucket/a.png", "is an address"),
        ("photo.heic", "is HEIC, which cannot be decoded: convert it to PNG or JPEG"),
        ("old.mp4", "is an .mp4 video, which cannot be decoded: extract its frames"),
    ] {
        let message = refused(&format!(r#"{{"image":"{image}","text":"x"}}"#));
        assert!(message.contains("field `image`") && message.contains(problem), "{message}");
    }
    for video in ["old.mp4", "x.MOV", "x.webm", "x.avi"] {
        assert!(
            refused(&format!(r#"{{"video":"{video}","text":"x"}}"#))
                .contains("video, which cannot be decoded: extract")
        );
    }
    assert!(matches!(get(r#"{"video":"none.gif","text":"x"}"#), Err(BadSample::MissingVideo(_))));
    assert!(matches!(get(r#"{"video":"../clip.gif","text":"x"}"#), Err(BadSample::OutsideImage(_))));
    let mp4 = STANDARD.encode([b"\0\0\0\x20ftypisom".as_slice(), &[0; 100]].concat());
    assert!(
        refused(&format!(r#"{{"video":{{"bytes":"{mp4}"}},"text":"x"}}"#)).contains("is an MP4, WebM or AVI video")
    );
}

/// Red values of the frames of the only video.
fn frames(record: &Record) -> Vec<u8> {
    let conversation = record.conversation(&tiny_processor()).unwrap();
    let videos = conversation.messages.iter().flat_map(|message| &message.content);
    let video = videos.filter_map(|content| if let Content::Video(frames) = content { Some(frames) } else { None });
    let [frames] = &video.collect::<Vec<_>>()[..] else { panic!("expected one video") };
    frames.iter().map(|frame| frame.get_pixel(0, 0).0[0]).collect()
}

#[test]
fn videos_are_animations_folders_and_lists_of_frames() {
    let gif = STANDARD.encode(gif(3));
    for (video, expected) in [
        (r#""video":"clip.gif""#.to_string(), vec![0, 40, 80]),
        (r#""videos":["clip.gif"]"#.into(), vec![0, 40, 80]),
        (r#""video":{"path":"clip.gif"}"#.into(), vec![0, 40, 80]),
        (format!(r#""video":"data:image/gif;base64,{gif}""#), vec![0, 40, 80]),
        // Frame 2 comes before frame 10.
        (r#""video":"clip""#.into(), vec![120, 80]),
        (r#""video":["a.png","b.png","clip/frame2.png"]"#.into(), vec![0, 40, 120]),
        (r#""frames":[{"path":"a.png"},{"path":"b.png"}]"#.into(), vec![0, 40]),
        (r#""video":"a.png""#.into(), vec![0]),
    ] {
        let (record, _folder) = get(&format!(r#"{{{video},"text":"x"}}"#)).unwrap_or_else(|e| panic!("{video}: {e}"));
        assert_eq!(frames(&record), expected, "{video}");
        assert_eq!(record.turns[0].text, "<video>\n");
        tiny_processor().training_sequence(&record.conversation(&tiny_processor()).unwrap()).unwrap();
    }
    let parts = r#"{"messages":[{"role":"user","content":[{"type":"video","video":"clip.gif"},{"type":"text","text":"What?"}]},{"role":"assistant","content":"x"}]}"#;
    let (record, _folder) = get(parts).unwrap();
    assert_eq!((frames(&record).len(), record.turns[0].text.as_str()), (3, "<video>What?"));
    let both = r#"{"image":"a.png","videos":["clip.gif","clip"],"conversations":[{"from":"human","value":"<image>\n<video> or <video>?"},{"from":"gpt","value":"x"}]}"#;
    let (record, _folder) = get(both).unwrap();
    assert!(matches!(&record.videos[..], [VideoSource::Path(_), VideoSource::Path(_)]));
    assert_eq!(record.conversation(&tiny_processor()).unwrap().messages[0].videos().count(), 2);
    let three = both.replace("<video>?", "<video><video>?");
    assert_eq!(refused(&three), "3 `<video>` markers for 2 videos: expected one each");
}

fn source(toml: &str, folder: &TempDir) -> FilesSource {
    let source: FilesSource = toml::from_str(toml).unwrap();
    source.resolved(|path| folder.path().join(path))
}

#[test]
fn columns_give_other_names() {
    let folder = folder();
    let line = r#"{"pic":"a.png","image":"b.png","q":"q?","a":"yes","caption":"c","key":7,"dialog2":[{"from":"human","value":"Hi"},{"from":"gpt","value":"Ho"}],"movie":"clip.gif"}"#;
    fs::write(folder.path().join("data.jsonl"), line).unwrap();
    let get = |columns: &str| source(&format!("path = \"data.jsonl\"\ncolumns = {columns}"), &folder).open();
    let record = get(r#"{ image = "pic", question = "q", answer = "a", id = "key" }"#).unwrap().get(0).unwrap();
    assert_eq!((images(&record), record.id.as_str()), (vec!["a.png".to_string()], "7"));
    assert_eq!(said(&record), [(Role::User, "<image>\nq?"), (Role::Assistant, "yes")]);
    let record = get(r#"{ image = "pic", text = "caption" }"#).unwrap().get(0).unwrap();
    assert_eq!(said(&record), [(Role::User, "<image>"), (Role::Assistant, "c")]);
    let record = get(r#"{ conversations = "dialog2", video = "movie" }"#).unwrap().get(0).unwrap();
    assert_eq!((said(&record)[1].1, record.videos.len()), ("Ho", 1));
    let error = get(r#"{ image = "photo" }"#).map(drop).unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, Error::Data(_)), "{message}");
    assert!(
        message.contains("no column \"photo\" (`columns.image`)") && message.contains("pic, image, q"),
        "{message}"
    );
    let unknown = toml::from_str::<FilesSource>("path = \"x\"\ncolumns = { picture = \"a\" }").unwrap_err().to_string();
    assert!(unknown.contains("unknown field `picture`") && unknown.contains("`image`"), "{unknown}");
}

#[test]
fn a_summary_counts_records_by_kind_and_names_bad_ones() {
    let folder = folder();
    let lines = [
        r#"{"image":"a.png","text":"x"}"#,
        r#"{"text":"x"}"#,
        r#"{"video":"clip.gif","text":"x"}"#,
        r#"{"image":"none.png","text":"x"}"#,
        r#"{"image":"a.png","video":"clip.gif","text":"x"}"#,
    ];
    let path: PathBuf = folder.path().join("data.jsonl");
    fs::write(&path, lines.join("\n")).unwrap();
    let summary = summarise("mine", &open(&path, None).unwrap(), 100);
    assert_eq!((summary.name.as_str(), summary.records, summary.sampled, summary.bad), ("mine", 5, 5, 1));
    assert_eq!((summary.with_images, summary.with_videos, summary.text_only), (2, 2, 1));
    assert!(summary.bad_reasons[0].contains("data.jsonl record 4: no image"), "{:?}", summary.bad_reasons);
    assert_eq!(summarise("mine", &open(&path, None).unwrap(), 2).sampled, 2);
}

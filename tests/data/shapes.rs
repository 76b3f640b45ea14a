//! Shapes world: reproducible scenes, recognisable objects, correct texts.

use std::collections::{BTreeMap, BTreeSet};

use haplovl::data::Dataset;
use haplovl::data::shapes::{
    Colour, Description, Object, QuestionKind, Scene, Shape, ShapesConfig, ShapesContent, ShapesDataset, Size, Split,
    caption_prompt, check_caption, vocabulary, words,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

const SIDE: u32 = 64;

fn scenes(count: u64) -> impl Iterator<Item = Scene> {
    (0..count).map(|i| Split::Test.scene(i, &ShapesConfig::default()))
}

fn rng_of(scene: &Scene) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(scene.seed)
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[test]
fn a_seed_always_gives_the_same_scene_image_and_texts() {
    let scene = Scene::generate(7, &ShapesConfig::default());
    assert_eq!(scene, Scene::generate(7, &ShapesConfig::default()));
    assert_ne!(scene.objects, Scene::generate(8, &ShapesConfig::default()).objects);
    let all: Vec<u8> = (0..64)
        .flat_map(|seed| {
            let scene = Scene::generate(seed, &ShapesConfig::default());
            let mut rng = rng_of(&scene);
            let mut bytes = scene.render(SIDE).into_raw();
            bytes.extend(serde_json::to_vec(&scene).unwrap());
            bytes.extend(scene.caption(&mut rng).into_bytes());
            bytes.extend(scene.questions(&mut rng).into_iter().flat_map(|q| (q.question + &q.answer).into_bytes()));
            bytes
        })
        .collect();
    assert_eq!(
        fnv1a(&all),
        11_798_225_574_627_506_029,
        "scenes, images or texts changed: trained models and reported results depend on them"
    );
}

#[test]
fn splits_share_no_seed() {
    let mut ranges = Split::ALL.map(Split::seeds);
    ranges.sort_by_key(|range| range.start);
    assert!(ranges.iter().all(|range| range.start < range.end));
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "{ranges:?}");
    for split in Split::ALL {
        assert!(split.seeds().contains(&split.scene(u64::MAX, &ShapesConfig::default()).seed));
    }
}

#[test]
fn invalid_configurations_are_rejected() {
    let rejected = |min_objects, max_objects| {
        ShapesConfig { min_objects, max_objects, ..ShapesConfig::default() }
            .validate()
            .expect_err("must be rejected")
            .to_string()
    };
    assert!(rejected(0, 3).contains("shapes.min_objects`: is 0, expected 1 to `max_objects` = 3"));
    assert!(rejected(1, 13).contains("shapes.max_objects`: is 13, expected 1 to 12"));
    assert!(ShapesConfig { min_objects: 6, ..ShapesConfig::default() }.validate().is_ok());
    let sized = |size_percent| ShapesConfig { size_percent, ..ShapesConfig::default() };
    let tiny = sized(24).validate().unwrap_err().to_string();
    assert!(tiny.contains("shapes.size_percent`: is 24, expected 25 to 100"), "{tiny}");
    assert!(sized(25).validate().is_ok());
    // `generate` clamps invalid settings.
    let clamped = ShapesConfig { min_objects: 9, max_objects: 0, ..sized(900) };
    assert_eq!(Scene::generate(1, &clamped).objects.len(), 1);
}

#[test]
fn object_counts_are_uniform_within_the_configured_range() {
    let mut counts = [0; 7];
    scenes(1200).for_each(|scene| counts[scene.objects.len()] += 1);
    assert!(counts[0] == 0 && counts[1..].iter().all(|&count| (150..250).contains(&count)), "{counts:?}");
}

/// Returns the number of pixels that `scene.objects[i]` covers fully, and the pixels among them that no later object
/// covers.
fn pixels(scene: &Scene, i: usize) -> (usize, Vec<(u32, u32)>) {
    let object = &scene.objects[i];
    let all: Vec<_> = (0..SIDE).flat_map(|y| (0..SIDE).map(move |x| (x, y))).collect();
    let own: Vec<_> = all.into_iter().filter(|&(x, y)| object.coverage(x, y, SIDE) >= 1.0).collect();
    let hidden = |&(x, y): &(u32, u32)| scene.objects[i + 1..].iter().any(|o| o.coverage(x, y, SIDE) > 0.0);
    (own.len(), own.iter().copied().filter(|at| !hidden(at)).collect())
}

fn distance(a: [f64; 3], b: [u8; 3]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - f64::from(b)).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn every_object_is_visible_in_its_colour() {
    for scene in scenes(300) {
        let image = scene.render(SIDE);
        for (i, object) in scene.objects.iter().enumerate() {
            let (own, visible) = pixels(&scene, i);
            assert!(visible.len() * 10 >= own * 7, "{object:?} of seed {} is hidden", scene.seed);
            assert!(visible.len() >= 12, "{object:?} of seed {} is too small", scene.seed);
            assert!(2.0 * object.radius * SIDE as f32 >= 9.0);
            let mut mean = [0.0; 3];
            for &(x, y) in &visible {
                let pixel = image.get_pixel(x, y).0;
                mean.iter_mut().zip(pixel).for_each(|(m, p)| *m += f64::from(p) / visible.len() as f64);
            }
            let nearest = Colour::ALL.iter().min_by(|a, b| distance(mean, a.rgb()).total_cmp(&distance(mean, b.rgb())));
            assert_eq!(nearest, Some(&object.colour), "{object:?} of seed {} looks {mean:?}", scene.seed);
            for shade in scene.background.shades {
                assert!(distance(mean, shade) > 75.0, "{object:?} of seed {} before {shade:?}", scene.seed);
            }
        }
    }
}

#[test]
fn size_classes_have_gaps_and_names_are_unique() {
    for scene in scenes(500) {
        let names: BTreeSet<_> = scene.objects.iter().map(|o| (o.colour, o.shape)).collect();
        assert_eq!(names.len(), scene.objects.len());
        for pair in scene.objects.windows(2) {
            assert!(pair[0].size >= pair[1].size, "painted from large to small");
            assert!(pair[0].size == pair[1].size || pair[0].radius > 1.3 * pair[1].radius);
        }
    }
}

#[test]
fn vocabulary_is_exactly_the_set_of_emitted_words() {
    let vocabulary: BTreeSet<String> = vocabulary().into_iter().collect();
    let mut said = BTreeSet::new();
    for scene in scenes(1500) {
        let mut rng = rng_of(&scene);
        let mut texts = vec![caption_prompt(&mut rng), scene.caption(&mut rng)];
        texts.extend(scene.questions(&mut rng).into_iter().flat_map(|q| [q.question, q.answer]));
        texts.extend(scene.text_sentences(&mut rng));
        said.extend(texts.iter().flat_map(|text| words(text)).map(String::from));
    }
    assert_eq!(said.difference(&vocabulary).collect::<Vec<_>>(), Vec::<&String>::new(), "emitted, but not listed");
    assert_eq!(vocabulary.difference(&said).collect::<Vec<_>>(), Vec::<&String>::new(), "listed, but never emitted");
    assert!((80..150).contains(&vocabulary.len()), "{} words", vocabulary.len());
}

#[test]
fn words_split_at_punctuation() {
    let parts: Vec<_> = words("from left to right: a (red) star, or?").collect();
    assert_eq!(parts, ["from", "left", "to", "right", ":", "a", "(", "red", ")", "star", ",", "or", "?"]);
}

#[test]
fn generated_captions_score_as_complete() {
    let mut wordings = BTreeSet::new();
    for scene in scenes(500) {
        let caption = scene.caption(&mut rng_of(&scene));
        let score = check_caption(&scene, &caption);
        assert!(score.complete(), "{caption}: {score:?}");
        wordings.insert(words(&caption).take(2).collect::<Vec<_>>().join(" "));
    }
    assert!(wordings.len() > 8, "{wordings:?}");
}

fn dataset(content: ShapesContent, scenes: usize) -> ShapesDataset {
    let (kinds, config) = (QuestionKind::ALL.into(), ShapesConfig::default());
    let (split, image_last) = (Split::Train, false);
    ShapesDataset { split, first: 0, scenes, side: 16, content, rounds: 1, image_last, kinds, config }
}

/// Up to twelve objects of half the size.
fn crowded() -> ShapesConfig {
    ShapesConfig { min_objects: 7, max_objects: 12, size_percent: 50 }
}

#[test]
fn crowded_scenes_hold_up_to_twelve_smaller_objects() {
    let mut counts = [0; 13];
    for scene in (0..300).map(|i| Split::Test.scene(i, &crowded())) {
        counts[scene.objects.len()] += 1;
        let names: BTreeSet<_> = scene.objects.iter().map(|o| (o.colour, o.shape)).collect();
        assert_eq!(names.len(), scene.objects.len());
        for Object { size, radius, .. } in &scene.objects {
            let [least, most] = size.radius();
            assert!((least / 2.0..most / 2.0).contains(radius), "{size} {radius}");
        }
        let caption = scene.caption(&mut rng_of(&scene));
        assert!(check_caption(&scene, &caption).complete(), "{caption}");
    }
    assert!(counts[..7].iter().sum::<i32>() == 0 && counts[12] > 20, "{counts:?}");
}

#[test]
fn recipes_of_earlier_versions_mean_the_same_world() {
    // The identity of a run in its checkpoints is made of this text.
    let text = serde_json::to_string(&dataset(ShapesContent::Captions, 3)).unwrap();
    assert!(!text.contains("size_percent") && !text.contains("image_last"), "{text}");
    let read: ShapesConfig = serde_json::from_str(r#"{"min_objects":1,"max_objects":6}"#).unwrap();
    assert_eq!(read, ShapesConfig::default());
}

#[test]
fn the_image_may_follow_the_first_text() {
    let texts = |image_last| {
        let data = ShapesDataset { image_last, ..dataset(ShapesContent::Questions, 20) };
        Vec::from_iter(
            (0..20).map(|i| data.get(i).unwrap().turns.into_iter().map(|turn| turn.text)).map(Vec::from_iter),
        )
    };
    for (first, last) in texts(false).into_iter().zip(texts(true)) {
        assert!(first[0].starts_with("<image>\n") && last[0].ends_with("\n<image>"), "{last:?}");
        assert_eq!(first[0].replace("<image>\n", ""), last[0].replace("\n<image>", ""));
        assert_eq!(first[1..], last[1..]);
    }
}

#[test]
fn relations_are_right_and_asked_on_request_only() {
    let mut answers = BTreeMap::<String, usize>::new();
    let known: BTreeSet<_> = vocabulary().into_iter().collect();
    for scene in (0..600).map(|i| Split::Test.scene(i, &crowded())) {
        let mut rng = rng_of(&scene);
        assert!(scene.questions(&mut rng).iter().all(|q| q.kind != QuestionKind::Relation));
        let Some(asked) = scene.question(QuestionKind::Relation, &mut rng) else { continue };
        assert!(words(&asked.question).all(|word| known.contains(word)), "{}", asked.question);
        assert_eq!(related(&scene, &asked.question), asked.answer, "{}: {:?}", asked.question, scene.objects);
        *answers.entry(asked.answer).or_default() += 1;
    }
    let (asked, most) = (answers.values().sum::<usize>(), answers.values().max().unwrap());
    assert!(asked > 500 && most * 4 < asked, "{answers:?}");
    assert!(["red", "ring", "large", "eight"].iter().all(|answer| answers.contains_key(*answer)), "{answers:?}");
    let one = ShapesConfig { min_objects: 1, max_objects: 1, ..ShapesConfig::default() };
    let alone = Split::Test.scene(0, &one);
    assert_eq!(alone.question(QuestionKind::Relation, &mut rng_of(&alone)), None);
}

/// Answers a relation question from the objects alone.
fn related(scene: &Scene, question: &str) -> String {
    let named = described(question.rsplit(" the ").next().unwrap());
    let [b] = scene.objects.iter().filter(|o| named.matches(o)).collect::<Vec<_>>()[..] else { panic!("{question}") };
    let others = || scene.objects.iter().filter(|o| (o.colour, o.shape) != (b.colour, b.shape));
    if question.contains("how many") {
        let beside = |o: &&Object| match question {
            q if q.contains(" left ") => o.x < b.x,
            q if q.contains(" right ") => o.x > b.x,
            q if q.contains(" above ") => o.y < b.y,
            _ => o.y > b.y,
        };
        let numbers = "zero one two three four five six seven eight nine ten eleven twelve";
        return numbers.split(' ').nth(others().filter(beside).count()).unwrap().into();
    }
    let distance = |o: &Object| (o.x - b.x).hypot(o.y - b.y);
    let nearest = others().min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap();
    match question {
        q if q.contains("shape") => nearest.shape.to_string(),
        q if q.contains("size") || q.contains("large") => nearest.size.to_string(),
        _ => nearest.colour.to_string(),
    }
}

/// Returns whether `place` (for example `left edge`) is the edge or corner nearest to the object.
fn is_nearest(object: &Object, place: &str) -> bool {
    let [x, y] = [object.x, object.y];
    let [left, top] = [x < 0.5, y < 0.5];
    let clear = |distance: f32| [x, 1.0 - x, y, 1.0 - y].iter().filter(|d| **d <= distance).count() == 1;
    match place {
        "left edge" => clear(x),
        "right edge" => clear(1.0 - x),
        "top edge" => clear(y),
        "bottom edge" => clear(1.0 - y),
        "top left corner" => top && left,
        "top right corner" => top && !left,
        "bottom left corner" => !top && left,
        "bottom right corner" => !top && !left,
        _ => panic!("{place}"),
    }
}

/// Parses the attributes that a text names.
fn described(text: &str) -> Description {
    Description {
        size: words(text).find_map(Size::from_word),
        colour: words(text).find_map(Colour::from_word),
        shape: words(text).find_map(Shape::from_word),
    }
}

#[test]
fn statements_identify_each_object_and_state_its_other_attributes() {
    let data = dataset(ShapesContent::Statements, 300);
    let mut seen = BTreeMap::<_, usize>::new();
    for (scene, turns) in (0..data.len()).map(|i| (data.scene(i), data.get(i).unwrap().turns)) {
        let sentences: Vec<_> = turns[1].text.split_terminator('.').collect();
        assert_eq!(sentences.len(), scene.objects.len(), "{}", turns[1].text);
        let mut told_of = BTreeSet::new();
        for sentence in sentences {
            let (subject, told) = sentence.trim().strip_prefix("the ").unwrap().split_once(" is ").unwrap();
            let (told, place) = told.split_once("nearest to the ").unwrap_or((told, ""));
            let (subject, told) = (described(subject), described(told));
            let [object] = scene.objects.iter().filter(|o| subject.matches(o)).collect::<Vec<_>>()[..] else {
                panic!("{sentence} in {scene:?}");
            };
            told_of.insert((object.colour, object.shape));
            assert!(told.matches(object), "{sentence}: {object:?}");
            assert!(place.is_empty() || is_nearest(object, place), "{sentence}: {object:?}");
            let Description { size, colour, shape } = told;
            assert_eq!([subject.size, size].iter().flatten().count(), 1, "{sentence}");
            assert_eq!([subject.colour, colour].iter().flatten().count(), 1, "{sentence}");
            assert_eq!([subject.shape, shape].iter().flatten().count(), 1, "{sentence}");
            let told = [size.is_some(), colour.is_some(), shape.is_some(), place.is_empty()];
            *seen.entry(told).or_default() += 1;
        }
        assert_eq!(told_of.len(), scene.objects.len(), "{}", turns[1].text);
    }
    assert_eq!(seen.len(), 12, "every subset of one or two attributes, with and without location: {seen:?}");
    assert!(seen.values().all(|&count| count > 5), "{seen:?}");
}

#[test]
fn lists_follow_the_requested_order_and_state_locations() {
    let data = dataset(ShapesContent::Captions, 400);
    let mut seen = BTreeMap::<_, usize>::new();
    for (scene, turns) in (0..data.len()).map(|i| (data.scene(i), data.get(i).unwrap().turns)) {
        let down = turns[0].text.contains("from top to bottom");
        if !down && !turns[0].text.contains("from left to right") {
            continue;
        }
        let text = turns[1].text.trim_end_matches('.').replace(" and ", ", ");
        let items: Vec<(&Object, &str)> = text
            .split(", ")
            .map(|item| {
                let named = |object: &&Object| item.starts_with(&Description::full(object).indefinite());
                let object = scene.objects.iter().find(named).unwrap_or_else(|| panic!("{item} in {scene:?}"));
                (object, item.split_once(" nearest to the ").map_or("", |(_, place)| place))
            })
            .collect();
        assert_eq!(items.len(), scene.objects.len(), "{text}");
        let along = |object: &Object| if down { object.y } else { object.x };
        assert!(items.iter().map(|(object, _)| along(object)).is_sorted(), "{text}");
        for (object, place) in items {
            assert!(place.is_empty() || is_nearest(object, place), "{place}: {object:?}");
            *seen.entry((down, place.split(' ').next_back().map(String::from))).or_default() += 1;
        }
    }
    assert_eq!(seen.len(), 6, "both orders, each with no location, corner and edge: {seen:?}");
    assert!(seen.values().all(|&count| count > 30), "{seen:?}");
}

#[test]
fn wrong_captions_are_rejected() {
    let object = |json: &str| serde_json::from_str::<Object>(json).unwrap();
    let mut scene = Scene::generate(1, &ShapesConfig::default());
    scene.objects = vec![
        object(
            r#"{"shape":"circle","colour":"red","size":"large","x":0.3,"y":0.3,"radius":0.2,"tilt":0,"rgb":[222,28,36]}"#,
        ),
        object(
            r#"{"shape":"star","colour":"red","size":"small","x":0.8,"y":0.8,"radius":0.08,"tilt":0,"rgb":[222,28,36]}"#,
        ),
    ];
    let score = |caption| check_caption(&scene, caption);
    assert!(score("A large red circle , and a small red star .").complete());
    assert!(score("a red star and a circle").complete(), "naming fewer attributes is not an error");
    assert!(
        score("a red object and a red circle").complete(),
        "the first description must be matched to the other object"
    );
    assert!(score("a large red circle").all_right() && !score("a large red circle").complete());
    assert!(!score("a small red circle and a small red star").all_right());
    assert!(!score("a large red circle, a small red star and a small red star").all_right(), "one object named twice");
    assert!(!score("three objects: a large red circle and a small red star").all_right());
    assert!(!score("a large red").all_right(), "an unfinished caption");
    assert!(!score("").all_right());
    assert_eq!(score("a large red circle and a blue star").right, 1);
}

/// Object with its attribute words, for [`answer`].
struct Seen<'a> {
    words: [&'a str; 3],
    object: &'a Object,
}

/// Answers a question from the objects alone, independently of the code that generates questions.
fn answer(scene: &Scene, question: &str) -> String {
    let seen: Vec<_> = scene
        .objects
        .iter()
        .map(|object| Seen { words: [object.size.word(), object.colour.word(), object.shape.word()], object })
        .collect();
    let parts: Vec<_> = words(question).collect();
    let has = |text: &str| format!(" {question}").contains(text);
    // Groups of objects that match each run of attribute words before a noun.
    let attributes = ["small", "medium", "large", "red", "green", "blue", "yellow", "orange", "purple", "pink", "cyan"];
    let nouns = ["circle", "square", "triangle", "star", "cross", "ring", "object"];
    let mut groups: Vec<Vec<&Seen>> = vec![];
    let mut said = vec![];
    for part in &parts {
        let noun = nouns
            .into_iter()
            .find(|&noun| *part == noun || *part == format!("{noun}s") || *part == format!("{noun}es"));
        match noun {
            Some(noun) => {
                said.extend((noun != "object").then_some(noun));
                groups.push(seen.iter().filter(|s| said.iter().all(|word| s.words.contains(word))).collect());
                said.clear();
            }
            None if attributes.contains(part) => said.push(part),
            None => said.clear(),
        }
    }
    let name = |s: &Seen| format!("{} {}", s.words[1], s.words[2]);
    let yes = |holds: bool| if holds { "yes" } else { "no" }.to_string();
    let place = |s: &Seen| [f64::from(s.object.x), f64::from(s.object.y)];
    let edges = |s: &Seen| {
        let ([x, y], r) = (place(s), f64::from(s.object.radius));
        [("left", x - r), ("right", 1.0 - x - r), ("top", y - r), ("bottom", 1.0 - y - r)]
    };
    let edge = |s: &Seen| edges(s).into_iter().find(|(name, _)| has(&format!("{name} edge"))).unwrap().1;

    if has(" is there ") || has(" do you see a") || has(" does the picture") {
        return yes(!groups[0].is_empty());
    }
    if has(" how many ") || has(" count ") {
        return ["zero", "one", "two", "three", "four", "five", "six"][groups[0].len()].into();
    }
    let only = |group: &[&Seen]| {
        assert_eq!(group.len(), 1, "`{question}` does not name exactly one object in {:?}", scene.objects);
    };
    if has(" which corner ") {
        only(&groups[0]);
        let [x, y] = place(groups[0][0]);
        return format!("{} {}", if y < 0.5 { "top" } else { "bottom" }, if x < 0.5 { "left" } else { "right" });
    }
    if has(" which edge ") {
        only(&groups[0]);
        let [x, y] = place(groups[0][0]);
        let distances = [("left", x), ("right", 1.0 - x), ("top", y), ("bottom", 1.0 - y)];
        return distances.into_iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0.into();
    }
    if has(" corner") {
        let corner = [f64::from(u8::from(has(" right "))), f64::from(u8::from(has(" bottom ")))];
        let far = |s: &Seen| place(s).iter().zip(corner).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        let nearest = seen.iter().min_by(|a, b| far(a).total_cmp(&far(b))).unwrap();
        return name(nearest);
    }
    if has(" nearest ") {
        groups[0] = vec![groups[0].iter().min_by(|a, b| edge(a).total_cmp(&edge(b))).unwrap()];
    }
    let only = |i: usize| {
        assert_eq!(groups[i].len(), 1, "`{question}` does not name exactly one object in {:?}", scene.objects);
        groups[i][0]
    };
    if has(" are there ") {
        let (a, b) = (groups[0].len(), groups[1].len());
        return yes(if has(" more ") { a > b } else { a < b });
    }
    if has(" same size") {
        return yes(only(0).object.size == only(1).object.size);
    }
    if has(" larger") || has(" smaller") {
        let larger = only(0).object.radius > only(1).object.radius;
        let first = larger == has(" larger");
        return if has(" which ") { name(only(usize::from(!first))) } else { yes(first) };
    }
    if has(" what color ") || has(" what colour ") || has(" the color ") {
        return only(0).words[1].into();
    }
    if has(" shape ") {
        return only(0).words[2].into();
    }
    if has(" size ") || has(" how large ") {
        return only(0).words[0].into();
    }
    let is = |word: &str, a: &Seen, b: &Seen| {
        let ([ax, ay], [bx, by]) = (place(a), place(b));
        match word {
            "left" => ax < bx,
            "right" => ax > bx,
            "above" => ay < by,
            _ => ay > by,
        }
    };
    let directions: Vec<_> = ["left", "right", "above", "below"].into_iter().filter(|d| parts.contains(d)).collect();
    if has(" what is ") || has(" which object ") {
        let reference = groups.last().unwrap()[0];
        let found: Vec<_> = seen.iter().filter(|s| is(directions[0], s, reference)).collect();
        assert_eq!(found.len(), 1, "`{question}` in {:?}", scene.objects);
        return name(found[0]);
    }
    match directions[..] {
        [one] => yes(is(one, only(0), only(1))),
        [one, other] => if is(one, only(0), only(1)) { one } else { other }.into(),
        _ => panic!("`{question}` has an unknown form"),
    }
}

#[test]
fn every_answer_is_correct() {
    for scene in scenes(1500) {
        let mut rng = rng_of(&scene);
        for q in scene.questions(&mut rng) {
            assert_eq!(answer(&scene, &q.question), q.answer, "{}: {} in {:?}", q.kind, q.question, scene.objects);
        }
        for sentence in scene.text_sentences(&mut rng).iter().skip(1) {
            let (_, question) = sentence.split_once(" question: ").unwrap();
            let (question, said) = question.split_once(" answer: ").unwrap();
            assert_eq!(answer(&scene, question), said.trim_end_matches('.'), "{sentence}");
        }
    }
}

#[test]
fn rounds_never_repeat_a_question() {
    for scene in scenes(50) {
        let questions = scene.questions_of(&QuestionKind::TOLD, 3, &mut rng_of(&scene));
        assert!(questions.iter().all(|q| QuestionKind::TOLD.contains(&q.kind)));
        let asked: BTreeSet<_> = questions.iter().map(|q| (q.kind, &q.question)).collect();
        assert_eq!(asked.len(), questions.len());
        assert!(questions.len() > 8, "{questions:?}");
    }
}

#[test]
fn the_most_frequent_answer_of_each_kind_is_below_its_limit() {
    let mut answers: BTreeMap<QuestionKind, BTreeMap<String, usize>> = BTreeMap::new();
    let count = 3000;
    for scene in scenes(count) {
        let questions = scene.questions(&mut rng_of(&scene));
        let kinds: BTreeSet<_> = questions.iter().map(|q| q.kind).collect();
        assert_eq!(kinds.len(), questions.len(), "one of each kind");
        for q in questions {
            assert!((1..=2).contains(&words(&q.answer).count()), "{}", q.answer);
            *answers.entry(q.kind).or_default().entry(q.answer).or_default() += 1;
        }
    }
    let limit = |kind| match kind {
        QuestionKind::Existence => 0.53,
        QuestionKind::Size => 0.40,
        QuestionKind::Comparison => 0.42,
        QuestionKind::Counting => 0.30,
        QuestionKind::Spatial => 0.32,
        QuestionKind::Location => 0.22,
        QuestionKind::Shape | QuestionKind::FineGrained => 0.22,
        QuestionKind::Colour => 0.17,
        other => panic!("there is no limit for {other:?} yet"),
    };
    for kind in QuestionKind::ALL {
        let total: usize = answers[&kind].values().sum();
        let most = *answers[&kind].values().max().unwrap() as f64 / total as f64;
        println!("{kind}: {total} questions, most frequent {most:.3}: {:?}", answers[&kind]);
        assert!(most < limit(kind), "{kind}: {:?}", answers[&kind]);
        assert!(total as u64 * 10 > count * 6, "only {total} of {kind}");
    }
}

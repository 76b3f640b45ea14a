//! The recipe in the README (its Rust code is covered by doc tests), and parts of the examples.

#![allow(clippy::unwrap_used, reason = "a failed test helper should panic")]

#[path = "../examples/common/lines.rs"]
mod lines;

use haplovl::train::{Recipe, Stage};

#[test]
fn the_recipe_in_the_readme_is_valid() {
    let (_, after) = include_str!("../README.md").split_once("```toml\n").unwrap();
    let (recipe, _) = after.split_once("```").unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), recipe).unwrap();
    let recipe = Recipe::read(file.path(), &[]).unwrap();
    assert!(matches!(recipe.stage, Stage::Tune { .. }));
    recipe.model_config().unwrap();
}

#[test]
fn lines_of_input_are_bounded() {
    let mut input = std::io::Cursor::new(b"one\r\n\ntwo".to_vec());
    let mut lines = Vec::new();
    while let Some(line) = lines::next_line(&mut input).unwrap() {
        lines.push(line);
    }
    assert_eq!(lines, ["one", "", "two"]);
    let message = |input: &mut dyn std::io::BufRead| lines::next_line(&mut { input }).unwrap_err().to_string();
    assert!(message(&mut std::io::BufReader::new(std::io::repeat(b'a'))).contains("longer than 1048576 bytes"));
    assert!(message(&mut &b"\xff\n"[..]).contains("not UTF-8"));
}

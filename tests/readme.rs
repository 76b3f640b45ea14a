//! What the README shows besides Rust, which is tested as documentation.

#![allow(clippy::unwrap_used, reason = "a failed test helper should panic")]

use haplovl::train::{Recipe, Stage};

#[test]
fn the_recipe_in_the_readme_is_one() {
    let (_, after) = include_str!("../README.md").split_once("```toml\n").unwrap();
    let (recipe, _) = after.split_once("```").unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), recipe).unwrap();
    let recipe = Recipe::read(file.path(), &[]).unwrap();
    assert!(matches!(recipe.stage, Stage::Tune { .. }));
    recipe.model_config().unwrap();
}

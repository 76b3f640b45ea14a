//! Recipes: a whole TOML file, or lines `field=value` that change a valid one.
//!
//! The first byte chooses which. An accepted recipe is valid.

#![no_main]

use haplovl::train::Recipe;
use haplovl_fuzz::{accepted, file};
use libfuzzer_sys::fuzz_target;

const VALID: &str = include_str!("../../recipes/shapes/quick.toml");

fuzz_target!(|data: &[u8]| {
    let Some((kind, content)) = data.split_first() else { return };
    let recipe = match kind % 2 {
        0 => Recipe::read(file("recipe.toml", content), &[]),
        _ => {
            let Ok(text) = std::str::from_utf8(content) else { return };
            let overrides: Vec<String> = text.lines().map(String::from).collect();
            Recipe::read(file("recipe.toml", VALID.as_bytes()), &overrides)
        }
    };
    if let Some(recipe) = accepted(recipe) {
        accepted(recipe.validate()).expect("a recipe that was read is valid");
    }
});

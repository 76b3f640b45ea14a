//! The groups of parameters of a run: the recipe's own, then what the stage says of parts of the model.

use super::recipe::{Recipe, Stage};
use crate::config::HaploVlConfig;
use crate::model::ADAPTER_PREFIX;
use crate::optim::{ParamGroup, glob_matches, trainable};
use crate::{Error, Result};

/// Those of `names` that a recipe trains.
///
/// # Errors
/// [`Error::Config`] for a group of the recipe whose pattern matches no name or whose settings are out of range, and for
/// `stage.pre_decoder_lr_scale` if no name is of the pre-decoder.
pub(super) fn trained_names(recipe: &Recipe, config: &HaploVlConfig, names: &[String]) -> Result<Vec<String>> {
    if pre_decoder_lr_scale(recipe).is_some() && !names.iter().any(|name| is_of_pre_decoder(name, config)) {
        let message = "has no effect, as no parameter of the pre-decoder is trained: leave it out";
        return Err(Error::config("stage.pre_decoder_lr_scale", message));
    }
    trainable(&parameter_groups(recipe, config, names), names)
}

/// The groups of a recipe for parameters of these names. Its own come first, so that errors number them as it does; the
/// stage's follow, for parameters to which none of its own gives a rate.
pub(super) fn parameter_groups<'a>(
    recipe: &Recipe,
    config: &HaploVlConfig,
    names: impl IntoIterator<Item = &'a String>,
) -> Vec<ParamGroup> {
    let own = &recipe.optimizer.groups;
    let has_rate = |name: &str| own.iter().any(|group| group.lr_scale.is_some() && glob_matches(&group.pattern, name));
    let mut groups = own.clone();
    if let Some(scale) = pre_decoder_lr_scale(recipe) {
        let names = names.into_iter().filter(|name| is_of_pre_decoder(name, config) && !has_rate(name));
        groups.extend(names.map(|name| ParamGroup {
            pattern: name.clone(),
            lr_scale: Some(scale),
            weight_decay: None,
        }));
    }
    groups
}

/// The factor of the pre-decoder's rate, if it is not 1.
fn pre_decoder_lr_scale(recipe: &Recipe) -> Option<f64> {
    match recipe.stage {
        Stage::Tune { pre_decoder_lr_scale, .. } => Some(pre_decoder_lr_scale).filter(|scale| *scale != 1.0),
        _ => None,
    }
}

/// Whether a parameter, or the one that it adapts, belongs to the pre-decoder: the patch projection, the position
/// embeddings, the norm before the layers, and the first layers.
fn is_of_pre_decoder(name: &str, config: &HaploVlConfig) -> bool {
    let name = name.strip_prefix(ADAPTER_PREFIX).unwrap_or(name);
    let Some(name) = name.strip_prefix("model.") else { return false };
    if let Some(rest) = name.strip_prefix("layers.") {
        let layer = rest.split('.').next().and_then(|layer| layer.parse::<usize>().ok());
        return layer.is_some_and(|layer| layer < config.pre_decoder.num_hidden_layers);
    }
    ["patch_embed.", "pre_pos_embed", "pre_norm."].iter().any(|part| name.starts_with(part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::HaploVl;
    use crate::weights::ParameterShapes;

    #[test]
    fn the_scale_of_the_pre_decoder_reaches_its_parameters_alone() {
        let config = HaploVlConfig::tiny();
        let recorded = ParameterShapes::default();
        HaploVl::new(&config, recorded.var_builder()).unwrap();
        let names = Vec::from_iter(recorded.shapes().into_keys());
        let recipe_of = |stage: &str, groups: &str| {
            let sets = [format!("stage={stage}"), format!("optimizer.groups={groups}")];
            Recipe::read("recipes/shapes/tune.toml", &sets).unwrap()
        };
        let groups_of = |stage: &str, groups: &str| parameter_groups(&recipe_of(stage, groups), &config, &names);
        assert!(groups_of("{ kind = \"tune\" }", "[]").is_empty());
        let groups = groups_of("{ kind = \"tune\", pre_decoder_lr_scale = 0 }", "[]");
        let trained = trainable(&groups, &names).unwrap();
        let frozen = Vec::from_iter(names.iter().filter(|name| !trained.contains(name)));
        let first_post = format!("model.layers.{}.", config.pre_decoder.num_hidden_layers);
        assert!(frozen.iter().any(|name| name.starts_with("model.layers.0.")) && frozen.len() == groups.len());
        assert!(!frozen.iter().any(|name| name.starts_with(&first_post) || name.contains("connector")));
        for name in ["model.patch_embed.proj.weight", "model.pre_pos_embed", "model.pre_norm.weight"] {
            assert!(frozen.iter().any(|frozen| *frozen == name), "{name}");
        }
        let groups = groups_of(
            "{ kind = \"tune\", pre_decoder_lr_scale = 0 }",
            "[{ pattern = \"model.pre_norm.*\", lr_scale = 0.5 }]",
        );
        assert!(trainable(&groups, &names).unwrap().contains(&"model.pre_norm.weight".to_string()));
        let error = |groups: &str, names: &[String]| {
            let recipe = recipe_of("{ kind = \"tune\", pre_decoder_lr_scale = 0 }", groups);
            trained_names(&recipe, &config, names).unwrap_err().to_string()
        };
        // Errors number the groups as the recipe does.
        let mistyped = error("[{ pattern = \"model.pre_nrm.*\", lr_scale = 0.5 }]", &names);
        assert!(mistyped.contains("`optimizer.groups[0].pattern`"), "{mistyped}");
        let without = error("[]", &["lm_head.weight".into()]);
        assert!(without.contains("`stage.pre_decoder_lr_scale`: has no effect"), "{without}");
        assert!(is_of_pre_decoder("base_model.model.model.layers.0.mlp.fc1.lora_A.weight", &config));
    }
}

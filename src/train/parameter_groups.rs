//! The groups of parameters of a run: what the stage says of parts of the model, then the recipe's own groups.

use super::recipe::{Recipe, Stage};
use crate::config::HaploVlConfig;
use crate::model::ADAPTER_PREFIX;
use crate::optim::ParamGroup;

/// The groups of a recipe for parameters of these names; the recipe's own come last and take precedence.
pub(super) fn parameter_groups<'a>(
    recipe: &Recipe,
    config: &HaploVlConfig,
    names: impl IntoIterator<Item = &'a String>,
) -> Vec<ParamGroup> {
    let of_stage = |scale: f64| {
        let names = names.into_iter().filter(|name| is_of_pre_decoder(name, config));
        let group = |name: &String| ParamGroup { pattern: name.clone(), lr_scale: Some(scale), weight_decay: None };
        names.map(group).collect::<Vec<_>>()
    };
    let mut groups = match recipe.stage {
        Stage::Tune { pre_decoder_lr_scale, .. } if pre_decoder_lr_scale != 1.0 => of_stage(pre_decoder_lr_scale),
        _ => Vec::new(),
    };
    groups.extend(recipe.optimizer.groups.iter().cloned());
    groups
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
    use crate::optim::trainable;
    use crate::weights::ParameterShapes;

    #[test]
    fn the_scale_of_the_pre_decoder_reaches_its_parameters_alone() {
        let config = HaploVlConfig::tiny();
        let recorded = ParameterShapes::default();
        HaploVl::new(&config, recorded.var_builder()).unwrap();
        let names = Vec::from_iter(recorded.shapes().into_keys());
        let groups_of = |stage: &str, groups: &str| {
            let sets = [format!("stage={stage}"), format!("optimizer.groups={groups}")];
            let recipe = Recipe::read("recipes/shapes/tune.toml", &sets).unwrap();
            parameter_groups(&recipe, &config, &names)
        };
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
        assert!(is_of_pre_decoder("base_model.model.model.layers.0.mlp.fc1.lora_A.weight", &config));
    }
}

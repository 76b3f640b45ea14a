//! Settings for groups of parameters, selected by name.

use serde::{Deserialize, Serialize};

use crate::config::validate::not_negative;
use crate::{Error, Result};

/// Settings for the parameters whose name matches a pattern.
///
/// Groups apply in order: if several groups match a parameter, the last group that sets a field determines that field.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParamGroup {
    /// Pattern of parameter names, in which each `*` matches any number of characters, dots included.
    pub pattern: String,
    /// Factor on the learning rate; 0 freezes the parameters, which then have no gradients and no moments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr_scale: Option<f64>,
    /// Decoupled weight decay in place of the optimizer's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
}

/// Patterns of parameters without weight decay: norm scales, biases, position embeddings and DoRA's magnitudes.
const UNDECAYED: [&str; 7] =
    ["*norm*", "*.bias", "*pos*_embed*", "*newline", "*class_embedding", "*logit_scale", "*lora_magnitude_vector"];

/// Groups that disable weight decay for biases, norms, position embeddings and the newline, as far as they occur in
/// `names`.
pub fn undecayed_groups<'a>(names: impl Iterator<Item = &'a String> + Clone) -> Vec<ParamGroup> {
    let matches = |pattern: &&str| names.clone().any(|name| glob_matches(pattern, name));
    let group = |pattern: &str| ParamGroup { pattern: pattern.into(), lr_scale: None, weight_decay: Some(0.0) };
    UNDECAYED.iter().filter(|pattern| matches(pattern)).map(|pattern| group(pattern)).collect()
}

/// Settings of one parameter after all groups are applied.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Settings {
    pub lr_scale: f64,
    pub weight_decay: f64,
}

/// Applies `groups` to each of `names`.
///
/// # Errors
/// [`Error::Config`] for a negative or non-finite setting, and for a pattern that matches no name: a typing error would
/// silently train parameters that should be frozen.
pub(super) fn resolve<'a>(
    groups: &[ParamGroup],
    weight_decay: f64,
    names: impl Iterator<Item = &'a String> + Clone,
) -> Result<Vec<Settings>> {
    for (n, group) in groups.iter().enumerate() {
        for (name, value) in [("lr_scale", group.lr_scale), ("weight_decay", group.weight_decay)] {
            value.map_or(Ok(()), |value| not_negative(&format!("optimizer.groups[{n}].{name}"), value))?;
        }
        if !names.clone().any(|name| glob_matches(&group.pattern, name)) {
            let example = names.clone().next().map_or("none", String::as_str);
            return Err(Error::config(
                format!("optimizer.groups[{n}].pattern"),
                format!(
                    "`{}` matches none of the {} trainable parameters (the first is `{example}`): correct or remove it",
                    group.pattern,
                    names.clone().count()
                ),
            ));
        }
    }
    let settings = |name: &'a String| {
        let matching = groups.iter().filter(|group| glob_matches(&group.pattern, name));
        matching.fold(Settings { lr_scale: 1.0, weight_decay }, |settings, group| Settings {
            lr_scale: group.lr_scale.unwrap_or(settings.lr_scale),
            weight_decay: group.weight_decay.unwrap_or(settings.weight_decay),
        })
    };
    Ok(names.map(settings).collect())
}

/// Names of the parameters that no group freezes.
///
/// # Errors
/// [`Error::Config`] for a setting out of range, and for a pattern that matches no name.
pub fn trainable(groups: &[ParamGroup], names: &[String]) -> Result<Vec<String>> {
    let settings = resolve(groups, 0.0, names.iter())?;
    let moving = names.iter().zip(settings).filter(|(_, settings)| settings.lr_scale > 0.0);
    Ok(moving.map(|(name, _)| name.clone()).collect())
}

/// Whether `name` matches `pattern`, in which each `*` matches any number of characters.
pub fn glob_matches(pattern: &str, name: &str) -> bool {
    let mut pieces = pattern.split('*');
    let Some(mut rest) = pieces.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let Some(last) = pieces.next_back() else { return rest.is_empty() };
    // The leftmost match of each middle piece leaves the most text for the pieces that follow.
    for piece in pieces {
        match rest.split_once(piece) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_whole_names() {
        let matching =
            [("*", ""), ("*", "a.b"), ("a.b", "a.b"), ("*.bias", "x.bias"), ("a*b*c", "a-b-b-c"), ("a*a", "aa")];
        let others = [("", "a"), ("a", "ab"), ("*.bias", "bias"), ("a*a", "a"), ("a*b*c", "acb"), ("*.norm", "norm.x")];
        assert!(matching.iter().all(|(pattern, name)| glob_matches(pattern, name)));
        assert!(others.iter().all(|(pattern, name)| !glob_matches(pattern, name)));
        assert!(glob_matches("*ab*ab", "abab") && !glob_matches("*ab*ab", "ab"));
    }

    #[test]
    fn later_groups_override_single_fields() {
        let group =
            |pattern: &str, lr_scale, weight_decay| ParamGroup { pattern: pattern.into(), lr_scale, weight_decay };
        let names = ["head.weight", "norm.bias", "norm.weight"].map(String::from);
        let groups = [group("norm.*", Some(0.5), Some(0.0)), group("*.bias", Some(0.1), None)];
        let settings = resolve(&groups, 0.05, names.iter()).unwrap();
        let expected = [(1.0, 0.05), (0.1, 0.0), (0.5, 0.0)];
        assert_eq!(settings, expected.map(|(lr_scale, weight_decay)| Settings { lr_scale, weight_decay }));
    }

    #[test]
    fn patterns_without_match_and_negative_settings_are_rejected() {
        let names = ["head.weight".to_string()];
        let error = |group| resolve(&[group], 0.0, names.iter()).unwrap_err().to_string();
        let unmatched = error(ParamGroup { pattern: "heads.*".into(), lr_scale: None, weight_decay: None });
        assert!(unmatched.contains("groups[0].pattern") && unmatched.contains("heads.*"), "{unmatched}");
        let negative = error(ParamGroup { pattern: "*".into(), lr_scale: Some(-1.0), weight_decay: None });
        assert!(negative.contains("groups[0].lr_scale"), "{negative}");
    }
}

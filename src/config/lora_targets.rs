//! Modules that a LoRA adapter applies to, by PEFT's rules for names and patterns.

use std::collections::{BTreeMap, BTreeSet};

use fancy_regex::{Regex, RegexBuilder};

use super::lora::{LoraBias, LoraConfig, ModuleNames};
use crate::{Error, Result};

/// Targets that mean every linear layer but the head.
const ALL_LINEAR: &str = "all-linear";
/// Name of the head's linear layer.
const HEAD: &str = "lm_head";
/// Longest pattern in bytes.
const MAX_PATTERN: usize = 2048;
/// Most names of a field.
const MAX_NAMES: usize = 1 << 14;
/// Most patterns of a field.
const MAX_PATTERNS: usize = 256;
/// Most steps of a match.
const MAX_STEPS: usize = 20_000;
/// Largest product of the counts of a pattern's repetitions, which are unrolled.
const MAX_REPEATS: usize = 4096;

/// An adapted layer.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct LoraTarget {
    /// Rank.
    pub rank: usize,
    /// Factor of the update.
    pub scale: f64,
}

/// What an adapter applies to in a model.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct LoraTargets {
    /// Adapted linear layers, by name.
    pub linears: BTreeMap<String, LoraTarget>,
    /// Parameters that are trained and stored whole.
    pub saved: BTreeSet<String>,
    /// Biases that are trained, but that PEFT does not store with `bias` = `lora_only`.
    pub biases: BTreeSet<String>,
    /// Names and patterns of the configuration that match nothing in the model.
    pub unmatched: Vec<String>,
}

impl LoraConfig {
    /// The targets among the linear layers and parameters (by full name) of a model.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field and the module, for a pattern that is none or takes too long, a target that is no
    /// linear layer, one that is also saved whole, saved modules that the model lacks, or no targets at all.
    pub fn targets(&self, linears: &BTreeSet<String>, parameters: &BTreeSet<String>) -> Result<LoraTargets> {
        self.validate()?;
        let mut found = LoraTargets { linears: self.adapted(linears, parameters)?, ..LoraTargets::default() };
        found.saved = self.saved(parameters)?;
        if self.is_all_linear() {
            found.linears.retain(|name, _| !found.saved.contains(&format!("{name}.weight")));
        }
        if found.linears.is_empty() {
            let message = format!("is {}, which matches no linear layer", self.target_modules.shown());
            return Err(Error::config("target_modules", message));
        }
        let both = |name: &&String| found.saved.contains(&format!("{name}.weight"));
        if let Some(name) = found.linears.keys().find(both) {
            return Err(Error::config(
                "modules_to_save",
                format!("saves `{name}`, which has an adapter: name it once"),
            ));
        }
        let biases = parameters.iter().filter(|name| name.ends_with(".bias")).cloned();
        match self.bias {
            LoraBias::None => {}
            LoraBias::All => found.saved.extend(biases),
            LoraBias::LoraOnly => {
                let adapted = |name: &String| found.linears.contains_key(name.trim_end_matches(".bias"));
                found.biases = biases.filter(adapted).collect();
            }
        }
        found.unmatched = self.unmatched(&found)?;
        Ok(found)
    }

    /// Whether the targets are every linear layer but the head, and but those that are saved whole.
    pub fn is_all_linear(&self) -> bool {
        matches!(&self.target_modules, ModuleNames::Pattern(text) if text.eq_ignore_ascii_case(ALL_LINEAR))
    }

    /// The adapted linear layers with their ranks and scales.
    fn adapted(
        &self,
        linears: &BTreeSet<String>,
        parameters: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, LoraTarget>> {
        let (names, layers) = (Matcher::new("target_modules", &self.target_modules)?, self.layers()?);
        let exclude = self.exclude_modules.as_ref().map(|names| Matcher::new("exclude_modules", names)).transpose()?;
        let ranks = patterns("rank_pattern", &self.rank_pattern)?;
        let alphas = patterns("alpha_pattern", &self.alpha_pattern)?;
        let mut adapted = BTreeMap::new();
        for module in modules_of(parameters).iter().chain(linears).collect::<BTreeSet<_>>() {
            let excluded = exclude.as_ref().map_or(Ok(false), |exclude| exclude.matches(module))?;
            if excluded || !self.is_target(module, &names, &layers)? {
                continue;
            }
            if !linears.contains(module) {
                if names.is_all_linear() {
                    continue;
                }
                let message =
                    format!("matches `{module:.80}`, which is no linear layer: adapters of others are not supported");
                return Err(Error::config("target_modules", message));
            }
            let rank = first_match(&ranks, module)?.copied().unwrap_or(self.r);
            let alpha = first_match(&alphas, module)?.copied().unwrap_or(self.lora_alpha);
            let divisor = if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
            adapted.insert(module.clone(), LoraTarget { rank, scale: alpha / divisor });
        }
        Ok(adapted)
    }

    /// Whether a module that is not excluded is a target. An exact name is a target in every layer.
    fn is_target(&self, module: &str, names: &Matcher, layers: &[Pattern]) -> Result<bool> {
        if names.is_all_linear() {
            return Ok(module != HEAD);
        }
        if !names.matches(module)? {
            return Ok(false);
        }
        let Some(indices) = self.layers_to_transform.as_ref().filter(|indices| !indices.is_empty()) else {
            return Ok(true);
        };
        if names.is_exact(module) {
            return Ok(true);
        }
        for pattern in layers {
            if let Some(index) = pattern.index(module)? {
                return Ok(indices.contains(&index));
            }
        }
        Ok(false)
    }

    /// Patterns that find the index of a layer in a name.
    fn layers(&self) -> Result<Vec<Pattern>> {
        let any = [String::from("[^.]*")];
        let names = if self.layers_pattern.is_empty() { &any[..] } else { &self.layers_pattern };
        names.iter().map(|name| Pattern::new("layers_pattern", name, &format!(r"^.*\.(?:{name})\.(\d+)\."))).collect()
    }

    /// Parameters of the modules to save. A parameter without a module of its own goes by its name.
    fn saved(&self, parameters: &BTreeSet<String>) -> Result<BTreeSet<String>> {
        super::at_most("modules_to_save", self.modules_to_save.len(), MAX_NAMES)?;
        let mut saved = BTreeSet::new();
        for entry in &self.modules_to_save {
            let is_saved = |name: &&String| owners(name).any(|owner| owner.ends_with(entry.as_str()));
            let found: Vec<String> = parameters.iter().filter(is_saved).cloned().collect();
            if found.is_empty() || entry.is_empty() {
                return Err(Error::config(
                    "modules_to_save",
                    format!("names `{entry:.80}`, which the model does not have"),
                ));
            }
            saved.extend(found);
        }
        Ok(saved)
    }

    /// Names and patterns without a match among the adapted layers.
    fn unmatched(&self, found: &LoraTargets) -> Result<Vec<String>> {
        let mut unmatched = Vec::new();
        if let ModuleNames::List(names) = &self.target_modules {
            let matches = |name: &&String| !found.linears.keys().any(|module| is_suffix(module, name));
            unmatched.extend(names.iter().filter(matches).map(|name| format!("target_modules: {name}")));
        }
        let ranks = patterns("rank_pattern", &self.rank_pattern)?.into_iter().map(|(pattern, _)| pattern);
        let alphas = patterns("alpha_pattern", &self.alpha_pattern)?.into_iter().map(|(pattern, _)| pattern);
        for pattern in ranks.chain(alphas) {
            let matched: Vec<bool> = found.linears.keys().map(|name| pattern.is_match(name)).collect::<Result<_>>()?;
            if !matched.contains(&true) {
                unmatched.push(format!("{}: {}", pattern.field, pattern.text));
            }
        }
        Ok(unmatched)
    }
}

/// The modules that hold parameters, directly or in a module inside.
fn modules_of(parameters: &BTreeSet<String>) -> BTreeSet<String> {
    parameters.iter().flat_map(|name| name.match_indices('.').map(|(at, _)| name[..at].to_string())).collect()
}

/// The modules that a parameter belongs to, innermost last, and the parameter itself if it is none of a module's usual
/// ones.
fn owners(parameter: &str) -> impl Iterator<Item = &str> {
    let is_own = !parameter.ends_with(".weight") && !parameter.ends_with(".bias");
    parameter.match_indices('.').map(|(at, _)| &parameter[..at]).chain(is_own.then_some(parameter))
}

fn is_suffix(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Names of modules, with the pattern compiled.
enum Matcher {
    AllLinear,
    List(BTreeSet<String>),
    Pattern(Pattern),
}

impl Matcher {
    fn new(field: &'static str, names: &ModuleNames) -> Result<Self> {
        Ok(match names {
            ModuleNames::Pattern(text) if field == "target_modules" && text.eq_ignore_ascii_case(ALL_LINEAR) => {
                Self::AllLinear
            }
            ModuleNames::Pattern(text) => Self::Pattern(Pattern::new(field, text, &format!(r"\A(?:{text})\z"))?),
            ModuleNames::List(list) => {
                super::at_most(field, list.len(), MAX_NAMES)?;
                Self::List(list.iter().cloned().collect())
            }
        })
    }

    fn is_all_linear(&self) -> bool {
        matches!(self, Self::AllLinear)
    }

    fn is_exact(&self, module: &str) -> bool {
        matches!(self, Self::List(names) if names.contains(module))
    }

    fn matches(&self, module: &str) -> Result<bool> {
        match self {
            Self::AllLinear => Ok(true),
            // The name, and each end of it after a dot.
            Self::List(names) => {
                Ok(names.contains(module) || module.match_indices('.').any(|(at, _)| names.contains(&module[at + 1..])))
            }
            Self::Pattern(pattern) => pattern.is_match(module),
        }
    }
}

/// A compiled regular expression, and the field that it comes from.
struct Pattern {
    field: &'static str,
    text: String,
    regex: Regex,
}

impl Pattern {
    /// Compiles `full`, which is made of the user's `text`.
    fn new(field: &'static str, text: &str, full: &str) -> Result<Self> {
        let refuse = |why: String| Error::config(field, format!("is the pattern `{text:.80}`, {why}"));
        if text.len() > MAX_PATTERN || repeats(text) > MAX_REPEATS {
            return Err(refuse("which is too large: list the modules' names".into()));
        }
        let regex = RegexBuilder::new(full).backtrack_limit(MAX_STEPS).delegate_size_limit(1 << 20).build();
        let regex = regex.map_err(|e| refuse(format!("which is no regular expression: {e}")).caused_by(e))?;
        Ok(Self { field, text: text.into(), regex })
    }

    fn too_slow(&self, e: fancy_regex::Error) -> Error {
        Error::config(self.field, format!("is the pattern `{:.80}`, which takes too long: {e}", self.text)).caused_by(e)
    }

    fn is_match(&self, module: &str) -> Result<bool> {
        self.regex.is_match(module).map_err(|e| self.too_slow(e))
    }

    /// The number of the first group.
    fn index(&self, module: &str) -> Result<Option<usize>> {
        let found = self.regex.captures(module).map_err(|e| self.too_slow(e))?;
        let last = found.and_then(|found| found.iter().flatten().last().map(|group| group.as_str().parse().ok()));
        Ok(last.flatten())
    }
}

/// The product of the numbers in the braces of a pattern.
fn repeats(pattern: &str) -> usize {
    let counts = pattern.split('{').skip(1).filter_map(|rest| rest.split_once('}'));
    let largest = |(counts, _): (&str, &str)| counts.split(',').filter_map(|count| count.trim().parse().ok()).max();
    counts.filter_map(largest).fold(1, |product: usize, count: usize| product.saturating_mul(count.max(1)))
}

/// The compiled patterns of a field with their values.
fn patterns<'a, T>(field: &'static str, values: &'a [(String, T)]) -> Result<Vec<(Pattern, &'a T)>> {
    super::at_most(field, values.len(), MAX_PATTERNS)?;
    let compiled =
        |(text, value): &'a (String, T)| Ok((Pattern::new(field, text, &format!(r"\A(?:.*\.)?(?:{text})\z"))?, value));
    values.iter().map(compiled).collect()
}

/// The value of the first pattern that matches.
fn first_match<'a, T>(patterns: &[(Pattern, &'a T)], module: &str) -> Result<Option<&'a T>> {
    for (pattern, value) in patterns {
        if pattern.is_match(module)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

impl ModuleNames {
    /// The names, for messages.
    fn shown(&self) -> String {
        match self {
            Self::List(names) => format!("[{:.80}]", names.join(", ")),
            Self::Pattern(pattern) => format!("`{pattern:.80}`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    fn linears() -> BTreeSet<String> {
        set(&[
            "model.layers.0.self_attn.q_proj",
            "model.layers.0.self_attn.v_proj",
            "model.layers.1.self_attn.q_proj",
            "model.layers.1.self_attn.v_proj",
            "model.pre_connector",
            "lm_head",
        ])
    }

    fn parameters() -> BTreeSet<String> {
        let others = set(&["model.image_newline", "model.norm.weight", "model.embed_tokens.weight"]);
        let weights = linears().into_iter().flat_map(|name| [format!("{name}.weight"), format!("{name}.bias")]);
        weights.chain(others).collect()
    }

    fn list(names: &[&str]) -> ModuleNames {
        ModuleNames::List(names.iter().map(|name| name.to_string()).collect())
    }

    fn config(names: ModuleNames) -> LoraConfig {
        LoraConfig::new(8, 16.0, names)
    }

    fn adapted(config: &LoraConfig) -> Vec<String> {
        let found = config.targets(&linears(), &parameters()).unwrap();
        found.linears.into_keys().map(|name| name.replace("model.layers.", "").replace("self_attn.", "")).collect()
    }

    fn error(config: &LoraConfig) -> String {
        let message = config.targets(&linears(), &parameters()).unwrap_err().to_string();
        assert!(message.len() < 300, "{message}");
        message
    }

    #[test]
    fn lists_match_names_and_ends_after_a_dot() {
        assert_eq!(adapted(&config(list(&["q_proj", "lm_head"]))), ["lm_head", "0.q_proj", "1.q_proj"]);
        assert_eq!(adapted(&config(list(&["0.self_attn.v_proj"]))), ["0.v_proj"]);
        assert!(error(&config(list(&["proj"]))).contains("no linear layer"));
        let found = config(list(&["q_proj", "fc1"])).targets(&linears(), &parameters()).unwrap();
        assert_eq!(found.unmatched, ["target_modules: fc1"]);
    }

    #[test]
    fn patterns_match_whole_names() {
        let pattern = |text: &str| config(ModuleNames::Pattern(text.into()));
        assert_eq!(adapted(&pattern(r".*\.1\..*(q|v)_proj")), ["1.q_proj", "1.v_proj"]);
        assert_eq!(adapted(&pattern(r"(?!.*\.0\.).*q_proj")), ["1.q_proj"]);
        assert_eq!(adapted(&pattern("all-linear")).len(), 5);
        assert!(!adapted(&pattern("ALL-linear")).contains(&"lm_head".to_string()));
        let mut saving = pattern("all-linear");
        saving.modules_to_save = vec!["pre_connector".into()];
        assert_eq!(adapted(&saving).len(), 4);
        assert!(error(&pattern("q_proj")).contains("no linear layer"));
        assert!(error(&pattern(".*norm")).contains("`model.norm`"));
        assert!(error(&pattern("(q")).contains("no regular expression"));
        assert!(error(&pattern("(?=((a{1000}){1000}))b")).contains("too large"));
        let slow = error(&pattern(r"(?=(([a-z_.0-9]+)+)+\1X)x"));
        assert!(slow.contains("too long") || slow.contains("no linear"), "{slow}");
    }

    #[test]
    fn layers_exclusions_ranks_and_alphas_follow_peft() {
        let mut config = config(list(&["q_proj", "v_proj", "model.pre_connector"]));
        config.layers_to_transform = Some(vec![1]);
        assert_eq!(adapted(&config), ["1.q_proj", "1.v_proj", "model.pre_connector"]);
        config.layers_pattern = vec!["blocks".into()];
        assert_eq!(adapted(&config), ["model.pre_connector"]);
        config.layers_pattern = vec!["layers".into()];
        config.exclude_modules = Some(list(&["v_proj"]));
        assert_eq!(adapted(&config), ["1.q_proj", "model.pre_connector"]);
        config.layers_to_transform = None;
        config.rank_pattern = vec![("0.self_attn.q_proj".into(), 2), ("q_proj".into(), 4), ("none".into(), 9)];
        config.alpha_pattern = vec![("q_proj".into(), 32.0)];
        let found = config.targets(&linears(), &parameters()).unwrap();
        let of = |name: &str| (found.linears[name].rank, found.linears[name].scale);
        assert_eq!(of("model.layers.0.self_attn.q_proj"), (2, 16.0));
        assert_eq!(of("model.layers.1.self_attn.q_proj"), (4, 8.0));
        assert_eq!(of("model.pre_connector"), (8, 2.0));
        assert_eq!(found.unmatched, ["target_modules: v_proj", "rank_pattern: none"]);
        config.use_rslora = true;
        let found = config.targets(&linears(), &parameters()).unwrap();
        assert_eq!(found.linears["model.layers.1.self_attn.q_proj"].scale, 16.0);
    }

    #[test]
    fn saved_modules_and_biases_are_whole_parameters() {
        let mut config = config(list(&["q_proj"]));
        config.modules_to_save = ["norm", "image_newline", "pre_connector"].map(String::from).to_vec();
        let found = config.targets(&linears(), &parameters()).unwrap();
        let expected =
            ["model.image_newline", "model.norm.weight", "model.pre_connector.bias", "model.pre_connector.weight"];
        assert_eq!(found.saved.into_iter().collect::<Vec<_>>(), expected);
        config.modules_to_save = vec!["q_proj".into()];
        assert!(error(&config).contains("name it once"));
        config.modules_to_save = vec!["classifier".into()];
        assert!(error(&config).contains("`classifier`"));
        config.modules_to_save = Vec::new();
        config.bias = LoraBias::All;
        assert_eq!(config.targets(&linears(), &parameters()).unwrap().saved.len(), 6);
        config.bias = LoraBias::LoraOnly;
        assert_eq!(config.targets(&linears(), &parameters()).unwrap().biases.len(), 2);
    }
}

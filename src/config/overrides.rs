//! Generation settings that replace a model's own.

use super::GenerationConfig;
use crate::Result;

/// Generation settings that replace a model's own where they are given, as options of a program or fields of a request.
///
/// ```
/// use haplovl::config::{GenerationConfig, GenerationOverrides};
///
/// let overrides = GenerationOverrides { temperature: Some(0.7), ..GenerationOverrides::default() };
/// let config = overrides.apply(GenerationConfig::default())?;
/// assert!(config.do_sample && config.temperature == Some(0.7));
/// # Ok::<(), haplovl::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationOverrides {
    /// Replaces [`GenerationConfig::max_new_tokens`].
    pub max_new_tokens: Option<usize>,
    /// Replaces [`GenerationConfig::temperature`]; above 0, tokens are sampled.
    pub temperature: Option<f64>,
    /// Replaces [`GenerationConfig::top_p`]; tokens are sampled.
    pub top_p: Option<f64>,
    /// Replaces [`GenerationConfig::top_k`]; tokens are sampled.
    pub top_k: Option<usize>,
    /// Replaces [`GenerationConfig::min_p`]; tokens are sampled.
    pub min_p: Option<f64>,
    /// Replaces [`GenerationConfig::repetition_penalty`].
    pub repetition_penalty: Option<f64>,
    /// Replaces [`GenerationConfig::frequency_penalty`].
    pub frequency_penalty: Option<f64>,
    /// Replaces [`GenerationConfig::presence_penalty`].
    pub presence_penalty: Option<f64>,
    /// Replaces [`GenerationConfig::seed`].
    pub seed: Option<u64>,
    /// Added to [`GenerationConfig::stop_strings`].
    pub stop_strings: Vec<String>,
}

impl GenerationOverrides {
    /// A model's `own` settings with these.
    ///
    /// # Errors
    /// The errors of [`GenerationConfig::validate`].
    pub fn apply(self, mut own: GenerationConfig) -> Result<GenerationConfig> {
        let samples = self.temperature.is_some_and(|temperature| temperature > 0.0)
            || self.top_p.is_some()
            || self.top_k.is_some()
            || self.min_p.is_some();
        // A greedy default of the model would make the others ineffective.
        if samples {
            own.top_k = own.top_k.filter(|k| *k != 1);
            own.temperature = own.temperature.filter(|temperature| *temperature > 0.0);
        }
        own.stop_strings.extend(self.stop_strings);
        let config = GenerationConfig {
            do_sample: own.do_sample || samples,
            temperature: self.temperature.or(own.temperature),
            top_p: self.top_p.or(own.top_p),
            top_k: self.top_k.or(own.top_k),
            min_p: self.min_p.or(own.min_p),
            repetition_penalty: self.repetition_penalty.or(own.repetition_penalty),
            frequency_penalty: self.frequency_penalty.or(own.frequency_penalty),
            presence_penalty: self.presence_penalty.or(own.presence_penalty),
            max_new_tokens: self.max_new_tokens.or(own.max_new_tokens),
            seed: self.seed.unwrap_or(own.seed),
            ..own
        };
        config.validate()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greedy_default_gives_way_to_sampling() {
        let own = GenerationConfig { top_k: Some(1), temperature: Some(0.0), seed: 3, ..GenerationConfig::default() };
        let asked = GenerationOverrides { top_p: Some(0.9), ..GenerationOverrides::default() };
        let config = asked.apply(own.clone()).unwrap();
        assert!(!config.is_greedy() && config.top_p == Some(0.9) && config.seed == 3);
        assert_eq!(GenerationOverrides::default().apply(own.clone()).unwrap(), own);
        let greedy = GenerationOverrides { temperature: Some(0.0), ..GenerationOverrides::default() };
        assert!(greedy.apply(GenerationConfig::default()).unwrap().is_greedy());
        let wrong = GenerationOverrides { top_p: Some(2.0), ..GenerationOverrides::default() };
        assert!(wrong.apply(own).unwrap_err().to_string().contains("`top_p`"));
    }

    #[test]
    fn stop_strings_add_up() {
        let own = GenerationConfig { stop_strings: vec!["a".into()], ..GenerationConfig::default() };
        let asked = GenerationOverrides { stop_strings: vec!["b".into()], ..GenerationOverrides::default() };
        assert_eq!(asked.apply(own).unwrap().stop_strings, ["a", "b"]);
    }
}

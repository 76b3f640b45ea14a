//! The plan of a comparison, `plan.toml`: settings, designs, and the list of entries that they make.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail};
use haplovl::config::HaploVlConfig;
use haplovl::data::shapes::{QuestionKind, ShapesConfig};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::model::ModelKind;
use super::named;

/// Contents of `plan.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Settings by name.
    pub settings: BTreeMap<String, Setting>,
    /// Overrides of each recipe, for all designs.
    pub recipes: BTreeMap<String, Vec<String>>,
    /// Designs in the order in which they are trained; the others must cost as much as the first.
    pub designs: Vec<Design>,
    /// What the page answers, in its order.
    pub claims: Vec<Claim>,
    /// Entries of the scaling suite.
    pub scaling: Scaling,
}

/// World, sizes and lengths of a comparison.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    /// Side of the images in pixels.
    pub side: u32,
    /// Options for drawing scenes.
    pub shapes: ShapesConfig,
    /// Whether relations are asked.
    pub relations: bool,
    /// Most scenes of each source.
    #[serde(default)]
    pub scenes: Option<usize>,
    /// Scenes of the test split.
    pub test_scenes: u64,
    /// Scenes of the validation split that are asked about during training.
    pub curve_scenes: u64,
    /// Fields of `config.json` that differ.
    #[serde(default)]
    pub config: Value,
    /// Overrides by recipe.
    #[serde(default)]
    pub set: BTreeMap<String, Vec<String>>,
}

impl Setting {
    /// Kinds of questions that are asked.
    pub fn kinds(&self) -> &'static [QuestionKind] {
        if self.relations { &QuestionKind::WITH_RELATIONS } else { &QuestionKind::ALL }
    }
}

/// A design: a model and its stages.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Design {
    /// Name in tables and folders.
    pub name: String,
    /// What it is, in a sentence.
    pub about: String,
    /// Its model.
    pub model: ModelKind,
    /// Stage of another design, `DESIGN/STAGE`, with which its own continue.
    pub after: Option<String>,
    /// Another design that has the same stages.
    #[serde(rename = "as")]
    pub like: Option<String>,
    /// Its stages.
    #[serde(default)]
    pub stages: Vec<Stage>,
    /// Whether image tokens are causal.
    #[serde(default)]
    pub causal: bool,
    /// Whether the image follows the first text.
    #[serde(default)]
    pub image_last: bool,
    /// Fields of `config.json` that differ in its own stages; the shared vision teacher and language model are trained
    /// without them.
    #[serde(default)]
    pub config: Value,
}

impl Design {
    /// A configuration of its model with its own fields.
    pub fn changed(&self, config: HaploVlConfig) -> Result<HaploVlConfig> {
        let mut fields = serde_json::to_value(config)?;
        merge(&mut fields, &self.config);
        Ok(HaploVlConfig::from_json(fields)?)
    }
}

/// One training run, or another export of one.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Name of its folder.
    pub name: String,
    /// Name of its recipe.
    pub recipe: String,
    /// Stage of the same design whose last checkpoint is exported, instead of a training run.
    pub export_of: Option<String>,
    /// Share of the recipe's steps, above 0 and at most 1; at least one step is made.
    #[serde(default = "whole")]
    pub share: f64,
    /// Overrides of the recipe.
    #[serde(default)]
    pub set: Vec<String>,
}

fn whole() -> f64 {
    1.0
}

/// A claim about the accuracy of two designs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// The sentence, without a period.
    pub says: String,
    /// Name of the design with the higher accuracy if the claim holds.
    pub design: String,
    /// Name of the other one.
    pub against: String,
    /// Kind of question; all of them if it is missing.
    pub kind: Option<QuestionKind>,
    /// Whether the first may also be level: at most so many points less.
    #[serde(default)]
    pub within: f64,
    /// Whether the paper says so; otherwise it is a question of ours.
    #[serde(default)]
    pub paper: bool,
}

/// Entries of the scaling suite.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scaling {
    /// Names of designs.
    pub designs: Vec<String>,
    /// Numbers of images in stage 2, beside all of them.
    pub scenes: Vec<usize>,
    /// Fields of `config.json` by name of the size, beside the full size.
    pub sizes: BTreeMap<String, Value>,
}

/// Which entries are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Suite {
    /// All designs
    Designs,
    /// Data and parameters, for the designs that plan.toml names
    Scaling,
}

/// One line of the comparison: a design, in a size, with some of the images, from a seed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Seed of initial values and of the order of samples.
    pub seed: u64,
    /// Name of the design.
    pub design: String,
    /// Name of the size; `None` for the full one.
    pub size: Option<String>,
    /// Images in stage 2; `None` for all of them.
    pub scenes: Option<usize>,
}

impl Entry {
    /// Name without the seed: `llava`, `llava-small`, `llava-750-images`.
    pub fn name(&self) -> String {
        let size = self.size.iter().map(|size| format!("-{size}"));
        let scenes = self.scenes.iter().map(|scenes| format!("-{scenes}-images"));
        size.chain(scenes).fold(self.design.clone(), |name, part| name + &part)
    }
}

impl Plan {
    /// Reads `plan.toml` in `folder`.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("plan.toml");
        let text = std::fs::read_to_string(&path).map_err(|e| named(&path, e))?;
        let plan: Self = toml::from_str(&text).map_err(|e| named(&path, e))?;
        plan.designs.iter().try_for_each(|design| plan.stages(design).map(drop))?;
        for (design, stage) in
            plan.designs.iter().flat_map(|design| design.stages.iter().map(move |stage| (design, stage)))
        {
            if !(stage.share > 0.0 && stage.share <= 1.0) {
                let (design, stage, share) = (&design.name, &stage.name, stage.share);
                bail!("design {design}: `share` of stage {stage} is {share}, expected above 0 and at most 1");
            }
        }
        let compared = plan.claims.iter().flat_map(|claim| [&claim.design, &claim.against]);
        compared.into_iter().try_for_each(|name| plan.design(name).map(drop))?;
        Ok(plan)
    }

    /// A setting by name.
    pub fn setting(&self, name: &str) -> Result<&Setting> {
        let known = || self.settings.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        self.settings.get(name).with_context(|| format!("no setting is called `{name}`, only {}", known()))
    }

    /// A design by name.
    pub fn design(&self, name: &str) -> Result<&Design> {
        let known = || self.designs.iter().map(|design| design.name.as_str()).collect::<Vec<_>>().join(", ");
        let found = self.designs.iter().find(|design| design.name == name);
        found.with_context(|| format!("no design is called `{name}`, only {}", known()))
    }

    /// All stages of a design from the first on, each with the design in whose folder it is.
    pub fn stages<'a>(&'a self, design: &'a Design) -> Result<Vec<(&'a Design, &'a Stage)>> {
        let source = match &design.like {
            Some(like) => self.design(like)?,
            None => design,
        };
        let own = source.stages.iter().map(|stage| (design, stage));
        let Some(after) = &source.after else { return Ok(own.collect()) };
        let (other, last) = after.split_once('/').with_context(|| format!("`after` is `{after}`, not DESIGN/STAGE"))?;
        let other = self.design(other)?;
        if other.after.is_some() || other.like.is_some() {
            bail!("design {}: `after` names {}, which follows another design itself", design.name, other.name);
        }
        let end = other.stages.iter().position(|stage| stage.name == last);
        let end = end.with_context(|| format!("design {} has no stage `{last}`", other.name))?;
        Ok(other.stages[..=end].iter().map(|stage| (other, stage)).chain(own).collect())
    }

    /// Entries of a suite for some designs, seed by seed, so that a comparison that is cut short is balanced.
    pub fn entries(&self, suite: Suite, designs: &[String], seeds: u64) -> Result<Vec<Entry>> {
        let all = match suite {
            Suite::Designs => self.designs.iter().map(|design| design.name.clone()).collect(),
            Suite::Scaling => self.scaling.designs.clone(),
        };
        let chosen = if designs.is_empty() { &all } else { designs };
        chosen.iter().try_for_each(|name| self.design(name).map(drop))?;
        let of_seed = |seed| {
            chosen.iter().flat_map(move |design| {
                let entry = Entry { seed, design: design.clone(), size: None, scenes: None };
                match suite {
                    Suite::Designs => vec![entry],
                    Suite::Scaling => self.scaled(&entry),
                }
            })
        };
        Ok((1..=seeds).flat_map(of_seed).collect())
    }

    fn scaled(&self, full: &Entry) -> Vec<Entry> {
        let scenes = self.scaling.scenes.iter().map(|&scenes| Entry { scenes: Some(scenes), ..full.clone() });
        let sizes = self.scaling.sizes.keys().map(|size| Entry { size: Some(size.clone()), ..full.clone() });
        [full.clone()].into_iter().chain(scenes).chain(sizes).collect()
    }

    /// Configuration of a HaploVL in a setting and a size, from `config.json` in `folder`.
    pub fn config(&self, folder: &Path, setting: &Setting, size: Option<&str>) -> Result<HaploVlConfig> {
        Ok(HaploVlConfig::from_json(self.config_fields(folder, setting, size)?)?)
    }

    fn config_fields(&self, folder: &Path, setting: &Setting, size: Option<&str>) -> Result<Value> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|e| named(&path, e))?;
        let mut config: Value = serde_json::from_str(&text).map_err(|e| named(&path, e))?;
        merge(&mut config, &setting.config);
        if let Some(size) = size {
            merge(&mut config, self.scaling.sizes.get(size).with_context(|| format!("no size is called `{size}`"))?);
        }
        Ok(config)
    }

    /// Checksum of what the results of an entry depend on in the plan, the recipes and `config.json` in `folder`, so that
    /// results of different plans are not taken for each other's. Every field of these counts, though a run replaces some,
    /// in the order of the files; comments, descriptions and other designs do not.
    pub fn provenance(&self, folder: &Path, setting: &Setting, entry: &Entry) -> Result<String> {
        let design = self.design(&entry.design)?;
        let stages = self.stages(design)?;
        let of_stages = stages.iter().map(|(_, stage)| stage.recipe.as_str());
        let recipes: BTreeSet<&str> = ["vision", "language"].into_iter().chain(of_stages).collect();
        let recipe = |name: &&str| {
            let path = folder.join(format!("{name}.toml"));
            let text = std::fs::read_to_string(&path).map_err(|e| named(&path, e))?;
            let fields: Value = toml::from_str(&text).map_err(|e| named(&path, e.message()))?;
            Ok((fields, self.recipes.get(*name), setting.set.get(*name)))
        };
        let stage =
            |(owner, stage): &(&Design, &Stage)| serde_json::json!([owner.name, owner.causal, owner.image_last, stage]);
        let world = (setting.side, &setting.shapes, setting.relations, setting.scenes);
        let mut parts = serde_json::json!({
            "world": world,
            "tests": [setting.test_scenes, setting.curve_scenes],
            "config": self.config_fields(folder, setting, entry.size.as_deref())?,
            "model": (design.model, design.causal, design.image_last),
            "stages": stages.iter().map(stage).collect::<Vec<_>>(),
            "recipes": recipes.iter().map(recipe).collect::<Result<Vec<_>>>()?,
            "scenes": entry.scenes,
            "seed": entry.seed,
        });
        let changed = stages.iter().map(|(owner, _)| &owner.config).chain([&design.config]);
        let changed = Vec::from_iter(changed);
        // Absent without such fields, so that results from before designs could have them are still recognised.
        if changed.iter().any(|config| !config.is_null()) {
            parts["changed"] = serde_json::json!(changed);
        }
        Ok(format!("{:08x}", crc32fast::hash(&serde_json::to_vec(&parts)?)))
    }
}

/// Overwrites the fields of a JSON object by those of another one.
fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            from.iter().for_each(|(key, value)| merge(into.entry(key.clone()).or_insert(Value::Null), value));
        }
        (_, Value::Null) => {}
        (into, from) => *into = from.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_other_plans_are_told_apart() {
        let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/compare");
        let folder = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(&recipes).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
        let provenance = |setting: &str, design: &str, seed| {
            let plan = Plan::read(folder.path()).unwrap();
            let entry = Entry { seed, design: design.into(), size: None, scenes: None };
            plan.provenance(folder.path(), plan.setting(setting).unwrap(), &entry).unwrap()
        };
        let of_llava = || provenance("tiny", "llava", 1);
        let original = of_llava();
        let others = [provenance("easy", "llava", 1), provenance("tiny", "eve", 1), provenance("tiny", "llava", 2)];
        assert!(!others.contains(&original), "{others:?}");
        let change = |file: &str, from: &str, to: &str| {
            let path = folder.path().join(file);
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.contains(from), "{file} has no {from}");
            std::fs::write(path, text.replace(from, to)).unwrap();
        };
        // What is for people, and what other designs do, changes nothing.
        change("plan.toml", "LLaVA: frozen", "LLaVA's design: frozen");
        change("plan.toml", "share = 0.5", "share = 0.25");
        change("tune.toml", "# The EMA", "# An EMA");
        assert_eq!(of_llava(), original);
        change("tune.toml", "ema_decay = 0.99", "ema_decay = 0.9");
        assert_ne!(of_llava(), original);
        // A design that goes on with another one's stages depends on how that one sees images.
        let of_connector = || provenance("tiny", "connector-fitted", 1);
        let original = of_connector();
        change("plan.toml", "name = \"haplovl\"\n", "name = \"haplovl\"\ncausal = true\n");
        assert_ne!(of_connector(), original);
        let original = of_connector();
        change("plan.toml", "name = \"haplovl\"\n", "name = \"haplovl\"\nconfig.pre_decoder.rope = \"none\"\n");
        assert_ne!(of_connector(), original);
    }
}

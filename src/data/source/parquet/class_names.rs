//! Names of classes: the Hub's files have numbers in a column of labels, and the names in their metadata.

use std::collections::HashMap;

use parquet::file::metadata::KeyValue;

use super::super::super::fields::{Row, Value};

/// Names of the classes of each column of labels.
#[derive(Debug, Default)]
pub(super) struct ClassNames(HashMap<String, Vec<String>>);

impl ClassNames {
    /// The names in a file's metadata; none if it has none that can be read.
    pub fn new(metadata: Option<&Vec<KeyValue>>) -> Self {
        let hub = metadata.into_iter().flatten().find(|pair| pair.key == "huggingface");
        let json = hub.and_then(|pair| serde_json::from_str::<serde_json::Value>(pair.value.as_deref()?).ok());
        let features = json.as_ref().and_then(|json| json.pointer("/info/features")?.as_object());
        let names = |feature: &serde_json::Value| {
            let is_label = feature.get("_type")?.as_str()? == "ClassLabel";
            let names = feature.get("names")?.as_array()?.iter().map(|name| name.as_str().map(str::to_string));
            is_label.then(|| names.collect::<Option<Vec<_>>>()).flatten()
        };
        let named =
            features.into_iter().flatten().filter_map(|(column, feature)| Some((column.clone(), names(feature)?)));
        Self(named.collect())
    }

    /// The row with names in place of the numbers of classes; a number without a name, such as -1, is no class.
    pub fn named(&self, mut row: Row) -> Row {
        for (column, value) in &mut row {
            let (Some(names), Value::Number(number)) = (self.0.get(column), &*value) else { continue };
            let name = number.parse::<usize>().ok().and_then(|number| names.get(number));
            *value = name.map_or(Value::Null, |name| Value::Text(name.clone()));
        }
        row
    }
}

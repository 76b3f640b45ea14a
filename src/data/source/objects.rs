//! Records as JSON objects, whose fields are not interpreted.

use std::path::Path;

use serde_json::{Map, Value as Json};

use super::csv::CsvRows;
use super::files_source::{parquet_rows, plain_file};
use super::json::JsonRows;
use super::kind::{ACCEPTED, Kind};
use super::rows::Rows;
use crate::data::ImageSource;
use crate::data::fields::{Value, images_in};
use crate::{Error, Result};

/// Records of a JSON, CSV, TSV or Parquet file, also compressed with gzip, as JSON objects.
pub(crate) struct JsonObjects {
    rows: Box<dyn Rows>,
    kind: Kind,
}

impl JsonObjects {
    /// Opens a file; `None` for a file of another format of data.
    ///
    /// # Errors
    /// As [`open`](super::open).
    pub fn open(path: &Path) -> Result<Option<Self>> {
        let (file, kind) = plain_file(path)?;
        let rows: Box<dyn Rows> = match kind {
            Kind::Json => {
                let rows = JsonRows::new(path, file)?;
                rows.reject_one_object()?;
                Box::new(rows)
            }
            Kind::Csv | Kind::Tsv => Box::new(CsvRows::new(path, file)?),
            Kind::Tar | Kind::Parquet => return Ok(None),
        };
        Ok(Some(Self { rows, kind }))
    }

    /// Opens a file, also of Parquet.
    ///
    /// # Errors
    /// As [`Self::open`], and [`Error::Format`] for an archive.
    pub fn open_table(path: &Path) -> Result<Self> {
        match plain_file(path)? {
            (file, kind @ Kind::Parquet) => Ok(Self { rows: parquet_rows(path, file)?, kind }),
            _ => Self::open(path)?.ok_or_else(|| Error::format(path, format!("is an archive; {ACCEPTED}"))),
        }
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether every field is a text, as in CSV and TSV, where lists, numbers and missing values are written as one.
    pub fn has_texts_only(&self) -> bool {
        matches!(self.kind, Kind::Csv | Kind::Tsv)
    }

    /// Name of a record for messages.
    pub fn describe(&self, index: usize) -> String {
        self.rows.describe(index)
    }

    /// Fields of a record.
    ///
    /// # Errors
    /// [`Error::Data`](crate::Error::Data) for a record that is broken or no object.
    pub fn read(&self, index: usize) -> Result<Map<String, Json>> {
        Ok(object(self.rows.row(index)?))
    }

    /// Images that the first field with a name that `is_field` accepts holds or names, relative to `folder`; none
    /// without such a field. A text that `list` reads is a list of them.
    ///
    /// # Errors
    /// [`Error::Data`] for a broken record, and for an image that does not exist or is outside of the folder.
    pub fn images(
        &self,
        index: usize,
        is_field: impl Fn(&str) -> bool,
        list: impl Fn(&str) -> Option<Vec<String>>,
        folder: &Path,
    ) -> Result<Vec<ImageSource>> {
        let row = self.rows.row(index)?;
        let Some((name, value)) = row.iter().find(|(name, value)| is_field(name) && value.is_set()) else {
            return Ok(Vec::new());
        };
        let texts = if let Value::Text(text) = value { list(text) } else { None };
        let several = texts.map(|texts| Value::List(texts.into_iter().map(Value::Text).collect()));
        Ok(images_in(several.as_ref().unwrap_or(value), name, folder)?)
    }
}

impl std::fmt::Debug for JsonObjects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JsonObjects").field("len", &self.len()).finish()
    }
}

fn object(fields: Vec<(String, Value)>) -> Map<String, Json> {
    fields.into_iter().map(|(name, value)| (name, json(value))).collect()
}

fn json(value: Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Bool(value) => value.into(),
        Value::Number(number) => serde_json::from_str(&number).unwrap_or(Json::String(number)),
        Value::Text(text) => text.into(),
        // Bytes that are no text are those of an image, see `JsonObjects::images`; that there are some is kept.
        Value::Bytes(bytes) => {
            String::from_utf8(bytes).map_or_else(|e| serde_json::json!({ "bytes": e.as_bytes().len() }), Json::String)
        }
        Value::List(values) => values.into_iter().map(json).collect(),
        Value::Object(fields) => object(fields).into(),
    }
}

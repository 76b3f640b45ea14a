//! Values of Parquet columns as fields of a record.

use parquet::record::{Field, Row as ParquetRow};

use super::super::super::fields::{Row, Value};

/// Fields of a row.
pub(super) fn row_of(row: ParquetRow) -> Row {
    row.into_columns().into_iter().map(|(name, field)| (name, value_of(field))).collect()
}

fn value_of(field: Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => Value::Bool(value),
        Field::Str(text) => Value::Text(text),
        Field::Bytes(bytes) => Value::Bytes(bytes.data().to_vec()),
        Field::Group(row) => Value::Object(row_of(row)),
        Field::ListInternal(list) => Value::List(list.elements().iter().cloned().map(value_of).collect()),
        Field::MapInternal(map) => {
            let entries = map.entries().iter().cloned();
            Value::Object(entries.map(|(key, value)| (name_of(&value_of(key)), value_of(value))).collect())
        }
        // Numbers, dates and times.
        other => Value::Number(other.to_string()),
    }
}

fn name_of(key: &Value) -> String {
    key.to_text().unwrap_or_default()
}

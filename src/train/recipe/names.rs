//! Former names of recipe fields, which recipes and overrides may still use.

/// Former and current path of each renamed field. A table comes before the fields in it.
const RENAMED: [(&str, &str); 15] = [
    ("stage.inherit", "stage.init_from"),
    ("data.validation_samples", "data.max_eval_samples"),
    ("data.workers", "data.num_workers"),
    ("update.rows", "update.batch_size"),
    ("update.accumulation", "update.gradient_accumulation_steps"),
    ("update.parallel", "update.parallel_micro_batches"),
    ("update.compute", "update.compute_dtype"),
    ("schedule.hold_ratio", "schedule.stable_ratio"),
    ("run.checkpoint_every", "run.save_steps"),
    ("run.keep_last", "run.save_total_limit"),
    ("run.evaluate_every", "run.eval_steps"),
    ("run.patience", "run.early_stopping_patience"),
    ("run.show", "run.num_eval_samples"),
    ("run.log_every", "run.logging_steps"),
    ("run.export", "run.export_dtype"),
];

/// Current name of a field path.
pub(super) fn canonical(path: &str) -> String {
    let renamed = RENAMED.iter().find_map(|(former, present)| {
        let rest = path.strip_prefix(former).filter(|rest| rest.is_empty() || rest.starts_with('.'))?;
        Some(format!("{present}{rest}"))
    });
    renamed.unwrap_or_else(|| path.to_string())
}

/// Renames every field of a recipe to its current name.
///
/// # Errors
/// A message with both names, if both the former and the current name are set.
pub(super) fn canonicalise(recipe: &mut toml::Table) -> Result<(), String> {
    for (former, present) in RENAMED {
        let (table, old) = former.split_once('.').unwrap_or_default();
        let new = present.rsplit('.').next().unwrap_or_default();
        let Some(fields) = recipe.get_mut(table).and_then(toml::Value::as_table_mut) else { continue };
        let Some(value) = fields.remove(old) else { continue };
        if fields.contains_key(new) {
            return Err(format!("`{former}` is the former name of `{present}`, and both are set: remove `{former}`"));
        }
        fields.insert(new.to_string(), value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn former_names_are_renamed_and_conflict_with_current_names() {
        assert_eq!(canonical("stage.inherit.clip"), "stage.init_from.clip");
        assert_eq!(canonical("update.rows"), "update.batch_size");
        assert_eq!(canonical("update.rows_of"), "update.rows_of");
        for (former, present) in RENAMED {
            let mut table: toml::Table = format!("{former} = 1").parse().unwrap();
            canonicalise(&mut table).unwrap();
            assert_eq!(table, format!("{present} = 1").parse().unwrap());
            let error = canonicalise(&mut format!("{former} = 1\n{present} = 1").parse().unwrap()).unwrap_err();
            assert!(error.contains(&format!("`{former}`")) && error.contains(&format!("`{present}`")), "{error}");
        }
    }
}

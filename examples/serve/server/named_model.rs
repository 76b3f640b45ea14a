//! The models that requests can name: the base model, and it with each adapter.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::StatusCode;
use haplovl::pipeline::{Engine, LoadedModel};

use super::error::ApiError;

/// A model with the name that requests have for it.
pub struct NamedModel {
    pub id: String,
    /// Name of the engine's adapter; `None` for the base model.
    pub adapter: Option<String>,
    pub model: LoadedModel,
    answers: AtomicU64,
}

impl NamedModel {
    fn new(id: &str, adapter: Option<&str>, model: &LoadedModel) -> Arc<Self> {
        let (id, adapter, model) = (id.into(), adapter.map(Into::into), model.clone());
        Arc::new(Self { id, adapter, model, answers: AtomicU64::new(0) })
    }

    /// Counts answers that the engine accepted.
    pub fn count(&self, answers: usize) {
        self.answers.fetch_add(answers as u64, Ordering::Relaxed);
    }

    /// Number of answers that the engine accepted.
    pub fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }
}

/// All models, the base model first.
pub struct Models(Vec<Arc<NamedModel>>);

impl Models {
    /// The models of an engine, whose base model has this name.
    pub fn new(base: &str, engine: &Engine) -> Self {
        let adapted = engine.adapters().iter().map(|(name, model)| NamedModel::new(name, Some(name), model));
        Self(std::iter::once(NamedModel::new(base, None, engine.model())).chain(adapted).collect())
    }

    pub fn iter(&self) -> impl Iterator<Item = &NamedModel> {
        self.0.iter().map(|model| &**model)
    }

    /// The model that a request names; without a name it is the base model.
    pub fn find(&self, asked: Option<&str>) -> Result<Arc<NamedModel>, ApiError> {
        let found = match asked {
            None => self.0.first(),
            Some(asked) => self.0.iter().find(|model| model.id == asked),
        };
        let unknown = || {
            let known = self.iter().map(|model| format!("`{}`", model.id)).collect::<Vec<_>>().join(", ");
            let message =
                format!("the model `{:.80}` is not served: this server has {known}", asked.unwrap_or_default());
            ApiError::new(StatusCode::NOT_FOUND, "model_not_found", message).with_param("model")
        };
        found.cloned().ok_or_else(unknown)
    }
}

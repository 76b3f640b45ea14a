//! What stage 1 asks of the pre-decoder: give back what CLIP sees, and what the language model reads.
//!
//! Students are compared in f32 whatever type they come in; teachers never receive a gradient.

use candle_core::{D, DType, Tensor};

use super::{LossSum, linear_cross_entropy};
use crate::{Error, Result};

/// Added to squared lengths, so that the gradient of a length of zero is zero and not NaN.
const TINY: f64 = 1e-12;

/// `sum_i 1 - cos(student_i, teacher_i)` over image patches.
///
/// # Shapes
/// `student` and `teacher` `(patches, teacher width)`.
///
/// # Errors
/// [`Error::Batch`] if the two differ in shape.
pub fn vision_distillation(student: &Tensor, teacher: &Tensor) -> Result<LossSum> {
    let (student, teacher) = comparable("vision", student, teacher)?;
    let terms = (1.0 - cosine(&student, &teacher)?)?;
    total(&terms)
}

/// `sum_i |student_i - teacher_i| - cos(student_i, teacher_i)` over text tokens.
///
/// # Shapes
/// `student` and `teacher` `(tokens, language model width)`.
///
/// # Errors
/// [`Error::Batch`] if the two differ in shape.
pub fn feature_distillation(student: &Tensor, teacher: &Tensor) -> Result<LossSum> {
    let (student, teacher) = comparable("text", student, teacher)?;
    let terms = (length(&(&student - &teacher)?)? - cosine(&student, &teacher)?)?;
    total(&terms)
}

/// Current-token prediction: cross-entropy of `logit_scale * student . embed_tokens^T` against each position's *own*
/// token, without the shift of a language model.
///
/// # Shapes
/// `student` `(tokens, d)`, `embed_tokens` `(vocabulary, d)` the language model's table, `token_ids` `(tokens)` u32
/// with [`crate::batch::IGNORE_INDEX`] where no text stands, `logit_scale` of one element; a gradient reaches it
/// when it is tracked.
///
/// # Errors
/// As [`linear_cross_entropy`].
pub fn current_token_prediction(
    student: &Tensor,
    embed_tokens: &Tensor,
    token_ids: &Tensor,
    logit_scale: &Tensor,
) -> Result<LossSum> {
    let scale = logit_scale.to_dtype(DType::F32)?.reshape(())?;
    // The scale goes on the small side of the product: the same logits, and its gradient comes for free.
    let scaled = student.to_dtype(DType::F32)?.broadcast_mul(&scale)?;
    // A table kept in half precision saves memory anywhere, but computing in it pays on a GPU only.
    let dtype = if student.device().is_cpu() { DType::F32 } else { embed_tokens.dtype() };
    linear_cross_entropy(&scaled.to_dtype(dtype)?, &embed_tokens.detach().to_dtype(dtype)?, token_ids)
}

fn comparable(what: &str, student: &Tensor, teacher: &Tensor) -> Result<(Tensor, Tensor)> {
    if student.rank() != 2 || student.shape() != teacher.shape() {
        return Err(Error::batch(format!(
            "the {what} student has shape {:?} and its teacher {:?}, expected both (rows, teacher width)",
            student.dims(),
            teacher.dims()
        )));
    }
    Ok((student.to_dtype(DType::F32)?, teacher.detach().to_dtype(DType::F32)?))
}

/// Cosine of each pair of rows, `(rows)`.
fn cosine(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok((((a * b)?.sum(D::Minus1)? / length(a)?)? / length(b)?)?)
}

/// Euclidean length of each row, `(rows)`.
fn length(x: &Tensor) -> Result<Tensor> {
    Ok((x.sqr()?.sum(D::Minus1)? + TINY)?.sqrt()?)
}

fn total(terms: &Tensor) -> Result<LossSum> {
    Ok(LossSum { sum: terms.sum_all()?, count: terms.elem_count() })
}

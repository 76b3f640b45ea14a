//! Distillation losses of stage 1: the pre-decoder learns CLIP's image features and the language model's text
//! embeddings.
//!
//! All losses are computed in f32, whatever the dtype of the student. Teachers never receive a gradient.

use candle_core::{D, DType, Tensor};

use super::{LossSum, linear_cross_entropy};
use crate::{Error, Result};

/// Epsilon under the square root of a norm, so that the gradient of a zero norm is zero instead of NaN.
const EPSILON: f64 = 1e-12;

/// Computes `sum_i 1 - cos(student_i, teacher_i)` over image patches.
///
/// # Shapes
/// `student` and `teacher`: `(patches, teacher width)`.
///
/// # Errors
/// [`Error::Batch`] if `student` and `teacher` differ in shape or are not matrices.
pub fn vision_distillation(student: &Tensor, teacher: &Tensor) -> Result<LossSum> {
    let (student, teacher) = matching_pair("vision", student, teacher)?;
    let terms = (1.0 - cosine(&student, &teacher)?)?;
    total(&terms)
}

/// Computes `sum_i |student_i - teacher_i| - cos(student_i, teacher_i)` over text tokens, with the L2 norm `|..|`.
///
/// # Shapes
/// `student` and `teacher`: `(tokens, language model width)`.
///
/// # Errors
/// [`Error::Batch`] if `student` and `teacher` differ in shape or are not matrices.
pub fn feature_distillation(student: &Tensor, teacher: &Tensor) -> Result<LossSum> {
    let (student, teacher) = matching_pair("text", student, teacher)?;
    let terms = (norm(&(&student - &teacher)?)? - cosine(&student, &teacher)?)?;
    total(&terms)
}

/// Computes the current-token prediction loss: the cross-entropy of `logit_scale * student . embed_tokens^T` against
/// each position's *own* token, without the shift by one of a language model.
///
/// # Shapes
/// - `student`: `(tokens, d)`
/// - `embed_tokens`: `(vocabulary, d)`, the embedding table of the language model
/// - `token_ids`: `(tokens)`, u32, with [`crate::batch::IGNORE_INDEX`] at positions that are not text
/// - `logit_scale`: one element, which receives a gradient if it is tracked
///
/// # Errors
/// Same as [`linear_cross_entropy`].
pub fn current_token_prediction(
    student: &Tensor,
    embed_tokens: &Tensor,
    token_ids: &Tensor,
    logit_scale: &Tensor,
) -> Result<LossSum> {
    let scale = logit_scale.to_dtype(DType::F32)?.reshape(())?;
    // Scaling the student instead of the logits gives the same logits for less work, and autograd finds d(scale).
    let scaled = student.to_dtype(DType::F32)?.broadcast_mul(&scale)?;
    // A half-precision table saves memory on every device, but a half-precision matmul is faster on GPUs only.
    let dtype = if student.device().is_cpu() { DType::F32 } else { embed_tokens.dtype() };
    linear_cross_entropy(&scaled.to_dtype(dtype)?, &embed_tokens.detach().to_dtype(dtype)?, token_ids)
}

fn matching_pair(kind: &str, student: &Tensor, teacher: &Tensor) -> Result<(Tensor, Tensor)> {
    if student.rank() != 2 || student.shape() != teacher.shape() {
        return Err(Error::batch(format!(
            "the {kind} student has shape {:?} and its teacher {:?}, expected both to be (rows, teacher width)",
            student.dims(),
            teacher.dims()
        )));
    }
    Ok((student.to_dtype(DType::F32)?, teacher.detach().to_dtype(DType::F32)?))
}

/// Computes the cosine similarity of each pair of rows, `(rows)`.
fn cosine(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok((((a * b)?.sum(D::Minus1)? / norm(a)?)? / norm(b)?)?)
}

/// Computes the L2 norm of each row, `(rows)`.
fn norm(x: &Tensor) -> Result<Tensor> {
    Ok((x.sqr()?.sum(D::Minus1)? + EPSILON)?.sqrt()?)
}

fn total(terms: &Tensor) -> Result<LossSum> {
    Ok(LossSum { sum: terms.sum_all()?, count: terms.elem_count() })
}

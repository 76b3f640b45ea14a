//! Cross-entropy fused with the linear head: logits are computed in chunks and never all held in memory.

use candle_core::backprop::GradStore;
use candle_core::{D, DType, Device, Tensor, Var};

use super::LossSum;
use super::precomputed_grad::with_gradients;
use crate::batch::IGNORE_INDEX;
use crate::nn::Linear;
use crate::{Error, Result};

/// Maximum number of logits per chunk (128 MiB in f32). Larger chunks are no faster: the GEMM is already efficient.
const CHUNK_LOGITS: usize = 32 << 20;

/// Computes `sum_i cross_entropy(hidden_i . head_weight^T, labels_i)` over the labelled rows, in f32.
///
/// Rows labelled [`IGNORE_INDEX`] are skipped at no cost. The other rows pass through the head in chunks. Each chunk
/// computes its loss *and* its gradients before its logits are freed (the idea of Liger Kernel), so memory grows with
/// the sizes of `hidden` and `head_weight`, not with rows times vocabulary. Gradients are computed only for tracked
/// inputs. The backward pass consumes them, so it can run only once.
///
/// # Shapes
/// `hidden` `(n, d)` and `head_weight` `(v, d)` of one dtype; `labels` `(n)`, u32.
///
/// # Errors
/// [`Error::Batch`] if shapes or dtypes do not match, or a label is outside the vocabulary.
pub fn linear_cross_entropy(hidden: &Tensor, head_weight: &Tensor, labels: &Tensor) -> Result<LossSum> {
    chunked(hidden, head_weight, labels, CHUNK_LOGITS)
}

/// [`linear_cross_entropy`] over a linear layer whose weight may be quantised or in 16 bits, and that may have an adapter.
/// Gradients of a chunk come from a graph of the chunk alone.
///
/// # Errors
/// The errors of [`linear_cross_entropy`].
pub fn head_cross_entropy(hidden: &Tensor, head: &Linear, labels: &Tensor) -> Result<LossSum> {
    match head.weight() {
        Ok(weight) if head.lora().is_none() && (weight.track_op() || weight.dtype() == hidden.dtype()) => {
            linear_cross_entropy(hidden, &weight.to_dtype(hidden.dtype())?, labels)
        }
        _ => chunked_over(hidden, head, labels, CHUNK_LOGITS),
    }
}

fn chunked_over(hidden: &Tensor, head: &Linear, labels: &Tensor, chunk_logits: usize) -> Result<LossSum> {
    let (vocabulary, width) = head.dims2()?;
    let rows = LabelledRows::new(hidden, (vocabulary, width), labels)?;
    let (device, count) = (hidden.device(), rows.labels.len());
    if count == 0 {
        return LossSum::zero(device);
    }
    // Norms for DoRA once for all chunks.
    let mut head = head.clone();
    head.hold_norms()?;
    let trained = head.trained();
    let index = Tensor::new(rows.positions, device)?;
    let selected = hidden.detach().index_select(&index, 0)?;
    let (mut sum, mut d_selected) = (Tensor::zeros((), DType::F32, device)?, vec![]);
    let mut d_trained = vec![None::<Tensor>; trained.len()];
    let chunk_rows = (chunk_logits / vocabulary.max(1)).max(1);
    for (n, labels) in rows.labels.chunks(chunk_rows).enumerate() {
        let x = selected.narrow(0, n * chunk_rows, labels.len())?.contiguous()?;
        let x = if hidden.track_op() { Var::from_tensor(&x)?.into_inner() } else { x };
        let (loss, gradients) = chunk_over(&x, &head, labels)?;
        sum = (sum + loss)?;
        let Some(mut gradients) = gradients else { continue };
        d_selected.extend(gradients.remove(&x).map(|dx| dx.detach()));
        for (total, tensor) in d_trained.iter_mut().zip(&trained) {
            *total = added(total.take(), gradients.remove(tensor).map(|part| part.detach()))?;
        }
    }
    let d_hidden = (!d_selected.is_empty()).then(|| scattered(hidden, &index, &d_selected)).transpose()?;
    // A chain of nodes: each adds the gradient of one more tensor.
    let mut value = with_gradients(sum.clone(), hidden, &sum, [d_hidden, None])?;
    for (tensor, gradient) in trained.into_iter().zip(d_trained) {
        value = with_gradients(sum.clone(), &value, tensor, [Some(sum.ones_like()?), gradient])?;
    }
    Ok(LossSum { sum: value, count })
}

/// Loss of a chunk of rows, and the gradients of what is tracked, if anything is.
fn chunk_over(x: &Tensor, head: &Linear, labels: &[u32]) -> Result<(Tensor, Option<GradStore>)> {
    let logits = head.forward(x)?;
    let (loss, d_logits) = loss_and_gradient(&logits.detach().to_dtype(DType::F32)?, labels, logits.track_op())?;
    let gradients = d_logits.map(|g| (&logits * g.to_dtype(logits.dtype())?)?.sum_all()?.backward()).transpose()?;
    Ok((loss, gradients))
}

/// The sum of what there is of two gradients.
fn added(total: Option<Tensor>, part: Option<Tensor>) -> Result<Option<Tensor>> {
    Ok(match (total, part) {
        (Some(total), Some(part)) => Some((total + part)?.detach()),
        (total, part) => total.or(part),
    })
}

/// Gradients of the selected rows at their places in that of `hidden`.
fn scattered(hidden: &Tensor, index: &Tensor, d_selected: &[Tensor]) -> Result<Tensor> {
    Ok(hidden.zeros_like()?.detach().index_add(index, &Tensor::cat(d_selected, 0)?, 0)?)
}

fn chunked(hidden: &Tensor, head_weight: &Tensor, labels: &Tensor, chunk_logits: usize) -> Result<LossSum> {
    let (vocabulary, _) = head_weight.dims2()?;
    if hidden.dtype() != head_weight.dtype() {
        return Err(shape_error(hidden, head_weight.dims(), labels));
    }
    let rows = LabelledRows::new(hidden, head_weight.dims2()?, labels)?;
    let device = hidden.device();
    if rows.labels.is_empty() {
        return LossSum::zero(device);
    }
    let count = rows.labels.len();
    let index = Tensor::new(rows.positions, device)?;
    let selected = hidden.detach().index_select(&index, 0)?;
    let head =
        Head { weight: head_weight.detach(), wants_input: hidden.track_op(), wants_weight: head_weight.track_op() };
    let (mut sum, mut d_selected, mut d_weight) = (Tensor::zeros((), DType::F32, device)?, vec![], None::<Tensor>);
    let chunk_rows = (chunk_logits / vocabulary.max(1)).max(1);
    for (n, labels) in rows.labels.chunks(chunk_rows).enumerate() {
        let chunk = head.chunk(&selected.narrow(0, n * chunk_rows, labels.len())?, labels)?;
        sum = (sum + chunk.loss)?;
        d_selected.extend(chunk.d_hidden);
        d_weight = added(d_weight, chunk.d_weight)?;
    }
    let d_hidden = head.wants_input.then(|| scattered(hidden, &index, &d_selected)).transpose()?;
    let d_weight = d_weight.map(|d| d.to_dtype(head_weight.dtype())).transpose()?;
    Ok(LossSum { sum: with_gradients(sum, hidden, head_weight, [d_hidden, d_weight])?, count })
}

/// Indices and labels of the rows that contribute to the loss.
struct LabelledRows {
    positions: Vec<u32>,
    labels: Vec<u32>,
}

impl LabelledRows {
    fn new(hidden: &Tensor, (vocabulary, d_head): (usize, usize), labels: &Tensor) -> Result<Self> {
        let (Ok((n, d)), Ok(n_labels)) = (hidden.dims2(), labels.dims1()) else {
            return Err(shape_error(hidden, &[vocabulary, d_head], labels));
        };
        if n != n_labels || d != d_head || labels.dtype() != DType::U32 {
            return Err(shape_error(hidden, &[vocabulary, d_head], labels));
        }
        let mut rows = Self { positions: vec![], labels: vec![] };
        for (position, label) in (0u32..).zip(labels.to_device(&Device::Cpu)?.to_vec1::<u32>()?) {
            if label == IGNORE_INDEX {
                continue;
            }
            if label as usize >= vocabulary {
                return Err(Error::batch(format!(
                    "label {label} of row {position} is outside the vocabulary of {vocabulary}: use the model's own \
                     tokenizer, and {IGNORE_INDEX} for positions without a label"
                )));
            }
            rows.positions.push(position);
            rows.labels.push(label);
        }
        Ok(rows)
    }
}

fn shape_error(hidden: &Tensor, head_weight: &[usize], labels: &Tensor) -> Error {
    Error::batch(format!(
        "hidden states {:?} {:?}, head weight {:?} and labels {:?} {:?} do not match, expected (n, d) and (v, d) \
         of one dtype, and (n) U32",
        hidden.dims(),
        hidden.dtype(),
        head_weight,
        labels.dims(),
        labels.dtype()
    ))
}

/// Linear head, detached from the graph.
struct Head {
    weight: Tensor,
    wants_input: bool,
    wants_weight: bool,
}

/// Loss and gradients of one chunk of rows.
struct Chunk {
    loss: Tensor,
    d_hidden: Option<Tensor>,
    d_weight: Option<Tensor>,
}

impl Head {
    fn chunk(&self, hidden: &Tensor, labels: &[u32]) -> Result<Chunk> {
        let logits = hidden.matmul(&self.weight.t()?)?.to_dtype(DType::F32)?;
        let (loss, d_logits) = loss_and_gradient(&logits, labels, self.wants_input || self.wants_weight)?;
        drop(logits);
        let Some(d_logits) = d_logits else { return Ok(Chunk { loss, d_hidden: None, d_weight: None }) };
        let d_logits = d_logits.to_dtype(hidden.dtype())?;
        let d_hidden = self.wants_input.then(|| d_logits.matmul(&self.weight)).transpose()?;
        let d_weight = || d_logits.t()?.matmul(hidden)?.to_dtype(DType::F32);
        Ok(Chunk { loss, d_hidden, d_weight: self.wants_weight.then(d_weight).transpose()? })
    }
}

/// The summed loss of some rows of logits (rows, vocab) in f32, and on request its gradient.
fn loss_and_gradient(logits: &Tensor, labels: &[u32], wants_gradient: bool) -> Result<(Tensor, Option<Tensor>)> {
    let labels = Tensor::new(labels, logits.device())?.unsqueeze(1)?;
    let label_logit = logits.gather(&labels, 1)?;
    let max_logit = logits.max_keepdim(D::Minus1)?;
    let probabilities = candle_nn::ops::softmax_last_dim(logits)?;
    // log(sum(exp)) follows from the largest probability: that is at least 1/v, so its logarithm is finite.
    let log_sum_exp = (max_logit - probabilities.max_keepdim(D::Minus1)?.log()?)?;
    let loss = (log_sum_exp - label_logit)?.sum_all()?;
    if !wants_gradient {
        return Ok((loss, None));
    }
    // d loss / d logits = probabilities - one_hot(labels), in place.
    probabilities.scatter_add_set(&labels, &Tensor::full(-1f32, labels.shape(), logits.device())?, 1)?;
    Ok((loss, Some(probabilities)))
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::nn::{Lora, gradients_of};
    use crate::options::Quantization;

    /// Rounding of f32 sums taken in another order, for values of order 10.
    const TOLERANCE: f32 = 2e-5;

    fn wave(shape: (usize, usize), seed: u32) -> Vec<f32> {
        (0..(shape.0 * shape.1) as u32).map(|i| ((i * 7 + seed * 13) as f32 * 0.7).sin()).collect()
    }

    fn var(shape: (usize, usize), seed: u32) -> Var {
        Var::from_vec(wave(shape, seed), shape, &Device::Cpu).unwrap()
    }

    fn labels(labels: &[u32]) -> Tensor {
        Tensor::new(labels, &Device::Cpu).unwrap()
    }

    fn max_diff(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
    }

    /// Textbook form: all logits, log-softmax, gather.
    fn reference(hidden: &Tensor, weight: &Tensor, labels: &Tensor) -> Tensor {
        let logits = hidden.matmul(&weight.t().unwrap()).unwrap();
        let log_probabilities = candle_nn::ops::log_softmax(&logits, 1).unwrap();
        log_probabilities.gather(&labels.unsqueeze(1).unwrap(), 1).unwrap().neg().unwrap().sum_all().unwrap()
    }

    #[test]
    fn value_and_gradients_match_the_textbook_form_for_every_chunk_size() {
        let (hidden, weight) = (var((5, 4), 1), var((7, 4), 2));
        let labels = labels(&[3, IGNORE_INDEX, 0, 6, 3]);
        let expected = reference(&hidden, &weight, &labels);
        let expected_grads = (&expected * 0.3).unwrap().backward().unwrap();
        for chunk_logits in [1, 7 * 2, 7 * 3, 1 << 20] {
            let loss = chunked(&hidden, &weight, &labels, chunk_logits).unwrap();
            assert_eq!(loss.count, 4);
            assert!(max_diff(&loss.sum, &expected) < TOLERANCE);
            let grads = (loss.sum * 0.3).unwrap().backward().unwrap();
            for input in [&hidden, &weight] {
                assert!(max_diff(grads.get(input).unwrap(), expected_grads.get(input).unwrap()) < TOLERANCE);
            }
        }
    }

    #[test]
    fn a_head_with_an_adapter_or_other_weights_agrees_with_its_merged_floats() {
        let (hidden, labels) = (var((5, 64), 1), labels(&[3, IGNORE_INDEX, 0, 6, 3]));
        let weight = var((7, 64), 2).as_tensor().detach();
        let [a, b] = [var((2, 64), 3), var((7, 2), 4)];
        let lora = Lora::new(a.as_tensor().clone(), b.as_tensor().clone(), 0.1).unwrap();
        let mut quantized = Linear::from_tensors(weight.clone(), None);
        quantized.quantize(Quantization::Q8_0).unwrap();
        let dequantized = quantized.quantized_weight().unwrap().dequantize().unwrap();
        let half = weight.to_dtype(DType::BF16).unwrap();
        let widened = half.to_dtype(DType::F32).unwrap();
        // Quantised matmuls round the activations as well.
        for (mut head, weight, tolerance) in [
            (Linear::from_tensors(weight.clone(), None), weight, 1e-4),
            (Linear::from_tensors(half, None), widened, 1e-4),
            (quantized, dequantized, 0.1),
        ] {
            head.set_lora(Some(lora.clone())).unwrap();
            let merged = (weight + (b.matmul(&a).unwrap() * 0.1).unwrap()).unwrap();
            let expected = reference(&hidden, &merged, &labels);
            let grads = expected.backward().unwrap();
            for chunk_logits in [1, 14, 1 << 20] {
                let loss = chunked_over(&hidden, &head, &labels, chunk_logits).unwrap();
                assert!(max_diff(&loss.sum, &expected) < tolerance && loss.count == 4);
                let found = gradients_of(loss.sum, [&hidden, &a, &b]).unwrap();
                for var in [&hidden, &a, &b] {
                    let error = max_diff(&found[&var.id()], grads.get(var).unwrap());
                    assert!(error < tolerance, "{:?}: {error}", var.dims());
                }
            }
        }
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        let (hidden, weight) = (var((3, 4), 3), var((6, 4), 4));
        let labels = labels(&[5, 2, 2]);
        let value = |h: &Tensor, w: &Tensor| -> f64 {
            linear_cross_entropy(h, w, &labels).unwrap().sum.to_scalar::<f32>().unwrap().into()
        };
        let grads = linear_cross_entropy(&hidden, &weight, &labels).unwrap().sum.backward().unwrap();
        for (n, input) in [&hidden, &weight].into_iter().enumerate() {
            let gradient = grads.get(input).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (i, analytic) in gradient.into_iter().enumerate() {
                let shifted_by = |step: f32| {
                    let mut values = input.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                    values[i] += step;
                    let shifted = Tensor::from_vec(values, input.shape(), &Device::Cpu).unwrap();
                    if n == 0 { value(&shifted, &weight) } else { value(&hidden, &shifted) }
                };
                let numeric = (shifted_by(1e-2) - shifted_by(-1e-2)) / 2e-2;
                // Central differences of an f32 value: truncation and rounding errors are both of order 1e-4.
                assert!((numeric - f64::from(analytic)).abs() < 1e-3, "input {n}, {i}: {numeric} and {analytic}");
            }
        }
    }

    #[test]
    fn untracked_inputs_get_no_gradient() {
        let (hidden, weight) = (var((2, 3), 5), var((4, 3), 6));
        let grads = linear_cross_entropy(&hidden, &weight.as_detached_tensor(), &labels(&[1, 2])).unwrap();
        let grads = grads.sum.backward().unwrap();
        assert!(grads.get(&hidden).is_some() && grads.get(&weight).is_none());
        let fixed = linear_cross_entropy(&hidden.as_detached_tensor(), &weight.as_detached_tensor(), &labels(&[1, 2]));
        assert!(!fixed.unwrap().sum.track_op());
    }

    #[test]
    fn extreme_logits_stay_finite() {
        let hidden = Var::new(&[[300f32], [300.0]], &Device::Cpu).unwrap();
        let weight = Var::new(&[[1f32], [-1.0]], &Device::Cpu).unwrap();
        let loss = linear_cross_entropy(&hidden, &weight, &labels(&[0, 1])).unwrap();
        assert_eq!(loss.mean().unwrap().to_scalar::<f32>().unwrap(), 300.0);
        let grads = loss.sum.backward().unwrap();
        assert_eq!(grads.get(&hidden).unwrap().to_vec2::<f32>().unwrap(), [[0.0], [2.0]]);
    }

    #[test]
    fn loss_without_labels_is_zero() {
        let (hidden, weight) = (var((2, 3), 5), var((4, 3), 6));
        let loss = linear_cross_entropy(&hidden, &weight, &labels(&[IGNORE_INDEX; 2])).unwrap();
        assert_eq!((loss.count, loss.mean().unwrap().to_scalar::<f32>().unwrap()), (0, 0.0));
    }

    #[test]
    fn errors_name_bad_labels_and_shapes() {
        let (hidden, weight) = (var((2, 3), 5), var((4, 3), 6));
        let error = |labels: &Tensor| linear_cross_entropy(&hidden, &weight, labels).unwrap_err().to_string();
        let outside = error(&labels(&[1, 4]));
        assert!(outside.contains("label 4 of row 1") && outside.contains("vocabulary of 4"), "{outside}");
        assert!(error(&labels(&[1])).contains("labels [1]"));
        assert!(error(&Tensor::new(&[1i64, 2], &Device::Cpu).unwrap()).contains("I64"));
    }
}

//! Initial connector after stage 1: the least-squares linear map from the pre-decoder's hidden states of text to the
//! language model's embeddings.
//!
//! Stage 1 trains a head for this map and drops it. With a random map instead, stage 2 would have to learn it again, at
//! a scale that the language model's layers have never seen.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::objectives::select;
use crate::Result;
use crate::batch::MultimodalBatch;
use crate::model::PreDecoderModel;

/// Ridge regularisation relative to the mean square of the hidden states, which keeps weights small in directions that
/// text hardly uses.
const RIDGE: f64 = 1e-3;

/// The matrix (LLM width, hidden_size) that minimises `|W h - t|^2` over the texts of `batches`, with `h` the hidden
/// state of a token and `t` its row of `table` (vocab_size, LLM width), and ridge regularisation. `None` if there is no
/// text, or the system is singular.
///
/// # Errors
/// If a batch does not fit the model.
pub(super) fn connector_of_text(
    model: &PreDecoderModel,
    table: &Tensor,
    batches: impl Iterator<Item = MultimodalBatch>,
) -> Result<Option<Tensor>> {
    let (mut squares, mut products): (Option<Tensor>, Option<Tensor>) = (None, None);
    for batch in batches {
        let positions = batch.text_positions();
        if positions.is_empty() {
            continue;
        }
        let hidden = model.hidden_states(&batch)?.flatten_to(1)?.detach();
        let ids = select(&batch.input_ids.flatten_all()?, positions.clone())?;
        let [hidden, embeddings] = [select(&hidden, positions)?, table.index_select(&ids, 0)?]
            .map(|rows| rows.to_dtype(DType::F32)?.to_device(&Device::Cpu));
        let (hidden, embeddings) = (hidden?, embeddings?);
        add(&mut squares, hidden.t()?.matmul(&hidden)?)?;
        add(&mut products, embeddings.t()?.matmul(&hidden)?)?;
    }
    let (Some(squares), Some(products)) = (squares, products) else { return Ok(None) };
    let (width, size) = products.dims2()?;
    let mut squares = squares.flatten_all()?.to_vec1::<f64>()?;
    let ridge = RIDGE * (0..size).map(|i| squares[i * size + i]).sum::<f64>() / size as f64;
    (0..size).for_each(|i| squares[i * size + i] += ridge);
    let mut products = products.flatten_all()?.to_vec1::<f64>()?;
    if solve(&mut squares, &mut products, size).is_none() {
        return Ok(None);
    }
    let weights = products.into_iter().map(|x| x as f32).collect::<Vec<_>>();
    Ok(Some(Tensor::from_vec(weights, (width, size), &Device::Cpu)?))
}

fn add(sum: &mut Option<Tensor>, part: Tensor) -> Result<()> {
    let part = part.to_dtype(DType::F64)?;
    *sum = Some(match sum.take() {
        Some(sum) => (sum + part)?,
        None => part,
    });
    Ok(())
}

/// Replaces each of `rows` by the solution `x` of `A x = row` (Cholesky), where `A` (size, size) is symmetric and
/// positive definite; `None` if it is not.
fn solve(a: &mut [f64], rows: &mut [f64], size: usize) -> Option<()> {
    // A = L L^T, with L in the lower triangle.
    for i in 0..size {
        for j in 0..=i {
            let (upper, lower) = a.split_at_mut(i * size);
            let (row_i, row_j) = if i == j { (&*lower, &*lower) } else { (&*lower, &upper[j * size..]) };
            let rest = row_i[j] - row_i[..j].iter().zip(&row_j[..j]).map(|(x, y)| x * y).sum::<f64>();
            lower[j] = if i == j { rest.sqrt() } else { rest / upper[j * size + j] };
        }
        if !(a[i * size + i] > 0.0 && a[i * size + i].is_finite()) {
            return None;
        }
    }
    let l = &*a;
    rows.par_chunks_mut(size).for_each(|x| {
        for i in 0..size {
            let known: f64 = l[i * size..][..i].iter().zip(&*x).map(|(l, x)| l * x).sum();
            x[i] = (x[i] - known) / l[i * size + i];
        }
        for i in (0..size).rev() {
            x[i] /= l[i * size + i];
            let value = x[i];
            l[i * size..][..i].iter().zip(x.iter_mut()).for_each(|(l, x)| *x -= l * value);
        }
    });
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{BatchSpec, PaddingSide, Sequence};
    use crate::config::HaploVlConfig;
    use crate::weights::Parameters;

    #[test]
    fn linear_systems_are_solved() {
        let (size, count) = (5, 3);
        let m: Vec<f64> = (0..size * size).map(|i| ((i * 7 + 3) % 11) as f64 - 5.0).collect();
        let a =
            |i: usize, j: usize| (0..size).map(|k| m[i * size + k] * m[j * size + k]).sum::<f64>() + f64::from(i == j);
        let x: Vec<f64> = (0..size * count).map(|i| i as f64 - 4.0).collect();
        let mut matrix: Vec<f64> = (0..size * size).map(|i| a(i / size, i % size)).collect();
        let row = |x: &[f64], i: usize| (0..size).map(|j| a(i, j) * x[j]).sum::<f64>();
        let mut rows: Vec<f64> = x.chunks(size).flat_map(|x| (0..size).map(move |i| row(x, i))).collect();
        solve(&mut matrix, &mut rows, size).unwrap();
        assert!(rows.iter().zip(&x).all(|(found, x)| (found - x).abs() < 1e-9), "{rows:?}");
        assert!(solve(&mut [1.0, 2.0, 2.0, 1.0], &mut [1.0, 1.0], 2).is_none());
        assert!(solve(&mut [f64::NAN], &mut [1.0], 1).is_none());
    }

    #[test]
    fn a_linear_map_of_hidden_states_is_recovered() {
        let config = HaploVlConfig::tiny();
        let parameters = Parameters::new();
        let vb = parameters.var_builder(1, DType::F32, &Device::Cpu);
        let model = PreDecoderModel::new(&config, vb).unwrap();
        // One token per row, so that its hidden state does not depend on other tokens.
        let ids: Vec<u32> = (0..config.vocab_size as u32).filter(|id| *id < config.image_token_index).collect();
        let rows = ids.iter().map(|id| Sequence { input_ids: vec![*id], labels: None, visuals: vec![] });
        let rows: Vec<Sequence> = rows.collect();
        let spec = BatchSpec::new(&config);
        let batch = MultimodalBatch::new(&rows, spec, PaddingSide::Right, &Device::Cpu).unwrap();
        let hidden = model.hidden_states(&batch).unwrap().flatten_to(1).unwrap().detach();
        let size = config.pre_decoder.hidden_size;
        let map = Tensor::randn(0f32, 1.0, (24, size), &Device::Cpu).unwrap();
        let table = hidden.matmul(&map.t().unwrap()).unwrap();
        let found = connector_of_text(&model, &table, [batch].into_iter()).unwrap().unwrap();
        let again = hidden.matmul(&found.t().unwrap()).unwrap();
        let error = (again - &table).unwrap().sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
        let strength = table.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(error < 1e-2 * strength, "{error} of {strength}");
        assert!(connector_of_text(&model, &table, std::iter::empty()).unwrap().is_none());
    }
}

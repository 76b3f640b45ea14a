//! Attention with one range of keys per query: causal text, whole images, packed samples and padding.

mod backward_cpu;
mod forward_cpu;
mod key_ranges;

use std::ops::Deref;

use candle_core::{CpuStorage, CustomOp3, D, DType, Layout, Result, Shape, Storage, Tensor, WithDType};

use super::{is_cpu_f32, is_tracked, with_slices};
use crate::nn::kernels::kv_view::{HeadView, KvView, Segments};
use crate::nn::tape::apply3;
use crate::options::Precision;
use backward_cpu::Inputs;
use forward_cpu::Kv;
pub use key_ranges::KeyRanges;

/// Attention `softmax(scale q k^T) v` over the key range of each query.
///
/// `q` is (batch, queries, heads, head_dim), `k` and `v` are (batch, keys, kv_heads, head_dim); `kv_heads` divides
/// `heads`, and keys are not repeated in memory. Keys and values may have another dtype than queries, such as the KV
/// cache's: CPU kernels read f16 directly. The result is (batch, queries, heads, head_dim). On the CPU in f32, memory
/// is linear in the sequence length, forward and backward.
///
/// # Errors
/// Errors of candle, if shapes or ranges do not fit.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, ranges: &KeyRanges, scale: f64) -> Result<Tensor> {
    attention_with(q, k, v, ranges, scale, Precision::Full)
}

/// [`attention`] with the precision of its matmuls on the CPU; the matmuls of a single query are always f32.
///
/// # Errors
/// The errors of [`attention`].
pub fn attention_with(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    ranges: &KeyRanges,
    scale: f64,
    precision: Precision,
) -> Result<Tensor> {
    let shape = AttentionShape::new(q, k, v)?;
    ranges.check(shape.queries, &vec![shape.keys; shape.batch])?;
    let kv_is_f16 = [k, v].iter().all(|t| t.dtype() == DType::F16) && !is_tracked(&[q, k, v]);
    if is_cpu_f32(&[q, k, v]) || is_cpu_f32(&[q]) && k.device().is_cpu() && v.device().is_cpu() && kv_is_f16 {
        let [q, k, v] = [rows_of_heads(q)?, rows_of_heads(k)?, rows_of_heads(v)?];
        return apply3(&q, &k, &v, AttentionOp { shape, ranges: ranges.clone(), scale: scale as f32, precision });
    }
    let (k, v) = (k.to_dtype(q.dtype())?, v.to_dtype(q.dtype())?);
    let weights = attention_weights(q, &k, ranges, scale)?;
    let v = repeat_heads(&v.transpose(1, 2)?, shape.heads / shape.kv_heads)?;
    weights.to_dtype(v.dtype())?.matmul(&v.contiguous()?)?.transpose(1, 2)
}

/// Keys and values of consecutive positions of one sequence, each (1, positions, kv_heads, head_dim).
#[derive(Debug, Clone)]
pub struct KvSegment {
    /// Keys.
    pub keys: Tensor,
    /// Values.
    pub values: Tensor,
}

/// [`attention_with`] for batch rows that each have keys and values of their own, in consecutive segments: bit for bit
/// what contiguous keys and values give. Without gradients.
///
/// # Errors
/// Errors of candle, if shapes, dtypes or ranges do not fit.
pub fn attention_over(
    q: &Tensor,
    rows: &[Vec<KvSegment>],
    ranges: &KeyRanges,
    scale: f64,
    precision: Precision,
) -> Result<Tensor> {
    let shape = AttentionShape::over(q, rows)?;
    let keys = |row: &Vec<KvSegment>| row.iter().map(|segment| segment.keys.dim(1)).sum::<Result<usize>>();
    ranges.check(shape.queries, &rows.iter().map(keys).collect::<Result<Vec<_>>>()?)?;
    let dtype = rows.iter().flatten().next().map_or(DType::F32, |segment| segment.keys.dtype());
    let on_cpu = |t: &Tensor| t.device().is_cpu() && t.dtype() == dtype && t.stride().last() == Some(&1);
    let all_on_cpu = rows.iter().flatten().all(|segment| on_cpu(&segment.keys) && on_cpu(&segment.values));
    if is_cpu_f32(&[q]) && all_on_cpu && matches!(dtype, DType::F32 | DType::F16) {
        let op = AttentionOp { shape, ranges: ranges.clone(), scale: scale as f32, precision };
        return op.forward_over(&rows_of_heads(q)?, rows);
    }
    let one = |(i, row): (usize, &Vec<KvSegment>)| {
        let joined = |part: fn(&KvSegment) -> &Tensor| Tensor::cat(&row.iter().map(part).collect::<Vec<_>>(), 1);
        let (k, v) = (joined(|segment| &segment.keys)?, joined(|segment| &segment.values)?);
        let ranges = KeyRanges::new(vec![ranges.rows()[i].clone()]);
        attention_with(&q.narrow(0, i, 1)?, &k, &v, &ranges, scale, precision)
    };
    Tensor::cat(&rows.iter().enumerate().map(one).collect::<Result<Vec<_>>>()?, 0)
}

/// Attention weights `softmax(scale q k^T)`, (batch, heads, queries, keys), f32; memory is quadratic.
///
/// # Errors
/// The errors of [`attention`].
pub fn attention_weights(q: &Tensor, k: &Tensor, ranges: &KeyRanges, scale: f64) -> Result<Tensor> {
    let shape = AttentionShape::new(q, k, k)?;
    ranges.check(shape.queries, &vec![shape.keys; shape.batch])?;
    let q = (q.transpose(1, 2)?.contiguous()? * scale)?;
    let k = repeat_heads(&k.transpose(1, 2)?, shape.heads / shape.kv_heads)?;
    let scores = q.matmul(&k.transpose(2, 3)?.contiguous()?)?.to_dtype(DType::F32)?;
    let scores = scores.broadcast_add(&ranges.dense(shape.keys, DType::F32, scores.device())?)?;
    if is_tracked(&[&scores]) {
        candle_nn::ops::softmax(&scores, D::Minus1)
    } else {
        candle_nn::ops::softmax_last_dim(&scores)
    }
}

/// Repeats heads: (batch, kv_heads, keys, head_dim) -> (batch, kv_heads * times, keys, head_dim).
fn repeat_heads(x: &Tensor, times: usize) -> Result<Tensor> {
    if times == 1 {
        return Ok(x.clone());
    }
    let (batch, heads, keys, width) = x.dims4()?;
    x.unsqueeze(2)?.expand((batch, heads, times, keys, width))?.reshape((batch, heads * times, keys, width))
}

/// Returns the tensor if the elements of each head are consecutive, as the kernels need; else a contiguous copy.
fn rows_of_heads(x: &Tensor) -> Result<Tensor> {
    if x.stride().last() == Some(&1) { Ok(x.clone()) } else { x.contiguous() }
}

#[derive(Debug, Clone, Copy)]
struct AttentionShape {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl AttentionShape {
    fn new(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Self> {
        let (batch, queries, heads, head_dim) = q.dims4()?;
        let (k_batch, keys, kv_heads, k_dim) = k.dims4()?;
        if k.dims() != v.dims() || k_batch != batch || k_dim != head_dim || kv_heads == 0 || heads % kv_heads != 0 {
            candle_core::bail!("attention of q {:?}, k {:?}, v {:?}: shapes do not fit", q.dims(), k.dims(), v.dims());
        }
        Ok(Self { batch, queries, keys, heads, kv_heads, head_dim })
    }

    /// The shape of attention over the segments of each batch row; `keys` is not used.
    fn over(q: &Tensor, rows: &[Vec<KvSegment>]) -> Result<Self> {
        let (batch, queries, heads, head_dim) = q.dims4()?;
        let kv_heads = rows.iter().flatten().next().map_or(Ok(heads), |segment| segment.keys.dim(2))?;
        let fits = |segment: &KvSegment| {
            let expected = segment.keys.dim(1).map(|positions| [1, positions, kv_heads, head_dim]);
            expected.is_ok_and(|dims| segment.keys.dims() == dims && segment.values.dims() == dims)
        };
        if rows.len() != batch || kv_heads == 0 || heads % kv_heads != 0 || !rows.iter().flatten().all(fits) {
            candle_core::bail!("attention of q {:?} over {} rows of segments: shapes do not fit", q.dims(), rows.len());
        }
        Ok(Self { batch, queries, keys: 0, heads, kv_heads, head_dim })
    }

    /// Number of query heads that share the keys of one head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// Custom op for f32 on the CPU.
struct AttentionOp {
    shape: AttentionShape,
    ranges: KeyRanges,
    scale: f32,
    precision: Precision,
}

/// View of a tensor (batch, position, head, head_dim) whose last dimension is consecutive.
fn head_view<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<HeadView<'a, T>> {
    let data = &storage.as_slice::<T>()?[layout.start_offset()..];
    match *layout.stride() {
        [batch, position, head, 1] => Ok(HeadView::new(data, [batch, position, head])),
        // A dimension of size one may have any stride.
        _ if layout.is_contiguous() && layout.dims().len() == 4 => {
            let d = layout.dims();
            Ok(HeadView::new(data, [d[1] * d[2] * d[3], d[2] * d[3], d[3]]))
        }
        _ => candle_core::bail!("attention expects consecutive heads, found strides {:?}", layout.stride()),
    }
}

/// Keys or values of one batch row of a tensor, which may be f16.
fn kv_view<'a>(storage: &'a CpuStorage, layout: &Layout, row: usize) -> Result<KvView<'a>> {
    let positions = layout.shape().dims4()?.1;
    Ok(match storage {
        CpuStorage::F16(_) => KvView::F16(Segments::new(vec![(head_view(storage, layout)?.row(row), positions)])),
        _ => KvView::F32(Segments::new(vec![(head_view(storage, layout)?.row(row), positions)])),
    })
}

impl AttentionOp {
    /// Attention over the segments of each batch row, all on the CPU and of one dtype, f32 or f16.
    fn forward_over(&self, q: &Tensor, rows: &[Vec<KvSegment>]) -> Result<Tensor> {
        let locked = rows.iter().map(|row| {
            let parts = row.iter().map(|segment| [&segment.keys, &segment.values].map(Tensor::storage_and_layout));
            Vec::from_iter(parts)
        });
        let locked = Vec::from_iter(locked);
        let kv = locked.iter().map(|row| Ok(Kv { k: segments_view(row, 0)?, v: segments_view(row, 1)? }));
        let kv: Vec<Kv> = kv.collect::<Result<_>>()?;
        let (storage, layout) = q.storage_and_layout();
        let out = self.forward(head_view(cpu(&storage)?, layout)?, &kv);
        Tensor::from_vec(out, q.shape(), q.device())
    }
}

fn cpu(storage: &Storage) -> Result<&CpuStorage> {
    match storage {
        Storage::Cpu(storage) => Ok(storage),
        _ => candle_core::bail!("expected a tensor on the CPU"),
    }
}

/// The keys (part 0) or values (part 1) of segments, given their locked storages and their layouts.
fn segments_view<'a, L: Deref<Target = Storage>>(
    segments: &'a [[(L, &'a Layout); 2]],
    part: usize,
) -> Result<KvView<'a>> {
    match segments.first().map(|segment| segment[part].0.dtype()) {
        Some(DType::F16) => segment_views(segments, part).map(KvView::F16),
        _ => segment_views(segments, part).map(KvView::F32),
    }
}

fn segment_views<'a, T: WithDType, L: Deref<Target = Storage>>(
    segments: &'a [[(L, &'a Layout); 2]],
    part: usize,
) -> Result<Segments<'a, T>> {
    let view = |segment: &'a [(L, &'a Layout); 2]| {
        let (storage, layout) = &segment[part];
        Ok((head_view(cpu(storage)?, layout)?, layout.shape().dims4()?.1))
    };
    segments.iter().map(view).collect::<Result<_>>().map(Segments::new)
}

impl CustomOp3 for AttentionOp {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        lq: &Layout,
        k: &CpuStorage,
        lk: &Layout,
        v: &CpuStorage,
        lv: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let row = |row| Ok(Kv { k: kv_view(k, lk, row)?, v: kv_view(v, lv, row)? });
        let rows: Vec<Kv> = (0..self.shape.batch).map(row).collect::<Result<_>>()?;
        let out = self.forward(head_view(q, lq)?, &rows);
        Ok((CpuStorage::F32(out), lq.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _out: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let AttentionShape { queries, keys, heads, kv_heads, head_dim, .. } = self.shape;
        let inputs = [q.contiguous()?, k.contiguous()?, v.contiguous()?, g.contiguous()?];
        let [dq, dk, dv] = with_slices(inputs.each_ref(), |[q, k, v, g]| {
            let of_queries = |data| HeadView::contiguous(data, queries, heads, head_dim);
            let of_keys = |data| HeadView::contiguous(data, keys, kv_heads, head_dim);
            self.backward(Inputs { q: of_queries(q), k: of_keys(k), v: of_keys(v), g: of_queries(g) })
        })?;
        let gradient = |data, like: &Tensor| Tensor::from_vec(data, like.shape(), like.device()).map(Some);
        Ok((gradient(dq, q)?, gradient(dk, k)?, gradient(dv, v)?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check_gradients, max_diff, values};
    use super::forward_cpu::QUERY_BLOCK;
    use super::*;

    /// Two rows: left padding, causal text, a bidirectional block, and two packed samples.
    fn mixed(queries: usize) -> KeyRanges {
        let half = queries / 2;
        let first = (0..queries).map(|i| match i {
            0 => 0..0,
            i if i < half => 1..half,
            i => 1..i + 1,
        });
        let second = (0..queries).map(|i| if i < half { 0..i + 1 } else { half..i + 1 });
        KeyRanges::new(vec![first.collect(), second.collect()])
    }

    fn reference(q: &Tensor, k: &Tensor, v: &Tensor, ranges: &KeyRanges) -> Tensor {
        let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
        attention(&wide(q), &wide(k), &wide(v), ranges, 0.5).unwrap().to_dtype(DType::F32).unwrap()
    }

    /// Zeroes padding queries, for which the composed form gives a mean.
    fn without_padding(x: &Tensor) -> Tensor {
        x.narrow(1, 1, x.dim(1).unwrap() - 1).unwrap()
    }

    #[test]
    fn kernel_equals_the_dense_mask() {
        for queries in [9, 2 * QUERY_BLOCK + 7] {
            let (q, k, v) =
                (values(&[2, queries, 4, 8], 0.1), values(&[2, queries, 2, 8], 0.2), values(&[2, queries, 2, 8], 0.3));
            let found = attention(&q, &k, &v, &mixed(queries), 0.5).unwrap();
            let expected = reference(&q, &k, &v, &mixed(queries));
            assert!(max_diff(&without_padding(&found), &without_padding(&expected)) < 2e-6);
        }
    }

    #[test]
    fn single_query_against_a_longer_cache_that_is_a_view() {
        let (k, v) = (values(&[2, 40, 2, 8], 0.2), values(&[2, 40, 2, 8], 0.3));
        let (k, v) = (k.narrow(1, 0, 33).unwrap(), v.narrow(1, 0, 33).unwrap());
        let q = values(&[2, 1, 6, 8], 0.1);
        let ranges = KeyRanges::new(vec![vec![4..33], vec![0..20]]);
        let found = attention(&q, &k, &v, &ranges, 0.5).unwrap();
        assert!(max_diff(&found, &reference(&q, &k, &v, &ranges)) < 2e-6);
    }

    #[test]
    fn gradients_match_finite_differences() {
        let inputs = [values(&[2, 7, 4, 4], 0.1), values(&[2, 7, 2, 4], 0.2), values(&[2, 7, 2, 4], 0.3)];
        check_gradients(&inputs, |t| attention(&t[0], &t[1], &t[2], &mixed(7), 0.5));
    }

    #[test]
    fn bf16_is_near_f32_forward_and_backward() -> Result<()> {
        let shapes: [&[usize]; 3] = [&[2, 150, 4, 16], &[2, 150, 2, 16], &[2, 150, 2, 16]];
        let ranges = mixed(150);
        let all = |precision| -> Result<[Tensor; 4]> {
            let mut seed = 0.0;
            let vars = shapes.map(|shape| {
                seed += 0.1;
                candle_core::Var::from_tensor(&values(shape, seed)).unwrap()
            });
            let [q, k, v] = [0, 1, 2].map(|i| vars[i].as_tensor());
            let y = attention_with(q, k, v, &ranges, 0.25, precision)?;
            let grads = (&y * values(y.dims(), 5.0))?.sum_all()?.backward()?;
            Ok([y, grads.get(q).unwrap().clone(), grads.get(k).unwrap().clone(), grads.get(v).unwrap().clone()])
        };
        for (exact, rounded) in all(Precision::Full)?.iter().zip(all(Precision::Bf16)?) {
            let size = exact.abs()?.max_all()?.to_scalar::<f32>()?;
            let error = max_diff(exact, &rounded) / size;
            // 8 bits are good to 1 / 512; a few of them add up (measured: 0.003 at most).
            assert!(error < 0.01, "{error}");
            assert_eq!(error > 0.0, Precision::has_fast_bf16());
        }
        Ok(())
    }

    #[test]
    fn padding_queries_give_zero_and_no_gradient_flows_through_them() {
        let (q, k, v) = (values(&[2, 7, 4, 4], 0.1), values(&[2, 7, 2, 4], 0.2), values(&[2, 7, 2, 4], 0.3));
        let out = attention(&q, &k, &v, &mixed(7), 0.5).unwrap();
        assert_eq!(
            out.get(0).unwrap().get(0).unwrap().abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap(),
            0.0
        );
    }

    #[test]
    fn single_query_equals_the_same_query_in_a_batch() -> Result<()> {
        for (head_dim, group, keys) in [(4, 1, 3), (13, 3, 10), (64, 2, 77), (76, 3, 70), (128, 7, 70)] {
            let q = values(&[2, keys, 2 * group, head_dim], 0.1);
            let (k, v) = (values(&[2, keys, 2, head_dim], 0.2), values(&[2, keys, 2, head_dim], 0.3));
            let ranges = mixed(keys);
            let all = attention(&q, &k, &v, &ranges, 0.5)?;
            for query in [0, 1, keys - 1] {
                let own = ranges.rows().iter().map(|row| vec![row[query].clone()]).collect();
                let alone = attention(&q.narrow(1, query, 1)?, &k, &v, &KeyRanges::new(own), 0.5)?;
                assert!(max_diff(&alone, &all.narrow(1, query, 1)?) < 1e-5, "{head_dim} {group} {keys} {query}");
            }
        }
        Ok(())
    }

    #[test]
    fn gradient_of_queries_with_f16_keys() -> Result<()> {
        let q = candle_core::Var::from_tensor(&values(&[1, 3, 2, 8], 0.1))?;
        let k = values(&[1, 5, 2, 8], 0.2).to_dtype(DType::F16)?;
        let ranges = KeyRanges::full(1, 3, 5);
        let gradient = |k: &Tensor| -> Result<Tensor> {
            let grads = attention(&q, k, k, &ranges, 0.5)?.sqr()?.sum_all()?.backward()?;
            grads.get(&q).cloned().ok_or_else(|| candle_core::Error::Msg("no gradient".into()))
        };
        assert!(max_diff(&gradient(&k)?, &gradient(&k.to_dtype(DType::F32)?)?) < 1e-5);
        Ok(())
    }

    #[test]
    fn f16_keys_and_values_equal_their_f32_form() -> Result<()> {
        for (queries, head_dim, heads, keys) in
            [(1, 64, (4, 2), 3), (1, 64, (4, 2), 200), (1, 76, (6, 2), 77), (9, 8, (2, 2), 9), (70, 24, (3, 1), 75)]
        {
            let (heads, kv_heads) = heads;
            let q = values(&[2, queries, heads, head_dim], 0.1);
            // The layout of a KV cache: heads first, and capacity beyond the positions.
            let held = |seed| -> Result<Tensor> {
                let cache = values(&[2, kv_heads, keys + 5, head_dim], seed).to_dtype(DType::F16)?;
                cache.narrow(2, 0, keys)?.transpose(1, 2)
            };
            let (k, v) = (held(0.2)?, held(0.3)?);
            let first = (0..queries).map(|i| 0..keys - queries + i + 1).collect();
            let ranges = KeyRanges::new(vec![first, vec![2..keys; queries]]);
            let found = attention(&q, &k, &v, &ranges, 0.5)?;
            let floats = attention(&q, &k.to_dtype(DType::F32)?, &v.to_dtype(DType::F32)?, &ranges, 0.5)?;
            assert_eq!(max_diff(&found, &floats), 0.0, "{queries} {head_dim} {heads} {keys}");
            let wide = attention(&q.to_dtype(DType::F64)?, &k, &v, &ranges, 0.5)?;
            assert!(max_diff(&found, &wide.to_dtype(DType::F32)?) < 2e-6);
        }
        Ok(())
    }

    /// Cuts keys and values of one row at some positions.
    fn cut(k: &Tensor, v: &Tensor, cuts: &[usize]) -> Result<Vec<KvSegment>> {
        let ends = cuts.iter().copied().chain([k.dim(1)?]);
        let starts = [0].into_iter().chain(cuts.iter().copied());
        let part = |x: &Tensor, from: usize, to: usize| x.narrow(1, from, to - from)?.force_contiguous();
        let segment = |(from, to)| Ok(KvSegment { keys: part(k, from, to)?, values: part(v, from, to)? });
        starts.zip(ends).map(segment).collect()
    }

    #[test]
    fn segments_equal_contiguous_keys_to_the_bit() -> Result<()> {
        for (queries, head_dim, group) in [(1, 13, 3), (1, 64, 2), (1, 76, 1), (1, 128, 7), (9, 64, 2), (70, 24, 3)] {
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let keys = [230, 75];
                let q = values(&[2, queries, 2 * group, head_dim], 0.1);
                let kv = keys
                    .map(|keys| [0.2, 0.3].map(|seed| values(&[1, keys, 2, head_dim], seed).to_dtype(dtype).unwrap()));
                let row = |keys: usize, from| (0..queries).map(|i| from..keys - queries + i + 1).collect();
                let ranges = KeyRanges::new(vec![row(keys[0], 0), row(keys[1], 3)]);
                for cuts in [[vec![], vec![]], [vec![1, 64, 65, 190], vec![70]], [vec![128], vec![2, 3, 5, 50]]] {
                    let rows = [0, 1].map(|i| cut(&kv[i][0], &kv[i][1], &cuts[i]).unwrap());
                    let found = attention_over(&q, &rows, &ranges, 0.5, Precision::Full)?;
                    for (i, [k, v]) in kv.iter().enumerate() {
                        let own = KeyRanges::new(vec![ranges.rows()[i].clone()]);
                        let expected = attention(&q.narrow(0, i, 1)?, k, v, &own, 0.5)?;
                        let error = max_diff(&found.narrow(0, i, 1)?, &expected);
                        assert_eq!(error, 0.0, "{queries} queries, {head_dim}, {dtype:?}, cuts {:?}", cuts[i]);
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn segments_that_do_not_fit_are_refused() -> Result<()> {
        let x = |keys: usize, width: usize| values(&[1, keys, 2, width], 0.1);
        let segment = |keys, values| KvSegment { keys, values };
        let attend = |rows: &[Vec<KvSegment>], range| {
            attention_over(&x(1, 4), rows, &KeyRanges::new(vec![vec![range]]), 1.0, Precision::Full)
        };
        let fits = || segment(x(3, 4), x(3, 4));
        assert_eq!(attend(&[vec![fits(), fits()]], 0..6)?.dims(), [1, 1, 2, 4]);
        assert!(attend(&[vec![fits()]], 0..4).is_err());
        assert!(attend(&[vec![fits()], vec![fits()]], 0..3).is_err());
        assert!(attend(&[vec![segment(x(3, 4), x(2, 4))]], 0..2).is_err());
        assert!(attend(&[vec![fits(), segment(x(3, 8), x(3, 8))]], 0..3).is_err());
        let half = |t: Tensor| t.to_dtype(DType::F16);
        assert!(attend(&[vec![fits(), segment(half(x(3, 4))?, half(x(3, 4))?)]], 0..3).is_err());
        Ok(())
    }

    #[test]
    fn ranges_outside_the_keys_are_refused() {
        let x = values(&[1, 2, 1, 4], 0.1);
        let ranges = KeyRanges::new(vec![vec![0..1, 0..3]]);
        assert!(attention(&x, &x, &x, &ranges, 1.0).is_err());
    }
}

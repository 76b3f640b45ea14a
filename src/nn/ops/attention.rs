//! Attention in which every query sees one range of keys: causal text, whole images, packed samples and padding alike.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, D, DType, Device, Layout, Result, Shape, Tensor, WithDType};
use rayon::prelude::*;

use super::{is_cpu_f32, is_tracked, with_slices};
use crate::nn::kernels::decode_attention::SingleQuery;
#[cfg(target_arch = "x86_64")]
use crate::nn::kernels::decode_attention_avx512::{self as wide_query, WideQuery};
use crate::nn::kernels::kv_view::{HeadView, KvView};
use crate::nn::kernels::matmul::{Matrix, Product, ProductScratch};
use crate::nn::kernels::shared_mut::SharedMut;
use crate::nn::kernels::simd_math::{exp, vectorised};
use crate::nn::tape::apply3;
use crate::options::Precision;

/// Queries that are handled together; their scores, `QUERIES x keys`, are all that is ever kept of the score matrix.
const QUERIES: usize = 64;

/// The keys that every query sees: `rows[b][i]` is the range for query `i` of batch row `b`.
///
/// This is the whole attention mask, in O(sequence) memory. An empty range is padding, whose output means nothing (zero
/// in the CPU kernel).
#[derive(Debug, Clone)]
pub struct KeyRanges {
    rows: Arc<Vec<Vec<Range<usize>>>>,
    /// The same as an additive (batch, 1, queries, keys) matrix; made on demand, for devices without own kernel.
    dense: Arc<OnceLock<Tensor>>,
}

impl KeyRanges {
    /// Ranges for each batch row and query; every row must have as many queries.
    pub fn new(rows: Vec<Vec<Range<usize>>>) -> Self {
        Self { rows: Arc::new(rows), dense: Arc::default() }
    }

    /// Every query sees every key.
    pub fn full(batch: usize, queries: usize, keys: usize) -> Self {
        Self::new(vec![vec![0..keys; queries]; batch])
    }

    /// The ranges, row by row.
    pub fn rows(&self) -> &[Vec<Range<usize>>] {
        &self.rows
    }

    /// Number of queries of each row.
    pub fn queries(&self) -> usize {
        self.rows.first().map_or(0, Vec::len)
    }

    /// The ranges of each row's last `count` queries alone; of all, where there are no more.
    #[must_use]
    pub fn last(&self, count: usize) -> Self {
        Self::new(self.rows.iter().map(|row| row[row.len().saturating_sub(count)..].to_vec()).collect())
    }

    fn check(&self, batch: usize, queries: usize, keys: usize) -> Result<()> {
        let fits = self.rows.len() == batch
            && self
                .rows
                .iter()
                .all(|row| row.len() == queries && row.iter().all(|r| r.start <= r.end && r.end <= keys));
        if !fits {
            candle_core::bail!("the attention ranges do not fit {batch} rows of {queries} queries and {keys} keys");
        }
        Ok(())
    }

    /// 0 where a key is seen and a huge negative number elsewhere, (batch, 1, queries, keys).
    ///
    /// Finite, so that a padding row gives a uniform softmax instead of NaN.
    fn dense(&self, keys: usize, dtype: DType, device: &Device) -> Result<Tensor> {
        let matches =
            |t: &&Tensor| t.dim(3).is_ok_and(|k| k == keys) && t.dtype() == dtype && t.device().same_device(device);
        if let Some(mask) = self.dense.get().filter(matches) {
            return Ok(mask.clone());
        }
        let queries = self.queries();
        let mut mask = vec![-1e30f32; self.rows.len() * queries * keys];
        for (range, line) in self.rows.iter().flatten().zip(mask.chunks_mut(keys.max(1))) {
            line[range.clone()].fill(0.0);
        }
        let mask = Tensor::from_vec(mask, (self.rows.len(), 1, queries, keys), device)?.to_dtype(dtype)?;
        // Kept for the other layers of this pass; one of another device or type is made anew each time.
        let _ = self.dense.set(mask.clone());
        Ok(mask)
    }
}

/// `softmax(scale q k^T) v` over the keys of each query's range.
///
/// `q` is (batch, queries, heads, head_dim), `k` and `v` are (batch, keys, kv_heads, head_dim); `kv_heads` divides
/// `heads`, and keys are never repeated. Keys and values may be of another type than queries, as a cache holds them: on the
/// CPU, halves are read as they are. The result is (batch, queries, heads, head_dim). On the CPU in f32, memory is
/// linear in the sequence in both directions.
///
/// # Errors
/// From candle, if shapes or ranges do not fit.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, ranges: &KeyRanges, scale: f64) -> Result<Tensor> {
    attention_with(q, k, v, ranges, scale, Precision::Full)
}

/// As [`attention`], with its products on the CPU as exact as asked for; those of a single query are in full in any case.
///
/// # Errors
/// As [`attention`].
pub fn attention_with(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    ranges: &KeyRanges,
    scale: f64,
    precision: Precision,
) -> Result<Tensor> {
    let shape = AttentionShape::new(q, k, v)?;
    ranges.check(shape.batch, shape.queries, shape.keys)?;
    let held_in_halves = [k, v].iter().all(|t| t.dtype() == DType::F16) && !is_tracked(&[q, k, v]);
    if is_cpu_f32(&[q, k, v]) || is_cpu_f32(&[q]) && k.device().is_cpu() && v.device().is_cpu() && held_in_halves {
        let [q, k, v] = [rows_of_heads(q)?, rows_of_heads(k)?, rows_of_heads(v)?];
        return apply3(&q, &k, &v, Attention { shape, ranges: ranges.clone(), scale: scale as f32, precision });
    }
    let (k, v) = (k.to_dtype(q.dtype())?, v.to_dtype(q.dtype())?);
    let weights = attention_weights(q, &k, ranges, scale)?;
    let v = repeat_heads(&v.transpose(1, 2)?, shape.heads / shape.kv_heads)?;
    weights.to_dtype(v.dtype())?.matmul(&v.contiguous()?)?.transpose(1, 2)
}

/// The weights `softmax(scale q k^T)` themselves, (batch, heads, queries, keys), f32: quadratic memory.
///
/// # Errors
/// As [`attention`].
pub fn attention_weights(q: &Tensor, k: &Tensor, ranges: &KeyRanges, scale: f64) -> Result<Tensor> {
    let shape = AttentionShape::new(q, k, k)?;
    ranges.check(shape.batch, shape.queries, shape.keys)?;
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

/// (batch, kv_heads, keys, head_dim) -> (batch, kv_heads * times, keys, head_dim).
fn repeat_heads(x: &Tensor, times: usize) -> Result<Tensor> {
    if times == 1 {
        return Ok(x.clone());
    }
    let (batch, heads, keys, width) = x.dims4()?;
    x.unsqueeze(2)?.expand((batch, heads, times, keys, width))?.reshape((batch, heads * times, keys, width))
}

/// The tensor itself if each head's values are consecutive, as the kernels need; else a contiguous copy.
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

    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// What a thread keeps from task to task: weights, their gradients, and keys and values that were halves.
#[derive(Default)]
struct Scratch {
    p: Vec<f32>,
    ds: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    product: ProductScratch,
}

struct Attention {
    shape: AttentionShape,
    ranges: KeyRanges,
    scale: f32,
    precision: Precision,
}

/// Some queries of one head (or the single query of all heads of a group), and the keys that any of them sees.
struct Block {
    queries: Range<usize>,
    keys: Range<usize>,
}

impl Attention {
    /// Consecutive queries in blocks, without those that see nothing at all.
    fn blocks(&self, batch: usize) -> Vec<Block> {
        let ranges = &self.ranges.rows[batch];
        let mut blocks = Vec::new();
        for start in (0..ranges.len()).step_by(QUERIES) {
            let queries = start..(start + QUERIES).min(ranges.len());
            let seen = || ranges[queries.clone()].iter().filter(|r| !r.is_empty());
            if let (Some(from), Some(to)) = (seen().map(|r| r.start).min(), seen().map(|r| r.end).max()) {
                blocks.push(Block { queries, keys: from..to });
            }
        }
        blocks
    }

    /// Fills `p` (rows x keys of the block) with `softmax(scale q k^T)`; row after row with its own of `ranges`.
    fn probabilities(
        &self,
        q: Matrix,
        k: Matrix,
        block: &Block,
        ranges: &[Range<usize>],
        p: &mut Vec<f32>,
        scratch: &mut ProductScratch,
    ) {
        let (rows, keys) = (block.queries.len(), block.keys.len());
        p.resize(rows * keys, 0.0);
        // SAFETY: `q` has `rows` rows and `k` as many as the block has keys, all of width head_dim, inside tensors
        // whose shapes were checked; `p` was just given its size.
        unsafe {
            let product = Product { sizes: (rows, keys, self.shape.head_dim), accumulate: false, scale: self.scale };
            product.run(self.precision, (p.as_mut_ptr(), keys), q, k.transposed(), scratch);
        }
        let within = |at: usize| at.saturating_sub(block.keys.start);
        vectorised(
            #[inline(always)]
            || {
                for (line, range) in p.chunks_mut(keys).zip(ranges.iter().cycle()) {
                    softmax_within(line, within(range.start), within(range.end));
                }
            },
        );
    }

    fn forward(&self, q: HeadView, k: KvView, v: KvView) -> Vec<f32> {
        let AttentionShape { batch, queries, heads, kv_heads, head_dim, .. } = self.shape;
        let mut out = vec![0f32; batch * queries * heads * head_dim];
        let shared = SharedMut::new(&mut out);
        let blocks: Vec<Vec<Block>> = (0..batch).map(|b| self.blocks(b)).collect();
        let tasks: Vec<(usize, usize, &Block)> = blocks
            .iter()
            .enumerate()
            .flat_map(|(b, blocks)| blocks.iter().flat_map(move |block| (0..kv_heads).map(move |h| (b, h, block))))
            .collect();
        let run = |scratch: &mut Scratch, &(b, kv_head, block): &(usize, usize, &Block)| {
            let ranges = &self.ranges.rows[b][block.queries.clone()];
            let (first, group) = (kv_head * self.shape.group(), self.shape.group());
            let out_at = |head| ((b * queries + block.queries.start) * heads + head) * head_dim;
            if block.queries.len() == 1 {
                // SAFETY: each task writes the output rows of its own batch row and heads, which lie side by side.
                let out = unsafe { shared.slice(out_at(first), group * head_dim) };
                return self.single_query(q, [k, v], (b, kv_head), block, scratch, out);
            }
            let k = k.matrix(b, block.keys.clone(), kv_head, head_dim, &mut scratch.k);
            let v = v.matrix(b, block.keys.clone(), kv_head, head_dim, &mut scratch.v);
            let Scratch { p, product, .. } = scratch;
            for head in first..first + group {
                let rows = block.queries.len();
                self.probabilities(q.matrix(b, block.queries.start, head), k, block, ranges, p, product);
                let weights = Matrix::rows(p.as_ptr(), block.keys.len());
                // SAFETY: each task writes the output rows of its own batch row, queries and heads.
                unsafe {
                    let out = (shared.at(out_at(head)), heads * head_dim);
                    let sizes = (rows, head_dim, block.keys.len());
                    Product { sizes, accumulate: false, scale: 1.0 }.run(self.precision, out, weights, v, product);
                }
            }
        };
        if tasks.iter().map(|t| t.2.queries.len() * t.2.keys.len()).sum::<usize>() * head_dim < 1 << 16 {
            let mut scratch = Scratch::default();
            tasks.iter().for_each(|task| run(&mut scratch, task));
        } else {
            tasks.par_iter().for_each_init(Scratch::default, run);
        }
        out
    }

    /// What the heads of a group give for a block of one query, whose keys are those of its range and no others, into `out`
    /// (heads, head_dim), which holds zeros.
    fn single_query(
        &self,
        q: HeadView,
        [k, v]: [KvView; 2],
        (batch, kv_head): (usize, usize),
        block: &Block,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) {
        let softmax = |scores: &mut [f32]| {
            vectorised(
                #[inline(always)]
                || softmax_within(scores, 0, scores.len()),
            );
        };
        let (heads, head_dim) = (self.shape.group(), self.shape.head_dim);
        let (first, at) = (kv_head * heads, block.queries.start);
        #[cfg(target_arch = "x86_64")]
        if wide_query::suits(head_dim) {
            let place = (batch, kv_head);
            match (k, v) {
                (KvView::F32(k), KvView::F32(v)) => {
                    return self.wide_query(q, [k, v], place, block).run(&mut scratch.p, out, softmax);
                }
                (KvView::F16(k), KvView::F16(v)) => {
                    return self.wide_query(q, [k, v], place, block).run(&mut scratch.p, out, softmax);
                }
                // Both are floats or both halves.
                _ => {}
            }
        }
        let query = SingleQuery {
            q: q.across(batch, at, first),
            k: |keys: Range<usize>, scratch: &mut _| k.matrix(batch, keys, kv_head, head_dim, scratch),
            v: |keys: Range<usize>, scratch: &mut _| v.matrix(batch, keys, kv_head, head_dim, scratch),
            heads,
            keys: block.keys.clone(),
            head_dim,
            scale: self.scale,
        };
        // SAFETY: the matrices are those of tensors whose shapes were checked, or made in the buffer just before their use.
        unsafe { query.run(&mut scratch.p, &mut scratch.k, out, softmax) };
    }

    /// The heads of a group, and the keys and values that they share for a block of one query.
    #[cfg(target_arch = "x86_64")]
    fn wide_query<'a, T>(
        &self,
        q: HeadView<'a>,
        held: [HeadView<'a, T>; 2],
        (batch, kv_head): (usize, usize),
        block: &Block,
    ) -> WideQuery<'a, T> {
        let (heads, width) = (self.shape.group(), self.shape.head_dim);
        let q = q.rows_across(batch, block.queries.start, kv_head * heads, width);
        let [k, v] = held.map(|held| held.rows(batch, block.keys.start, kv_head, width));
        WideQuery { q, k, v, heads, keys: block.keys.len(), scale: self.scale }
    }

    /// With `P` the weights and `dP = dO V^T`: `dS = P (dP - rowsum(P dP))`, `dQ = scale dS K`, `dK = scale dS^T Q`,
    /// `dV = P^T dO`. The weights are computed again instead of kept.
    fn backward(&self, q: HeadView, k: HeadView, v: HeadView, g: HeadView) -> [Vec<f32>; 3] {
        let AttentionShape { batch, queries, keys, heads, kv_heads, head_dim } = self.shape;
        let mut dq = vec![0f32; batch * queries * heads * head_dim];
        let mut dk = vec![0f32; batch * keys * kv_heads * head_dim];
        let mut dv = dk.clone();
        let (dq_at, dk_at, dv_at) = (SharedMut::new(&mut dq), SharedMut::new(&mut dk), SharedMut::new(&mut dv));
        let blocks: Vec<Vec<Block>> = (0..batch).map(|b| self.blocks(b)).collect();
        let tasks: Vec<(usize, usize)> = (0..batch).flat_map(|b| (0..kv_heads).map(move |h| (b, h))).collect();
        tasks.par_iter().for_each_init(Scratch::default, |Scratch { p, ds, product, .. }, &(b, kv_head)| {
            let (once, more) = (false, true);
            for block in &blocks[b] {
                let (width, ranges) = (block.keys.len(), &self.ranges.rows[b][block.queries.clone()]);
                let (k, v) = (k.matrix(b, block.keys.start, kv_head), v.matrix(b, block.keys.start, kv_head));
                let key_at = ((b * keys + block.keys.start) * kv_heads + kv_head) * head_dim;
                let key_stride = kv_heads * head_dim;
                for head in kv_head * self.shape.group()..(kv_head + 1) * self.shape.group() {
                    let rows = block.queries.len();
                    let (q, g) = (q.matrix(b, block.queries.start, head), g.matrix(b, block.queries.start, head));
                    self.probabilities(q, k, block, ranges, p, product);
                    ds.resize(rows * width, 0.0);
                    let query_at = ((b * queries + block.queries.start) * heads + head) * head_dim;
                    // SAFETY: each task writes gradients of its own batch row and heads only, and all sizes are
                    // those of the tensors they belong to.
                    unsafe {
                        let mut multiply = |sizes, to, accumulate, left, right, scale| {
                            Product { sizes, accumulate, scale }.run(self.precision, to, left, right, product);
                        };
                        multiply((rows, width, head_dim), (ds.as_mut_ptr(), width), once, g, v.transposed(), 1.0);
                        let weights = Matrix::rows(p.as_ptr(), width).transposed();
                        multiply((width, head_dim, rows), (dv_at.at(key_at), key_stride), more, weights, g, 1.0);
                        vectorised(
                            #[inline(always)]
                            || softmax_backward(p, ds, width),
                        );
                        let ds = Matrix::rows(ds.as_ptr(), width);
                        let dq = (dq_at.at(query_at), heads * head_dim);
                        multiply((rows, head_dim, width), dq, once, ds, k, self.scale);
                        let dk = (dk_at.at(key_at), key_stride);
                        multiply((width, head_dim, rows), dk, more, ds.transposed(), q, self.scale);
                    }
                }
            }
        });
        [dq, dk, dv]
    }
}

/// Softmax of `line[from..to]` in place, zero elsewhere.
#[inline(always)]
fn softmax_within(line: &mut [f32], from: usize, to: usize) {
    let to = to.min(line.len());
    let from = from.min(to);
    line[..from].fill(0.0);
    line[to..].fill(0.0);
    let seen = &mut line[from..to];
    let (eights, rest) = seen.as_chunks_mut::<8>();
    let mut lanes = [f32::NEG_INFINITY; 8];
    for eight in &*eights {
        lanes.iter_mut().zip(eight).for_each(|(m, &s)| *m = if s > *m { s } else { *m });
    }
    let max = lanes.iter().chain(&*rest).copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0f32; 8];
    for eight in eights {
        for (s, sum) in eight.iter_mut().zip(&mut sums) {
            *s = exp(*s - max);
            *sum += *s;
        }
    }
    rest.iter_mut().for_each(|s| *s = exp(*s - max));
    let inverse = 1.0 / (sums.iter().sum::<f32>() + rest.iter().sum::<f32>());
    seen.iter_mut().for_each(|s| *s *= inverse);
}

/// `ds = p * (ds - rowsum(p * ds))`, row by row; where a key is not seen `p` is 0, and so is the result.
#[inline(always)]
fn softmax_backward(p: &[f32], ds: &mut [f32], width: usize) {
    for (p, ds) in p.chunks(width).zip(ds.chunks_mut(width)) {
        let ((p8, p_rest), (ds8, ds_rest)) = (p.as_chunks::<8>(), ds.as_chunks::<8>());
        let mut sums = [0f32; 8];
        for (p, ds) in p8.iter().zip(ds8) {
            sums.iter_mut().zip(p.iter().zip(ds)).for_each(|(sum, (p, ds))| *sum += p * ds);
        }
        let dot = sums.iter().sum::<f32>() + p_rest.iter().zip(ds_rest).map(|(p, ds)| p * ds).sum::<f32>();
        ds.iter_mut().zip(p).for_each(|(ds, p)| *ds = p * (*ds - dot));
    }
}

/// The elements of a 4-dimensional tensor (batch, position, head, head_dim) whose last dimension is consecutive.
fn head_view<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<HeadView<'a, T>> {
    let data = &storage.as_slice::<T>()?[layout.start_offset()..];
    match *layout.stride() {
        [batch, position, head, 1] => Ok(HeadView::new(data, [batch, position, head])),
        // A dimension of one element may have any stride.
        _ if layout.is_contiguous() && layout.dims().len() == 4 => {
            let d = layout.dims();
            Ok(HeadView::new(data, [d[1] * d[2] * d[3], d[2] * d[3], d[3]]))
        }
        _ => candle_core::bail!("attention expects consecutive heads, found strides {:?}", layout.stride()),
    }
}

/// The same of keys or values, which may be f16.
fn kv_view<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<KvView<'a>> {
    Ok(match storage {
        CpuStorage::F16(_) => KvView::F16(head_view(storage, layout)?),
        _ => KvView::F32(head_view(storage, layout)?),
    })
}

impl CustomOp3 for Attention {
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
        let out = self.forward(head_view(q, lq)?, kv_view(k, lk)?, kv_view(v, lv)?);
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
            self.backward(of_queries(q), of_keys(k), of_keys(v), of_queries(g))
        })?;
        let gradient = |data, like: &Tensor| Tensor::from_vec(data, like.shape(), like.device()).map(Some);
        Ok((gradient(dq, q)?, gradient(dk, k)?, gradient(dv, v)?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check_gradients, max_diff, values};
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

    /// Zeroes padding queries, for which the composed form gives a harmless mean.
    fn without_padding(x: &Tensor) -> Tensor {
        x.narrow(1, 1, x.dim(1).unwrap() - 1).unwrap()
    }

    #[test]
    fn kernel_equals_the_dense_mask() {
        for queries in [9, 2 * QUERIES + 7] {
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
    fn rounded_products_are_near_the_exact_ones_forward_and_backward() -> Result<()> {
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
    fn a_query_alone_gives_what_it_gives_among_others() -> Result<()> {
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
    fn a_gradient_passes_keys_that_are_halves() -> Result<()> {
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
    fn keys_and_values_may_be_halves() -> Result<()> {
        for (queries, head_dim, heads, keys) in
            [(1, 64, (4, 2), 3), (1, 64, (4, 2), 200), (1, 76, (6, 2), 77), (9, 8, (2, 2), 9), (70, 24, (3, 1), 75)]
        {
            let (heads, kv_heads) = heads;
            let q = values(&[2, queries, heads, head_dim], 0.1);
            // As a cache has them: heads first, and more room than positions.
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

    #[test]
    fn ranges_outside_the_keys_are_refused() {
        let x = values(&[1, 2, 1, 4], 0.1);
        let ranges = KeyRanges::new(vec![vec![0..1, 0..3]]);
        assert!(attention(&x, &x, &x, &ranges, 1.0).is_err());
    }
}

//! Forward pass of attention on the CPU, one block of queries at a time, so that the score matrix is never whole in
//! memory.

use std::ops::Range;

use rayon::prelude::*;

use super::{AttentionOp, AttentionShape};
use crate::nn::kernels::decode_attention::DecodeAttention;
#[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
use crate::nn::kernels::decode_attention_avx512::DecodeAttentionAvx512;
use crate::nn::kernels::dispatch::DecodeAttentionKernel;
use crate::nn::kernels::kv_view::{HeadView, KvHead, KvView};
use crate::nn::kernels::mat::{MatMut, MatRef};
use crate::nn::kernels::matmul::{Gemm, GemmScratch};
use crate::nn::kernels::simd_math::{exp, vectorised};

/// Queries of a block; their scores (queries of the block, keys) are the largest part of the score matrix in memory.
pub(super) const QUERY_BLOCK: usize = 64;

/// Number of multiplications below which the forward pass runs on one thread.
const MIN_PARALLEL_WORK: usize = 1 << 16;

/// Buffers that a thread reuses from task to task.
#[derive(Default)]
pub(super) struct Scratch {
    /// Attention weights of a block.
    pub p: Vec<f32>,
    /// Gradients of the scores of a block.
    pub ds: Vec<f32>,
    /// Keys widened from f16 or gathered from segments.
    k: Vec<f32>,
    /// Values, likewise.
    v: Vec<f32>,
    pub gemm: GemmScratch,
}

/// Consecutive queries of a batch row, and the union of their key ranges.
pub(super) struct Block {
    pub queries: Range<usize>,
    pub keys: Range<usize>,
}

impl Block {
    fn new(queries: Range<usize>, ranges: &[Range<usize>]) -> Self {
        let seen = || ranges[queries.clone()].iter().filter(|r| !r.is_empty());
        let keys = seen().map(|r| r.start).min().zip(seen().map(|r| r.end).max());
        let keys = keys.map_or(0..0, |(from, to)| from..to);
        Self { queries, keys }
    }
}

/// Forward task: a block of queries of one batch row, for the query heads that share the keys of one head.
struct Task<'a> {
    batch: usize,
    block: &'a Block,
    kv_head: usize,
    /// Output (queries of the block, heads of the group * head_dim), initially zeros.
    out: MatMut<'a>,
}

/// Keys and values of one batch row.
pub(super) struct Kv<'a> {
    pub k: KvView<'a>,
    pub v: KvView<'a>,
}

impl AttentionOp {
    /// Blocks of all queries of a batch row; a block of padding has no keys.
    pub(super) fn blocks(&self, batch: usize) -> Vec<Block> {
        let ranges = &self.ranges.rows()[batch];
        let starts = (0..ranges.len()).step_by(QUERY_BLOCK);
        starts.map(|start| Block::new(start..ranges.len().min(start + QUERY_BLOCK), ranges)).collect()
    }

    /// The key ranges of a block's queries.
    pub(super) fn ranges_of(&self, batch: usize, block: &Block) -> &[Range<usize>] {
        &self.ranges.rows()[batch][block.queries.clone()]
    }

    /// A GEMM with the precision of this op.
    pub(super) fn gemm(&self, accumulate: bool, scale: f32) -> Gemm {
        Gemm { accumulate, scale, precision: self.precision }
    }

    /// Fills `p` (queries, keys of the block) with the attention weights `softmax(scale q k^T)`, each query within its
    /// range.
    pub(super) fn weights(
        &self,
        (q, k): (MatRef, MatRef),
        block: &Block,
        ranges: &[Range<usize>],
        p: &mut Vec<f32>,
        scratch: &mut GemmScratch,
    ) {
        let dims = (block.queries.len(), block.keys.len());
        p.resize(dims.0 * dims.1, 0.0);
        self.gemm(false, self.scale).run(MatMut::contiguous(p, dims), q, k.transposed(), scratch);
        let within = |at: usize| at.saturating_sub(block.keys.start);
        vectorised(
            #[inline(always)]
            || {
                for (line, range) in p.chunks_mut(dims.1).zip(ranges) {
                    softmax_within(line, within(range.start), within(range.end));
                }
            },
        );
    }

    /// Attention of all queries, (batch, queries, heads, head_dim), over the keys and values of each batch row.
    pub(super) fn forward(&self, q: HeadView, rows: &[Kv]) -> Vec<f32> {
        let AttentionShape { batch, queries, heads, head_dim, .. } = self.shape;
        let mut out = vec![0f32; batch * queries * heads * head_dim];
        let blocks: Vec<Vec<Block>> = (0..batch).map(|b| self.blocks(b)).collect();
        let mut tasks = self.tasks(&blocks, MatMut::contiguous(&mut out, (batch * queries, heads * head_dim)));
        if queries == 1 {
            // Rows that share segments read those of a head one after the other, while they are in the cache.
            tasks.sort_by_key(|task| task.kv_head);
        }
        let work = tasks.iter().map(|t| t.block.queries.len() * t.block.keys.len()).sum::<usize>() * head_dim;
        let run = |scratch: &mut Scratch, task: Task| self.run(q, rows, task, scratch);
        if work < MIN_PARALLEL_WORK {
            let mut scratch = Scratch::default();
            tasks.into_iter().for_each(|task| run(&mut scratch, task));
        } else {
            tasks.into_par_iter().for_each_init(Scratch::default, run);
        }
        out
    }

    /// Tasks of all blocks with keys, each with its part of `out` (batch * queries, heads * head_dim).
    fn tasks<'a>(&self, blocks: &'a [Vec<Block>], out: MatMut<'a>) -> Vec<Task<'a>> {
        let (mut tasks, mut rest) = (Vec::new(), out);
        for (batch, blocks) in blocks.iter().enumerate() {
            for block in blocks {
                let (rows, others) = rest.split_rows(block.queries.len());
                rest = others;
                if !block.keys.is_empty() {
                    let groups = rows.column_blocks(self.shape.group() * self.shape.head_dim).enumerate();
                    tasks.extend(groups.map(|(kv_head, out)| Task { batch, block, kv_head, out }));
                }
            }
        }
        tasks
    }

    fn run(&self, q: HeadView, rows: &[Kv], task: Task, scratch: &mut Scratch) {
        let (head_dim, group) = (self.shape.head_dim, self.shape.group());
        let Task { batch, block, kv_head, mut out } = task;
        let Kv { k, v } = &rows[batch];
        let [k, v] = [k, v].map(|view| view.head(block.keys.clone(), kv_head, head_dim));
        if block.queries.len() == 1 {
            let q = q.position(batch, block.queries.start, kv_head * group..(kv_head + 1) * group, head_dim);
            return self.decode(q, (&k, &v), out.into_slice(), scratch);
        }
        let ranges = self.ranges_of(batch, block);
        let Scratch { p, k: k_scratch, v: v_scratch, gemm, .. } = scratch;
        let (k, v) = (k.gather(head_dim, k_scratch), v.gather(head_dim, v_scratch));
        for head in 0..group {
            let q = q.head(batch, block.queries.clone(), kv_head * group + head, head_dim);
            self.weights((q, k), block, ranges, p, gemm);
            let weights = MatRef::contiguous(p, (block.queries.len(), block.keys.len()));
            let out = out.tile(0..block.queries.len(), head * head_dim..(head + 1) * head_dim);
            self.gemm(false, 1.0).run(out, weights, v, gemm);
        }
    }

    /// Attention of the query heads `q` (heads, head_dim) of one position over all of the keys.
    fn decode(&self, q: MatRef, (k, v): (&KvHead, &KvHead), out: &mut [f32], scratch: &mut Scratch) {
        let softmax = |scores: &mut [f32]| {
            vectorised(
                #[inline(always)]
                || softmax_within(scores, 0, scores.len()),
            );
        };
        let scale = self.scale;
        match (DecodeAttentionKernel::for_head_dim(q.columns()), k, v) {
            #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
            (DecodeAttentionKernel::Avx512, KvHead::F32(k), KvHead::F32(v)) => {
                DecodeAttentionAvx512 { q, k, v, scale }.run(&mut scratch.p, out, softmax);
            }
            #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
            (DecodeAttentionKernel::Avx512, KvHead::F16(k), KvHead::F16(v)) => {
                DecodeAttentionAvx512 { q, k, v, scale }.run(&mut scratch.p, out, softmax);
            }
            _ => DecodeAttention { q, k, v, scale }.run(&mut scratch.p, &mut scratch.k, out, softmax),
        }
    }
}

/// Replaces `line[from..to]` by its softmax, and the other elements by zero.
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

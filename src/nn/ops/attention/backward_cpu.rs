//! Backward pass of attention on the CPU, which recomputes the attention weights block by block instead of keeping
//! them.

use rayon::prelude::*;

use super::forward_cpu::{Block, Scratch};
use super::{AttentionOp, AttentionShape};
use crate::nn::kernels::kv_view::HeadView;
use crate::nn::kernels::mat::{MatMut, MatRef};
use crate::nn::kernels::simd_math::vectorised;

/// Backward task: all queries of one batch row, for the query heads that share the keys of one head.
struct Task<'a> {
    batch: usize,
    kv_head: usize,
    /// Gradient of the queries, (queries, heads of the group * head_dim).
    dq: MatMut<'a>,
    /// Gradient of the keys, (keys, head_dim).
    dk: MatMut<'a>,
    /// Gradient of the values, (keys, head_dim).
    dv: MatMut<'a>,
}

/// Queries, keys, values and the gradient of the result.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub q: HeadView<'a>,
    pub k: HeadView<'a>,
    pub v: HeadView<'a>,
    pub g: HeadView<'a>,
}

impl AttentionOp {
    /// The gradients of `q`, `k` and `v`.
    ///
    /// With `P` the weights and `dP = dO V^T`: `dS = P (dP - rowsum(P dP))`, `dQ = scale dS K`, `dK = scale dS^T Q`,
    /// `dV = P^T dO`.
    pub(super) fn backward(&self, inputs: Inputs) -> [Vec<f32>; 3] {
        let AttentionShape { batch, queries, keys, heads, kv_heads, head_dim } = self.shape;
        let mut dq = vec![0f32; batch * queries * heads * head_dim];
        let mut dk = vec![0f32; batch * keys * kv_heads * head_dim];
        let mut dv = dk.clone();
        let dq_tiles = self.tiles(MatMut::contiguous(&mut dq, (batch * queries, heads * head_dim)));
        let dk_tiles = self.tiles(MatMut::contiguous(&mut dk, (batch * keys, kv_heads * head_dim)));
        let dv_tiles = self.tiles(MatMut::contiguous(&mut dv, (batch * keys, kv_heads * head_dim)));
        let tasks = dq_tiles.into_iter().zip(dk_tiles).zip(dv_tiles).enumerate();
        let tasks: Vec<Task> =
            tasks.map(|(i, ((dq, dk), dv))| Task { batch: i / kv_heads, kv_head: i % kv_heads, dq, dk, dv }).collect();
        let blocks: Vec<Vec<Block>> = (0..batch).map(|b| self.blocks(b)).collect();
        tasks.into_par_iter().for_each_init(Scratch::default, |scratch, mut task| {
            for block in blocks[task.batch].iter().filter(|block| !block.keys.is_empty()) {
                self.backward_block(inputs, block, &mut task, scratch);
            }
        });
        [dq, dk, dv]
    }

    /// Splits a matrix (batch * positions, all heads) by batch rows and by key heads.
    fn tiles<'a>(&self, all: MatMut<'a>) -> Vec<MatMut<'a>> {
        let (rows, columns) = (all.rows() / self.shape.batch.max(1), all.columns() / self.shape.kv_heads);
        all.row_blocks(rows).flat_map(|rows| rows.column_blocks(columns)).collect()
    }

    fn backward_block(&self, inputs: Inputs, block: &Block, task: &mut Task, scratch: &mut Scratch) {
        let (head_dim, group) = (self.shape.head_dim, self.shape.group());
        let dims = (block.queries.len(), block.keys.len());
        let Scratch { p, ds, gemm, .. } = scratch;
        let Task { batch, kv_head, dq, dk, dv } = task;
        let [k, v] = [inputs.k, inputs.v].map(|view| view.head(*batch, block.keys.clone(), *kv_head, head_dim));
        for head in 0..group {
            let [q, g] = [inputs.q, inputs.g]
                .map(|view| view.head(*batch, block.queries.clone(), *kv_head * group + head, head_dim));
            self.weights((q, k), block, self.ranges_of(*batch, block), p, gemm);
            ds.resize(dims.0 * dims.1, 0.0);
            self.gemm(false, 1.0).run(MatMut::contiguous(ds, dims), g, v.transposed(), gemm);
            let weights = MatRef::contiguous(p, dims);
            let columns = 0..head_dim;
            self.gemm(true, 1.0).run(dv.tile(block.keys.clone(), columns.clone()), weights.transposed(), g, gemm);
            vectorised(
                #[inline(always)]
                || softmax_backward(p, ds, dims.1),
            );
            let ds = MatRef::contiguous(ds, dims);
            let dq = dq.tile(block.queries.clone(), head * head_dim..(head + 1) * head_dim);
            self.gemm(false, self.scale).run(dq, ds, k, gemm);
            self.gemm(true, self.scale).run(dk.tile(block.keys.clone(), columns), ds.transposed(), q, gemm);
        }
    }
}

/// Computes `ds = p * (ds - rowsum(p * ds))`, row by row; `p` and the result are 0 for masked keys.
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

//! `HaploVl` served over its plain cache, until its own serving path is merged.

use std::sync::Arc;

use candle_core::DType;

use super::ServedModel;
use crate::Result;
use crate::batch::MultimodalBatch;
use crate::config::HaploVlConfig;
use crate::model::{Cache, HaploVl};

pub struct Chunk(MultimodalBatch);

impl ServedModel for HaploVl {
    type Sequence = (Cache, Option<MultimodalBatch>);
    type Chunk = Chunk;
    type Prefill = MultimodalBatch;

    fn config(&self) -> &HaploVlConfig {
        self.config()
    }

    fn bytes_per_position(&self) -> usize {
        let decoders = [&self.config().pre_decoder, &self.config().post_decoder];
        decoders.iter().map(|d| 8 * d.num_hidden_layers * d.num_key_value_heads * d.head_dim()).sum()
    }

    fn sequence(&self, capacity: usize) -> Result<Self::Sequence> {
        Ok((self.cache(1, capacity)?, None))
    }

    fn push_chunk(&self, sequence: &mut Self::Sequence, chunk: &Arc<Chunk>) -> Result<()> {
        self.prefill(&chunk.0, &mut sequence.0).map(drop)
    }

    fn start_prefill(&self, batch: &MultimodalBatch, _: &Self::Sequence) -> Result<MultimodalBatch> {
        Ok(batch.clone())
    }

    fn advance(&self, prefill: &mut MultimodalBatch, sequence: &mut Self::Sequence) -> Result<Option<Vec<f32>>> {
        sequence.1 = Some(prefill.clone());
        let logits = self.prefill(prefill, &mut sequence.0)?;
        Ok(Some(logits.squeeze(0)?.to_dtype(DType::F32)?.to_vec1()?))
    }

    fn freeze(&self, sequence: &mut Self::Sequence) -> Result<Arc<Chunk>> {
        let chunk = sequence.1.take().ok_or_else(|| crate::Error::generation("nothing to freeze"))?;
        Ok(Arc::new(Chunk(chunk)))
    }

    fn chunk_bytes(&self, chunk: &Chunk) -> usize {
        chunk.0.layout.seq_len * self.bytes_per_position()
    }

    fn decode(&self, ids: &[u32], sequences: &mut [&mut Self::Sequence]) -> Result<Vec<Vec<f32>>> {
        let row = |(id, sequence): (&u32, &mut &mut Self::Sequence)| {
            Ok(self.decode(&[*id], &mut sequence.0)?.squeeze(0)?.to_dtype(DType::F32)?.to_vec1()?)
        };
        ids.iter().zip(sequences).map(row).collect()
    }
}

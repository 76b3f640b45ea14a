//! Conversion of GGUF tensor names and row order to those of HF.

use candle_core::Tensor;

use crate::{Error, Result};

/// Name of a tensor within a layer, in GGUF and in HF.
const LAYER_NAMES: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// HF name of a GGUF tensor; a name without a counterpart is returned unchanged.
pub(super) fn to_hf(name: &str) -> String {
    match name {
        "token_embd.weight" => "model.embed_tokens.weight".into(),
        "output_norm.weight" => "model.norm.weight".into(),
        "output.weight" => "lm_head.weight".into(),
        _ => layer_to_hf(name).unwrap_or_else(|| name.into()),
    }
}

/// HF name of a layer's tensor: `blk.3.attn_q.weight` becomes `model.layers.3.self_attn.q_proj.weight`.
fn layer_to_hf(name: &str) -> Option<String> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let (part, kind) = rest.split_once('.')?;
    let (_, hf) = LAYER_NAMES.iter().find(|(gguf, _)| *gguf == part)?;
    Some(format!("model.layers.{}.{hf}.{kind}", layer.parse::<u32>().ok()?))
}

/// GGUF name of a tensor of a language model whose layers begin at `first` in HF's names; `None` for other tensors.
pub(crate) fn from_hf(name: &str, first: usize) -> Option<String> {
    match name {
        "model.embed_tokens.weight" => Some("token_embd.weight".into()),
        "model.norm.weight" => Some("output_norm.weight".into()),
        "lm_head.weight" => Some("output.weight".into()),
        _ => {
            let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
            let (part, kind) = rest.rsplit_once('.')?;
            let (gguf, _) = LAYER_NAMES.iter().find(|(_, hf)| *hf == part)?;
            Some(format!("blk.{}.{gguf}.{kind}", layer.parse::<usize>().ok()?.checked_sub(first)?))
        }
    }
}

/// Permutes the rows (or the bias) of a query or key projection from GGUF's to HF's RoPE layout. For the `llama`
/// architecture GGUF rotates adjacent rows of a head together, HF rotates rows that are half a head apart.
pub(super) fn split_rotary_pairs(tensor: &Tensor, heads: usize) -> Result<Tensor> {
    permute_pairs(tensor, heads, |half| (half, 2))
}

/// Undoes [`split_rotary_pairs`].
pub(crate) fn merge_rotary_pairs(tensor: &Tensor, heads: usize) -> Result<Tensor> {
    permute_pairs(tensor, heads, |half| (2, half))
}

/// Transposes the rows of each head, seen as a matrix of these sides.
fn permute_pairs(tensor: &Tensor, heads: usize, sides: impl Fn(usize) -> (usize, usize)) -> Result<Tensor> {
    let rows = tensor.dims().first().copied().unwrap_or(0);
    if heads == 0 || !rows.is_multiple_of(heads.saturating_mul(2)) {
        return Err(Error::weights(format!("a projection with {rows} rows cannot be that of {heads} rotary heads")));
    }
    let columns = tensor.elem_count() / rows.max(1);
    let (outer, inner) = sides(rows / heads / 2);
    let pairs = tensor.reshape((heads, outer, inner, columns))?;
    Ok(pairs.transpose(1, 2)?.contiguous()?.reshape(tensor.shape())?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn gguf_names_become_hf_names() {
        assert_eq!(to_hf("token_embd.weight"), "model.embed_tokens.weight");
        assert_eq!(to_hf("blk.12.attn_output.weight"), "model.layers.12.self_attn.o_proj.weight");
        assert_eq!(to_hf("blk.0.attn_q.bias"), "model.layers.0.self_attn.q_proj.bias");
        for other in ["rope_freqs.weight", "blk.x.attn_q.weight", "blk.0.ffn_gate_exps.weight", "blk."] {
            assert_eq!(to_hf(other), other);
        }
        for gguf in ["token_embd.weight", "output.weight", "blk.12.attn_output.weight", "blk.0.attn_q.bias"] {
            assert_eq!(from_hf(&to_hf(gguf), 0).as_deref(), Some(gguf));
        }
        assert_eq!(from_hf("model.layers.7.mlp.up_proj.weight", 5).as_deref(), Some("blk.2.ffn_up.weight"));
        for other in ["model.layers.4.mlp.up_proj.weight", "model.patch_embed.proj.weight", "model.layers.9.x.weight"] {
            assert_eq!(from_hf(other, 5), None, "{other}");
        }
    }

    #[test]
    fn rotary_pairs_are_split_by_half_heads() {
        // Two heads of four rows; the adjacent pair (0, 1) becomes (0, 2).
        let rows = Tensor::new(&[0u32, 2, 1, 3, 4, 6, 5, 7], &Device::Cpu).unwrap();
        let split = split_rotary_pairs(&rows, 2).unwrap();
        assert_eq!(split.to_vec1::<u32>().unwrap(), [0, 1, 2, 3, 4, 5, 6, 7]);
        let merged = merge_rotary_pairs(&split, 2).unwrap();
        assert_eq!(merged.to_vec1::<u32>().unwrap(), rows.to_vec1::<u32>().unwrap());
        assert!(split_rotary_pairs(&rows, 3).is_err() && split_rotary_pairs(&rows, 0).is_err());
    }
}

//! Tensors that old checkpoints hold beside the parameters: buffers, whose values follow from the configuration.

/// Last parts of the names of buffers.
const BUFFERS: [&[&str]; 8] = [
    &["inv_freq"],
    &["position_ids"],
    &["attn", "bias"],
    &["attn", "masked_bias"],
    &["attention", "bias"],
    &["attention", "masked_bias"],
    &["rotary_emb", "cos_cached"],
    &["rotary_emb", "sin_cached"],
];

/// Whether a tensor of this name is a buffer: RoPE frequencies, position ids or a causal mask.
pub(crate) fn is_known_buffer(name: &str) -> bool {
    BUFFERS.iter().any(|end| name.rsplit('.').zip(end.iter().rev()).filter(|(a, b)| a == *b).count() == end.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_told_from_parameters() {
        for buffer in [
            "model.layers.0.self_attn.rotary_emb.inv_freq",
            "rotary_emb.inv_freq",
            "vision_model.embeddings.position_ids",
            "h.3.attn.bias",
            "h.3.attn.masked_bias",
            "position_ids",
        ] {
            assert!(is_known_buffer(buffer), "{buffer}");
        }
        for parameter in
            ["model.layers.0.self_attn.q_proj.bias", "lm_head.weight", "bias", "a.self_attn.bias", "x.attn.c.bias"]
        {
            assert!(!is_known_buffer(parameter), "{parameter}");
        }
    }
}

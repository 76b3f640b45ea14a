//! Rotary position embedding: frequencies, scaling, and the angles of given positions.

use std::f64::consts::PI;
use std::ops::Range;

use candle_core::{Device, Tensor};

use super::ops;
use crate::Result;
use crate::config::{DecoderConfig, Rope, RopeScaling};

/// Rotary frequencies of one decoder.
#[derive(Debug, Clone)]
pub struct RotaryEmbedding {
    inverse_frequencies: Vec<f32>,
}

/// Cosines and sines at the positions of one forward pass.
#[derive(Debug, Clone)]
pub struct RotaryAngles {
    cos: Tensor,
    sin: Tensor,
}

impl RotaryEmbedding {
    /// Frequencies `theta^(-2i / head_dim)` of the pairs of a head, with the configured scaling.
    pub fn new(config: &DecoderConfig) -> Self {
        let head_dim = config.head_dim();
        let frequency = |i: usize| config.rope_theta.powf(-((2 * i) as f64) / head_dim as f64);
        let scaled = |f: f64| config.rope_scaling.map_or(f, |scaling| scale(f, scaling));
        Self { inverse_frequencies: (0..head_dim / 2).map(|i| scaled(frequency(i)) as f32).collect() }
    }

    /// Rotary embedding of a decoder; `None` if the decoder has none.
    pub fn of(config: &DecoderConfig) -> Option<Self> {
        (config.rope != Rope::None).then(|| Self::new(config))
    }

    /// What the configured scaling divides the frequency of each pair of a head by.
    pub(crate) fn divisors(config: &DecoderConfig) -> Vec<f32> {
        let frequencies = |config: &DecoderConfig| Self::new(config).inverse_frequencies;
        let plain = frequencies(&DecoderConfig { rope_scaling: None, ..config.clone() });
        plain.into_iter().zip(frequencies(config)).map(|(plain, scaled)| plain / scaled).collect()
    }

    /// Angles of `positions`, one list for each batch row; (batch, seq, head_dim / 2), or one row if all rows are
    /// equal.
    ///
    /// # Errors
    /// Errors of candle only.
    pub fn angles(&self, positions: &[Vec<u32>], device: &Device) -> Result<RotaryAngles> {
        let rows = match positions {
            [first, rest @ ..] if rest.iter().all(|row| row == first) => &positions[..1],
            all => all,
        };
        // As in HF's code, position times frequency is rounded to f32.
        let angle = |p: u32| self.inverse_frequencies.iter().map(move |&f| p as f32 * f);
        let angles: Vec<f32> = rows.iter().flatten().flat_map(|&p| angle(p)).collect();
        let shape = (rows.len(), rows.first().map_or(0, Vec::len), self.inverse_frequencies.len());
        let tensor = |f: fn(f32) -> f32| Tensor::from_vec(angles.iter().map(|&a| f(a)).collect(), shape, device);
        Ok(RotaryAngles { cos: tensor(f32::cos)?, sin: tensor(f32::sin)? })
    }
}

impl RotaryAngles {
    /// The angles of the last `count` positions.
    ///
    /// # Errors
    /// Errors of candle only.
    pub fn last(&self, count: usize) -> Result<Self> {
        Ok(Self { cos: ops::last_positions(&self.cos, count)?, sin: ops::last_positions(&self.sin, count)? })
    }

    /// The angles of some positions.
    ///
    /// # Errors
    /// Errors of candle, if there are no such positions.
    pub fn positions(&self, positions: Range<usize>) -> Result<Self> {
        let part = |angles: &Tensor| angles.narrow(1, positions.start, positions.len())?.contiguous();
        Ok(Self { cos: part(&self.cos)?, sin: part(&self.sin)? })
    }

    /// Rotates the heads of `x` (batch, seq, heads, head_dim).
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::rope(x, &self.cos, &self.sin)?)
    }
}

/// A frequency (radians per token) scaled for long contexts.
fn scale(frequency: f64, scaling: RopeScaling) -> f64 {
    match scaling {
        RopeScaling::Default => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let context = original_max_position_embeddings as f64;
            let wavelength = 2.0 * PI / frequency;
            // 0 at wavelengths that are fully scaled, 1 at wavelengths that are not, linear in 1 / wavelength between.
            let kept = (context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
            let kept = kept.clamp(0.0, 1.0);
            (1.0 - kept) * frequency / factor + kept * frequency
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HaploVlConfig;

    #[test]
    fn llama3_scaling_leaves_high_frequencies_and_stretches_low_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        assert_eq!(scale(1.0, scaling), 1.0);
        assert_eq!(scale(1e-6, scaling), 1e-6 / 8.0);
        // Wavelength 4096: context / wavelength = 2, a third of the way from 1 to 4.
        let f = 2.0 * PI / 4096.0;
        assert!((scale(f, scaling) - f * (2.0 / 3.0 / 8.0 + 1.0 / 3.0)).abs() < 1e-12);
    }

    #[test]
    fn equal_rows_share_their_angles() -> Result<()> {
        let rope = RotaryEmbedding::new(&HaploVlConfig::tiny().pre_decoder);
        let shared = rope.angles(&[vec![0, 1, 2], vec![0, 1, 2]], &Device::Cpu)?;
        assert_eq!(shared.cos.dims(), [1, 3, 4]);
        let own = rope.angles(&[vec![0, 1, 2], vec![0, 0, 1]], &Device::Cpu)?;
        assert_eq!(own.cos.dims(), [2, 3, 4]);
        Ok(())
    }
}

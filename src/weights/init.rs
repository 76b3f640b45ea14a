//! Seeded initial values, independent of the order of creation, the number of threads and the device.

use std::ops::Range;

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::Init;
use candle_nn::init::NormalOrUniform;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;

/// Values drawn by one task; even, because normal values are drawn in pairs.
const CHUNK: usize = 1 << 16;

enum Distribution {
    Constant(f64),
    Normal { mean: f64, stdev: f64 },
    Uniform { lo: f64, up: f64 },
}

/// A tensor initialised according to `init`, with random values from the stream of (`seed`, `name`).
pub(super) fn initial_tensor(
    init: Init,
    shape: &Shape,
    seed: u64,
    name: &str,
    dtype: DType,
    device: &Device,
) -> candle_core::Result<Tensor> {
    let values = initial_values(init, shape, 0..shape.elem_count(), (seed, name), dtype)?;
    values.reshape(shape)?.to_device(device)
}

/// Some elements of the tensor that [`initial_tensor`] gives, in row-major order and in the same bits.
pub(super) fn initial_values(
    init: Init,
    shape: &Shape,
    elements: Range<usize>,
    stream: (u64, &str),
    dtype: DType,
) -> candle_core::Result<Tensor> {
    let values = match distribution(init, shape) {
        Distribution::Constant(value) => return Tensor::full(value, elements.len(), &Device::Cpu)?.to_dtype(dtype),
        Distribution::Normal { mean, stdev } => {
            draw(stream, elements, |u, v| normal_pair(u, v).map(|z| mean + stdev * z))
        }
        Distribution::Uniform { lo, up } => draw(stream, elements, |u, v| [u, v].map(|u| lo + (up - lo) * u)),
    };
    let count = values.len();
    Tensor::from_vec(values, count, &Device::Cpu)?.to_dtype(dtype)
}

fn distribution(init: Init, shape: &Shape) -> Distribution {
    match init {
        Init::Const(value) => Distribution::Constant(value),
        Init::Randn { mean, stdev } => Distribution::Normal { mean, stdev },
        Init::Uniform { lo, up } => Distribution::Uniform { lo, up },
        Init::Kaiming { dist, fan, non_linearity } => {
            let stdev = non_linearity.gain() / (fan.for_shape(shape).max(1) as f64).sqrt();
            match dist {
                NormalOrUniform::Normal => Distribution::Normal { mean: 0.0, stdev },
                // A uniform value in [-b, b] has the standard deviation b / sqrt(3).
                NormalOrUniform::Uniform => {
                    let bound = 3f64.sqrt() * stdev;
                    Distribution::Uniform { lo: -bound, up: bound }
                }
            }
        }
    }
}

/// Draws the values at `places` of a stream, two at a time from uniform pairs in [0, 1). ChaCha is a counter-based
/// generator, so every chunk starts at its own position in the stream and the result does not depend on the number of
/// threads.
fn draw((seed, name): (u64, &str), places: Range<usize>, pair: impl Fn(f64, f64) -> [f64; 2] + Sync) -> Vec<f32> {
    // The first of a pair is drawn, too, if only the second is asked for.
    let start = places.start & !1;
    let mut values = vec![0f32; places.end.saturating_sub(start)];
    values.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, values)| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(name_hash(name));
        // A value takes one u64, which is two 32-bit words of the generator.
        rng.set_word_pos(2 * (start + chunk * CHUNK) as u128);
        for slot in values.chunks_mut(2) {
            let drawn = pair(unit(&mut rng), unit(&mut rng));
            slot.iter_mut().zip(drawn).for_each(|(slot, value)| *slot = value as f32);
        }
    });
    values.drain(..(places.start - start).min(values.len()));
    values
}

/// Uniform value in [0, 1) from 53 random bits.
fn unit(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Two independent normal values from two uniform ones (Box-Muller).
fn normal_pair(u: f64, v: f64) -> [f64; 2] {
    // 1 - u is in (0, 1], so the logarithm is finite.
    let radius = (-2.0 * (1.0 - u).ln()).sqrt();
    let (sin, cos) = (std::f64::consts::TAU * v).sin_cos();
    [radius * cos, radius * sin]
}

/// The 64-bit FNV-1a hash: unlike the standard library's, it is the same in every release and process.
pub(crate) fn name_hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(init: Init, shape: &[usize], seed: u64, name: &str) -> Vec<f32> {
        let tensor = initial_tensor(init, &shape.into(), seed, name, DType::F32, &Device::Cpu).unwrap();
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn mean_and_stdev(values: &[f32]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let variance = values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n;
        (mean, variance.sqrt())
    }

    #[test]
    fn fnv1a_matches_published_values() {
        assert_eq!(name_hash(""), 0xcbf29ce484222325);
        assert_eq!(name_hash("a"), 0xaf63dc4c8601ec8c);
        assert_eq!(name_hash("foobar"), 0x85944171f73967e8);
    }

    #[test]
    fn values_depend_only_on_seed_and_name() {
        let init = Init::Randn { mean: 0.0, stdev: 1.0 };
        assert_eq!(values(init, &[5, 7], 1, "a"), values(init, &[5, 7], 1, "a"));
        assert_ne!(values(init, &[5, 7], 1, "a"), values(init, &[5, 7], 1, "b"));
        assert_ne!(values(init, &[5, 7], 1, "a"), values(init, &[5, 7], 2, "a"));
    }

    #[test]
    fn chunks_continue_one_random_stream() {
        let init = Init::Uniform { lo: -1.0, up: 1.0 };
        let long = values(init, &[CHUNK + 5], 3, "w");
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        rng.set_stream(name_hash("w"));
        let one_by_one: Vec<f32> = (0..CHUNK + 5).map(|_| (2.0 * unit(&mut rng) - 1.0) as f32).collect();
        assert_eq!(long, one_by_one);
    }

    #[test]
    fn parts_are_those_of_the_whole() {
        let (init, shape) = (Init::Randn { mean: 1.0, stdev: 2.0 }, Shape::from((3, CHUNK - 1)));
        let whole = values(init, shape.dims(), 5, "p");
        for part in [0..7, 3..4, 1..CHUNK + 9, CHUNK - 1..whole.len(), 8..8] {
            let found = initial_values(init, &shape, part.clone(), (5, "p"), DType::F32).unwrap();
            assert_eq!(found.to_vec1::<f32>().unwrap(), whole[part]);
        }
        let ones = initial_values(Init::Const(1.0), &shape, 2..5, (0, "c"), DType::BF16).unwrap();
        assert_eq!((ones.dtype(), ones.dims()), (DType::BF16, [3].as_slice()));
    }

    #[test]
    fn mean_and_stdev_match_the_init() {
        let (mean, stdev) = mean_and_stdev(&values(Init::Randn { mean: 0.5, stdev: 0.02 }, &[200, 500], 0, "n"));
        assert!((mean - 0.5).abs() < 3e-4 && (stdev - 0.02).abs() < 2e-4, "{mean} {stdev}");
        let uniform = values(Init::Uniform { lo: 1.0, up: 3.0 }, &[200, 500], 0, "u");
        assert!(uniform.iter().all(|v| (1.0..=3.0).contains(v)));
        let (mean, stdev) = mean_and_stdev(&uniform);
        assert!((mean - 2.0).abs() < 1e-2 && (stdev - 2.0 / 12f64.sqrt()).abs() < 1e-2, "{mean} {stdev}");
        let (mean, stdev) = mean_and_stdev(&values(candle_nn::init::DEFAULT_KAIMING_UNIFORM, &[500, 200], 0, "k"));
        assert!(mean.abs() < 1e-3 && (stdev - (2.0f64 / 200.0).sqrt()).abs() < 1e-3, "{mean} {stdev}");
        assert_eq!(values(Init::Const(1.5), &[3], 0, "c"), [1.5; 3]);
    }
}

//! Quantisation of weights to `Q4_K` blocks.
//!
//! 32 weights share a scale and an offset, which are fitted by turns: each weight is rounded to the nearest of the sixteen
//! levels, and the best line through the levels (least squares) gives the next scale and offset. No step makes the error
//! larger. Operations are those of IEEE 754 in a fixed order, so that every CPU writes the same bytes.

use half::f16;

use super::simd_math::vectorised;

/// Weights of a block.
const BLOCK: usize = 256;
/// Bytes of a block.
const BYTES: usize = 144;
/// Weights that share a scale and an offset.
const GROUP: usize = 32;
/// Groups of a block.
const GROUPS: usize = BLOCK / GROUP;
/// Largest level of a weight.
const LEVELS: f32 = 15.0;
/// Largest 6-bit scale or offset.
const STEPS: f32 = 63.0;
/// Most rounds of a fit; the error hardly falls after these.
const ROUNDS: usize = 8;
/// Sums that are added up side by side.
const LANES: usize = 8;

/// The blocks of whole blocks of weights, in the order of a file.
pub fn quantize_q4k(weights: &[f32]) -> Vec<u8> {
    vectorised(
        #[inline(always)]
        || {
            let mut bytes = Vec::with_capacity(weights.len() / BLOCK * BYTES);
            weights.as_chunks().0.iter().for_each(
                #[inline(always)]
                |block| bytes.extend(quantize_block(block)),
            );
            bytes
        },
    )
}

#[inline(always)]
fn quantize_block(x: &[f32; BLOCK]) -> [u8; BYTES] {
    let (groups, mut lines) = (x.as_chunks::<GROUP>().0, [Line::default(); GROUPS]);
    for (line, group) in lines.iter_mut().zip(groups) {
        *line = fitted(group);
    }
    let scale_step = step(lines.map(|line| line.scale));
    let scales = lines.map(|line| steps(line.scale, scale_step));
    // The rounded scales have other best offsets.
    for ((line, group), scale) in lines.iter_mut().zip(groups).zip(scales) {
        line.scale = f32::from(scale) * scale_step.to_f32();
        let levels = levels(group, *line);
        line.offset = (sum(|i| line.scale * levels[i] - group[i]) / GROUP as f32).max(0.0);
    }
    let offset_step = step(lines.map(|line| line.offset));
    let mut block = [0; BYTES];
    block[..2].copy_from_slice(&scale_step.to_le_bytes());
    block[2..4].copy_from_slice(&offset_step.to_le_bytes());
    for (i, (line, group)) in lines.iter().zip(groups).enumerate() {
        let offset = steps(line.offset, offset_step);
        put_scales(&mut block[4..16], i, (scales[i], offset));
        let line = Line { scale: line.scale, offset: f32::from(offset) * offset_step.to_f32() };
        put_levels(&mut block[16 + i / 2 * GROUP..][..GROUP], levels(group, line), i % 2 == 1);
    }
    block
}

/// The unit in which the scales or offsets of a block are counted.
#[inline(always)]
fn step(values: [f32; GROUPS]) -> f16 {
    f16::from_f32(values.into_iter().fold(0.0, f32::max) / STEPS)
}

/// Number of steps that is nearest to a value.
#[inline(always)]
fn steps(value: f32, step: f16) -> u8 {
    let step = step.to_f32();
    if step > 0.0 { (value / step).round_ties_even().clamp(0.0, STEPS) as u8 } else { 0 }
}

/// Writes the 6-bit scale and offset of a group: whole for the first four groups, whose upper two bits hold those of the
/// last four.
#[inline(always)]
fn put_scales(bytes: &mut [u8], group: usize, (scale, offset): (u8, u8)) {
    if group < GROUPS / 2 {
        bytes[group] = scale;
        bytes[group + 4] = offset;
    } else {
        bytes[group + 4] = scale & 15 | (offset & 15) << 4;
        bytes[group - 4] |= scale >> 4 << 6;
        bytes[group] |= offset >> 4 << 6;
    }
}

/// Writes the levels of a group to the lower or upper halves of bytes.
#[inline(always)]
fn put_levels(bytes: &mut [u8], levels: [f32; GROUP], is_upper: bool) {
    for (byte, level) in bytes.iter_mut().zip(levels) {
        *byte |= (level as u8) << if is_upper { 4 } else { 0 };
    }
}

/// The weight at level `q` is `scale * q - offset`.
#[derive(Clone, Copy, Default)]
struct Line {
    scale: f32,
    offset: f32,
}

/// The nearest level of each weight.
#[inline(always)]
fn levels(x: &[f32; GROUP], line: Line) -> [f32; GROUP] {
    let inverse = if line.scale > 0.0 { 1.0 / line.scale } else { 0.0 };
    x.map(
        #[inline(always)]
        |x| ((x + line.offset) * inverse).round_ties_even().clamp(0.0, LEVELS),
    )
}

/// The line with the least squared error that was found, with an offset of at least 0.
#[inline(always)]
fn fitted(x: &[f32; GROUP]) -> Line {
    let (low, high) = x.iter().fold((0f32, f32::MIN), |(low, high), x| (low.min(*x), high.max(*x)));
    let mut line = Line { scale: (high - low) / LEVELS, offset: -low };
    let mut best = (f32::INFINITY, line);
    for _ in 0..ROUNDS {
        let levels = levels(x, line);
        line = least_squares(x, &levels, line);
        let error = squared_error(x, &levels, line);
        if error >= best.0 {
            break;
        }
        best = (error, line);
    }
    best.1
}

/// The best line for given levels; `line` itself if all levels are equal.
#[inline(always)]
fn least_squares(x: &[f32; GROUP], q: &[f32; GROUP], line: Line) -> Line {
    let (sum_x, sum_q) = (sum(|i| x[i]), sum(|i| q[i]));
    let (sum_qq, sum_xq) = (sum(|i| q[i] * q[i]), sum(|i| x[i] * q[i]));
    let n = GROUP as f32;
    let determinant = n * sum_qq - sum_q * sum_q;
    if determinant <= 0.0 {
        return line;
    }
    let scale = (n * sum_xq - sum_x * sum_q) / determinant;
    let offset = (scale * sum_q - sum_x) / n;
    if offset >= 0.0 { Line { scale, offset } } else { Line { scale: sum_xq / sum_qq, offset: 0.0 } }
}

#[inline(always)]
fn squared_error(x: &[f32; GROUP], q: &[f32; GROUP], line: Line) -> f32 {
    sum(
        #[inline(always)]
        |i| {
            let error = line.scale * q[i] - line.offset - x[i];
            error * error
        },
    )
}

/// The sum of a value of each weight of a group, in a fixed order.
#[inline(always)]
fn sum(value: impl Fn(usize) -> f32) -> f32 {
    let mut sums = [0f32; LANES];
    for first in (0..GROUP).step_by(LANES) {
        sums.iter_mut().enumerate().for_each(
            #[inline(always)]
            |(lane, sum)| *sum += value(first + lane),
        );
    }
    let [a, b, c, d, e, f, g, h] = sums;
    ((a + e) + (b + f)) + ((c + g) + (d + h))
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::{GgmlDType, QTensor, ggml_file::qtensor_from_ggml};
    use candle_core::{Device, Result, Tensor};

    use super::*;

    fn squared_errors(blocks: QTensor, x: &[f32]) -> Result<f64> {
        let found = blocks.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
        Ok(found.iter().zip(x).map(|(a, b)| f64::from(a - b).powi(2)).sum())
    }

    fn own(x: &[f32]) -> Result<QTensor> {
        qtensor_from_ggml(GgmlDType::Q4K, &quantize_q4k(x), vec![x.len()], &Device::Cpu)
    }

    /// Values of some distributions: uniform, normal, with outliers, all positive, all negative.
    fn samples() -> Vec<Vec<f32>> {
        let mut state = 7u64;
        let mut uniform = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32
        };
        let mut draw = |f: fn(f32, f32) -> f32| (0..256 * 64).map(|_| f(uniform(), uniform())).collect::<Vec<f32>>();
        vec![
            draw(|u, _| u - 0.5),
            draw(|u, v| 0.02 * (-2.0 * (1.0 - u).ln()).sqrt() * (std::f32::consts::TAU * v).cos()),
            draw(|u, v| if u > 0.99 { 5.0 * v } else { 0.1 * (v - 0.5) }),
            draw(|u, _| 1.0 + u),
            draw(|u, _| -1.0 - u),
        ]
    }

    #[test]
    fn the_error_is_at_most_that_of_candle() -> Result<()> {
        for (i, x) in samples().into_iter().enumerate() {
            let theirs = QTensor::quantize(&Tensor::from_slice(&x, x.len(), &Device::Cpu)?, GgmlDType::Q4K)?;
            let (ours, theirs) = (squared_errors(own(&x)?, &x)?, squared_errors(theirs, &x)?);
            assert!(ours <= theirs, "{i}: {ours} {theirs}");
        }
        Ok(())
    }

    #[test]
    fn constant_zero_and_non_finite_blocks_do_not_fail() -> Result<()> {
        for value in [0.0, 0.5, -0.25, 1e-30, 3e4] {
            let x = [value; 256];
            let found = own(&x)?.dequantize(&Device::Cpu)?.to_vec1::<f32>()?;
            let near = |found: &f32| (found - value).abs() <= 1e-3 * value.abs() + 1e-8;
            assert!(found.iter().all(near), "{value}: {:?}", &found[..2]);
        }
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [0.5; 512];
            x[3] = bad;
            let found = own(&x)?.dequantize(&Device::Cpu)?.to_vec1::<f32>()?;
            assert!(found[256..].iter().all(|x| (x - 0.5).abs() < 1e-3), "{bad}");
        }
        Ok(())
    }
}

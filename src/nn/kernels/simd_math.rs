//! Scalar functions that the compiler vectorises, the dispatch to the widest vector instructions, and register widths.

/// f32 lanes of an AVX2 register.
#[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
pub const AVX2_F32_LANES: usize = 8;
/// f32 lanes of an AVX-512 register.
#[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
pub const AVX512_F32_LANES: usize = 16;

/// Runs `f` compiled for the widest vector instructions of this CPU: AVX2 or AVX-512 where the build's own target has
/// SSE2 only. What `f` calls must be inlined to profit, closures included.
///
/// Results do not depend on the instructions: no sum is reordered and nothing is fused.
#[inline(always)]
pub fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// `e^x`, within 2 units in the last place for `x` in [-87, 88]; 0 or a huge number outside.
///
/// Range reduction to `2^n * e^r` with `|r| <= ln(2) / 2`, then a polynomial: no branches and no table, so loops over
/// it become SIMD code, unlike `f32::exp`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // clamp and the arithmetic below propagate NaN.
    let x = x.clamp(-87.3, 88.7);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let p = 1.987_569_1e-4 * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let e = p * r * r + r + 1.0;
    // The integer is in the low bits of the sum; a conversion would saturate, for which AVX2 has no instruction.
    e * f32::from_bits(rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    #[test]
    fn exp_is_accurate_to_a_few_ulps() {
        for i in -8700..8800 {
            let x = i as f32 * 0.01;
            let (found, expected) = (super::exp(x), x.exp());
            assert!((found - expected).abs() <= 4e-7 * expected, "exp({x}) = {found}, not {expected}");
        }
        assert!(super::exp(f32::NAN).is_nan());
        assert!(super::exp(-1e30) < 1e-37);
    }
}

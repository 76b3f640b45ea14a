//! Outlines of the shapes as signed distance functions, which give a pixel's coverage without supersampling.

use super::attributes::Shape;

/// Bounding radius of every outline, in half widths of the shape.
pub(super) const REACH: f32 = 1.3;

const RING_HOLE: f32 = 0.52;
const SQUARE: [[f32; 2]; 4] = [[-0.88, -0.88], [0.88, -0.88], [0.88, 0.88], [-0.88, 0.88]];
const TRIANGLE: [[f32; 2]; 3] = [[0.0, -1.02], [1.02, 0.8], [-1.02, 0.8]];
const STAR: [[f32; 2]; 10] = star(1.12, 0.46);
const CROSS: [[f32; 2]; 12] = cross(1.0, 0.34);

/// Builds a five-pointed star with one point up. The constants are sine and cosine of 36 and 72 degrees.
const fn star(outer: f32, inner: f32) -> [[f32; 2]; 10] {
    let (s36, c36, s72, c72) = (0.587_785_25, 0.809_017, 0.951_056_5, 0.309_017);
    [
        [0.0, -outer],
        [s36 * inner, -c36 * inner],
        [s72 * outer, -c72 * outer],
        [s72 * inner, c72 * inner],
        [s36 * outer, c36 * outer],
        [0.0, inner],
        [-s36 * outer, c36 * outer],
        [-s72 * inner, c72 * inner],
        [-s72 * outer, -c72 * outer],
        [-s36 * inner, -c36 * inner],
    ]
}

/// Builds an upright cross with arms of length `arm` and width `2 * half`.
const fn cross(arm: f32, half: f32) -> [[f32; 2]; 12] {
    [
        [-half, -arm],
        [half, -arm],
        [half, -half],
        [arm, -half],
        [arm, half],
        [half, half],
        [half, arm],
        [-half, arm],
        [-half, half],
        [-arm, half],
        [-arm, -half],
        [-half, -half],
    ]
}

impl Shape {
    /// Computes the signed distance of a point to the outline, negative inside. The shape is centred at the origin and
    /// has a half width of about one.
    pub(super) fn signed_distance(self, point: [f32; 2]) -> f32 {
        match self {
            Self::Circle => length(point) - 1.0,
            Self::Ring => {
                let middle = 0.5 * (1.0 + RING_HOLE);
                (length(point) - middle).abs() - (1.0 - middle)
            }
            Self::Square => polygon_distance(&SQUARE, point),
            Self::Triangle => polygon_distance(&TRIANGLE, point),
            Self::Star => polygon_distance(&STAR, point),
            Self::Cross => polygon_distance(&CROSS, point),
        }
    }
}

fn length([x, y]: [f32; 2]) -> f32 {
    (x * x + y * y).sqrt()
}

/// Computes the distance to the nearest edge, with the sign of the even-odd rule.
fn polygon_distance(corners: &[[f32; 2]], [x, y]: [f32; 2]) -> f32 {
    let mut nearest = f32::INFINITY;
    let mut inside = false;
    let previous = corners.iter().cycle().skip(corners.len() - 1);
    for (&[ax, ay], &[bx, by]) in previous.zip(corners) {
        let (ex, ey) = (bx - ax, by - ay);
        let (wx, wy) = (x - ax, y - ay);
        let along = ((wx * ex + wy * ey) / (ex * ex + ey * ey)).clamp(0.0, 1.0);
        let (dx, dy) = (wx - along * ex, wy - along * ey);
        nearest = nearest.min(dx * dx + dy * dy);
        if (ay > y) != (by > y) && wx < wy * ex / ey {
            inside = !inside;
        }
    }
    if inside { -nearest.sqrt() } else { nearest.sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_match_known_points() {
        let close = |shape: Shape, point, expected: f32| {
            let found = shape.signed_distance(point);
            assert!((found - expected).abs() < 1e-5, "{shape} at {point:?}: {found}, expected {expected}");
        };
        close(Shape::Circle, [0.0, 0.5], -0.5);
        close(Shape::Ring, [0.0, 0.0], RING_HOLE);
        close(Shape::Ring, [0.0, 2.0], 1.0);
        close(Shape::Square, [0.0, 0.0], -0.88);
        close(Shape::Square, [0.88 + 3.0, 0.88 + 4.0], 5.0);
        close(Shape::Triangle, [0.0, 0.7], -0.1);
        close(Shape::Cross, [0.0, 0.9], -0.1);
        close(Shape::Cross, [0.34 + 0.3, 0.34 + 0.4], 0.3);
        close(Shape::Star, [0.0, -1.22], 0.1);
    }

    #[test]
    fn every_outline_is_within_reach() {
        for &shape in Shape::ALL {
            for i in 0..360 {
                let (sin, cos) = (i as f32).to_radians().sin_cos();
                assert!(shape.signed_distance([cos * REACH, sin * REACH]) >= 0.0, "{shape} at {i} degrees");
            }
        }
    }
}

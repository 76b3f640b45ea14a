//! Questions about where in the image an object is.

use rand::{Rng, RngExt};

use super::attributes::{Description, Naming};
use super::caption::enumeration;
use super::fine_grained::{CORNERS, EDGES};
use super::questions::Draft;
use super::scene::{Object, Scene};
use super::words::{Templates, phrase};

/// A corner or an edge is the nearest beyond doubt if the centre is nearer to it by this fraction of the side.
const MARGIN: f32 = 0.12;

const CORNER: Templates = &["which corner is the {a} nearest to?"];
const EDGE: Templates = &["which edge is the {a} nearest to?"];
const LIST: Templates = &["list all objects {order}."];
const PLACES: Templates = &["{order}, which object is nearest to which corner or edge?"];
const ACROSS: &str = "from left to right";
const DOWN: &str = "from top to bottom";
pub(super) const TEMPLATES: &[Templates] = &[CORNER, EDGE, LIST, PLACES, &[ACROSS, DOWN]];

const NAMINGS: &[Naming] = &[[false, true, true], [false, true, false], [false, false, true], [true, false, true]];

/// Which corner, or which edge, an object is nearest to.
pub(super) fn ask(scene: &Scene, rng: &mut impl Rng) -> Draft {
    let (template, nearest): (Templates, fn(&Object) -> Option<&'static str>) =
        if rng.random() { (CORNER, nearest_corner) } else { (EDGE, nearest_edge) };
    let (object, description) = scene.referent(NAMINGS, |object| nearest(object).is_some(), rng)?;
    Some((phrase(template, &[("a", &description.to_string())], rng), nearest(object)?.to_string()))
}

/// An object with where it is, if that is beyond doubt: `a small red ring nearest to the left edge`.
pub(super) fn name(object: &Object, rng: &mut impl Rng) -> Option<String> {
    Some(format!("{} {}", Description::full(object).indefinite(), place(object, rng)?))
}

/// The corner or the edge that an object is nearest to beyond doubt: `nearest to the left edge`.
pub(super) fn place(object: &Object, rng: &mut impl Rng) -> Option<String> {
    let corner = nearest_corner(object).map(|place| (place, "corner"));
    let edge = nearest_edge(object).map(|place| (place, "edge"));
    let (place, what) = if rng.random() { corner.or(edge) } else { edge.or(corner) }?;
    Some(format!("nearest to the {place} {what}"))
}

/// A request for all objects in an order, mostly with their places, and the list; a place in doubt is left out.
pub(super) fn list(scene: &Scene, rng: &mut impl Rng) -> (String, String) {
    let (order, along): (&str, fn(&Object) -> f32) = if rng.random() { (ACROSS, |o| o.x) } else { (DOWN, |o| o.y) };
    let placed = rng.random_ratio(3, 4);
    let mut named = |object| {
        let placed = if placed { name(object, rng) } else { None };
        placed.unwrap_or_else(|| Description::full(object).indefinite())
    };
    let named: Vec<String> = scene.ordered(along).into_iter().map(&mut named).collect();
    (phrase(if placed { PLACES } else { LIST }, &[("order", order)], rng), format!("{}.", enumeration(&named)))
}

fn nearest_corner(object: &Object) -> Option<&'static str> {
    let clear = |at: f32| (at - 0.5).abs() >= MARGIN / 2.0;
    let [x, y] = [object.x, object.y].map(f32::round);
    let corner = CORNERS.into_iter().find(|(_, corner)| *corner == [x, y]);
    corner.filter(|_| clear(object.x) && clear(object.y)).map(|(name, _)| name)
}

fn nearest_edge(object: &Object) -> Option<&'static str> {
    let mut edges = EDGES.map(|edge| (object.distance(edge), edge));
    edges.sort_by(|a, b| a.0.total_cmp(&b.0));
    let [(nearest, name), (next, _), ..] = edges;
    (next - nearest >= MARGIN).then_some(name)
}

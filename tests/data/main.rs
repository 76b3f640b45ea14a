//! Data sets through the public API.

mod shapes;

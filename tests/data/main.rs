//! Data sets through the public API.

mod loader;
mod records;
mod shapes;

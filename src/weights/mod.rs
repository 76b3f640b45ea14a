//! Named tensors: safetensors files, parameter stores, names, inheritance, the hub.

mod atomic;
mod hub;
mod init;
mod parameter_shapes;
mod parameters;
mod safetensors;
mod save;
mod strict;

pub use atomic::{write_atomically, write_bytes_atomically};
#[cfg(feature = "hub")]
pub use hub::Hub;
pub use hub::{download, resolve_model};
pub use parameter_shapes::ParameterShapes;
pub use parameters::Parameters;
pub use safetensors::SafetensorsFiles;
pub use save::{SaveOptions, save_safetensors};
pub use strict::check_tensors;

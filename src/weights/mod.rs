//! Named tensors: safetensors files, parameter stores, names, inheritance, the hub.

mod atomic;
mod init;
mod parameter_shapes;
mod parameters;
mod safetensors;
mod save;
mod strict;

pub(crate) use atomic::sync_folder;
pub use atomic::{write_atomically, write_bytes_atomically};
pub use parameter_shapes::ParameterShapes;
pub use parameters::Parameters;
pub use safetensors::SafetensorsFiles;
pub use save::{SaveOptions, save_safetensors, save_safetensors_file};
pub use strict::check_tensors;

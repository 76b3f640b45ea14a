//! From pictures, videos and conversations to batches; no model code here.

mod decode;
mod image;
mod pixels;
mod resize;
mod video;

pub use ::image::RgbImage;
pub use decode::{Frames, ImageDecoder};
pub use image::ImageProcessor;
pub use resize::resize;
pub use video::VideoProcessor;

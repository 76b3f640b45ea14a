//! Initialisation of the vision side without pretrained weights: from random weights, a vision transformer takes very long to
//! learn the statistics of images and the neighbourhood of patches.

use candle_core::{D, DType, Device, Tensor};

use crate::Result;
use crate::batch::Visual;
use crate::config::HaploVlConfig;
use crate::nn::cut_patches;
use crate::weights::{Parameters, principal_components};

/// Variance that is taken for noise, in units of normalised pixels: patterns weaker than that are not blown up.
const NOISE: f64 = 0.02;

/// Gives position tables that nothing was learnt into a start in which neighbours are alike: finding out what is beside
/// what takes a vision transformer long otherwise.
pub(super) fn lay_out_positions(config: &HaploVlConfig, parameters: &Parameters) -> Result<()> {
    let side = config.vision.image_size / config.vision.patch_size.max(1);
    for name in ["model.pre_pos_embed", "vision_model.embeddings.position_embedding.weight"] {
        let Some(var) = parameters.get(name) else { continue };
        let (positions, width) = (var.elem_count() / var.dim(D::Minus1)?.max(1), var.dim(D::Minus1)?);
        let mut table = grid_positions(side, width);
        // The class token, if there is one, stands before all patches and nowhere.
        table.splice(0..0, std::iter::repeat_n(0.0, positions.saturating_sub(side * side) * width));
        if table.len() == var.elem_count() {
            parameters.set(name, &Tensor::from_vec(table, var.shape(), &Device::Cpu)?)?;
        }
    }
    Ok(())
}

/// Sines and cosines of column and row, for each cell of a square grid in reading order, `side * side * width` values.
///
/// A quarter of the width each holds `sin(x w)`, `cos(x w)`, `sin(y w)` and `cos(y w)`, with wavelengths from two cells
/// to many sides, as in the plain ViT baselines of Beyer et al. (arXiv 2205.01580).
fn grid_positions(side: usize, width: usize) -> Vec<f32> {
    let quarter = (width / 4).max(1);
    let frequency = |i: usize| 100f64.powf(-((i % quarter) as f64) / quarter as f64);
    let value = |at: f64, i: usize, shift: f64| (at * frequency(i) + shift).sin() as f32;
    let cell = move |row: usize, column: usize| {
        (0..width).map(move |i| {
            let at = [column, row][usize::from(i >= 2 * quarter)] as f64;
            value(at, i, if (i / quarter).is_multiple_of(2) { 0.0 } else { std::f64::consts::FRAC_PI_2 })
        })
    };
    (0..side).flat_map(|row| (0..side).flat_map(move |column| cell(row, column))).collect()
}

/// Lets patch projections begin with the patterns that the patches of `pictures` are made of, each scaled to the same
/// strength (whitening by principal components).
///
/// With random weights nearly all that a patch says is its mean colour; outlines, which tell shapes, are whispers.
pub(super) fn whiten_patches(config: &HaploVlConfig, parameters: &Parameters, pictures: &[Visual]) -> Result<()> {
    let pixels: Vec<&Tensor> = pictures.iter().map(Visual::pixel_values).collect();
    if pixels.is_empty() {
        return Ok(());
    }
    let pixels = Tensor::cat(&pixels, 0)?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    let patches = cut_patches(&pixels, config.vision.patch_size)?.flatten_to(1)?;
    for name in ["model.patch_embed.proj.weight", "vision_model.embeddings.patch_embedding.weight"] {
        let Some(var) = parameters.get(name) else { continue };
        let patterns = principal_components(&patches, var.dim(0)?)?;
        let strength = patches.matmul(&patterns.t()?)?.sqr()?.mean(0)?;
        let weight = patterns.broadcast_div(&(strength + NOISE)?.sqrt()?.unsqueeze(1)?)?;
        parameters.set(name, &weight.reshape(var.shape())?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patch_grid::Size;

    #[test]
    fn neighbours_are_more_alike_than_strangers() {
        let (side, width) = (8, 32);
        let table = grid_positions(side, width);
        let alike = |a: usize, b: usize| -> f32 {
            let cell = |at: usize| &table[at * width..][..width];
            cell(a).iter().zip(cell(b)).map(|(a, b)| a * b).sum()
        };
        for (neighbour, stranger) in [(1, 4), (side, 4 * side), (side + 1, 4 * side + 4)] {
            assert!(alike(0, 0) > alike(0, neighbour) && alike(0, neighbour) > alike(0, stranger));
        }
    }

    #[test]
    fn whitened_patches_are_equally_strong_in_every_direction() {
        let config = HaploVlConfig::tiny();
        let side = config.vision.image_size;
        let parameters = Parameters::new();
        crate::model::HaploVl::new(&config, parameters.var_builder(0, DType::F32, &Device::Cpu)).unwrap();
        // A strong common part and weak details.
        let pixels = (Tensor::rand(-0.5f32, 0.5, (40, 3, side, side), &Device::Cpu).unwrap() + 3.0).unwrap();
        let picture = Visual::Image { pixel_values: pixels.clone(), size: Size::new(side, side) };
        whiten_patches(&config, &parameters, &[picture]).unwrap();
        let weight = parameters.get("model.patch_embed.proj.weight").unwrap().flatten_from(1).unwrap();
        let patches = cut_patches(&pixels, config.vision.patch_size).unwrap().flatten_to(1).unwrap();
        let out = patches.matmul(&weight.t().unwrap()).unwrap();
        for strength in out.sqr().unwrap().mean(0).unwrap().to_vec1::<f32>().unwrap() {
            assert!((0.5..1.01).contains(&strength), "{strength}");
        }
    }
}

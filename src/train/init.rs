//! Initialisation of the vision side without pretrained weights: from random weights, a vision transformer takes very
//! long to learn the statistics of images and the neighbourhood of patches.

use candle_core::{D, DType, Device, Tensor};

use crate::Result;
use crate::batch::Visual;
use crate::config::HaploVlConfig;
use crate::nn::cut_patches;
use crate::weights::{Parameters, principal_components};

/// Noise variance in squared units of normalised pixels: weaker patterns are not amplified.
const NOISE: f64 = 0.02;

/// Initialises untrained position tables so that neighbouring patches have similar embeddings: a vision transformer
/// takes long to learn the neighbourhood of patches from random tables.
pub(super) fn lay_out_positions(config: &HaploVlConfig, parameters: &Parameters) -> Result<()> {
    let side = config.vision.image_size / config.vision.patch_size.max(1);
    for name in ["model.pre_pos_embed", "vision_model.embeddings.position_embedding.weight"] {
        let Some(var) = parameters.get(name) else { continue };
        let (positions, width) = (var.elem_count() / var.dim(D::Minus1)?.max(1), var.dim(D::Minus1)?);
        let mut table = grid_positions(side, width);
        // The class token, if there is one, precedes all patches and has no position: its row is zero.
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

/// Initialises patch projections with the principal components of the patches of `pictures`, each scaled to the same
/// variance (PCA whitening).
///
/// With random weights the projection of a patch is dominated by its mean colour; edges, which distinguish shapes,
/// contribute little.
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
    fn neighbouring_positions_are_more_similar_than_distant_ones() {
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
    fn whitened_patches_have_equal_variance_in_every_direction() {
        let config = HaploVlConfig::tiny();
        let side = config.vision.image_size;
        let parameters = Parameters::new();
        crate::model::HaploVl::new(&config, parameters.var_builder(0, DType::F32, &Device::Cpu)).unwrap();
        // A strong common component and weak details.
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

//! Linear layer `x W^T + b` with a quantised weight (GGUF blocks).

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, D, DType, Device, Layout, Result, Shape, Storage, Tensor};
use rayon::prelude::*;

use super::linear::{add_bias, bias_gradient};
use super::{contiguous_slice, is_cpu_f32, linear, with_slice};
#[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
use crate::nn::kernels::dispatch::QuantKernel;
use crate::nn::kernels::dispatch::{CANDLE_TILE_WIDTH, QuantBackend, candle_has_tiles};
use crate::nn::kernels::interleaved::InterleavedWeight;
use crate::nn::kernels::mat::MatRef;
#[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
use crate::nn::kernels::qmatmul;
use crate::nn::kernels::quantize_q4k::quantize_q4k;
use crate::nn::kernels::widened::{WidenTile, adapted_row_norms, input_gradient};
use crate::nn::tape::{apply1, apply2};
use crate::options::Quantization;

/// Minimum width at which padding for candle's tiled kernels costs at most half.
const PAD_FROM: usize = 512;

impl Quantization {
    /// Width to which rows of `in_size` are zero-padded on this machine.
    pub(crate) fn padded(self, in_size: usize) -> usize {
        let fast = in_size >= PAD_FROM && candle_has_tiles();
        in_size.next_multiple_of(if fast { CANDLE_TILE_WIDTH } else { self.ggml_dtype().block_size() })
    }

    /// The quantisation with this GGUF block type, if there is one.
    pub(crate) fn of_blocks(dtype: GgmlDType) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.ggml_dtype() == dtype)
    }

    /// Whether `width` is a valid padded width of rows of `in_size`, on this machine or another.
    pub(crate) fn may_pad(self, in_size: usize, width: usize) -> bool {
        let most = in_size.checked_next_multiple_of(CANDLE_TILE_WIDTH);
        width.is_multiple_of(self.ggml_dtype().block_size())
            && most.is_some_and(|most| (in_size..=most).contains(&width))
    }
}

/// Number of rows that a task quantises: whole groups of interleaved rows.
const TASK_ROWS: usize = 16;

/// Quantises a float matrix (out, in) to GGUF blocks, with rows padded with zeros for this machine. Rows are quantised in
/// parallel.
///
/// # Errors
/// Errors of candle, if it is no matrix.
pub fn quantize_blocks(weight: &Tensor, kind: Quantization) -> Result<QTensor> {
    quantize_padded(weight, kind, kind.padded(weight.dim(D::Minus1)?))
}

/// [`quantize_blocks`] with rows of `width`, a multiple of the block's.
pub(crate) fn quantize_padded(weight: &Tensor, kind: Quantization, width: usize) -> Result<QTensor> {
    let (rows, in_size) = weight.dims2()?;
    if in_size == 0 || in_size > width {
        candle_core::bail!("a matrix {:?} cannot be quantised to rows of {width}", weight.dims());
    }
    let weight = weight.detach().to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?;
    let quantize = |rows: &[f32]| {
        let rows = Tensor::from_slice(rows, (rows.len() / in_size, in_size), &Device::Cpu)?;
        let rows = rows.pad_with_zeros(1, 0, width - in_size)?;
        match kind {
            // With less error than candle's search.
            Quantization::Q4K => with_slice(&rows.contiguous()?, quantize_q4k),
            _ => Ok(QTensor::quantize(&rows, kind.ggml_dtype())?.data()?.into_owned()),
        }
    };
    let parts = with_slice(&weight, |weight| {
        weight.par_chunks(TASK_ROWS * in_size).map(quantize).collect::<Result<Vec<Vec<u8>>>>()
    })??;
    let storage = QStorage::from_data(parts.concat().into(), &Device::Cpu, kind.ggml_dtype())?;
    QTensor::new(storage, (rows, width))
}

/// A quantised weight matrix (out, in), on the CPU.
#[derive(Debug, Clone)]
pub struct QuantizedWeight {
    /// Blocks of the weight, (out, in padded with zeros).
    blocks: Arc<Blocks>,
    in_size: usize,
}

/// Blocks as the kernels of this CPU take them.
#[derive(Debug)]
enum Blocks {
    /// In the order of a file, for candle.
    InOrder(QTensor),
    /// For this crate's kernels.
    #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
    Interleaved(InterleavedWeight, QuantKernel),
}

impl Blocks {
    fn new(tensor: QTensor) -> Result<Self> {
        #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
        if let (Some(kind), Some(kernel)) = (Quantization::of_blocks(tensor.dtype()), QuantKernel::fastest()) {
            let width = tensor.shape().dims2()?.1;
            return Ok(Self::Interleaved(InterleavedWeight::new(kind, &tensor.data()?, width), kernel));
        }
        Ok(Self::InOrder(tensor))
    }

    /// Blocks that are interleaved already.
    fn interleaved(weight: InterleavedWeight) -> Result<Self> {
        #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
        if let Some(kernel) = QuantKernel::fastest() {
            return Ok(Self::Interleaved(weight, kernel));
        }
        Ok(Self::InOrder(in_file_order(&weight)?))
    }

    /// Numbers of outputs and of inputs with padding.
    fn dims2(&self) -> Result<(usize, usize)> {
        match self {
            Self::InOrder(tensor) => tensor.shape().dims2(),
            #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
            Self::Interleaved(weight, _) => Ok(weight.dims2()),
        }
    }

    /// The dequantised weight, with padding.
    fn dequantize(&self) -> Result<Tensor> {
        match self {
            Self::InOrder(tensor) => tensor.dequantize(&Device::Cpu),
            #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
            Self::Interleaved(weight, _) => in_file_order(weight)?.dequantize(&Device::Cpu),
        }
    }
}

/// An interleaved weight in the order of a file.
fn in_file_order(weight: &InterleavedWeight) -> Result<QTensor> {
    let storage = QStorage::from_data(weight.in_file_order().into(), &Device::Cpu, weight.kind().ggml_dtype())?;
    QTensor::new(storage, weight.dims2())
}

impl QuantizedWeight {
    /// Quantises a float matrix (out, in).
    ///
    /// # Errors
    /// Errors of candle, if it is no matrix.
    pub fn quantize(weight: &Tensor, kind: Quantization) -> Result<Self> {
        Self::from_qtensor(quantize_blocks(weight, kind)?, weight.dim(1)?)
    }

    /// Wraps a quantised matrix whose rows are `in_size` wide, padded with zeros.
    ///
    /// # Errors
    /// If it is no matrix, or its rows are shorter.
    pub fn from_qtensor(tensor: QTensor, in_size: usize) -> Result<Self> {
        check_width(tensor.shape().dims2()?, in_size)?;
        Ok(Self { blocks: Arc::new(Blocks::new(tensor)?), in_size })
    }

    /// Wraps an interleaved matrix whose rows are `in_size` wide, padded with zeros.
    ///
    /// # Errors
    /// If its rows are shorter.
    pub(crate) fn from_interleaved(weight: InterleavedWeight, in_size: usize) -> Result<Self> {
        check_width(weight.dims2(), in_size)?;
        Ok(Self { blocks: Arc::new(Blocks::interleaved(weight)?), in_size })
    }

    /// Numbers of outputs and inputs, without padding.
    ///
    /// # Errors
    /// Errors of candle only.
    pub fn dims2(&self) -> Result<(usize, usize)> {
        Ok((self.blocks.dims2()?.0, self.in_size))
    }

    /// The dequantised weight, (out, in).
    ///
    /// # Errors
    /// Errors of candle only.
    pub fn dequantize(&self) -> Result<Tensor> {
        self.blocks.dequantize()?.narrow(1, 0, self.in_size)?.contiguous()
    }

    /// Norms of the rows of `weight + scale * B A`, for `a` (rank, in) and `b` (out, rank).
    ///
    /// # Errors
    /// Errors of candle only.
    pub(super) fn row_norms(&self, a: &[f32], b: &[f32], scale: f32) -> Result<Vec<f32>> {
        adapted_row_norms(&WeightTiles::new(self)?, a, b, scale)
    }
}

/// Checks that padded rows hold `in_size` weights.
fn check_width(dims: (usize, usize), in_size: usize) -> Result<()> {
    if dims.1 < in_size || in_size == 0 {
        candle_core::bail!("quantised matrix {dims:?}, expected rows of at least {} inputs", in_size.max(1));
    }
    Ok(())
}

/// `x W^T + b` for `x` (.., in) in f32 on the CPU and `bias` (out); the result is (.., out).
///
/// `x` is quantised in blocks as well: to 8 bits, or to 16 with `Q8_0` on x86-64 with AVX2 and without AVX-512 VNNI.
/// There, a row's result is the same bits whatever the other rows and their number. For many rows on other CPUs without
/// fast integer instructions, the weight is dequantised instead.
/// Differentiable in `x` and `bias`; the weight is frozen. The gradient of `x` is that of the matmul with the dequantised
/// weight, of which tiles are widened in the cache.
///
/// # Errors
/// Errors of candle, if shapes do not fit, or `x` has another dtype or device.
pub fn quantized_linear(x: &Tensor, weight: &QuantizedWeight, bias: Option<&Tensor>) -> Result<Tensor> {
    let (out_size, in_size) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    match shape.last_mut() {
        Some(last) if *last == in_size => *last = out_size,
        _ => candle_core::bail!("quantised layer expects width {in_size}, found {:?}", x.dims()),
    }
    quantized_linear_as(x, weight, bias, shape)
}

/// [`quantized_linear`] for any shape of `x` and of the result: each `in` consecutive elements of `x` are a row, and each
/// `out` consecutive elements of the result, which has shape `shape`, are its output.
///
/// # Errors
/// The errors of [`quantized_linear`].
pub fn quantized_linear_as(
    x: &Tensor,
    weight: &QuantizedWeight,
    bias: Option<&Tensor>,
    shape: impl Into<Shape>,
) -> Result<Tensor> {
    let ((outputs, inputs), shape) = (weight.dims2()?, shape.into());
    let rows = x.elem_count().checked_div(inputs).unwrap_or_default();
    if !is_cpu_f32(&[x]) || x.elem_count() != rows * inputs || shape.elem_count() != rows * outputs {
        candle_core::bail!(
            "quantised layer of {inputs} inputs and {outputs} outputs, f32 on the CPU, makes no {shape:?} of {:?} {:?} on {:?}",
            x.dtype(),
            x.dims(),
            x.device().location()
        );
    }
    let (x, op) = (x.contiguous()?, QuantizedLinearOp { weight: weight.clone(), rows, shape });
    match bias {
        Some(bias) => apply2(&x, bias, op),
        None => apply1(&x, op),
    }
}

/// The custom op, without bias (one input) or with it (two).
struct QuantizedLinearOp {
    weight: QuantizedWeight,
    rows: usize,
    /// Shape of the result.
    shape: Shape,
}

/// Pads rows of `in_size` with zeros to `width`.
fn padded(x: &[f32], in_size: usize, width: usize) -> Cow<'_, [f32]> {
    if in_size == width {
        return Cow::Borrowed(x);
    }
    let mut rows = vec![0f32; x.len() / in_size * width];
    rows.chunks_exact_mut(width).zip(x.chunks_exact(in_size)).for_each(|(row, x)| row[..in_size].copy_from_slice(x));
    Cow::Owned(rows)
}

impl QuantizedLinearOp {
    fn forward(&self, x: &CpuStorage, lx: &Layout) -> Result<CpuStorage> {
        let QuantizedWeight { blocks, in_size } = &self.weight;
        let ((outputs, width), rows) = (blocks.dims2()?, self.rows);
        let padded = || -> Result<_> { Ok(padded(contiguous_slice(x, lx)?, *in_size, width)) };
        match &**blocks {
            #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
            Blocks::Interleaved(weight, kernel) => Ok(CpuStorage::F32(qmatmul::matmul(*kernel, &padded()?, weight))),
            Blocks::InOrder(_) if QuantBackend::new(rows, (outputs, width)) == QuantBackend::Dequantize => {
                let (weight, lx) =
                    (self.weight.dequantize()?, Layout::contiguous_with_offset((rows, *in_size), lx.start_offset()));
                match &*weight.storage_and_layout().0 {
                    Storage::Cpu(storage) => Ok(linear::forward(x, &lx, storage, weight.layout())?.0),
                    _ => candle_core::bail!("expected a quantised weight on the CPU"),
                }
            }
            Blocks::InOrder(tensor) => {
                let (values, layout) = (CpuStorage::F32(padded()?.into_owned()), Layout::contiguous((rows, width)));
                Ok(tensor.cpu_fwd(&values, &layout)?.0)
            }
        }
    }

    fn backward(&self, x: &Tensor, g: &Tensor) -> Result<Tensor> {
        let tiles = WeightTiles::new(&self.weight)?;
        let dx = with_slice(&g.detach().contiguous()?, |g| input_gradient(g, &tiles))??;
        Tensor::from_vec(dx, x.shape(), x.device())
    }
}

impl CustomOp1 for QuantizedLinearOp {
    fn name(&self) -> &'static str {
        "quantized-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((self.forward(x, lx)?, self.shape.clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.backward(x, g)?))
    }
}

/// The op with a bias.
impl CustomOp2 for QuantizedLinearOp {
    fn name(&self) -> &'static str {
        "quantized-linear-bias"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, b: &CpuStorage, lb: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut y = self.forward(x, lx)?;
        add_bias(&mut y, self.weight.dims2()?.0, b, lb)?;
        Ok((y, self.shape.clone()))
    }

    fn bwd(&self, x: &Tensor, b: &Tensor, _y: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((x.track_op().then(|| self.backward(x, g)).transpose()?, bias_gradient(b, g)?))
    }
}

/// Tiles of a quantised weight.
struct WeightTiles<'a> {
    weight: &'a QuantizedWeight,
    dims: (usize, usize),
}

impl<'a> WeightTiles<'a> {
    fn new(weight: &'a QuantizedWeight) -> Result<Self> {
        Ok(Self { weight, dims: weight.dims2()? })
    }
}

impl WidenTile for WeightTiles<'_> {
    type Error = candle_core::Error;

    fn dims2(&self) -> (usize, usize) {
        self.dims
    }

    fn widen<'a>(&self, outputs: Range<usize>, inputs: Range<usize>, buffer: &'a mut Vec<f32>) -> Result<MatRef<'a>> {
        match &*self.weight.blocks {
            #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
            Blocks::Interleaved(weight, kernel) => Ok(qmatmul::widen(*kernel, weight, outputs, inputs, buffer)),
            Blocks::InOrder(tensor) => widen_in_order(tensor, outputs, inputs, buffer),
        }
    }
}

/// Widens the weights of some outputs and inputs with candle.
fn widen_in_order<'a>(
    tensor: &QTensor,
    outputs: Range<usize>,
    inputs: Range<usize>,
    buffer: &'a mut Vec<f32>,
) -> Result<MatRef<'a>> {
    let (width, size, dtype) = (tensor.dtype().block_size(), tensor.dtype().type_size(), tensor.dtype());
    let (file, row_blocks) = (tensor.data()?, tensor.shape().dims2()?.1 / width);
    let blocks = inputs.start / width..inputs.end.div_ceil(width);
    let row = |row: usize| file.get(size * (row * row_blocks + blocks.start)..).unwrap_or_default();
    let (rows, columns) = (outputs.len(), blocks.len() * width);
    let bytes: Vec<u8> = outputs.flat_map(|i| row(i).iter().take(size * blocks.len()).copied()).collect();
    let tile = QTensor::new(QStorage::from_data(bytes.into(), &Device::Cpu, dtype)?, (rows, columns))?;
    buffer.clear();
    with_slice(&tile.dequantize(&Device::Cpu)?, |tile| buffer.extend_from_slice(tile))?;
    Ok(MatRef::new(buffer, (rows, inputs.len()), columns))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{max_diff, values};
    use super::*;

    /// The result with the dequantised weight.
    fn expected(x: &Tensor, weight: &QuantizedWeight, bias: &Tensor) -> Result<Tensor> {
        x.matmul(&weight.dequantize()?.t()?)?.broadcast_add(bias)
    }

    #[test]
    fn every_kind_is_near_the_matmul_with_the_dequantised_weight() -> Result<()> {
        for kind in Quantization::ALL {
            for (rows, outputs, width) in [(1, 16, 512), (3, 5, 40), (20, 16, 520), (64, 3, 256)] {
                let weight = QuantizedWeight::quantize(&values(&[outputs, width], 0.2), kind)?;
                assert_eq!(weight.dims2()?, (outputs, width));
                let (x, bias) = (values(&[rows, width], 0.1), values(&[outputs], 0.3));
                let y = quantized_linear(&x, &weight, Some(&bias))?;
                // 8 bits of `x`, in blocks: half a step of 0.9 / 127, over `width` terms of random sign.
                let tolerance = 0.0036 * (width as f32).sqrt() * 2.0;
                assert!(max_diff(&y, &expected(&x, &weight, &bias)?) < tolerance, "{kind} {rows} {width}");
            }
        }
        Ok(())
    }

    #[test]
    fn error_grows_as_bits_shrink() -> Result<()> {
        let weight = values(&[64, 512], 0.2);
        let error = |kind| max_diff(&QuantizedWeight::quantize(&weight, kind).unwrap().dequantize().unwrap(), &weight);
        let [q8, q6, q4] = Quantization::ALL.map(error);
        assert!(q8 < 0.005 && q8 < q6 && q6 < q4 && q4 < 0.1, "{q8} {q6} {q4}");
        Ok(())
    }

    #[test]
    fn input_gradient_uses_the_dequantised_weight() -> Result<()> {
        let weight = QuantizedWeight::quantize(&values(&[16, 40], 0.2), Quantization::Q4K)?;
        let x = candle_core::Var::from_tensor(&values(&[2, 40], 0.1))?;
        let bias = candle_core::Var::from_tensor(&values(&[16], 0.3))?;
        let g = values(&[2, 16], 0.4);
        let grads = (quantized_linear(&x, &weight, Some(&bias))? * &g)?.sum_all()?.backward()?;
        let of_bias = grads.get(&bias).ok_or_else(|| candle_core::Error::Msg("no gradient".into()))?;
        assert!(max_diff(of_bias, &g.sum(0)?) < 1e-6);
        let found = grads.get(&x).ok_or_else(|| candle_core::Error::Msg("no gradient".into()))?;
        assert!(max_diff(found, &g.matmul(&weight.dequantize()?)?) < 1e-5);
        Ok(())
    }

    #[test]
    fn input_gradients_over_several_tiles_equal_those_of_the_dequantised_weight() -> Result<()> {
        for kind in Quantization::ALL {
            for (rows, outputs, width) in [(3, 300, 600), (70, 17, 256), (1, 256, 40), (641, 17, 300)] {
                let weight = QuantizedWeight::quantize(&values(&[outputs, width], 0.2), kind)?;
                let x = candle_core::Var::from_tensor(&values(&[rows, width], 0.1))?;
                let g = values(&[rows, outputs], 0.4);
                let grads = (quantized_linear(&x, &weight, None)? * &g)?.sum_all()?.backward()?;
                let found = grads.get(&x).ok_or_else(|| candle_core::Error::Msg("no gradient".into()))?;
                let expected = g.matmul(&weight.dequantize()?)?;
                let size = expected.abs()?.max_all()?.to_scalar::<f32>()?;
                assert!(max_diff(found, &expected) < 1e-5 * size, "{kind} {rows} {outputs} {width}");
            }
        }
        Ok(())
    }

    #[test]
    fn widths_padded_on_any_machine_are_accepted() {
        use Quantization::{Q4K, Q8_0};
        for (kind, width) in [(Q8_0, 896), (Q8_0, 1024), (Q4K, 1024)] {
            assert!(kind.may_pad(896, width), "{kind} {width}");
        }
        for (kind, width) in [(Q8_0, 864), (Q8_0, 900), (Q8_0, 1056), (Q4K, 896), (Q4K, 1280)] {
            assert!(!kind.may_pad(896, width), "{kind} {width}");
        }
        assert!(
            Quantization::ALL.iter().all(|kind| kind.may_pad(896, kind.padded(896)) && !kind.may_pad(usize::MAX, 0))
        );
    }

    #[test]
    fn names_round_trip_and_wrong_inputs_are_errors() -> Result<()> {
        for kind in Quantization::ALL {
            assert_eq!(kind.to_string().to_uppercase().parse::<Quantization>().ok(), Some(kind));
        }
        assert!("q5_0".parse::<Quantization>().is_err());
        assert!(
            QuantizedWeight::quantize(&Tensor::zeros((4, 0), DType::F32, &Device::Cpu)?, Quantization::Q8_0).is_err()
        );
        let weight = QuantizedWeight::quantize(&values(&[16, 40], 0.2), Quantization::Q8_0)?;
        assert!(quantized_linear(&values(&[2, 41], 0.1), &weight, None).is_err());
        assert!(quantized_linear(&values(&[2, 40], 0.1).to_dtype(DType::F64)?, &weight, None).is_err());
        Ok(())
    }
}

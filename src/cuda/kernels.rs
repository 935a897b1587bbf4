//! The kernels' launches: what is done to rows of numbers. Products are in `products.rs`, attention is in `attention.rs`.

use std::sync::Arc;

use super::device::Device;
use super::error::Result;
use super::machine::Argument::{self, Address, Count, Flag, Number, Size};
use super::memory::{DeviceRows, Memory};
use crate::kernels::activation::Activation;
use crate::tensor::{Dtype, Element};

/// Threads of a block where a thread has one number.
const PER_BLOCK: usize = 256;
/// The same where the grid has a row for each token.
const PER_ROW_BLOCK: usize = 128;
/// Threads that compute the norm of a row.
const NORM_THREADS: u32 = 512;

/// A norm on the device.
#[derive(Clone, Debug)]
pub(crate) struct RowNorm {
    pub(crate) kind: RowNormKind,
    pub(crate) scale: Memory,
    /// Of a LayerNorm.
    pub(crate) bias: Option<Memory>,
    pub(crate) eps: f64,
}

/// Which norm: the numbers of norm.cuh, where 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowNormKind {
    Rms = 1,
    /// n(u) is rounded before it is scaled.
    RmsRoundedFirst = 2,
    Layer = 3,
}

/// Operations that follow each other between two products, each on what the one before gives: p = N(u), v = x + p, z = N'(v).
#[derive(Clone, Debug)]
pub(crate) struct NormAddNorm<E> {
    /// N and u. Without them p is there.
    pub(crate) first: Option<(RowNorm, DeviceRows<E>)>,
    pub(crate) p: DeviceRows<E>,
    /// x and v.
    pub(crate) sum: Option<[DeviceRows<E>; 2]>,
    /// The address of a flag that is set where a number of v is not finite; 0 for none.
    pub(crate) flag: u64,
    /// N' and z, where there is a sum.
    pub(crate) second: Option<(RowNorm, DeviceRows<E>)>,
    /// The numbers of a norm: those of a row, or of each head of it where there is a first norm alone.
    pub(crate) width: usize,
}

/// The kernel of an activation function, where the device has one.
pub(crate) fn activation(activation: Activation, dtype: Dtype) -> Option<&'static str> {
    match (activation, dtype) {
        (Activation::GeluNew, Dtype::Bf16) => Some("gelu_new"),
        (Activation::GeluTanh | Activation::GeluNew, _) => Some("gelu_tanh"),
        (Activation::Gelu, _) => Some("gelu"),
        (Activation::Silu, _) => Some("silu"),
        (Activation::Relu, _) => Some("relu"),
        (Activation::GeluByF16, _) => None,
    }
}

pub(super) fn count(n: usize) -> Argument {
    Count(n as u32)
}

/// A norm as kernels want it, and its rows.
fn norm<E: Element>(norm: Option<&(RowNorm, DeviceRows<E>)>) -> ([Argument; 4], Argument) {
    let Some((norm, rows)) = norm else {
        return ([Count(0), Address(0), Address(0), Number(0.0)], Address(0));
    };
    let arguments = [
        Count(norm.kind as u32),
        (&norm.scale).into(),
        norm.bias.as_ref().map_or(Address(0), Argument::from),
        Number(norm.eps),
    ];
    (arguments, rows.into())
}

impl Device {
    /// A kernel of a compute type in which a thread has one of `n` numbers.
    fn each<E: Element>(&self, kernel: &str, n: usize, arguments: &[Argument]) -> Result<()> {
        let kernel = format!("{kernel}_{}", E::DTYPE);
        self.launch(
            &kernel,
            [n.div_ceil(PER_BLOCK), 1, 1],
            PER_BLOCK as u32,
            arguments,
        )
    }

    /// The same with a row of blocks for each of `rows` of `cols` numbers.
    fn each_row<E: Element>(
        &self,
        kernel: &str,
        [rows, cols]: [usize; 2],
        arguments: &[Argument],
    ) -> Result<()> {
        let grid = [cols.div_ceil(PER_ROW_BLOCK), rows, 1];
        let kernel = format!("{kernel}_{}", E::DTYPE);
        self.launch(&kernel, grid, PER_ROW_BLOCK as u32, arguments)
    }

    /// A norm, a sum and another norm, or some of them.
    pub(crate) fn norm_add_norm<E: Element>(&self, run: &NormAddNorm<E>) -> Result<()> {
        let (first, u) = norm(run.first.as_ref());
        let (second, z) = norm(run.second.as_ref());
        let [x, v] = match &run.sum {
            Some(sum) => sum.each_ref().map(Argument::from),
            None => [Address(0); 2],
        };
        let arguments = [
            &first[..],
            &[u, (&run.p).into(), x, v, Address(run.flag)],
            &second,
            &[z, count(run.width)],
        ];
        let kernel = format!("norm_add_norm_{}", E::DTYPE);
        let grid = [run.p.len() / run.width, 1, 1];
        self.launch(&kernel, grid, NORM_THREADS, &arguments.concat())
    }

    /// x in the type of sums.
    pub(crate) fn widen<E: Element>(
        &self,
        x: &DeviceRows<E>,
        out: &DeviceRows<E::Acc>,
    ) -> Result<()> {
        self.each::<E>("widen", x.len(), &[x.into(), out.into(), Size(x.len())])
    }

    /// Sums rounded to the compute type.
    pub(crate) fn round<E: Element>(
        &self,
        sums: &DeviceRows<E::Acc>,
        out: &DeviceRows<E>,
    ) -> Result<()> {
        let arguments = [sums.into(), Address(0), out.into(), Size(out.len())];
        self.each::<E>("round", out.len(), &arguments)
    }

    /// Sums and a bias, rounded.
    pub(crate) fn add_bias<E: Element>(
        &self,
        sums: &DeviceRows<E::Acc>,
        bias: &Memory,
        rounded_first: bool,
        out: &DeviceRows<E>,
    ) -> Result<()> {
        let (rows, cols) = (out.rows(), out.cols());
        let arguments = [
            sums.into(),
            bias.into(),
            Flag(rounded_first),
            out.into(),
            count(rows),
            count(cols),
        ];
        self.each_row::<E>("add_bias", [rows, cols], &arguments)
    }

    /// x + y or x ⊙ y: `add` or `multiply`. `out` may be one of them.
    pub(crate) fn of_pairs<E: Element>(
        &self,
        operation: &str,
        [x, y, out]: [&DeviceRows<E>; 3],
    ) -> Result<()> {
        let arguments = [x.into(), y.into(), out.into(), Size(out.len())];
        self.each::<E>(operation, out.len(), &arguments)
    }

    /// An activation function of every number, by its [kernel](activation), and that times others, `[up, product]`, where there
    /// are some.
    pub(crate) fn activate<E: Element>(
        &self,
        kernel: &str,
        [x, out]: [&DeviceRows<E>; 2],
        product: Option<[&DeviceRows<E>; 2]>,
    ) -> Result<()> {
        let [up, product] = product.map_or([Address(0); 2], |product| product.map(Argument::from));
        let arguments = [x.into(), out.into(), up, product, Size(x.len())];
        self.each::<E>(kernel, x.len(), &arguments)
    }

    /// cap · tanh(x / cap).
    pub(crate) fn softcap<E: Element>(
        &self,
        x: &DeviceRows<E>,
        cap: f64,
        out: &DeviceRows<E>,
    ) -> Result<()> {
        let arguments = [x.into(), Number(cap), out.into(), Size(x.len())];
        self.each::<E>("softcap", x.len(), &arguments)
    }

    /// Sets the flag at an address where any number is not finite.
    pub(crate) fn look_for_infinities<E: Element>(
        &self,
        x: &DeviceRows<E>,
        flag: u64,
    ) -> Result<()> {
        let arguments = [x.into(), Size(x.len()), Address(flag)];
        self.each::<E>("all_finite", x.len(), &arguments)
    }

    /// Some columns of x, `columns` by number.
    pub(crate) fn select_columns<E: Element>(
        &self,
        x: &DeviceRows<E>,
        columns: &Memory,
        out: &DeviceRows<E>,
    ) -> Result<()> {
        let arguments = [
            x.into(),
            columns.into(),
            out.into(),
            count(x.cols()),
            count(out.cols()),
        ];
        self.each_row::<E>("select_columns", [out.rows(), out.cols()], &arguments)
    }

    /// Some rows of x, `rows` by number.
    pub(crate) fn gather_rows<E: Element>(
        &self,
        x: &DeviceRows<E>,
        rows: &Memory,
        out: &DeviceRows<E>,
    ) -> Result<()> {
        let arguments = [x.into(), rows.into(), out.into(), count(x.cols())];
        self.each_row::<E>("gather_rows", [out.rows(), out.cols()], &arguments)
    }

    /// Adds what an expert says, times its gates, to the rows of its tokens.
    pub(crate) fn combine<E: Element>(
        &self,
        said: &DeviceRows<E>,
        [rows, gates]: [&Memory; 2],
        sums: &DeviceRows<E>,
    ) -> Result<()> {
        let arguments = [
            said.into(),
            rows.into(),
            gates.into(),
            sums.into(),
            count(said.cols()),
        ];
        self.each_row::<E>("combine", [said.rows(), said.cols()], &arguments)
    }

    /// Numbers on the device, `[1, n]` of indices.
    pub(crate) fn indices(
        self: &Arc<Self>,
        indices: impl Iterator<Item = usize>,
    ) -> Result<Memory> {
        let indices: Vec<u32> = indices.map(|index| index as u32).collect();
        Memory::of(self, &indices)
    }
}

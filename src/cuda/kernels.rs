//! The kernels, each with the arguments of its signature: the one place that says how they are launched.

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

/// `FEW_ROWS`, `FEW_THREADS` and the tokens of a block in matmul/few.cuh; `TILE_THREADS` and `ALL_TOKENS` in matmul/tiles.cuh.
const FEW_ROWS: usize = 4;
const FEW_THREADS: u32 = 64;
const FEW_TOKENS: usize = 4;
const TILE_THREADS: u32 = 512;
const TILE_TOKENS: usize = 32;
/// From how many tokens on products go by tiles.
const MANY: usize = 9;
/// `SUM_ELEMENTS`, `SUM_THREADS` and `SUM_WARPS` in weighted_sum.cu.
const SUM_ELEMENTS: usize = 32;
const SUM_THREADS: u32 = 256;
const SUM_WARPS: usize = 8;

/// Rows of a tile: `ALL_ROWS` in matmul/tiles.cuh.
const fn tile_rows(dtype: Dtype) -> usize {
    match dtype {
        Dtype::F64 => 32,
        Dtype::F32 | Dtype::Bf16 => 64,
    }
}

/// A matrix of weights on the device: `[rows, cols]` of numbers of a type.
#[derive(Clone, Debug)]
pub(crate) struct Weights {
    pub(crate) memory: Memory,
    pub(crate) storage: Dtype,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

/// Where a product goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Into<'a, E: Element> {
    /// As the type of sums has it.
    Sums(&'a DeviceRows<E::Acc>),
    /// Rounded to the compute type.
    Rounded(&'a DeviceRows<E>),
}

/// The keys that each of some tokens sees: those from `first` to `place`, its own.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) first: Memory,
    pub(crate) place: Memory,
    /// Tokens that are left out in front.
    pub(crate) skip: usize,
    /// One more than the last place.
    pub(crate) keys: usize,
}

impl Seen {
    /// The same for the tokens from one on.
    pub(crate) fn of_tokens(&self, skip: usize) -> Self {
        Self {
            skip,
            ..self.clone()
        }
    }

    fn arguments(&self) -> [Argument; 2] {
        let offset = (self.skip * size_of::<u32>()) as u64;
        [&self.first, &self.place].map(|memory| Address(memory.address() + offset))
    }
}

/// The keys and values of one layer, `[kv_heads, capacity, head_dim]`.
#[derive(Clone, Debug)]
pub(crate) struct KeysValues {
    pub(crate) keys: Memory,
    pub(crate) values: Memory,
    pub(crate) capacity: usize,
}

/// What attention's kernels want to know of a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadShape {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

fn count(n: usize) -> Argument {
    Count(n as u32)
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

    /// A norm, whose blocks have a stretch of `n` numbers each; between u and the outcome stand three arguments that differ.
    fn each_stretch<E: Element>(
        &self,
        kernel: &str,
        u: &DeviceRows<E>,
        [first, second, third]: [Argument; 3],
        out: &DeviceRows<E>,
        n: usize,
    ) -> Result<()> {
        let arguments = [u.into(), first, second, third, out.into(), count(n)];
        let kernel = format!("{kernel}_{}", E::DTYPE);
        self.launch(&kernel, [u.len() / n, 1, 1], PER_BLOCK as u32, &arguments)
    }

    /// W x for every row of x.
    pub(crate) fn multiply<E: Element>(
        &self,
        x: &DeviceRows<E>,
        w: &Weights,
        into: Into<'_, E>,
    ) -> Result<()> {
        let (sums, out) = match into {
            Into::Sums(sums) => (sums.into(), Address(0)),
            Into::Rounded(out) => (Address(0), out.into()),
        };
        let tokens = x.rows();
        let (name, grid, threads) = if tokens < MANY {
            let grid = [w.rows.div_ceil(FEW_ROWS), tokens.div_ceil(FEW_TOKENS), 1];
            ("few", grid, FEW_THREADS)
        } else {
            let rows = w.rows.div_ceil(tile_rows(E::DTYPE));
            (
                "many",
                [tokens.div_ceil(TILE_TOKENS), rows, 1],
                TILE_THREADS,
            )
        };
        let kernel = format!("multiply_{name}_{}_{}", E::DTYPE, w.storage);
        let sizes = [count(tokens), count(w.rows), count(w.cols)];
        let arrays = [x.into(), (&w.memory).into(), sums, out];
        self.launch(&kernel, grid, threads, &[&arrays[..], &sizes].concat())
    }

    /// RMSNorm of every stretch of `n` numbers.
    pub(crate) fn rms_norm<E: Element>(
        &self,
        u: &DeviceRows<E>,
        scale: &Memory,
        (eps, round_first): (f64, bool),
        out: &DeviceRows<E>,
        n: usize,
    ) -> Result<()> {
        let how = [scale.into(), Number(eps), Flag(round_first)];
        self.each_stretch("rms_norm", u, how, out, n)
    }

    /// LayerNorm of every stretch of `n` numbers.
    pub(crate) fn layer_norm<E: Element>(
        &self,
        u: &DeviceRows<E>,
        (weight, bias): (&Memory, Option<&Memory>),
        eps: f64,
        out: &DeviceRows<E>,
        n: usize,
    ) -> Result<()> {
        let bias = bias.map_or(Address(0), Argument::from);
        self.each_stretch("layer_norm", u, [weight.into(), bias, Number(eps)], out, n)
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

    /// An activation function of every number. `None` where the device has none such.
    pub(crate) fn activate<E: Element>(
        &self,
        activation: Activation,
        x: &DeviceRows<E>,
        out: &DeviceRows<E>,
    ) -> Option<Result<()>> {
        let kernel = match (activation, E::DTYPE) {
            (Activation::GeluNew, Dtype::Bf16) => "gelu_new",
            (Activation::GeluTanh | Activation::GeluNew, _) => "gelu_tanh",
            (Activation::Gelu, _) => "gelu",
            (Activation::Silu, _) => "silu",
            (Activation::Relu, _) => "relu",
            (Activation::GeluByF16, _) => return None,
        };
        Some(self.each::<E>(kernel, x.len(), &[x.into(), out.into(), Size(x.len())]))
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

    /// Rotates the heads of x in place; `cos` and `sin` are `[tokens, half]`.
    pub(crate) fn rope<E: Element>(
        &self,
        x: &DeviceRows<E>,
        [cos, sin]: [&Memory; 2],
        [head_dim, half]: [usize; 2],
        [neighbours, round_once]: [bool; 2],
    ) -> Result<()> {
        let (tokens, heads) = (x.rows(), x.cols() / head_dim);
        let arguments = [
            x.into(),
            cos.into(),
            sin.into(),
            count(tokens),
            count(heads),
            count(head_dim),
            count(half),
            Flag(neighbours),
            Flag(round_once),
        ];
        self.each::<E>("rope", tokens * heads * half, &arguments)
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

    /// Puts the keys and values of tokens to their places.
    pub(crate) fn store_key_values<E: Element>(
        &self,
        [k, v]: [&DeviceRows<E>; 2],
        place: &Memory,
        cache: &KeysValues,
        shape: HeadShape,
    ) -> Result<()> {
        let arguments = [
            k.into(),
            v.into(),
            place.into(),
            (&cache.keys).into(),
            (&cache.values).into(),
            count(shape.kv_heads),
            count(shape.head_dim),
            count(cache.capacity),
        ];
        let kernel = format!("store_key_value_{}", E::DTYPE);
        self.launch(
            &kernel,
            [k.rows(), shape.kv_heads, 1],
            PER_ROW_BLOCK as u32,
            &arguments,
        )
    }

    /// q kᵀ, `[heads, tokens, seen.keys]`.
    pub(crate) fn scores<E: Element>(
        &self,
        q: &DeviceRows<E>,
        cache: &KeysValues,
        seen: &Seen,
        shape: HeadShape,
        scores: &DeviceRows<E::Acc>,
    ) -> Result<()> {
        let [first, place] = seen.arguments();
        let tokens = q.rows();
        let (name, grid, threads) = if tokens < MANY {
            let grid = [seen.keys.div_ceil(FEW_ROWS), tokens, shape.heads];
            ("few", grid, FEW_THREADS)
        } else {
            let keys = seen.keys.div_ceil(tile_rows(E::DTYPE));
            let grid = [tokens.div_ceil(TILE_TOKENS), keys, shape.heads];
            ("many", grid, TILE_THREADS)
        };
        let arguments = [
            q.into(),
            (&cache.keys).into(),
            scores.into(),
            first,
            place,
            count(tokens),
            count(shape.heads),
            count(shape.heads / shape.kv_heads),
            count(shape.head_dim),
            count(cache.capacity),
            count(seen.keys),
        ];
        let kernel = format!("scores_{name}_{}", E::DTYPE);
        self.launch(&kernel, grid, threads, &arguments)
    }

    /// Scores become probabilities, in place. A soft-cap of 0 is none.
    pub(crate) fn probabilities<E: Element>(
        &self,
        scores: &DeviceRows<E::Acc>,
        seen: &Seen,
        (scaling, rounded_scores, softcap): (f64, bool, f64),
        [tokens, heads]: [usize; 2],
    ) -> Result<()> {
        let [first, place] = seen.arguments();
        let arguments = [
            scores.into(),
            first,
            place,
            Number(scaling),
            Flag(rounded_scores),
            Number(softcap),
            count(tokens),
            count(seen.keys),
        ];
        let kernel = format!("probabilities_{}", E::DTYPE);
        self.launch(&kernel, [tokens, heads, 1], PER_BLOCK as u32, &arguments)
    }

    /// Σ p v of every token and head.
    pub(crate) fn weighted_sums<E: Element>(
        &self,
        p: &DeviceRows<E::Acc>,
        cache: &KeysValues,
        seen: &Seen,
        shape: HeadShape,
        out: &DeviceRows<E>,
    ) -> Result<()> {
        let [first, place] = seen.arguments();
        let tokens = out.rows();
        let (name, per_block) = if tokens < MANY {
            ("few", SUM_WARPS)
        } else {
            ("many", 8 * SUM_WARPS)
        };
        let grid = [
            shape.head_dim.div_ceil(SUM_ELEMENTS),
            shape.heads,
            tokens.div_ceil(per_block),
        ];
        let arguments = [
            p.into(),
            (&cache.values).into(),
            first,
            place,
            out.into(),
            count(tokens),
            count(shape.heads),
            count(shape.heads / shape.kv_heads),
            count(shape.head_dim),
            count(cache.capacity),
            count(seen.keys),
        ];
        let kernel = format!("weighted_sums_{name}_{}", E::DTYPE);
        self.launch(&kernel, grid, SUM_THREADS, &arguments)
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

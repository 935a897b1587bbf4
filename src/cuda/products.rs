//! How products are launched: W x + b of one W or of several.

use super::device::Device;
use super::error::Result;
use super::kernels::count;
use super::machine::Argument::{self, Address, Flag};
use super::memory::{DeviceRows, Memory};
use crate::tensor::{Dtype, Element};

/// `FEW_ROWS` and `FEW_THREADS` in matmul/few.cuh; `TILE_THREADS` and `ALL_TOKENS` in matmul/tiles.cuh.
pub(super) const FEW_ROWS: usize = 8;
pub(super) const FEW_THREADS: u32 = 128;
pub(super) const TILE_THREADS: u32 = 512;
pub(super) const TILE_TOKENS: usize = 32;
/// From how many tokens on products go by tiles.
pub(super) const MANY: usize = 9;
/// W that a kernel multiplies the same x by.
const MAPS: usize = 3;

/// Tokens of a block, where there are few: `FEW_TOKENS` in matmul/few.cuh.
const fn few_tokens(dtype: Dtype) -> usize {
    match dtype {
        Dtype::F64 => 2,
        Dtype::F32 | Dtype::Bf16 => 4,
    }
}

/// Rows of a tile: `ALL_ROWS` in matmul/tiles.cuh.
pub(super) const fn tile_rows(dtype: Dtype) -> usize {
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
    /// With a bias, rounded; and before that too where the flag says so.
    Biased(&'a DeviceRows<E>, (&'a Memory, bool)),
}

impl Device {
    /// W x for every row of x and every W, those of one type together.
    pub(crate) fn multiply<E: Element>(
        &self,
        x: &DeviceRows<E>,
        maps: &[(&Weights, Into<'_, E>)],
    ) -> Result<()> {
        let of_one_type = maps.chunk_by(|(a, _), (b, _)| a.storage == b.storage);
        let mut together = of_one_type.flat_map(|maps| maps.chunks(MAPS));
        together.try_for_each(|maps| self.multiply_together(x, maps))
    }

    fn multiply_together<E: Element>(
        &self,
        x: &DeviceRows<E>,
        maps: &[(&Weights, Into<'_, E>)],
    ) -> Result<()> {
        let Some((first, _)) = maps.first() else {
            return Ok(());
        };
        let tokens = x.rows();
        let (name, rows, blocks, threads) = match tokens {
            1 => ("one", FEW_ROWS, 1, FEW_THREADS),
            2..MANY => {
                let blocks = tokens.div_ceil(few_tokens(E::DTYPE));
                ("few", FEW_ROWS, blocks, FEW_THREADS)
            }
            _ => {
                let blocks = tokens.div_ceil(TILE_TOKENS);
                ("many", tile_rows(E::DTYPE), blocks, TILE_THREADS)
            }
        };
        let pieces = maps.iter().map(|(w, _)| w.rows.div_ceil(rows)).sum();
        let grid = match name {
            "many" => [blocks, pieces, 1],
            _ => [pieces, blocks, 1],
        };
        let mut arguments = vec![x.into()];
        arguments.extend(maps.iter().flat_map(|(w, into)| map(w, *into)));
        let none = arguments_of(Address(0), None, [Address(0); 2], 0);
        arguments.extend([none; MAPS].into_iter().skip(maps.len()).flatten());
        arguments.extend([count(tokens), count(first.cols)]);
        let kernel = format!("multiply_{name}_{}_{}", E::DTYPE, first.storage);
        self.launch(&kernel, grid, threads, &arguments)
    }
}

/// W, its bias, where its products go, and its rows.
fn map<E: Element>(w: &Weights, into: Into<'_, E>) -> [Argument; 6] {
    let none = Address(0);
    let (bias, to) = match into {
        Into::Sums(sums) => (None, [sums.into(), none]),
        Into::Rounded(out) => (None, [none, out.into()]),
        Into::Biased(out, bias) => (Some(bias), [none, out.into()]),
    };
    arguments_of((&w.memory).into(), bias, to, w.rows)
}

fn arguments_of(
    w: Argument,
    bias: Option<(&Memory, bool)>,
    [sums, out]: [Argument; 2],
    rows: usize,
) -> [Argument; 6] {
    let (bias, rounded_first) = match bias {
        Some((bias, rounded_first)) => (bias.into(), rounded_first),
        None => (Address(0), false),
    };
    [w, bias, Flag(rounded_first), sums, out, count(rows)]
}

//! How attention is launched: what is done to heads, and what they see.

use super::device::Device;
use super::error::Result;
use super::kernels::{RowNormKind, count};
use super::machine::Argument::{self, Address, Count, Flag, Number};
use super::memory::{DeviceRows, Memory};
use super::products::{FEW_ROWS, FEW_THREADS, MANY, TILE_THREADS, TILE_TOKENS, tile_rows};
use crate::checkpoint::form::AttentionForm;
use crate::tensor::Element;

/// Threads of a block that has a head.
const HEAD_THREADS: u32 = 128;
/// Threads of a block that has the scores of a head.
const SOFTMAX_THREADS: u32 = 256;
/// `SUM_ELEMENTS`, `SUM_THREADS` and `SUM_WARPS` in weighted_sum.cu.
const SUM_ELEMENTS: usize = 32;
const SUM_THREADS: u32 = 256;
const SUM_WARPS: usize = 8;

/// The keys that each of some tokens sees: those from a first one to a place, its own.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Of each token the first, and then of each its place.
    pub(crate) indices: Memory,
    pub(crate) tokens: usize,
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

    /// The first keys, and the places.
    fn arguments(&self) -> [Argument; 2] {
        [self.skip, self.tokens + self.skip].map(|at| self.indices.at::<u32>(at))
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

impl HeadShape {
    pub(crate) fn of(form: &AttentionForm) -> Self {
        Self {
            heads: form.heads,
            kv_heads: form.kv_heads,
            head_dim: form.head_dim,
        }
    }
}

/// What is done to every head of q and of k.
#[derive(Clone, Debug, Default)]
pub(crate) struct Preparation {
    pub(crate) norms: Option<HeadNorms>,
    pub(crate) rotation: Option<HeadRotation>,
}

/// The RMSNorms of the heads of q and of k.
#[derive(Clone, Debug)]
pub(crate) struct HeadNorms {
    pub(crate) kind: RowNormKind,
    pub(crate) eps: f64,
    /// Of q and of k.
    pub(crate) scales: [Memory; 2],
    /// Whether they come after the rotation.
    pub(crate) last: bool,
}

/// The rotation of heads to the positions of some rows.
#[derive(Clone, Debug)]
pub(crate) struct HeadRotation {
    pub(crate) angles: Angles,
    pub(crate) neighbours: bool,
    pub(crate) round_once: bool,
}

/// cos and sin of some rows, `[rows, half]` each, in the type of sums, one behind the other.
#[derive(Clone, Debug)]
pub(crate) struct Angles {
    pub(crate) memory: Memory,
    pub(crate) rows: usize,
    pub(crate) half: usize,
    /// Rows that are left out in front.
    pub(crate) skip: usize,
}

impl Preparation {
    /// The same for the rows from one on.
    pub(crate) fn of_rows(&self, skip: usize) -> Self {
        let mut preparation = self.clone();
        if let Some(rotation) = &mut preparation.rotation {
            rotation.angles.skip = skip;
        }
        preparation
    }

    fn arguments<E: Element>(&self) -> [Argument; 10] {
        let (norm, scales) = match &self.norms {
            Some(norms) => (
                [
                    Count(norms.kind as u32),
                    Flag(norms.last),
                    Number(norms.eps),
                ],
                norms.scales.each_ref().map(Argument::from),
            ),
            None => ([Count(0), Flag(false), Number(0.0)], [Address(0); 2]),
        };
        let ([cos, sin], how) = match &self.rotation {
            Some(rotation) => (
                rotation.angles.arguments::<E>(),
                [
                    count(rotation.angles.half),
                    Flag(rotation.neighbours),
                    Flag(rotation.round_once),
                ],
            ),
            None => ([Address(0); 2], [count(0), Flag(false), Flag(false)]),
        };
        let ([kind, last, eps], [q, k], [half, neighbours, once]) = (norm, scales, how);
        [kind, last, eps, q, k, cos, sin, half, neighbours, once]
    }
}

impl Angles {
    fn arguments<E: Element>(&self) -> [Argument; 2] {
        let rows = [self.skip, self.rows + self.skip];
        rows.map(|row| self.memory.at::<E::Acc>(row * self.half))
    }
}

/// Keys and values on their way to the cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entering<'a, E> {
    pub(crate) k: &'a DeviceRows<E>,
    pub(crate) v: &'a DeviceRows<E>,
    pub(crate) seen: &'a Seen,
    pub(crate) cache: &'a KeysValues,
}

impl<E: Element> Entering<'_, E> {
    fn arguments(&self) -> [Argument; 6] {
        let [_, place] = self.seen.arguments();
        [
            self.k.into(),
            self.v.into(),
            place,
            (&self.cache.keys).into(),
            (&self.cache.values).into(),
            count(self.cache.capacity),
        ]
    }
}

impl Device {
    /// Prepares the heads of q, `[q, prepared]`, and those of k, which enters the cache with v; either may be left out.
    pub(crate) fn heads<E: Element>(
        &self,
        preparation: &Preparation,
        q: Option<[&DeviceRows<E>; 2]>,
        entering: Option<Entering<'_, E>>,
        shape: HeadShape,
    ) -> Result<()> {
        let tokens = q.map(|[q, _]| q.rows());
        let tokens = tokens.or(entering.map(|entering| entering.k.rows()));
        let heads = q.map_or(0, |_| shape.heads);
        let kv_heads = entering.map_or(0, |_| shape.kv_heads);
        let arguments = [
            &q.map_or([Address(0); 2], |q| q.map(Argument::from))[..],
            &preparation.arguments::<E>(),
            &entering.map_or([Address(0); 6], |entering| entering.arguments()),
            &[count(heads), count(kv_heads), count(shape.head_dim)],
        ];
        let grid = [tokens.unwrap_or(0), heads + 2 * kv_heads, 1];
        let kernel = format!("heads_{}", E::DTYPE);
        self.launch(&kernel, grid, HEAD_THREADS, &arguments.concat())
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
        self.launch(&kernel, [tokens, heads, 1], SOFTMAX_THREADS, &arguments)
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
}

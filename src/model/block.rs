//! A block of Theorem 5: T(C, x) = v + g(f(v)) with v = x + A(C, x), or in parallel (g(f(x)) + A(C, x)) + x.

use std::ops::Range;

use super::inner::Inner;
use super::ops::Ops;
use super::outer::Outer;
use super::parts::Attention;
#[cfg(feature = "cuda")]
use super::{Linear, parts::Projections};
use crate::checkpoint::form::Sum;
use crate::tensor::{Element, Matrix};

/// One layer.
#[derive(Clone, Debug)]
pub struct Block {
    /// A.
    pub attention: Attention,
    /// f.
    pub inner: Inner,
    /// g.
    pub outer: Outer,
    pub(crate) sum: Sum,
}

/// What attention leaves to the rest of a block.
#[derive(Clone, Debug)]
pub(crate) struct Attended<T> {
    /// z, which the inner function's maps see.
    pub(crate) z: T,
    pub(crate) rest: Rest<T>,
}

/// What the outer function's output is added to.
#[derive(Clone, Debug)]
pub(crate) enum Rest<T> {
    /// v.
    Sequential(T),
    /// A(C, x) and x.
    Parallel { attention: T, x: T },
}

impl<E: Element> Rest<Matrix<E>> {
    /// Some rows of a batch.
    pub(crate) fn slice_rows(&self, rows: Range<usize>) -> Self {
        match self {
            Self::Sequential(v) => Self::Sequential(v.slice_rows(rows)),
            Self::Parallel { attention, x } => Self::Parallel {
                attention: attention.slice_rows(rows.clone()),
                x: x.slice_rows(rows),
            },
        }
    }

    /// One row in f64: v, or x + A(C, x).
    pub(crate) fn to_f64(&self, row: usize) -> Vec<f64> {
        match self {
            Self::Sequential(v) => v.row(row).iter().map(|v| v.to_f64()).collect(),
            Self::Parallel { attention, x } => {
                let pairs = x.row(row).iter().zip(attention.row(row));
                pairs.map(|(x, a)| x.to_f64() + a.to_f64()).collect()
            }
        }
    }
}

impl Block {
    /// T(C, x) for every row of x, `[tokens, hidden]`.
    pub(crate) fn forward<O: Ops>(&self, ops: &mut O, x: O::Rows) -> O::Rows {
        let Attended { z, rest } = self.attend(ops, x);
        let h = self.inner.output(ops, &z);
        let d = self.outer.project(ops, &h);
        let g = self.outer.output(ops, d);
        self.add(ops, &rest, &g)
    }

    /// Every linear map.
    #[cfg(feature = "cuda")]
    pub(crate) fn maps(&self) -> impl Iterator<Item = &Linear> {
        let projections = match &self.attention.projections {
            Projections::Separate(maps) => maps.as_slice(),
            Projections::Fused(map, _) => std::slice::from_ref(map),
        };
        let attention = projections.iter().chain([&self.attention.out]);
        attention
            .chain(self.inner.first_maps())
            .chain(self.outer.down())
    }

    /// Attention, and z.
    pub(crate) fn attend<O: Ops>(&self, ops: &mut O, x: O::Rows) -> Attended<O::Rows> {
        let (normed, attention) = self.attention.forward(ops, &x);
        match self.sum {
            Sum::Sequential => {
                let v = ops.add(&x, &attention);
                ops.record("residual_mid", &v);
                let z = self.inner.input(ops, &v);
                Attended {
                    z: z.unwrap_or_else(|| ops.copy(&v)),
                    rest: Rest::Sequential(v),
                }
            }
            Sum::Parallel => {
                let z = self.inner.input(ops, &x).or(normed);
                Attended {
                    z: z.unwrap_or_else(|| ops.copy(&x)),
                    rest: Rest::Parallel { attention, x },
                }
            }
        }
    }

    /// The block's output, with `g` added to the rest.
    pub(crate) fn add<O: Ops>(&self, ops: &mut O, rest: &Rest<O::Rows>, g: &O::Rows) -> O::Rows {
        let t = match rest {
            Rest::Sequential(v) => ops.add(v, g),
            Rest::Parallel { attention, x } => {
                let branches = ops.add(g, attention);
                ops.add(&branches, x)
            }
        };
        ops.record("", &t);
        t
    }
}

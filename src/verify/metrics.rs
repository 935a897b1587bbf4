//! How far two logit vectors are apart.

use serde::{Deserialize, Serialize};

use crate::json::or_nan;
use crate::kernels::{Level, softmax};
use crate::model::generate::greedy;
use crate::tensor::{Element, Matrix, in_lanes};

/// Logits held against the ones they should be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogitsDistance {
    /// max |difference|; NaN where a logit is.
    #[serde(deserialize_with = "or_nan")]
    pub linf: f64,
    /// Total variation distance of the two distributions, ½ Σ |p − q|.
    #[serde(deserialize_with = "or_nan")]
    pub tvd: f64,
    /// The likeliest token of these logits.
    pub top: u32,
    /// Whether both have the same likeliest token.
    pub same_top: bool,
}

impl LogitsDistance {
    /// `got` against `want`, `[vocab]` each.
    pub fn new<E: Element>(got: &[E], want: &[E]) -> Self {
        Said::new(got).against(&Said::new(want))
    }

    /// Every row of `got`, `[rows, vocab]`, against `want`, `[vocab]`.
    pub fn each<E: Element>(got: &Matrix<E>, want: &[E]) -> Vec<Self> {
        let said = Said::new(want);
        let rows = got.as_slice().chunks_exact(got.cols());
        // Of a row that is the same there is nothing to work out, and that is what a patch is for.
        let compare = |row: &[E]| {
            if row == want {
                said.same()
            } else {
                Said::new(row).against(&said)
            }
        };
        rows.map(compare).collect()
    }
}

/// Logits with their distribution and likeliest token.
struct Said<'a, E> {
    logits: &'a [E],
    probabilities: Matrix<f64>,
    top: u32,
}

impl<'a, E: Element> Said<'a, E> {
    fn new(logits: &'a [E]) -> Self {
        Self {
            logits,
            probabilities: probabilities(logits),
            top: greedy(logits),
        }
    }

    /// These logits against themselves.
    fn same(&self) -> LogitsDistance {
        LogitsDistance {
            linf: 0.0,
            tvd: 0.0,
            top: self.top,
            same_top: true,
        }
    }

    /// These logits against those they should be. Sums run in 16 lanes, so that compilers can add several at once.
    fn against(&self, want: &Self) -> LogitsDistance {
        assert_eq!(self.logits.len(), want.logits.len(), "two vocabularies");
        let (mut largest, mut total) = ([0.0f64; 16], [0.0; 16]);
        in_lanes(self.logits, want.logits, |l, got, want| {
            let difference = (got.to_f64() - want.to_f64()).abs();
            largest[l] = if difference > largest[l] {
                difference
            } else {
                largest[l]
            };
            total[l] += difference;
        });
        let mut moved = [0.0; 16];
        let (p, q) = (self.probabilities.as_slice(), want.probabilities.as_slice());
        in_lanes(p, q, |l, p, q| moved[l] += (p - q).abs());
        // A comparison passes over NaN, a sum does not.
        let nan = total.iter().any(|total| total.is_nan());
        LogitsDistance {
            linf: if nan {
                f64::NAN
            } else {
                largest.into_iter().fold(0.0, f64::max)
            },
            tvd: moved.iter().sum::<f64>() / 2.0,
            top: self.top,
            same_top: self.top == want.top,
        }
    }
}

/// The probabilities that logits stand for, in f64.
pub fn distribution<E: Element>(logits: &[E]) -> Vec<f64> {
    probabilities(logits).as_slice().to_vec()
}

/// [`distribution`], in recycled memory.
fn probabilities<E: Element>(logits: &[E]) -> Matrix<f64> {
    let mut p = Matrix::recycled(1, logits.len());
    for (p, logit) in p.as_mut_slice().iter_mut().zip(logits) {
        *p = logit.to_f64();
    }
    softmax(Level::best(), p.as_mut_slice());
    p
}

/// How much the largest logit exceeds the second.
pub(super) fn margin<E: Element>(logits: &[E]) -> f64 {
    let (before, rest) = logits.split_at(greedy(logits) as usize);
    let first = largest(&rest[..1], E::to_f64);
    let second = largest(before, E::to_f64).max(largest(&rest[1..], E::to_f64));
    first - second
}

/// The largest of what `f` makes of some numbers, −∞ of none; NaN is passed over. In 16 lanes, so that compilers can look at
/// several at once.
pub(super) fn largest<E: Element>(numbers: &[E], f: impl Fn(E) -> f64) -> f64 {
    let mut largest = [f64::NEG_INFINITY; 16];
    let (blocks, rest) = numbers.as_chunks::<16>();
    for block in blocks.iter().map(|block| &block[..]).chain([rest]) {
        for (largest, number) in largest.iter_mut().zip(block) {
            let number = f(*number);
            if number > *largest {
                *largest = number;
            }
        }
    }
    largest.into_iter().fold(f64::NEG_INFINITY, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        let want = [1.0, 2.0, 3.0];
        let same = LogitsDistance::new(&want, &want);
        assert_eq!((same.linf, same.tvd, same.same_top), (0.0, 0.0, true));
        let other = LogitsDistance::new(&[1.0, 4.0, 3.0], &want);
        assert_eq!((other.linf, other.same_top), (2.0, false));
        assert_eq!((same.top, other.top), (2, 1));
        assert!(other.tvd > 0.4 && other.tvd < 0.6);
        assert!(
            LogitsDistance::new(&[f64::NAN, 2.0, 3.0], &want)
                .linf
                .is_nan()
        );
        // All mass on different tokens.
        let apart = LogitsDistance::new(&[900.0, 0.0], &[0.0, 900.0]);
        assert!((apart.tvd - 1.0).abs() < 1e-12);
        assert_eq!(margin(&[5.0, 1.0, 4.5]), 0.5);
    }
}

//! What a layer's branch is to be changed by: the targets of the least squares.

use rayon::prelude::*;

use crate::model::Norm;
use crate::patch::lemmas::{median, rms};
use crate::tensor::{Element, Matrix};

/// η: scales below this share of the median count as if they were larger, or the step through them would be without bounds.
const DAMPING: f64 = 0.01;

/// η where the step is not to be damped: of scales that are zero it must be finite.
const HARDLY: f64 = 1e-6;

/// What the norm behind a branch makes of the targets.
pub(super) struct PostNorm {
    /// m.
    scale: Vec<f64>,
    eps: f64,
    /// η · median(m²).
    damping: f64,
    /// Whether the final norm, which ignores length, is next.
    last: bool,
}

/// A row of a layer: its branch before the norm, and what the branch is added to.
pub(super) struct Row {
    /// d = W h.
    pub(super) d: Vec<f64>,
    /// v.
    pub(super) rest: Vec<f64>,
    /// T, what the layer is to give.
    pub(super) target: Vec<f64>,
}

impl PostNorm {
    pub(super) fn new<E: Element>(norm: &Norm, last: bool, damped: bool) -> Self {
        let scale: Vec<f64> = norm.scale::<E>().into_iter().map(Element::to_f64).collect();
        let eta = if damped { DAMPING } else { HARDLY };
        let damping = eta * median(scale.iter().map(|m| m * m));
        Self {
            scale,
            eps: norm.eps(),
            damping,
            last,
        }
    }

    /// m, but no entry near zero, in the signs of m: what a part of ΔW is weighed by.
    pub(super) fn floored(&self) -> Vec<f64> {
        let floor = 1e-3 * median(self.scale.iter().map(|m| m.abs()));
        let floor = if floor > 0.0 { floor } else { 1.0 };
        self.scale
            .iter()
            .map(|m| m.abs().max(floor).copysign(*m))
            .collect()
    }

    /// R = rms(d), and δ/γ: one damped Gauss–Newton step through the norm towards the target.
    fn step(&self, row: &Row, delta: &mut [f64]) -> f64 {
        let length = (rms(&row.d).powi(2) + self.eps).sqrt();
        let said: Vec<f64> = row
            .d
            .iter()
            .zip(&self.scale)
            .map(|(d, m)| m * d / length)
            .collect();
        let c = if self.last {
            nearest_length(row, &said)
        } else {
            1.0
        };
        for (j, delta) in delta.iter_mut().enumerate() {
            let (m, t) = (self.scale[j], c * row.target[j] - row.rest[j]);
            *delta = length * m * (t - said[j]) / (m * m + self.damping);
        }
        length
    }
}

/// c, such that c·T is nearest to the layer's present output.
fn nearest_length(row: &Row, said: &[f64]) -> f64 {
    let (mut along, mut square) = (0.0, 0.0);
    for (j, target) in row.target.iter().enumerate() {
        along += target * (row.rest[j] + said[j]);
        square += target * target;
    }
    if square > 0.0 { along / square } else { 1.0 }
}

/// δ `[rows, out]`, what the branch before its norm is to be changed by, which is γ of the step towards the target, and ω, how much each
/// row counts beside its own weight.
pub(super) fn targets(
    norm: Option<&PostNorm>,
    gain: f64,
    hidden: usize,
    rows: &[Row],
) -> (Matrix<f64>, Vec<f64>) {
    let mut delta = Matrix::zeros(rows.len(), hidden);
    let each = delta.as_mut_slice().par_chunks_mut(hidden).zip(rows);
    let lengths = each.map(|(delta, row)| {
        let length = match norm {
            Some(norm) => norm.step(row, delta),
            // Lemma 9's, as it stands.
            None => {
                for (j, delta) in delta.iter_mut().enumerate() {
                    *delta = row.target[j] - row.rest[j] - row.d[j];
                }
                1.0
            }
        };
        delta.iter_mut().for_each(|delta| *delta *= gain);
        length
    });
    let lengths: Vec<f64> = lengths.collect();
    // What a long d is off by is divided by its length behind it.
    let typical = median(lengths.iter().copied());
    let weights = lengths.iter().map(|length| (typical / length).powi(2));
    (delta, weights.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gain_is_a_share_of_the_step() {
        let row = || Row {
            d: vec![1.0, -2.0],
            rest: vec![0.5, 0.25],
            target: vec![3.0, 4.0],
        };
        let norm = PostNorm {
            scale: vec![2.0, 0.5],
            eps: 1e-6,
            damping: 0.01,
            last: false,
        };
        for norm in [None, Some(&norm)] {
            let of = |gain| targets(norm, gain, 2, &[row(), row()]);
            let ((whole, weights), (share, same)) = (of(1.0), of(0.25));
            assert_eq!(weights, same);
            for (whole, share) in whole.as_slice().iter().zip(share.as_slice()) {
                assert!(
                    *whole != 0.0 && *share == 0.25 * whole,
                    "{share} of {whole}"
                );
            }
        }
        let (whole, _) = targets(None, 1.0, 2, &[row()]);
        assert_eq!(whole.as_slice(), [3.0 - 0.5 - 1.0, 4.0 - 0.25 + 2.0]);
    }
}

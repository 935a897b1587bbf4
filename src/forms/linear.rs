//! Linear maps, with their weight in either orientation, and deltas of it.

use std::borrow::Cow;

use crate::kernels::{Level, matmul};
use crate::patch::theorem_5::{Change, Delta, rounded_sum};
use crate::patch::{LowRank, Precondition};
use crate::tensor::{Float, Matrix};

/// y = W x + b.
#[derive(Clone, Debug)]
pub struct Linear<A: Float> {
    /// W as it is stored.
    pub(super) stored: Matrix<A>,
    /// Whether that is `[in, out]` (GPT-2's Conv1D) and not `[out, in]`.
    pub(super) transposed: bool,
    /// b.
    pub(super) bias: Option<Vec<A>>,
}

impl<A: Float> Linear<A> {
    /// W `[out, in]`.
    pub fn weight(&self) -> Cow<'_, Matrix<A>> {
        if self.transposed {
            Cow::Owned(self.stored.transposed())
        } else {
            Cow::Borrowed(&self.stored)
        }
    }

    /// The length of y.
    pub(super) fn outputs(&self) -> usize {
        if self.transposed {
            self.stored.cols()
        } else {
            self.stored.rows()
        }
    }

    /// W x + b.
    pub fn forward(&self, level: Level, x: &[A]) -> Vec<A> {
        let x = Matrix::from_vec(x.len(), x.to_vec());
        let y = matmul(level, &x, self.weight().as_ref()).into_vec();
        match &self.bias {
            None => y,
            Some(bias) => y.iter().zip(bias).map(|(&y, &bias)| y + bias).collect(),
        }
    }

    /// ΔW in the orientation of the stored weight.
    pub(super) fn oriented(&self, delta: LowRank) -> Delta {
        Delta::Matrix(if self.transposed {
            delta.transposed()
        } else {
            delta
        })
    }

    /// Adds a change to the weight or the bias, and rounds once.
    pub(super) fn add(&mut self, change: &Change) -> Result<(), Precondition> {
        match &change.delta {
            Delta::Matrix(LowRank { u, v }) => {
                let entry = |i: usize, j: usize| {
                    let terms = u.row(i).iter().zip(v.iter_rows());
                    terms.map(|(&u, v)| u * v[j]).sum::<f64>()
                };
                let delta = (0..u.rows()).flat_map(|i| (0..v.cols()).map(move |j| (i, j)));
                let sum = rounded_sum(
                    change.parameter,
                    self.stored.as_slice(),
                    delta.map(|(i, j)| entry(i, j)),
                )?;
                self.stored = Matrix::from_vec(self.stored.cols(), sum);
            }
            Delta::Vector(delta) => {
                let bias = self.bias.get_or_insert_with(|| vec![A::ZERO; delta.len()]);
                *bias = rounded_sum(change.parameter, bias, delta.iter().copied())?;
            }
        }
        Ok(())
    }
}

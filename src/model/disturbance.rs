//! Random errors of the size that another order of sums would make.

use rand_core::Rng;
use rand_pcg::Pcg64;

use crate::kernels::{Level, elementwise};
use crate::tensor::{Element, Matrix};

/// Errors of matrix products at random, of the size that rounding may have.
///
/// In a sum of n products, in whatever order, a term goes through at most n roundings of u each; as a random walk they
/// come to √n · u of the term. So each number of x is taken ±√n · u too large, the sign drawn anew for every product.
#[derive(Debug)]
pub(super) struct Disturbance {
    signs: Pcg64,
}

impl Disturbance {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            signs: Pcg64::new(seed.into(), 0),
        }
    }

    /// The error to add to `x`. With √n · u rounded up to a power of two it is exact in every compute type.
    pub(super) fn error<E: Element>(&mut self, level: Level, x: &Matrix<E>) -> Matrix<E> {
        let walk = (x.cols() as f64).sqrt().log2().ceil().exp2();
        let size = walk * E::Acc::DTYPE.unit_roundoff();
        let mut delta = elementwise::map(level, x, |x| E::from_f64(x.to_f64() * size));
        for delta in delta.as_mut_slice().chunks_mut(64) {
            let mut signs = self.signs.next_u64();
            for delta in delta {
                if signs & 1 == 1 {
                    *delta = E::round(-delta.acc());
                }
                signs >>= 1;
            }
        }
        delta
    }
}

//! How likely tokens are by the logits of a pass.

use super::generate;
use crate::kernels::{Level, softmax};
use crate::tensor::Element;

/// The log-probabilities that logits stand for: the model's own, before any temperature, bias or cut. They are the same on
/// every machine.
#[derive(Clone, Debug)]
pub struct LogProbabilities {
    logits: Vec<f64>,
    largest: f64,
    /// The logarithm of the likeliest token's probability.
    top: f64,
}

impl LogProbabilities {
    /// Those of one row of logits, computed in f64.
    pub fn new<E: Element>(logits: &[E]) -> Self {
        let logits: Vec<f64> = logits.iter().map(|logit| logit.to_f64()).collect();
        let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut p = logits.clone();
        softmax(Level::best(), &mut p);
        // Of the likeliest, whose probability is never rounded to 0.
        let top = libm::log(p.into_iter().fold(0.0, f64::max));
        Self {
            logits,
            largest,
            top,
        }
    }

    /// That of token `id`.
    pub fn of(&self, id: u32) -> f64 {
        self.logits[id as usize] - self.largest + self.top
    }

    /// The `count` likeliest tokens, likeliest first, of equals the lowest id.
    pub fn likeliest(&self, count: usize) -> Vec<u32> {
        generate::likeliest(&self.logits, count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_the_logarithms_of_the_softmax() {
        let logits = [0.5f32, 2.0, -1.0, 2.0];
        let mut p = logits.map(f64::from);
        softmax(Level::best(), &mut p);
        let log = LogProbabilities::new(&logits);
        for (id, p) in p.iter().enumerate() {
            assert!((log.of(id as u32) - p.ln()).abs() < 1e-15);
        }
        assert_eq!(log.likeliest(3), [1, 3, 0]);
        assert_eq!(log.likeliest(9), [1, 3, 0, 2]);
        assert_eq!(log.likeliest(0), [] as [u32; 0]);
    }

    #[test]
    fn the_least_likely_has_one_too() {
        let log = LogProbabilities::new(&[0.0f64, -2000.0]);
        assert_eq!((log.of(0), log.of(1)), (0.0, -2000.0));
    }
}

//! A(C, x): one head of causal attention, seen from the last token.

use super::linear::Linear;
use super::norm::Norm;
use crate::kernels::{Level, dot, softmax, weighted_sum};
use crate::tensor::{Float, Matrix};

/// What the last token takes from the tokens before it and from itself.
#[derive(Clone, Debug)]
pub struct Attention<A: Float> {
    pub(super) norm: Norm<A>,
    pub(super) q: Linear<A>,
    pub(super) k: Linear<A>,
    pub(super) v: Linear<A>,
    pub(super) o: Linear<A>,
    pub(super) post_norm: Norm<A>,
}

impl<A: Float> Attention<A> {
    /// A(C, x) without the residual; `tokens` `[tokens, hidden]` are C, then x.
    pub fn forward(&self, level: Level, tokens: &Matrix<A>) -> Vec<A> {
        let seen: Vec<_> = tokens
            .iter_rows()
            .map(|token| self.norm.forward(level, token))
            .collect();
        let x = &seen[seen.len() - 1];
        let q = self.q.forward(level, x);
        let scaling = A::ONE / A::from_f64(q.len() as f64).sqrt();
        let scores = seen.iter().map(|token| {
            let k = self.k.forward(level, token);
            dot(level, &q, &k) * scaling
        });
        let mut p: Vec<A> = scores.collect();
        softmax(level, &mut p);
        let values = seen.iter().flat_map(|token| self.v.forward(level, token));
        let mut mixed = vec![A::ZERO; q.len()];
        weighted_sum(level, &p, &values.collect::<Vec<_>>(), &mut mixed);
        let o = self.o.forward(level, &mixed);
        self.post_norm.forward(level, &o)
    }
}

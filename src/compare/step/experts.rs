//! Experts: from the router's output, as it was recorded, and z.

use std::ops::Range;

use super::Step;
use super::product::{Weight, length};
use crate::compare::interval::{Interval, Rounding};
use crate::compare::operation::Mixture;
use crate::model::Experts;
use crate::tensor::Matrix;

impl<'m> Mixture<'m> {
    /// Of every expert gate, up and down.
    pub(super) fn weights(&self, rounding: Rounding) -> Vec<Weight<'m>> {
        let experts = self.experts.maps.iter().zip(&self.down);
        let maps = experts.flat_map(|([gate, up], down)| [gate, up, down]);
        maps.map(|map| Weight::new(map, rounding)).collect()
    }
}

/// A token's share in an expert.
struct Share {
    /// Its row among those that are replayed.
    row: usize,
    gate: Interval,
}

impl Step<'_> {
    /// Σ gate · W_down h of the experts that each token chooses: the experts ascend, each product and sum is rounded.
    pub(super) fn experts(&self, mixture: &Mixture<'_>, rows: Range<usize>) -> Vec<Interval> {
        let width = mixture.down[0].weight.rows();
        let mut sums = vec![Interval::exactly(0.0); rows.len() * width];
        let mut sizes = vec![0.0; sums.len()];
        let mut shares: Vec<_> = mixture.down.iter().map(|_| Vec::new()).collect();
        for (row, recorded) in rows.clone().enumerate() {
            match self.gates(mixture.experts, &self.row(0, recorded)) {
                Some(gates) => {
                    for (expert, gate) in gates {
                        shares[expert].push(Share { row, gate });
                    }
                }
                None => sums[row * width..(row + 1) * width].fill(Interval::anything()),
            }
        }
        for (expert, shares) in shares.iter().enumerate() {
            let of = |share: &Share| self.row(1, rows.start + share.row);
            let said = self.said(mixture, expert, shares.iter().map(of).collect());
            for (share, said) in shares.iter().zip(said) {
                let at = share.row * width..(share.row + 1) * width;
                let sums = sums[at.clone()].iter_mut().zip(&mut sizes[at]);
                for ((sum, size), said) in sums.zip(said) {
                    let term = self.rounding.once(said.times(share.gate));
                    *size += term.size();
                    // In whatever order, but for the roundings of bf16.
                    let next = sum.plus(term).off(self.rounding.unit() * *size);
                    *sum = self.rounding.of(next);
                }
            }
        }
        sums
    }

    /// The experts that a token chooses and their gates; `None` where its scores leave more than one choice, as equals do.
    fn gates(&self, experts: &Experts, scores: &[Interval]) -> Option<Vec<(usize, Interval)>> {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].value.total_cmp(&scores[a].value));
        let (chosen, others) = order.split_at(experts.top_k);
        let least = chosen.iter().map(|&e| scores[e].low);
        let most = others.iter().map(|&e| scores[e].high);
        if most.fold(f64::NEG_INFINITY, f64::max) >= least.fold(f64::INFINITY, f64::min) {
            return None;
        }
        // Divided by their sum, the shares of all are the shares of the chosen.
        let of: Vec<usize> = match experts.renormalised {
            true => chosen.to_vec(),
            false => order.clone(),
        };
        let gates = self.softmax(&of.iter().map(|&e| scores[e]).collect::<Vec<_>>());
        let off = self.rounding.walk(scores.len()) + 8.0 * self.rounding.unit();
        let gates = of.into_iter().zip(gates).take(experts.top_k);
        Some(
            gates
                .map(|(e, gate)| (e, gate.off(off * gate.size())))
                .collect(),
        )
    }

    /// W_down (act(W_gate z) ⊙ W_up z) of one expert for some rows z.
    fn said(
        &self,
        mixture: &Mixture<'_>,
        expert: usize,
        z: Vec<Vec<Interval>>,
    ) -> Vec<Vec<Interval>> {
        let [gate, up, down] = [0, 1, 2].map(|map| &self.weights[3 * expert + map]);
        let [gate, up] = [gate, up].map(|weight| self.product(weight, &z));
        let h = gate.iter().zip(&up).map(|(gate, up)| {
            let pairs = gate.iter().zip(up);
            let product = |(&gate, &up)| {
                let act = self.activation(mixture.activation, gate);
                self.rounding.once(act.times(up))
            };
            pairs.map(product).collect()
        });
        self.product(down, &h.collect::<Vec<_>>())
    }

    fn product(&self, weight: &Weight<'_>, x: &[Vec<Interval>]) -> Vec<Vec<Interval>> {
        let Some(first) = x.first() else {
            return vec![];
        };
        let halves = x.iter().map(|x| length(x.iter().map(|x| x.half())));
        let values = x.iter().flatten().map(|x| x.value);
        let values = Matrix::from_vec(first.len(), values.collect());
        let y = weight.apply(&values, &halves.collect::<Vec<_>>(), self.rounding);
        y.chunks(y.len() / x.len()).map(<[_]>::to_vec).collect()
    }
}

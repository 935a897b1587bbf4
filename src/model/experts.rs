//! A mixture of experts: a router that chooses some for each token, and their maps.

use super::ops::Ops;
use super::parts::{Active, Experts, Hidden};
use crate::kernels::activation::Activation;
use crate::kernels::{Level, softmax};
use crate::tensor::{Element, Float, Matrix};

impl Experts {
    /// h of every active expert, for the rows of z whose tokens choose it.
    pub(crate) fn forward<O: Ops>(
        &self,
        ops: &mut O,
        activation: Activation,
        z: &O::Rows,
    ) -> Hidden<O::Rows> {
        let [router] = ops.linear([&self.router], z);
        ops.record(self.router.name(), &router);
        let active = ops.route(self, &router).into_iter();
        let experts = active.map(|active| {
            let z = ops.gather(&active, z);
            let [gate, up] = ops.linear_of(&active, self.maps[active.expert].each_ref(), &z);
            let act = ops.activate(activation, gate);
            let h = ops.multiply(&act, &up);
            (active, h)
        });
        let active = experts.collect();
        Hidden::Experts { router, active }
    }

    /// The experts that any token chooses by the router's output, ascending.
    pub(crate) fn route<E: Element>(&self, level: Level, router: &Matrix<E>) -> Vec<Active> {
        let active = |expert| Active {
            expert,
            rows: Vec::new(),
            gates: Vec::new(),
        };
        let mut all: Vec<_> = (0..router.cols()).map(active).collect();
        for (row, logits) in router.iter_rows().enumerate() {
            let logits: Vec<_> = logits.iter().map(|x| x.acc()).collect();
            for (expert, gate) in choose(level, self, &logits) {
                all[expert].rows.push(row);
                all[expert].gates.push(gate.to_f64());
            }
        }
        all.retain(|active| !active.rows.is_empty());
        all
    }
}

/// The experts of one token by the router's output `logits`: those of the `top_k` largest, the lowest of equals first, each
/// with its gate.
pub(crate) fn choose<A: Float>(level: Level, experts: &Experts, logits: &[A]) -> Vec<(usize, A)> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].to_f64().total_cmp(&logits[a].to_f64()));
    order.truncate(experts.top_k);
    let mut all = logits.to_vec();
    softmax(level, &mut all);
    let mut gates: Vec<A> = order.iter().map(|&expert| all[expert]).collect();
    if experts.renormalised {
        let total = gates.iter().fold(A::ZERO, |total, &gate| total + gate);
        gates.iter_mut().for_each(|gate| *gate = *gate / total);
    }
    order.into_iter().zip(gates).collect()
}

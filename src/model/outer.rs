//! g of Theorem 5: the outer function, last linear map and post-norm.

use super::ops::Ops;
use super::parts::Hidden;
use super::{Linear, Norm};

/// g = N(d) with d = W_down h, where N is a post-norm or nothing; with experts, d = Σ s_j W_j h_j.
#[derive(Clone, Debug)]
pub struct Outer {
    /// The last linear map; of every expert, where there are experts.
    pub(crate) down: Vec<Linear>,
    pub(crate) post_norm: Option<Norm>,
    /// The module that outputs d of experts.
    pub(crate) module: &'static str,
}

impl Outer {
    /// W_down `[hidden, intermediate]`; one for each expert, where there are experts.
    pub fn down(&self) -> &[Linear] {
        &self.down
    }

    /// The post-norm, where there is one; its scale is m.
    pub fn post_norm(&self) -> Option<&Norm> {
        self.post_norm.as_ref()
    }

    /// d for every row of h, `[tokens, hidden]`.
    pub(crate) fn project<O: Ops>(&self, ops: &mut O, h: &Hidden<O::Rows>) -> O::Rows {
        match h {
            Hidden::Dense(h) => {
                let [d] = ops.linear([&self.down[0]], h);
                ops.record(self.down[0].name(), &d);
                d
            }
            Hidden::Experts { router, active } => {
                let said = active.iter().map(|(active, h)| {
                    let [d] = ops.linear_of(active, [&self.down[active.expert]], h);
                    (active, d)
                });
                let said: Vec<_> = said.collect();
                let d = ops.combine(router, &said);
                ops.record(self.module, &d);
                d
            }
        }
    }

    /// g for every row of d, `[tokens, hidden]`.
    pub(crate) fn output<O: Ops>(&self, ops: &mut O, d: O::Rows) -> O::Rows {
        let Some(norm) = &self.post_norm else {
            return d;
        };
        let g = ops.norm(norm, &d);
        ops.record(norm.name(), &g);
        g
    }
}

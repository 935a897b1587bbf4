//! A of Theorem 5: the attention sub-layer, without its residual.

use std::ops::Range;

use super::ops::Ops;
use super::parts::{Attention, Projections};
use crate::checkpoint::form::FusedOrder;

impl Attention {
    /// A point of the module that no module outputs.
    pub(crate) fn point(&self, name: &str) -> String {
        format!("{}.{name}", self.form.module)
    }

    /// Where queries, keys and values lie in the output of a fused map, in ascending order of heads.
    pub(crate) fn fused_columns(&self) -> [Vec<Range<usize>>; 3] {
        let form = &self.form;
        let grouped = matches!(self.projections, Projections::Fused(_, FusedOrder::Grouped));
        let (groups, heads, kv_heads) = match grouped {
            true => (form.kv_heads, form.heads / form.kv_heads, 1),
            false => (1, form.heads, form.kv_heads),
        };
        let [queries, keys] = [heads, kv_heads].map(|heads| heads * form.head_dim);
        let stride = queries + 2 * keys;
        let columns = |start: usize, width: usize| {
            let starts = (0..groups).map(|group| group * stride + start);
            starts.map(|start| start..start + width).collect()
        };
        [
            columns(0, queries),
            columns(queries, keys),
            columns(queries + keys, keys),
        ]
    }

    /// What attention sees of x for every row, `[tokens, hidden]`, and A(C, x).
    pub(crate) fn forward<O: Ops>(&self, ops: &mut O, x: &O::Rows) -> (Option<O::Rows>, O::Rows) {
        let normed = self.norm.as_ref().map(|norm| {
            let a = ops.norm(norm, x);
            ops.record(norm.name(), &a);
            a
        });
        let qkv = self.project(ops, normed.as_ref().unwrap_or(x));
        let mixed = ops.attend_projected(self, qkv);
        ops.record(&self.point("mixed"), &mixed);
        let [mut o] = ops.linear([&self.out], &mixed);
        ops.record(self.out.name(), &o);
        if let Some(norm) = &self.post_norm {
            o = ops.norm(norm, &o);
            ops.record(norm.name(), &o);
        }
        (normed, o)
    }

    /// Attention of queries, keys and values as the maps give them, operation by operation.
    pub(crate) fn attend_projected<O: Ops>(&self, ops: &mut O, [q, k, v]: [O::Rows; 3]) -> O::Rows {
        let (q, k) = if self.form.norm_after_rope {
            let (q, k) = self.apply_rope(ops, q, k);
            self.apply_norms(ops, q, k)
        } else {
            let (q, k) = self.apply_norms(ops, q, k);
            self.apply_rope(ops, q, k)
        };
        ops.attend(self, &q, &k, &v)
    }

    /// Queries, keys and values.
    fn project<O: Ops>(&self, ops: &mut O, a: &O::Rows) -> [O::Rows; 3] {
        match &self.projections {
            Projections::Separate(maps) => {
                let qkv = ops.linear(maps.each_ref(), a);
                for (map, rows) in maps.iter().zip(&qkv) {
                    ops.record(map.name(), rows);
                }
                qkv
            }
            Projections::Fused(map, _) => {
                let [fused] = ops.linear([map], a);
                ops.record(map.name(), &fused);
                ops.split_heads(self, &fused)
            }
        }
    }

    /// q and k through their norms, where they have some.
    fn apply_norms<O: Ops>(&self, ops: &mut O, q: O::Rows, k: O::Rows) -> (O::Rows, O::Rows) {
        let Some([q_norm, k_norm]) = &self.qk_norms else {
            return (q, k);
        };
        let (q, k) = (ops.norm(q_norm, &q), ops.norm(k_norm, &k));
        ops.record(q_norm.name(), &q);
        ops.record(k_norm.name(), &k);
        (q, k)
    }

    /// q and k rotated to their positions, where they are.
    fn apply_rope<O: Ops>(&self, ops: &mut O, q: O::Rows, k: O::Rows) -> (O::Rows, O::Rows) {
        if self.rotation.is_none() {
            return (q, k);
        }
        let (q, k) = (ops.rope(self, q), ops.rope(self, k));
        ops.record(&self.point("q_rope"), &q);
        ops.record(&self.point("k_rope"), &k);
        (q, k)
    }
}

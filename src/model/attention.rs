//! A of Theorem 5: v = A(C, x), the attention sub-layer with its residual.

use std::ops::Range;

use rayon::prelude::*;

use super::cache::{Cache, LayerCache};
use super::change::linear;
use super::norm::RmsNorm;
use super::run::Run;
use crate::kernels::{Level, Panel, Rotation, rotate, softmax, weighted_sum};
use crate::tensor::{Element, Float, Matrix, Tensor};

/// v = x + post_attention_layernorm(attention(input_layernorm(x))).
#[derive(Clone, Debug)]
pub struct Attention {
    pub(super) input_layernorm: RmsNorm,
    pub(super) q_proj: Tensor,
    pub(super) k_proj: Tensor,
    pub(super) v_proj: Tensor,
    pub(super) o_proj: Tensor,
    pub(super) q_norm: RmsNorm,
    pub(super) k_norm: RmsNorm,
    pub(super) post_attention_layernorm: RmsNorm,
    pub(super) head_dim: usize,
    /// `query_pre_attn_scalar`^−½.
    pub(super) scaling: f64,
    /// The tokens a sliding layer sees; `None` on a full one.
    pub(super) window: Option<usize>,
    pub(super) rotation: Rotation,
}

/// The rows of a batch that belong to one sequence, and what that sequence has seen.
pub(crate) struct Sequence<'a, E> {
    pub(crate) rows: Range<usize>,
    /// Of each row, ascending.
    pub(crate) positions: &'a [usize],
    pub(crate) cache: &'a mut Cache<E>,
}

impl Attention {
    /// v for every row of x, `[tokens, hidden]`; the new keys and values enter the caches.
    pub(crate) fn forward<E: Element>(
        &self,
        run: &mut Run<'_>,
        x: &Matrix<E>,
        sequences: &mut [Sequence<'_, E>],
    ) -> Matrix<E> {
        let level = run.level;
        let a = self.input_layernorm.forward(level, x);
        run.record("input_layernorm", &a);
        let q = linear(level, &a, &self.q_proj, []);
        let k = linear(level, &a, &self.k_proj, []);
        let v = linear(level, &a, &self.v_proj, []);
        run.record("self_attn.q_proj", &q);
        run.record("self_attn.k_proj", &k);
        run.record("self_attn.v_proj", &v);
        let mut q = self.q_norm.forward(level, &q);
        let mut k = self.k_norm.forward(level, &k);
        run.record("self_attn.q_norm", &q);
        run.record("self_attn.k_norm", &k);
        for sequence in &*sequences {
            for (row, &position) in sequence.rows.clone().zip(sequence.positions) {
                let turn = run.turn(&self.rotation, self.window.is_some(), position);
                let heads = q.row_mut(row).chunks_exact_mut(self.head_dim);
                for head in heads.chain(k.row_mut(row).chunks_exact_mut(self.head_dim)) {
                    rotate(head, &turn);
                }
            }
        }
        run.record("self_attn.q_rope", &q);
        run.record("self_attn.k_rope", &k);

        let mut mixed = Matrix::zeros(q.rows(), q.cols());
        for sequence in sequences {
            let cache = &mut sequence.cache.layers[run.layer];
            for (row, &position) in sequence.rows.clone().zip(sequence.positions) {
                cache.push(position, k.row(row), v.row(row));
            }
            self.attend(
                level,
                &q,
                sequence.rows.clone(),
                sequence.positions,
                cache,
                &mut mixed,
            );
            cache.trim();
        }
        run.record("self_attn.mixed", &mixed);
        let o = linear(level, &mixed, &self.o_proj, []);
        run.record("self_attn.o_proj", &o);
        let o = self.post_attention_layernorm.forward(level, &o);
        run.record("post_attention_layernorm", &o);
        let v = x.zip_map(&o, |x, o| E::round(x.acc() + o.acc()));
        run.record("residual_mid", &v);
        v
    }

    /// softmax(q kᵀ · scaling) v for some rows of `q`, `[tokens, heads · head_dim]`, into the same rows
    /// of `mixed`.
    fn attend<E: Element>(
        &self,
        level: Level,
        q: &Matrix<E>,
        rows: Range<usize>,
        positions: &[usize],
        cache: &LayerCache<E>,
        mixed: &mut Matrix<E>,
    ) {
        let kv_heads = self.k_proj.rows() / self.head_dim;
        // The query heads that share a key head, which lie side by side.
        let group = q.cols() / kv_heads;
        let range = rows.start * q.cols()..rows.end * q.cols();
        let q = &q.as_slice()[range.clone()];
        let mixed = &mut mixed.as_mut_slice()[range];
        let one = |(i, (q, mixed)): (usize, (&[E], &mut [E]))| {
            let (keys, values) = cache.seen_from(positions[i / kv_heads], i % kv_heads);
            self.attend_one(level, q, keys, values, mixed);
        };
        if rows.len() == 1 || rayon::current_num_threads() == 1 {
            q.chunks_exact(group)
                .zip(mixed.chunks_exact_mut(group))
                .enumerate()
                .for_each(one);
        } else {
            let q = q.par_chunks_exact(group);
            q.zip(mixed.par_chunks_exact_mut(group))
                .enumerate()
                .for_each(one);
        }
    }

    /// One token, one key head: `q` and `mixed` are `[query heads of the group, head_dim]`, `keys` and `values`
    /// `[keys, head_dim]`.
    fn attend_one<E: Element>(
        &self,
        level: Level,
        q: &[E],
        keys: &[E],
        values: &[E],
        mixed: &mut [E],
    ) {
        let heads = q.len() / self.head_dim;
        let seen = keys.len() / self.head_dim;
        let mut scores = vec![E::Acc::ZERO; heads * seen];
        E::panel(level, Panel::new(q, keys, self.head_dim, &mut scores, seen));
        let scaling = E::Acc::from_f64(self.scaling);
        for p in scores.chunks_exact_mut(seen) {
            for p in &mut *p {
                *p = E::round(E::round(*p).acc() * scaling).acc();
            }
            softmax(level, p);
            for p in &mut *p {
                *p = E::round(*p).acc();
            }
        }
        let mut sums = vec![E::Acc::ZERO; mixed.len()];
        weighted_sum(level, heads, &scores, values, &mut sums);
        for (mixed, &sum) in mixed.iter_mut().zip(&sums) {
            *mixed = E::round(sum);
        }
    }
}

//! A of Theorem 5: v = A(C, x), the attention sub-layer with its residual.

use std::ops::Range;

use rayon::prelude::*;

use super::cache::{Cache, LayerCache};
use super::change::linear;
use super::norm::RmsNorm;
use super::run::Run;
use crate::kernels::{Level, Panel, Rotation, rotate, softmax, weighted_sum};
use crate::tensor::{Element, Float, Matrix, Tensor};

/// Tokens that look at their keys together, each of which is then read once for all of them.
const TOGETHER: usize = 8;

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
        let width = q.cols();
        let range = rows.start * width..rows.end * width;
        let mixed = &mut mixed.as_mut_slice()[range.clone()];
        let pieces = q.as_slice()[range].par_chunks(TOGETHER * width);
        pieces
            .zip(mixed.par_chunks_mut(TOGETHER * width))
            .zip(positions.par_chunks(TOGETHER))
            .for_each(|((q, mixed), positions)| {
                for head in 0..self.k_proj.rows() / self.head_dim {
                    self.attend_together(level, q, positions, cache, head, mixed);
                }
            });
    }

    /// Some tokens and the query heads that share key head `head`, which lie side by side; rows of `q` and `mixed`
    /// are all heads of a token.
    fn attend_together<E: Element>(
        &self,
        level: Level,
        q: &[E],
        positions: &[usize],
        cache: &LayerCache<E>,
        head: usize,
        mixed: &mut [E],
    ) {
        let width = q.len() / positions.len();
        let group = width * self.head_dim / self.k_proj.rows();
        let heads = head * group..(head + 1) * group;
        let tokens = q.chunks_exact(width);
        let q: Vec<E> = tokens.flat_map(|q| &q[heads.clone()]).copied().collect();
        // All keys that one of the tokens sees; each token looks at its own among them.
        let ranges = positions.iter().map(|&position| cache.seen_from(position));
        let ranges: Vec<_> = ranges.collect();
        let all = ranges[0].start..ranges[ranges.len() - 1].end;
        let mut scores = vec![E::Acc::ZERO; q.len() / self.head_dim * all.len()];
        let keys = cache.keys(head, all.clone());
        let panel = Panel::new(&q, keys, self.head_dim, &mut scores, all.len());
        E::panel(level, panel);
        let of_tokens = scores.chunks_exact_mut(group / self.head_dim * all.len());
        for ((scores, seen), mixed) in of_tokens.zip(ranges).zip(mixed.chunks_exact_mut(width)) {
            let values = cache.values(head, seen.clone());
            let mixed = mixed[heads.clone()].chunks_exact_mut(self.head_dim);
            for (scores, mixed) in scores.chunks_exact_mut(all.len()).zip(mixed) {
                let p = &mut scores[seen.start - all.start..seen.end - all.start];
                self.mix(level, p, values, mixed);
            }
        }
    }

    /// softmax(p · scaling) v of one token and head: `p` are the products of its query and the keys.
    fn mix<E: Element>(&self, level: Level, p: &mut [E::Acc], values: &[E], mixed: &mut [E]) {
        let scaling = E::Acc::from_f64(self.scaling);
        for p in &mut *p {
            *p = E::round(E::round(*p).acc() * scaling).acc();
        }
        softmax(level, p);
        for p in &mut *p {
            *p = E::round(*p).acc();
        }
        let mut sum = vec![E::Acc::ZERO; mixed.len()];
        weighted_sum(level, p, values, &mut sum);
        for (mixed, &sum) in mixed.iter_mut().zip(&sum) {
            *mixed = E::round(sum);
        }
    }
}

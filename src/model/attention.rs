//! A of Theorem 5: v = A(C, x), the attention sub-layer with its residual.

use std::ops::Range;

use rayon::prelude::*;

use super::cache::{Cache, LayerCache, SLACK};
use super::norm::RmsNorm;
use super::run::Run;
use crate::kernels::{Level, Panel, Rotation, Rows, elementwise, rotate, softmax, weighted_sums};
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
        let projections = [&self.q_proj, &self.k_proj, &self.v_proj];
        let [q, k, v] = run
            .matmuls(&a, projections.map(Rows::Stored))
            .map(E::round_all);
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
            // Not more at once than a sliding layer has room for beyond its window.
            for (i, positions) in sequence.positions.chunks(SLACK).enumerate() {
                let start = sequence.rows.start + i * SLACK;
                let rows = start..start + positions.len();
                cache.make_room(positions[0], positions.len());
                for (row, &position) in rows.clone().zip(positions) {
                    cache.push(position, k.row(row), v.row(row));
                }
                self.attend(level, &q, rows, positions, cache, &mut mixed);
            }
        }
        run.record("self_attn.mixed", &mixed);
        let o = E::round_all(run.matmul(&mixed, &self.o_proj));
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
        let mut of_each: Vec<_> = scores.chunks_exact_mut(all.len()).collect();
        E::panel(level, Panel::new(&q, keys, self.head_dim, &mut of_each));
        let mut of_each = scores.chunks_exact_mut(all.len());
        for seen in &ranges {
            for scores in of_each.by_ref().take(group / self.head_dim) {
                self.probabilities::<E>(
                    level,
                    &mut scores[seen.start - all.start..seen.end - all.start],
                );
            }
        }
        let sums = self.averages(level, cache, head, &ranges, &scores);
        let sums = sums.as_slice().chunks_exact(group);
        for (sums, mixed) in sums.zip(mixed.chunks_exact_mut(width)) {
            for (mixed, &sum) in mixed[heads.clone()].iter_mut().zip(sums) {
                *mixed = E::round(sum);
            }
        }
    }

    /// softmax(p · scaling) of one token and head: `p` are the products of its query and the keys.
    fn probabilities<E: Element>(&self, level: Level, p: &mut [E::Acc]) {
        let scaling = E::Acc::from_f64(self.scaling);
        let scaled = |p| E::round(E::round(p).acc() * scaling).acc();
        elementwise::update(level, p, scaled);
        softmax(level, p);
        elementwise::update(level, p, |p| E::round(p).acc());
    }

    /// Σ pⱼ vⱼ over what each token sees, `ranges`, for all its query heads: `[tokens · heads, head_dim]`. A row of `p` has
    /// the keys from the first range's start to the last one's end.
    fn averages<E: Element>(
        &self,
        level: Level,
        cache: &LayerCache<E>,
        head: usize,
        ranges: &[Range<usize>],
        p: &[E::Acc],
    ) -> Matrix<E::Acc> {
        let (first, last) = (&ranges[0], &ranges[ranges.len() - 1]);
        let stride = last.end - first.start;
        let heads = p.len() / stride / ranges.len();
        let mut sums = Matrix::zeros(heads * ranges.len(), self.head_dim);
        let mut add = |tokens: Range<usize>, keys: Range<usize>| {
            let p = &p[tokens.start * heads * stride + keys.start - first.start..];
            let rows = tokens.start * heads * self.head_dim..tokens.end * heads * self.head_dim;
            let sums = &mut sums.as_mut_slice()[rows];
            let values = cache.values(head, keys);
            weighted_sums(level, p, stride, values, sums, self.head_dim);
        };
        // What all see is read once for all; before and behind it each token has keys of its own.
        let shared = last.start..first.end.max(last.start);
        for (token, seen) in ranges.iter().enumerate() {
            add(token..token + 1, seen.start..shared.start.min(seen.end));
        }
        add(0..ranges.len(), shared.clone());
        for (token, seen) in ranges.iter().enumerate() {
            add(
                token..token + 1,
                shared.end.clamp(seen.start, seen.end)..seen.end,
            );
        }
        sums
    }
}

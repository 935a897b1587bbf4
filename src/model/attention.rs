//! A of Theorem 5: v = A(C, x), the attention sub-layer with its residual.

use std::ops::Range;

use rayon::prelude::*;

use super::cache::{Cache, LayerCache, SLACK};
use super::norm::RmsNorm;
use super::run::Run;
use crate::kernels::{
    CosSin, Level, Panel, Rotation, Rows, elementwise, multiply, rotate, softmax, weighted_sums,
};
use crate::tensor::{Element, Float, Matrix, Tensor};

/// Tokens whose queries share one pass over the keys, so that each key is read once for all of them.
const QUERIES_PER_TILE: usize = 8;

/// v = x + post_attention_layernorm(attention(input_layernorm(x))).
#[derive(Clone, Debug)]
pub struct Attention {
    pub(crate) input_layernorm: RmsNorm,
    pub(crate) q_proj: Tensor,
    pub(crate) k_proj: Tensor,
    pub(crate) v_proj: Tensor,
    pub(crate) o_proj: Tensor,
    pub(crate) q_norm: RmsNorm,
    pub(crate) k_norm: RmsNorm,
    pub(crate) post_attention_layernorm: RmsNorm,
    pub(crate) head_dim: usize,
    /// `query_pre_attn_scalar`^−½.
    pub(crate) scaling: f64,
    /// The tokens a sliding layer sees; `None` on a full one.
    pub(crate) window: Option<usize>,
    pub(crate) rotation: Rotation,
    pub(crate) pairing: RopePairing,
    /// Whether the norms of q and k follow RoPE, which in Gemma 3 they precede.
    pub(crate) norm_after_rope: bool,
    /// Scores s become cap · tanh(s / cap), which Gemma 3 does not do.
    pub(crate) softcap: Option<f64>,
}

/// Which elements of a head RoPE rotates together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum RopePairing {
    /// Element i with element i + head_dim/2.
    #[default]
    Halves,
    /// Element 2i with element 2i + 1, as in GPT-J.
    Interleaved,
}

/// The rows of a batch that belong to one sequence, and what that sequence has seen.
pub(crate) struct Sequence<'a, E> {
    pub(crate) rows: Range<usize>,
    /// The position of each row, ascending.
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
            .map(|sums| elementwise::round(level, sums));
        run.record("self_attn.q_proj", &q);
        run.record("self_attn.k_proj", &k);
        run.record("self_attn.v_proj", &v);
        let (q, k) = if self.norm_after_rope {
            let (q, k) = self.apply_rope(run, q, k, sequences);
            self.apply_norms(run, &q, &k)
        } else {
            let (q, k) = self.apply_norms(run, &q, &k);
            self.apply_rope(run, q, k, sequences)
        };
        let mut mixed = Matrix::zeros(q.rows(), q.cols());
        for sequence in sequences {
            let cache = &mut sequence.cache.layers[run.layer];
            // At most as many tokens at once as a sliding layer has room for beyond its window.
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
        let o = elementwise::round(level, run.matmul(&mixed, &self.o_proj));
        run.record("self_attn.o_proj", &o);
        let o = self.post_attention_layernorm.forward(level, &o);
        run.record("post_attention_layernorm", &o);
        let v = elementwise::add(level, x, &o);
        run.record("residual_mid", &v);
        v
    }

    /// q and k through their norms.
    fn apply_norms<E: Element>(
        &self,
        run: &mut Run<'_>,
        q: &Matrix<E>,
        k: &Matrix<E>,
    ) -> (Matrix<E>, Matrix<E>) {
        let q = self.q_norm.forward(run.level, q);
        let k = self.k_norm.forward(run.level, k);
        run.record("self_attn.q_norm", &q);
        run.record("self_attn.k_norm", &k);
        (q, k)
    }

    /// q and k rotated to their positions.
    fn apply_rope<E: Element>(
        &self,
        run: &mut Run<'_>,
        mut q: Matrix<E>,
        mut k: Matrix<E>,
        sequences: &[Sequence<'_, E>],
    ) -> (Matrix<E>, Matrix<E>) {
        for sequence in sequences {
            for (row, &position) in sequence.rows.clone().zip(sequence.positions) {
                let cos_sin = run.cos_sin(&self.rotation, self.window.is_some(), position);
                for heads in [q.row_mut(row), k.row_mut(row)] {
                    match self.pairing {
                        RopePairing::Halves => rotate(run.level, heads, &cos_sin),
                        RopePairing::Interleaved => {
                            rotate_interleaved(run.level, heads, &cos_sin);
                        }
                    }
                }
            }
        }
        run.record("self_attn.q_rope", &q);
        run.record("self_attn.k_rope", &k);
        (q, k)
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
        let pieces = q.as_slice()[range].par_chunks(QUERIES_PER_TILE * width);
        pieces
            .zip(mixed.par_chunks_mut(QUERIES_PER_TILE * width))
            .zip(positions.par_chunks(QUERIES_PER_TILE))
            .for_each(|((q, mixed), positions)| {
                for head in 0..self.k_proj.rows() / self.head_dim {
                    self.attend_tile(level, q, positions, cache, head, mixed);
                }
            });
    }

    /// [`attend`](Self::attend) for a tile of tokens and the query heads that share key head `head`, which lie side by side. A
    /// row of `q` and of `mixed` has all heads of a token.
    fn attend_tile<E: Element>(
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
        // The keys that any of the tokens sees; each token uses its own among them.
        let ranges = positions.iter().map(|&position| cache.seen_from(position));
        let ranges: Vec<_> = ranges.collect();
        let all = ranges[0].start..ranges[ranges.len() - 1].end;
        let mut scores = vec![E::Acc::ZERO; q.len() / self.head_dim * all.len()];
        let keys = cache.keys(head, all.clone());
        let mut rows: Vec<_> = scores.chunks_exact_mut(all.len()).collect();
        multiply(level, Panel::new(&q, keys, self.head_dim, &mut rows));
        let mut rows = scores.chunks_exact_mut(all.len());
        for seen in &ranges {
            for scores in rows.by_ref().take(group / self.head_dim) {
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

    /// softmax(p · scaling) of one token and head, in place; `p` comes as the products of its query and the keys.
    fn probabilities<E: Element>(&self, level: Level, p: &mut [E::Acc]) {
        let scaling = E::Acc::from_f64(self.scaling);
        let scaled = |p| E::round(E::round(p).acc() * scaling).acc();
        elementwise::update(level, p, scaled);
        if let Some(cap) = self.softcap {
            elementwise::update(level, p, |p| E::round(softcapped(p, cap)).acc());
        }
        softmax(level, p);
        elementwise::update(level, p, |p| E::round(p).acc());
    }

    /// Σ pⱼ vⱼ over the keys each token sees, `ranges`, for all its query heads: `[tokens · heads, head_dim]`. A row of `p`
    /// covers the keys from the first range's start to the last one's end.
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
        // The keys that all tokens see are read once for all; before and after them each token has its own.
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

/// cap · tanh(x / cap).
pub(super) fn softcapped<A: Float>(x: A, cap: f64) -> A {
    A::from_f64(cap * libm::tanh(x.to_f64() / cap))
}

/// [`rotate`] for pairs that lie side by side.
fn rotate_interleaved<E: Element>(level: Level, heads: &mut [E], cos_sin: &CosSin<E>) {
    for head in heads.chunks_exact_mut(2 * cos_sin.0.len()) {
        let (even, odd) = (head.iter().step_by(2), head.iter().skip(1).step_by(2));
        let mut halves: Vec<E> = even.chain(odd).copied().collect();
        rotate(level, &mut halves, cos_sin);
        let (first, second) = halves.split_at(head.len() / 2);
        for (pair, (&a, &b)) in head.chunks_exact_mut(2).zip(first.iter().zip(second)) {
            pair.copy_from_slice(&[a, b]);
        }
    }
}

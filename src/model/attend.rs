//! Attention itself: softmax(q kᵀ · scaling) v.

use std::ops::Range;

use rayon::prelude::*;

use super::cache::LayerCache;
use crate::checkpoint::form::AttentionForm;
use crate::kernels::{Level, Panel, elementwise, multiply, softmax, tanh, weighted_sums};
use crate::tensor::{Dtype, Element, Float, Matrix, round_to_bf16};

/// Tokens whose queries share one pass over the keys, so that each key is read once for all of them: at least so many, and
/// where few query heads share a key head more, for so many queries of it.
const TOKENS_PER_TILE: usize = 8;
const QUERIES_PER_TILE: usize = 32;

/// softmax(q kᵀ · scaling) v for the `rows` of q, which are those of one sequence, into `mixed`; k and v enter its cache.
pub(super) fn enter<E: Element>(
    form: &AttentionForm,
    level: Level,
    [q, k, v]: [&Matrix<E>; 3],
    rows: Range<usize>,
    positions: &[usize],
    cache: &mut LayerCache<E>,
    mixed: &mut [E],
) {
    let width = q.cols();
    let q = &q.as_slice()[rows.start * width..rows.end * width];
    for entry in cache.entries(positions) {
        let positions = &positions[entry.clone()];
        cache.make_room(positions[0], positions.len());
        for (i, &position) in entry.clone().zip(positions) {
            let row = rows.start + i;
            cache.push(position, k.row(row), v.row(row));
        }
        let numbers = entry.start * width..entry.end * width;
        let (q, mixed) = (&q[numbers.clone()], &mut mixed[numbers]);
        attend(form, level, q, positions, cache, mixed);
    }
}

/// softmax(q kᵀ · scaling) v for some tokens, `[tokens, heads · head_dim]`, into `mixed`.
fn attend<E: Element>(
    form: &AttentionForm,
    level: Level,
    q: &[E],
    positions: &[usize],
    cache: &LayerCache<E>,
    mixed: &mut [E],
) {
    let width = q.len() / positions.len();
    let tokens = (QUERIES_PER_TILE * form.kv_heads / form.heads).max(TOKENS_PER_TILE);
    let pieces = q.par_chunks(tokens * width);
    pieces
        .zip(mixed.par_chunks_mut(tokens * width))
        .zip(positions.par_chunks(tokens))
        .for_each(|((q, mixed), positions)| {
            for head in 0..form.kv_heads {
                attend_tile(form, level, q, positions, cache, head, mixed);
            }
        });
}

/// [`attend`] for a tile of tokens and the query heads that share key head `head`, which lie side by side. A
/// row of `q` and of `mixed` has all heads of a token.
fn attend_tile<E: Element>(
    form: &AttentionForm,
    level: Level,
    q: &[E],
    positions: &[usize],
    cache: &LayerCache<E>,
    head: usize,
    mixed: &mut [E],
) {
    let width = q.len() / positions.len();
    let group = width / form.kv_heads;
    let heads = head * group..(head + 1) * group;
    let tokens = q.chunks_exact(width);
    let q: Vec<E> = tokens.flat_map(|q| &q[heads.clone()]).copied().collect();
    // The keys that any of the tokens sees; each token uses its own among them.
    let ranges = positions.iter().map(|&position| cache.seen_from(position));
    let ranges: Vec<_> = ranges.collect();
    let all = ranges[0].start..ranges[ranges.len() - 1].end;
    let mut scores = vec![E::Acc::ZERO; q.len() / form.head_dim * all.len()];
    let keys = cache.keys(head, all.clone());
    let mut rows: Vec<_> = scores.chunks_exact_mut(all.len()).collect();
    multiply(level, Panel::new(&q, keys, form.head_dim, &mut rows));
    let mut rows = scores.chunks_exact_mut(all.len());
    for seen in &ranges {
        for scores in rows.by_ref().take(group / form.head_dim) {
            probabilities::<E>(
                form,
                level,
                &mut scores[seen.start - all.start..seen.end - all.start],
            );
        }
    }
    let sums = averages(form, level, cache, head, &ranges, &scores);
    let sums = sums.as_slice().chunks_exact(group);
    for (sums, mixed) in sums.zip(mixed.chunks_exact_mut(width)) {
        for (mixed, &sum) in mixed[heads.clone()].iter_mut().zip(sums) {
            *mixed = E::round(sum);
        }
    }
}

/// softmax(p · scaling) of one token and head, in place; `p` comes as the products of its query and the keys.
fn probabilities<E: Element>(form: &AttentionForm, level: Level, p: &mut [E::Acc]) {
    let scaling = E::Acc::from_f64(form.scaling);
    if form.rounded_scores {
        let scaled = |p| E::round(E::round(p).acc() * scaling).acc();
        elementwise::update(level, p, scaled);
    } else {
        elementwise::update(level, p, |p| p * scaling);
    }
    if let Some(cap) = form.softcap {
        elementwise::update(level, p, |p| softcapped::<E>(p, cap).acc());
    }
    softmax(level, p);
    elementwise::update(level, p, |p| E::round(p).acc());
}

/// Σ pⱼ vⱼ over the keys each token sees, `ranges`, for all its query heads: `[tokens · heads, head_dim]`. A row of `p`
/// covers the keys from the first range's start to the last one's end.
fn averages<E: Element>(
    form: &AttentionForm,
    level: Level,
    cache: &LayerCache<E>,
    head: usize,
    ranges: &[Range<usize>],
    p: &[E::Acc],
) -> Matrix<E::Acc> {
    let (first, last) = (&ranges[0], &ranges[ranges.len() - 1]);
    let stride = last.end - first.start;
    let heads = p.len() / stride / ranges.len();
    let mut sums = Matrix::zeros(heads * ranges.len(), form.head_dim);
    let mut add = |tokens: Range<usize>, keys: Range<usize>| {
        let p = &p[tokens.start * heads * stride + keys.start - first.start..];
        let rows = tokens.start * heads * form.head_dim..tokens.end * heads * form.head_dim;
        let sums = &mut sums.as_mut_slice()[rows];
        let values = cache.values(head, keys);
        weighted_sums(level, p, stride, values, sums, form.head_dim);
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

/// cap · tanh(x / cap), in bf16 with each operation rounded, as Hugging Face does.
#[inline(always)]
pub(super) fn softcapped<E: Element>(x: E::Acc, cap: f64) -> E {
    let rounded = |x: f64| match E::DTYPE {
        Dtype::Bf16 => round_to_bf16(x).to_f64(),
        Dtype::F32 | Dtype::F64 => x,
    };
    let tanh = rounded(tanh(rounded(x.to_f64() / cap)));
    E::round(E::Acc::from_f64(cap * tanh))
}

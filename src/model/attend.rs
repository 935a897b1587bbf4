//! Attention itself: softmax(q kᵀ · scaling) v.

use std::ops::Range;

use rayon::prelude::*;

use super::cache::LayerCache;
use super::key_head::KeyHead;
use crate::checkpoint::form::AttentionForm;
use crate::kernels::{Level, elementwise, softmax, tanh};
use crate::tensor::{Dtype, Element, Matrix, round_to_bf16};

/// Tokens whose queries share one pass over the keys, so that each key is read once for all of them: at least so many, and
/// where few query heads share a key head more, for so many queries of it.
const TOKENS_PER_TILE: usize = 8;
const QUERIES_PER_TILE: usize = 32;

/// Queries of one key head for which it pays to pack its keys and values.
const PACK_FROM: usize = 64;

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
    let queries = positions.len() * form.heads / form.kv_heads;
    let (key_head, heads): (fn(_, _, _) -> _, _) = if queries < PACK_FROM {
        (KeyHead::in_place, form.kv_heads)
    } else {
        // One after the other, because each is a copy.
        (KeyHead::packed, 1)
    };
    for first in (0..form.kv_heads).step_by(heads) {
        let heads = first..first + heads;
        let heads = heads.map(|head| (head, key_head(cache, head, form.head_dim)));
        let heads: Vec<_> = heads.collect();
        let tiles = q.par_chunks(tokens * width);
        tiles
            .zip(mixed.par_chunks_mut(tokens * width))
            .zip(positions.par_chunks(tokens))
            .for_each(|((q, mixed), positions)| {
                for (head, keys) in &heads {
                    attend_tile(form, level, q, positions, cache, (*head, keys), mixed);
                }
            });
    }
}

/// [`attend`] for a tile of tokens and the query heads that share key head `head`, which lie side by side. A
/// row of `q` and of `mixed` has all heads of a token.
fn attend_tile<E: Element>(
    form: &AttentionForm,
    level: Level,
    q: &[E],
    positions: &[usize],
    cache: &LayerCache<E>,
    (head, keys): (usize, &KeyHead<'_, E>),
    mixed: &mut [E],
) {
    let width = q.len() / positions.len();
    let group = width / form.kv_heads;
    let heads = head * group..(head + 1) * group;
    let mut queries = Matrix::recycled(positions.len() * group / form.head_dim, form.head_dim);
    let tokens = queries.as_mut_slice().chunks_exact_mut(group);
    for (queries, q) in tokens.zip(q.chunks_exact(width)) {
        queries.copy_from_slice(&q[heads.clone()]);
    }
    // The keys that any of the tokens sees; each token uses its own among them.
    let ranges = positions.iter().map(|&position| cache.seen_from(position));
    let ranges: Vec<_> = ranges.collect();
    let all = keys.around(ranges[0].start..ranges[ranges.len() - 1].end);
    let mut p = keys.scores(level, &queries, all.clone());
    let mut rows = p.iter_rows_mut();
    for seen in &ranges {
        for p in rows.by_ref().take(group / form.head_dim) {
            let p = &mut p[seen.start - all.start..seen.end - all.start];
            probabilities::<E>(form, level, p);
        }
    }
    drop(rows);
    let sums = averages(level, keys, &ranges, all.start, &p);
    let mut sums = sums.iter_rows();
    for mixed in mixed.chunks_exact_mut(width) {
        for mixed in mixed[heads.clone()].chunks_exact_mut(form.head_dim) {
            if let Some(sums) = sums.next() {
                elementwise::round_into(level, sums, mixed);
            }
        }
    }
}

/// softmax(p · scaling) of one token and head, in place; `p` comes as the products of its query and the keys.
fn probabilities<E: Element>(form: &AttentionForm, level: Level, p: &mut [E::Acc]) {
    let scaling = E::Acc::from_f64(form.scaling);
    if form.rounded_scores {
        let scaled = move |p| E::round(E::round(p).acc() * scaling).acc();
        elementwise::update(level, p, scaled);
    } else {
        elementwise::update(level, p, move |p| p * scaling);
    }
    if let Some(cap) = form.softcap {
        elementwise::update(level, p, move |p| softcapped::<E>(p, cap).acc());
    }
    softmax(level, p);
    elementwise::update(level, p, |p| E::round(p).acc());
}

/// Σ pⱼ vⱼ over the keys each token sees, `ranges`, for all its query heads: `[tokens · heads, at least head_dim]`. A row of `p`
/// begins with key `first`.
fn averages<E: Element>(
    level: Level,
    keys: &KeyHead<'_, E>,
    ranges: &[Range<usize>],
    first: usize,
    p: &Matrix<E::Acc>,
) -> Matrix<E::Acc> {
    let heads = p.rows() / ranges.len();
    let mut sums = Matrix::zeros(p.rows(), keys.width());
    let mut add = |tokens: Range<usize>, range: Range<usize>| {
        let p_from = tokens.start * heads * p.cols() + range.start - first;
        let rows = tokens.start * heads * keys.width()..tokens.end * heads * keys.width();
        let sums = &mut sums.as_mut_slice()[rows];
        keys.add_values(level, &p.as_slice()[p_from..], p.cols(), range, sums);
    };
    // The keys that all tokens see are read once for all; before and after them each token has its own.
    let (one, other) = (&ranges[0], &ranges[ranges.len() - 1]);
    let shared = other.start..one.end.max(other.start);
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

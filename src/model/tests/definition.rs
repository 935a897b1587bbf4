//! A block as it is defined, in plain f64 loops over one token after the other.
//!
//! Only weights and forms are taken from the model.

use std::f64::consts::{PI, TAU};

use crate::checkpoint::RopeScaling;
use crate::checkpoint::form::{FusedOrder, NormKind, RopeForm, RopePairing, Sum};
use crate::kernels::activation::Activation;
use crate::model::Projections;
use crate::model::{Attention, Block, Experts, Inner, Linear, Maps, Norm, Outer};
use crate::tensor::Matrix;

/// Rows of tokens.
pub(super) type Rows = Vec<Vec<f64>>;

pub(super) fn rows_of(x: &Matrix<f64>) -> Rows {
    x.iter_rows().map(<[f64]>::to_vec).collect()
}

/// W x + b.
pub(super) fn linear(map: &Linear, x: &[f64]) -> Vec<f64> {
    let w = map.weight.to_vec::<f64>();
    let b = map.bias.as_ref().map(|b| b.to_vec::<f64>());
    let rows = w.chunks(x.len()).enumerate();
    rows.map(|(i, row)| {
        let sum: f64 = row.iter().zip(x).map(|(w, x)| w * x).sum();
        sum + b.as_ref().map_or(0.0, |b| b[i])
    })
    .collect()
}

/// The norm of each stretch of the weight's length.
pub(super) fn norm(norm: &Norm, u: &[f64]) -> Vec<f64> {
    let w = norm.weight.to_vec::<f64>();
    let b = norm.bias.as_ref().map(|b| b.to_vec::<f64>());
    let mean = |u: &[f64]| u.iter().sum::<f64>() / u.len() as f64;
    let squares = |u: &[f64]| u.iter().map(|u| u * u).collect::<Vec<_>>();
    let stretch = |u: &[f64]| -> Vec<f64> {
        let (u, offset) = match norm.form.kind {
            NormKind::Rms { unit_offset, .. } => (u.to_vec(), f64::from(unit_offset)),
            NormKind::Layer { .. } => (u.iter().map(|x| x - mean(u)).collect(), 0.0),
        };
        let root = (mean(&squares(&u)) + norm.form.eps).sqrt();
        let bias = |i: usize| b.as_ref().map_or(0.0, |b| b[i]);
        let numbers = u.iter().enumerate();
        numbers
            .map(|(i, u)| u / root * (offset + w[i]) + bias(i))
            .collect()
    };
    u.chunks(w.len()).flat_map(stretch).collect()
}

fn optional(norm_: &Option<Norm>, u: &[f64]) -> Vec<f64> {
    norm_.as_ref().map_or(u.to_vec(), |n| norm(n, u))
}

/// By how much pair `i` turns at each position, and what cos and sin are multiplied by.
fn frequency(form: &RopeForm, i: usize) -> (f64, f64) {
    let (theta, dims) = (form.rope.theta, form.dims as f64);
    let plain = theta.powf(-((2 * i) as f64) / dims);
    let blend = |divided: f64, factor: f64| divided * plain / factor + (1.0 - divided) * plain;
    match form.rope.scaling {
        RopeScaling::Linear { factor } => (plain / factor, 1.0),
        RopeScaling::Llama3 {
            factor,
            low,
            high,
            original,
        } => {
            let wave = TAU / plain;
            let divided = if wave > original / low {
                1.0
            } else if wave < original / high {
                0.0
            } else {
                (high - original / wave) / (high - low)
            };
            (blend(divided, factor), 1.0)
        }
        RopeScaling::Yarn {
            factor,
            fast,
            slow,
            truncate,
            attention,
            original,
        } => {
            assert!(truncate, "no checkpoint here says otherwise");
            // The pair, a fraction, that turns so often in the original length.
            let pair = |turns: f64| dims / 2.0 * (original / (turns * TAU)).ln() / theta.ln();
            let first = pair(fast).floor().max(0.0);
            let last = pair(slow).ceil().min(dims - 1.0);
            let divided = ((i as f64 - first) / (last - first)).clamp(0.0, 1.0);
            (blend(divided, factor), attention)
        }
    }
}

/// Heads side by side, turned to a position.
fn rope(form: &RopeForm, heads: &[f64], head_dim: usize, position: usize) -> Vec<f64> {
    let mut out = heads.to_vec();
    for head in out.chunks_mut(head_dim) {
        for i in 0..form.dims / 2 {
            let (a, b) = match form.pairing {
                RopePairing::Halves => (i, form.dims / 2 + i),
                RopePairing::Interleaved => (2 * i, 2 * i + 1),
            };
            let (frequency, scale) = frequency(form, i);
            let (sin, cos) = (frequency * position as f64).sin_cos();
            let (x, y) = (head[a], head[b]);
            head[a] = scale * (x * cos - y * sin);
            head[b] = scale * (y * cos + x * sin);
        }
    }
    out
}

/// Queries, keys and values of one token, before norms and positions.
fn project(a: &Attention, x: &[f64]) -> [Vec<f64>; 3] {
    let (map, order) = match &a.projections {
        Projections::Separate(maps) => return maps.each_ref().map(|map| linear(map, x)),
        Projections::Fused(map, order) => (map, order),
    };
    let qkv = linear(map, x);
    let mut heads = qkv.chunks(a.form.head_dim);
    let mut next =
        |count: usize| -> Vec<f64> { heads.by_ref().take(count).flatten().copied().collect() };
    let (all, keys) = (a.form.heads, a.form.kv_heads);
    match order {
        FusedOrder::Concatenated => [all, keys, keys].map(next),
        FusedOrder::Grouped => {
            let mut out = [vec![], vec![], vec![]];
            for _ in 0..keys {
                for (out, count) in out.iter_mut().zip([all / keys, 1, 1]) {
                    out.extend(next(count));
                }
            }
            out
        }
    }
}

fn softmax(scores: &[f64]) -> Vec<f64> {
    let exps: Vec<_> = scores.iter().map(|s| s.exp()).collect();
    let total: f64 = exps.iter().sum();
    exps.iter().map(|exp| exp / total).collect()
}

/// A(C, x) of every token, where the one at i sees those from `i + 1 − window` on.
pub(super) fn attention(a: &Attention, x: &Rows, window: usize) -> Rows {
    let form = &a.form;
    let dim = form.head_dim;
    let tokens = x.iter().enumerate().map(|(position, x)| {
        let [q, k, v] = project(a, &optional(&a.norm, x));
        let turned = |mut u: Vec<f64>, which: usize| {
            if let Some(norms) = &a.qk_norms {
                u = norm(&norms[which], &u);
            }
            match &form.rope {
                Some(form) => rope(form, &u, dim, position),
                None => u,
            }
        };
        (turned(q, 0), turned(k, 1), v)
    });
    let tokens: Vec<_> = tokens.collect();
    let mix = |i: usize| {
        let seen = &tokens[(i + 1).saturating_sub(window)..=i];
        let mut mixed = vec![0.0; form.heads * dim];
        for (head, mixed) in mixed.chunks_mut(dim).enumerate() {
            let key = head / (form.heads / form.kv_heads) * dim..;
            let query = &tokens[i].0[head * dim..][..dim];
            let score = |k: &[f64]| -> f64 {
                let product: f64 = query.iter().zip(&k[key.clone()]).map(|(q, k)| q * k).sum();
                let score = product * form.scaling;
                form.softcap.map_or(score, |cap| cap * (score / cap).tanh())
            };
            let scores: Vec<_> = seen.iter().map(|(_, k, _)| score(k)).collect();
            for (p, (_, _, v)) in softmax(&scores).iter().zip(seen) {
                for (mixed, v) in mixed.iter_mut().zip(&v[key.clone()]) {
                    *mixed += p * v;
                }
            }
        }
        optional(&a.post_norm, &linear(&a.out, &mixed))
    };
    (0..x.len()).map(mix).collect()
}

/// 2/√π ∫ e^(−t²) from 0 to x, by a series of terms of one sign.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..400 {
        term *= 2.0 * x * x / f64::from(2 * n + 1);
        sum += term;
    }
    2.0 / PI.sqrt() * (-x * x).exp() * sum
}

fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Relu => x.max(0.0),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
        Activation::GeluTanh | Activation::GeluNew => {
            let u = (2.0 / PI).sqrt() * (x + 0.044_715 * x.powi(3));
            0.5 * x * (1.0 + u.tanh())
        }
        Activation::GeluByF16 => unreachable!("a known bug, and no model's"),
    }
}

/// The experts of one token, ascending, and their gates.
fn route(experts: &Experts, z: &[f64]) -> Vec<(usize, f64)> {
    let p = softmax(&linear(&experts.router, z));
    let larger = |i: usize| p.iter().filter(|&&other| other > p[i]).count();
    let chosen = (0..p.len()).filter(|&i| larger(i) < experts.top_k);
    let chosen: Vec<_> = chosen.collect();
    let total: f64 = chosen.iter().map(|&i| p[i]).sum();
    let share = |i: usize| {
        if experts.renormalised {
            p[i] / total
        } else {
            p[i]
        }
    };
    chosen.into_iter().map(|i| (i, share(i))).collect()
}

/// h of an expert, or of all there is.
#[derive(Clone, Debug)]
pub(super) struct Said {
    pub(super) expert: usize,
    pub(super) gate: f64,
    pub(super) h: Vec<f64>,
}

/// h of one token.
pub(super) fn inner(f: &Inner, z: &[f64]) -> Vec<Said> {
    let act = |x: &[f64]| -> Vec<f64> { x.iter().map(|&x| activate(f.activation, x)).collect() };
    let gated = |gate: &[f64], up: &[f64]| -> Vec<f64> {
        act(gate).iter().zip(up).map(|(a, b)| a * b).collect()
    };
    let h = match &f.maps {
        Maps::Gated { gate, up } => gated(&linear(gate, z), &linear(up, z)),
        Maps::Fused(map) => {
            let both = linear(map, z);
            let (gate, up) = both.split_at(both.len() / 2);
            gated(gate, up)
        }
        Maps::Plain(map) => act(&linear(map, z)),
        Maps::Experts(experts) => {
            let said = |(expert, gate): (usize, f64)| Said {
                expert,
                gate,
                h: {
                    let [gate, up] = &experts.maps[expert];
                    gated(&linear(gate, z), &linear(up, z))
                },
            };
            return route(experts, z).into_iter().map(said).collect();
        }
    };
    vec![Said {
        expert: 0,
        gate: 1.0,
        h,
    }]
}

/// g of one token.
pub(super) fn outer(g: &Outer, said: &[Said]) -> Vec<f64> {
    let mut d = vec![];
    for Said { expert, gate, h } in said {
        let says = linear(&g.down[*expert], h);
        d.resize(says.len(), 0.0);
        for (d, says) in d.iter_mut().zip(says) {
            *d += gate * says;
        }
    }
    optional(&g.post_norm, &d)
}

fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// z of every token, and T(C, x).
pub(super) fn block(block: &Block, x: &Rows, window: usize) -> (Rows, Rows) {
    let said = attention(&block.attention, x, window);
    let each = x.iter().zip(said).map(|(x, said)| {
        let v = sum(x, &said);
        let z = match (&block.inner.norm, block.sum) {
            (Some(n), Sum::Sequential) => norm(n, &v),
            (Some(n), Sum::Parallel) => norm(n, x),
            (None, Sum::Sequential) => v.clone(),
            (None, Sum::Parallel) => optional(&block.attention.norm, x),
        };
        let t = sum(&v, &outer(&block.outer, &inner(&block.inner, &z)));
        (z, t)
    });
    each.unzip()
}

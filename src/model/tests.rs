//! Each part of a block against its definition in plain f64 loops.

use super::{Attention, Inner, Model, Outer, RmsNorm, Run, Scaling, Sequence};
use crate::tensor::{Matrix, Tensor};

const TOKENS: usize = 11;

/// Relative to the largest number: sums in another order, and exponentials of another library, are far below.
const TOLERANCE: f64 = 1e-12;

fn linear(w: &Tensor, x: &[f64]) -> Vec<f64> {
    let w = w.to_vec::<f64>();
    let rows = w.chunks(x.len());
    rows.map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum())
        .collect()
}

/// n(u) ⊙ (1 + w) for each stretch of the weight's length.
fn norm(norm: &RmsNorm, u: &[f64]) -> Vec<f64> {
    let w = norm.weight.to_vec::<f64>();
    let normed = |u: &[f64]| -> Vec<f64> {
        let mean = u.iter().map(|u| u * u).sum::<f64>() / u.len() as f64;
        let scaled = u.iter().zip(&w);
        scaled
            .map(|(u, w)| u / (mean + norm.eps).sqrt() * (1.0 + w))
            .collect()
    };
    u.chunks(w.len()).flat_map(normed).collect()
}

fn rope(heads: &[f64], head_dim: usize, position: usize, theta: f64, factor: f64) -> Vec<f64> {
    let half = head_dim / 2;
    let mut out = heads.to_vec();
    for head in out.chunks_mut(head_dim) {
        for i in 0..half {
            let angle = theta.powf(-((2 * i) as f64) / head_dim as f64) / factor * position as f64;
            let (x, y) = (head[i], head[half + i]);
            head[i] = x * angle.cos() - y * angle.sin();
            head[half + i] = y * angle.cos() + x * angle.sin();
        }
    }
    out
}

fn gelu_tanh(x: f64) -> f64 {
    let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
    0.5 * x * (1.0 + u.tanh())
}

/// v of every token, where the token at i sees those from `i + 1 − window` on.
fn attention(model: &Model, layer: usize, x: &Matrix<f64>, window: usize) -> Matrix<f64> {
    let a = &model.layers()[layer].attention;
    let config = model.config();
    let parameters = config.rope(config.layer_types[layer]);
    let (dim, theta, factor) = (config.head_dim, parameters.theta, parameters.factor);
    let each = |f: &dyn Fn(usize, &[f64]) -> Vec<f64>| -> Vec<Vec<f64>> {
        let rows = x.iter_rows().enumerate();
        rows.map(|(i, x)| f(i, &norm(&a.input_layernorm, x)))
            .collect()
    };
    let q = each(&|i, x| {
        rope(
            &norm(&a.q_norm, &linear(&a.q_proj, x)),
            dim,
            i,
            theta,
            factor,
        )
    });
    let k = each(&|i, x| {
        rope(
            &norm(&a.k_norm, &linear(&a.k_proj, x)),
            dim,
            i,
            theta,
            factor,
        )
    });
    let v = each(&|_, x| linear(&a.v_proj, x));
    let group = config.num_attention_heads / config.num_key_value_heads;
    let mut out = Vec::new();
    for (i, x) in x.iter_rows().enumerate() {
        let seen = (i + 1).saturating_sub(window)..i + 1;
        let mut mixed = vec![0.0; q[i].len()];
        for head in 0..config.num_attention_heads {
            let of_key = head / group * dim..(head / group + 1) * dim;
            let of_query = head * dim..(head + 1) * dim;
            let score = |j: usize| -> f64 {
                let products = q[i][of_query.clone()].iter().zip(&k[j][of_key.clone()]);
                products.map(|(q, k)| q * k).sum::<f64>() / config.query_pre_attn_scalar.sqrt()
            };
            let p: Vec<f64> = seen.clone().map(|j| score(j).exp()).collect();
            let total: f64 = p.iter().sum();
            for (p, j) in p.iter().zip(seen.clone()) {
                for (mixed, v) in mixed[of_query.clone()]
                    .iter_mut()
                    .zip(&v[j][of_key.clone()])
                {
                    *mixed += p / total * v;
                }
            }
        }
        let o = norm(&a.post_attention_layernorm, &linear(&a.o_proj, &mixed));
        out.extend(x.iter().zip(o).map(|(x, o)| x + o));
    }
    Matrix::from_vec(x.cols(), out)
}

fn inner(f: &Inner, v: &[f64]) -> Vec<f64> {
    let z = norm(&f.pre_feedforward_layernorm, v);
    let (gate, up) = (linear(&f.gate_proj, &z), linear(&f.up_proj, &z));
    gate.iter()
        .zip(up)
        .map(|(&gate, up)| gelu_tanh(gate) * up)
        .collect()
}

fn outer(g: &Outer, h: &[f64]) -> Vec<f64> {
    norm(&g.post_feedforward_layernorm, &linear(&g.down_proj, h))
}

/// The largest difference, relative to the largest number.
fn off(got: &Matrix<f64>, want: &Matrix<f64>) -> f64 {
    assert_eq!((got.rows(), got.cols()), (want.rows(), want.cols()));
    let pairs = got.as_slice().iter().zip(want.as_slice());
    let largest = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    largest / want.as_slice().iter().fold(0.0f64, |m, x| m.max(x.abs()))
}

fn numbers(rows: usize, cols: usize) -> Matrix<f64> {
    let number = |i: usize| 3.0 * libm::sin(1.7 * i as f64 + 0.3);
    Matrix::from_vec(cols, (0..rows * cols).map(number).collect())
}

/// `f` of every row.
fn rows(x: &Matrix<f64>, f: impl Fn(&[f64]) -> Vec<f64>) -> Matrix<f64> {
    let rows: Vec<_> = x.iter_rows().map(f).collect();
    Matrix::from_vec(rows[0].len(), rows.concat())
}

/// Models with grouped queries, short windows, a RoPE factor and sizes that no register divides.
fn models() -> Vec<Model> {
    ["grouped-queries", "window-3", "rope-factor-8", "odd-sizes"]
        .map(|name| Model::open(&format!("reference/checkpoints/{name}")).unwrap())
        .into()
}

#[test]
fn attention_is_its_definition() {
    for model in models() {
        let x = numbers(TOKENS, model.config().hidden_size);
        for (layer, block) in model.layers().iter().enumerate() {
            let got = attended(&model, layer, &block.attention, &x);
            let window = block.attention.window.unwrap_or(TOKENS);
            assert!(off(&got, &attention(&model, layer, &x, window)) < TOLERANCE);
            // The control: a window of one token less.
            assert!(off(&got, &attention(&model, layer, &x, window.min(TOKENS) - 1)) > 1e-6);
        }
    }
}

/// v as the model computes it, from an empty cache.
fn attended(model: &Model, layer: usize, a: &Attention, x: &Matrix<f64>) -> Matrix<f64> {
    let positions: Vec<_> = (0..x.rows()).collect();
    let mut cache = model.new_cache();
    let sequence = Sequence {
        rows: 0..x.rows(),
        positions: &positions,
        cache: &mut cache,
    };
    let mut run = Run::new(model, None, None);
    run.enter(layer).unwrap();
    a.forward(&mut run, x, &mut [sequence])
}

#[test]
fn inner_and_outer_are_their_definitions() {
    for model in models() {
        let config = model.config();
        let v = numbers(TOKENS, config.hidden_size);
        let h = numbers(TOKENS, config.intermediate_size);
        let mut run = Run::new(&model, None, None);
        for block in model.layers() {
            let z = block.inner.input(&mut run, &v);
            let got = block.inner.output(&mut run, &z, &[]);
            assert!(off(&got, &rows(&v, |v| inner(&block.inner, v))) < TOLERANCE);
            let d = block.outer.project(&mut run, &h, &[]);
            let got = block.outer.output(&mut run, &d, &[]);
            assert!(off(&got, &rows(&h, |h| outer(&block.outer, h))) < TOLERANCE);
        }
    }
}

#[test]
fn norms_scale_as_they_are_told() {
    let model = &models()[0];
    let u = numbers(TOKENS, model.config().hidden_size);
    let mut rms = model.norm().clone();
    let (w, want) = (rms.weight.to_vec::<f64>(), rows(&u, |u| norm(&rms, u)));
    let got = rms.forward(model.level(), &u);
    assert!(off(&got, &want) < TOLERANCE);
    // In f64 there is nothing to round before scaling.
    rms.scaling = Scaling::Rounded;
    assert_eq!(rms.forward(model.level(), &u), got);
    rms.scaling = Scaling::Plain;
    let by_w = |row: &[f64]| row.iter().zip(&w).map(|(n, w)| n / (1.0 + w) * w).collect();
    assert!(off(&rms.forward(model.level(), &u), &rows(&want, by_w)) < TOLERANCE);
}

//! Each part of a block against its definition in plain f64 loops, for the committed checkpoints of every family.

mod definition;

use bytes::Bytes;
use definition::{Rows, rows_of};
use half::bf16;
use safetensors::tensor::{SafeTensors, TensorView, serialize};

use super::Projections;
use super::{Attended, Block, ForwardRun, Hidden, Maps, Model, ModelOptions, Norm, Pass, Sequence};
use crate::checkpoint::form::{FusedOrder, NormKind, RopePairing, Sum};
use crate::checkpoint::{Checkpoint, Rope};
use crate::kernels::activation::Activation;
use crate::tensor::{Element, Matrix};

const TOKENS: usize = 11;

/// Relative to the largest number: sums in another order, and exponentials of another library, are far below.
const TOLERANCE: f64 = 1e-12;

/// What a wrong part must be off by at least.
const WRONG: f64 = 1e-6;

fn open(name: &str) -> Model {
    Model::open(&format!("reference/checkpoints/{name}")).unwrap()
}

/// Every committed random checkpoint, and one whose maps are fused as Phi 3 has them.
fn models() -> Vec<(String, Model)> {
    let folders = std::fs::read_dir("reference/checkpoints").unwrap();
    let names = folders.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let committed = names.map(|name| (name.clone(), open(&name)));
    committed.chain([("phi3".into(), phi3())]).collect()
}

/// Mistral's checkpoint, its maps in one where Phi 3 has one.
fn phi3() -> Model {
    let read = |name| std::fs::read(format!("reference/checkpoints/mistral/{name}")).unwrap();
    let config = String::from_utf8(read("config.json")).unwrap();
    let config = config.replace("\"mistral\"", "\"phi3\"");
    let weights = read("model.safetensors");
    let stored = SafeTensors::deserialize(&weights).unwrap();
    let mut tensors = Vec::new();
    for (name, tensor) in stored.tensors() {
        let joined: &[&str] = match name.rsplit('.').nth(1) {
            Some("q_proj") => &["q_proj", "k_proj", "v_proj", "qkv_proj"],
            Some("gate_proj") => &["gate_proj", "up_proj", "gate_up_proj"],
            Some("k_proj" | "v_proj" | "up_proj") => continue,
            _ => &[],
        };
        let Some((fused, parts)) = joined.split_last() else {
            tensors.push((
                name,
                tensor.dtype(),
                tensor.shape().to_vec(),
                tensor.data().to_vec(),
            ));
            continue;
        };
        let parts = parts.iter().map(|part| {
            let name = name.replace(joined[0], part);
            stored.tensor(&name).unwrap()
        });
        let rows = parts.clone().map(|part| part.shape()[0]).sum();
        tensors.push((
            name.replace(joined[0], fused),
            tensor.dtype(),
            vec![rows, tensor.shape()[1]],
            parts.flat_map(|part| part.data().to_vec()).collect(),
        ));
    }
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        let view = TensorView::new(*dtype, shape.clone(), data).unwrap();
        (name.as_str(), view)
    });
    let files = [
        ("config.json", Bytes::from(config)),
        ("model.safetensors", serialize(views, None).unwrap().into()),
    ];
    let checkpoint = Checkpoint::from_files("phi3", files).unwrap();
    Model::from_checkpoint(checkpoint, ModelOptions::default()).unwrap()
}

fn numbers(rows: usize, cols: usize) -> Matrix<f64> {
    let number = |i: usize| 3.0 * libm::sin(1.7 * i as f64 + 0.3);
    Matrix::from_vec(cols, (0..rows * cols).map(number).collect())
}

/// The largest difference, relative to the largest number.
fn off(got: &Matrix<f64>, want: &Rows) -> f64 {
    let want: Vec<f64> = want.concat();
    assert_eq!(got.as_slice().len(), want.len());
    let pairs = got.as_slice().iter().zip(&want);
    let difference = |(a, b): (&f64, &f64)| (a - b).abs();
    let worst = |m: f64, d: f64| if d > m || d.is_nan() { d } else { m };
    let largest = pairs.map(difference).fold(0.0, worst);
    largest / want.iter().fold(0.0f64, |m, x| m.max(x.abs()))
}

/// What a pass gives that enters a layer with [`TOKENS`] tokens and empty caches.
fn in_layer<E: Element, T>(
    model: &Model,
    layer: usize,
    part: impl FnOnce(&mut Pass<'_, '_, '_, E>) -> T,
) -> T {
    let positions: Vec<_> = (0..TOKENS).collect();
    let mut cache = model.new_cache();
    let mut sequences = [Sequence {
        rows: 0..TOKENS,
        positions: &positions,
        cache: &mut cache,
    }];
    let mut run = ForwardRun::new(model, None, None);
    run.enter(layer).unwrap();
    part(&mut Pass::new(&mut run, &mut sequences, &[]))
}

/// Everything of a layer, from x.
fn computed(model: &Model, layer: usize, x: &Matrix<f64>) -> Matrix<f64> {
    let block = &model.layers()[layer];
    in_layer(model, layer, |pass| block.forward(pass, x.clone()))
}

fn window(block: &Block) -> usize {
    block.attention.form.window.unwrap_or(TOKENS).min(TOKENS)
}

#[test]
fn attention_is_its_definition() {
    for (name, model) in models() {
        let x = numbers(TOKENS, model.config().hidden_size);
        for (layer, block) in model.layers().iter().enumerate() {
            let attention = &block.attention;
            let (_, got) = in_layer(&model, layer, |pass| attention.forward(pass, &x));
            let wanted = |window| definition::attention(attention, &rows_of(&x), window);
            let seen = window(block);
            assert!(off(&got, &wanted(seen)) < TOLERANCE, "{name} {layer}");
            // The control: a window of one token less.
            assert!(off(&got, &wanted(seen - 1)) > WRONG, "{name} {layer}");
        }
    }
}

#[test]
fn inner_and_outer_are_their_definitions() {
    for (name, model) in models() {
        let z = numbers(TOKENS, model.config().hidden_size);
        for (layer, block) in model.layers().iter().enumerate() {
            let (h, g) = in_layer(&model, layer, |pass| {
                let h = block.inner.output(pass, &z);
                let d = block.outer.project(pass, &h);
                (h, block.outer.output(pass, d))
            });
            let said: Vec<_> = z
                .iter_rows()
                .map(|z| definition::inner(&block.inner, z))
                .collect();
            for (expert, rows, h) in by_expert(h) {
                let of_expert = |row: &usize| {
                    let of_row = said[*row].iter().find(|said| said.expert == expert);
                    of_row.unwrap().h.clone()
                };
                let want = rows.iter().map(of_expert).collect();
                assert!(off(&h, &want) < TOLERANCE, "{name} {layer}");
            }
            let wanted: Rows = said
                .iter()
                .map(|said| definition::outer(&block.outer, said))
                .collect();
            assert!(off(&g, &wanted) < TOLERANCE, "{name} {layer}");
        }
    }
}

/// h of each expert, and of which tokens; all tokens where there are no experts.
fn by_expert(h: Hidden<Matrix<f64>>) -> Vec<(usize, Vec<usize>, Matrix<f64>)> {
    match h {
        Hidden::Dense(h) => vec![(0, (0..TOKENS).collect(), h)],
        Hidden::Experts { active, .. } => active
            .into_iter()
            .map(|(active, h)| (active.expert, active.rows, h))
            .collect(),
    }
}

#[test]
fn blocks_add_up_as_defined() {
    for (name, model) in models() {
        let x = numbers(TOKENS, model.config().hidden_size);
        for (layer, block) in model.layers().iter().enumerate() {
            let (z, t) = definition::block(block, &rows_of(&x), window(block));
            let Attended { z: got, .. } =
                in_layer(&model, layer, |pass| block.attend(pass, x.clone()));
            assert!(off(&got, &z) < TOLERANCE, "{name} {layer}: z");
            let got = computed(&model, layer, &x);
            assert!(off(&got, &t) < TOLERANCE, "{name} {layer}: T");
        }
    }
}

/// A change of a block that makes it another one.
type Change = fn(&mut Block);

/// Every kind of part, in a checkpoint that has it, and what its definition is not.
const OTHERS: [(&str, &str, Change); 19] = [
    ("llama-2", "1 + w", |b| {
        norm(b).form.kind = NormKind::GEMMA;
    }),
    ("gemma", "w", |b| norm(b).form.kind = NormKind::PLAIN),
    ("gpt2", "a norm by the root mean square", |b| {
        norm(b).form.kind = NormKind::PLAIN;
    }),
    ("gpt2", "a norm without its bias", |b| norm(b).bias = None),
    ("qwen3", "no norm of q and k", |b| {
        b.attention.qk_norms = None
    }),
    ("olmo2", "no norm behind attention", |b| {
        b.attention.post_norm = None;
    }),
    ("gemma2", "no norm behind the MLP", |b| {
        b.outer.post_norm = None
    }),
    ("gemma2", "no soft cap", |b| b.attention.form.softcap = None),
    ("gptj", "halves", |b| {
        rope(b).pairing = RopePairing::Halves;
    }),
    ("phi", "whole heads", |b| rope(b).dims = 12),
    ("llama-3", "llama3's frequencies unscaled", |b| {
        rope(b).rope = Rope::linear(1000.0, 1.0);
    }),
    ("qwen3", "yarn's frequencies unscaled", |b| {
        rope(b).rope = Rope::linear(1000.0, 1.0);
    }),
    ("llama-biases", "positions not divided", |b| {
        rope(b).rope = Rope::linear(100.0, 1.0);
    }),
    ("qwen2", "no bias of the keys", |b| {
        if let Projections::Separate([_, k, _]) = &mut b.attention.projections {
            k.bias = None;
        }
    }),
    ("falcon-40b", "queries, keys, values", |b| {
        if let Projections::Fused(_, order) = &mut b.attention.projections {
            *order = FusedOrder::Concatenated;
        }
    }),
    ("gpt2", "heads side by side", |b| {
        if let Projections::Fused(_, order) = &mut b.attention.projections {
            *order = FusedOrder::Grouped;
        }
    }),
    ("mixtral", "gates that are not divided", |b| {
        if let Maps::Experts(experts) = &mut b.inner.maps {
            experts.renormalised = false;
        }
    }),
    ("falcon-7b", "one after the other", |b| {
        b.sum = Sum::Sequential;
    }),
    ("falcon-rw", "GeLU in the tanh form", |b| {
        b.inner.activation = Activation::GeluTanh;
    }),
];

fn norm(block: &mut Block) -> &mut Norm {
    block.attention.norm.as_mut().unwrap()
}

fn rope(block: &mut Block) -> &mut crate::checkpoint::form::RopeForm {
    block.attention.form.rope.as_mut().unwrap()
}

#[test]
fn another_part_is_seen() {
    for (name, what, change) in OTHERS {
        let model = open(name);
        let x = numbers(TOKENS, model.config().hidden_size);
        let got = computed(&model, 0, &x);
        let mut other = model.layers()[0].clone();
        change(&mut other);
        let (_, t) = definition::block(&other, &rows_of(&x), window(&other));
        assert!(off(&got, &t) > WRONG, "{name}: {what}");
    }
}

#[test]
fn the_decoder_is_its_definition() {
    for (name, model) in models() {
        let config = model.config();
        let decoder = model.decoder();
        let tokens: Vec<u32> = (0..TOKENS as u32).map(|i| i * i % 50).collect();
        let positions: Vec<_> = (0..TOKENS).collect();
        let mut run = ForwardRun::new(&model, None, None);
        let got = model.embed::<f64>(&mut run, &tokens, &positions);
        let scale = if decoder.form.embed_scaled {
            (config.hidden_size as f64).sqrt()
        } else {
            1.0
        };
        let table = decoder.embed.to_vec::<f64>();
        let learned = decoder.positions.as_ref().map(|p| p.to_vec::<f64>());
        let row = |(position, &token): (usize, &u32)| -> Vec<f64> {
            let hidden = config.hidden_size;
            let number = |i: usize| {
                let learned = learned.as_ref().map_or(0.0, |p| p[position * hidden + i]);
                table[token as usize * hidden + i] * scale + learned
            };
            (0..hidden).map(number).collect()
        };
        let x: Rows = tokens.iter().enumerate().map(row).collect();
        assert!(off(&got, &x) < TOLERANCE, "{name}");

        let got = model.logits(&mut run, &got).unwrap();
        let logits = |x: &Vec<f64>| -> Vec<f64> {
            let logits = definition::linear(&decoder.head, &definition::norm(&decoder.norm, x));
            let capped = |l: f64| decoder.form.softcap.map_or(l, |cap| cap * (l / cap).tanh());
            logits.into_iter().map(capped).collect()
        };
        assert!(
            off(&got, &x.iter().map(logits).collect()) < TOLERANCE,
            "{name}"
        );
    }
}

/// In bf16, where Llama's norm rounds n(u) before it is scaled and Gemma's does not.
#[test]
fn norms_round_in_the_order_they_are_told() {
    let model = open("llama-2");
    let mut norm = model.layers()[0].attention.norm.clone().unwrap();
    let u = numbers(TOKENS, model.config().hidden_size).map(bf16::from_f64);
    let w = norm.weight.to_vec::<bf16>();
    let mut forward = |kind| {
        norm.form.kind = kind;
        norm.forward(model.level(), &u)
    };
    let (plain, llama) = (forward(NormKind::PLAIN), forward(NormKind::LLAMA));
    let eps = model.config().norm_eps();
    for (row, u) in u.iter_rows().enumerate() {
        let squares: f64 = u.iter().map(|u| u.to_f64().powi(2)).sum();
        let root = (squares / u.len() as f64 + eps).sqrt();
        for (i, u) in u.iter().enumerate() {
            let (n, w) = (u.to_f64() / root, w[i].to_f64());
            assert_eq!(plain.row(row)[i], bf16::from_f64(n * w));
            assert_eq!(
                llama.row(row)[i],
                bf16::from_f64(bf16::from_f64(n).to_f64() * w)
            );
        }
    }
    assert_ne!(plain, llama);
}

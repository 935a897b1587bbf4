//! The vision part at the size of the 4B, against what the machine can multiply at best, in the same run. Two of its 27 blocks,
//! of random weights in bf16, see one image. Beside it transformers in turn, where a Python that has it is given.
//!
//! ```text
//! cargo bench --bench vision
//! cargo bench --bench vision -- 1 PYTHON     # one thread
//! ```
#![allow(
    clippy::unwrap_used,
    reason = "a benchmark stops where something is wrong"
)]

mod common;

use bytes::Bytes;
use common::machine::{self, Peak};
use common::peer::Peer;
use common::{candidate, medians, numbers};
use context_patch::model::ModelOptions;
use context_patch::tensor::Element;
use context_patch::{Checkpoint, Model};
use half::bf16;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

const LAYERS: usize = 2;
const ALL_LAYERS: usize = 27;
const HIDDEN: usize = 1152;
const INTERMEDIATE: usize = 4304;
const IMAGE: usize = 896;
const PATCH: usize = 14;
const PATCHES: usize = (IMAGE / PATCH) * (IMAGE / PATCH);
const TEXT_HIDDEN: usize = 2560;
const TOKENS: usize = 256;
const ROUNDS: usize = 3;

fn main() {
    let (threads, python): (Vec<_>, Vec<_>) = common::arguments()
        .into_iter()
        .partition(|argument| argument.parse::<usize>().is_ok());
    let asked = |n: usize| threads.is_empty() || threads.contains(&n.to_string());
    let model = model();
    let pixels = numbers::<f32>(3 * IMAGE * IMAGE, 1);
    println!(
        "{LAYERS} of {ALL_LAYERS} blocks, {PATCHES} patches, medians of {ROUNDS}; the peak is that of multiply-adds"
    );
    for threads in [1, 2].into_iter().filter(|&n| asked(n)) {
        let start =
            |python: &String| Peer::start(python, "worker_hf_vision.py", &[&threads.to_string()]);
        let mut peer = python.first().map(start);
        common::pool(threads).install(|| {
            of_type::<f32>(threads, &model, &pixels, machine::f32_peak(), peer.as_mut());
            of_type::<bf16>(
                threads,
                &model,
                &pixels,
                machine::bf16_peak(),
                peer.as_mut(),
            );
        });
    }
}

fn of_type<E: Element>(
    threads: usize,
    model: &Model,
    pixels: &[f32],
    peak: Option<Peak>,
    peer: Option<&mut Peer>,
) {
    let vision = model.vision().unwrap();
    let see = || drop(vision.features::<E>(&[pixels], None).unwrap());
    let [seconds, at_best] = match peak {
        Some(peak) => medians(ROUNDS, [candidate(1, see), candidate(1000, || peak.run())]),
        None => [medians(ROUNDS, [candidate(1, see)])[0], f64::NAN],
    };
    let rate = flops() / seconds;
    let share = peak.map_or(f64::NAN, |peak| {
        rate / (threads as f64 * peak.flops / at_best)
    });
    println!(
        "{:4} {threads} threads: {seconds:.2} s, {:.0} GFLOP/s, {:.0} % of the peak",
        E::DTYPE.to_string(),
        rate / 1e9,
        100.0 * share
    );
    if let Some(peer) = peer {
        let command = json!({ "dtype": E::DTYPE.to_string(), "config": config() });
        let theirs = || {
            let seconds = peer.ask(&command)["seconds"].as_f64();
            seconds.unwrap()
        };
        let theirs: Vec<f64> = std::iter::repeat_with(theirs).take(ROUNDS + 1).collect();
        // The first one makes the model.
        let theirs = common::median(theirs[1..].to_vec());
        println!(
            "     transformers: {theirs:.2} s, {:.2} times",
            theirs / seconds
        );
    }
}

/// Two for each multiply-add: those of the maps and of attention.
fn flops() -> f64 {
    let maps = 4 * HIDDEN * HIDDEN + 2 * HIDDEN * INTERMEDIATE;
    let attention = 2 * PATCHES * HIDDEN;
    let ends = PATCHES * 3 * PATCH * PATCH * HIDDEN + TOKENS * HIDDEN * TEXT_HIDDEN;
    2.0 * (LAYERS * PATCHES * (maps + attention) + ends) as f64
}

fn config() -> Value {
    json!({
        "model_type": "gemma3",
        "text_config": {
            "vocab_size": 8, "hidden_size": TEXT_HIDDEN, "num_hidden_layers": 1, "num_attention_heads": 1,
            "num_key_value_heads": 1, "head_dim": 2, "intermediate_size": 1,
        },
        "vision_config": {
            "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS, "num_attention_heads": 16,
            "image_size": IMAGE, "patch_size": PATCH,
        },
        "mm_tokens_per_image": TOKENS,
    })
}

/// A model whose text part is as small as can be.
fn model() -> Model {
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    let mut add = |name: String, shape: &[usize]| {
        let scale = 1.0 / (shape[shape.len() - 1] as f64).sqrt();
        let numbers = numbers::<f64>(shape.iter().product(), tensors.len() as u64);
        let bytes = numbers
            .iter()
            .flat_map(|x| bf16::from_f64(x * scale).to_le_bytes());
        tensors.push((name, shape.into(), bytes.collect()));
    };
    let t = TEXT_HIDDEN;
    for (name, shape) in [
        ("self_attn.q_proj", vec![2, t]),
        ("self_attn.k_proj", vec![2, t]),
        ("self_attn.v_proj", vec![2, t]),
        ("self_attn.o_proj", vec![t, 2]),
        ("self_attn.q_norm", vec![2]),
        ("self_attn.k_norm", vec![2]),
        ("mlp.gate_proj", vec![1, t]),
        ("mlp.up_proj", vec![1, t]),
        ("mlp.down_proj", vec![t, 1]),
        ("input_layernorm", vec![t]),
        ("post_attention_layernorm", vec![t]),
        ("pre_feedforward_layernorm", vec![t]),
        ("post_feedforward_layernorm", vec![t]),
    ] {
        add(format!("model.layers.0.{name}.weight"), &shape);
    }
    add("model.norm.weight".into(), &[t]);
    add("model.embed_tokens.weight".into(), &[8, t]);
    let tower = "model.vision_tower";
    let embeddings = format!("{tower}.embeddings");
    add(
        format!("{embeddings}.patch_embedding.weight"),
        &[HIDDEN, 3, PATCH, PATCH],
    );
    add(format!("{embeddings}.patch_embedding.bias"), &[HIDDEN]);
    add(
        format!("{embeddings}.position_embedding.weight"),
        &[PATCHES, HIDDEN],
    );
    let mut layer_norms = vec![format!("{tower}.post_layernorm")];
    for layer in 0..LAYERS {
        let layer = format!("{tower}.encoder.layers.{layer}");
        for map in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            add(format!("{layer}.self_attn.{map}.weight"), &[HIDDEN, HIDDEN]);
            add(format!("{layer}.self_attn.{map}.bias"), &[HIDDEN]);
        }
        add(format!("{layer}.mlp.fc1.weight"), &[INTERMEDIATE, HIDDEN]);
        add(format!("{layer}.mlp.fc1.bias"), &[INTERMEDIATE]);
        add(format!("{layer}.mlp.fc2.weight"), &[HIDDEN, INTERMEDIATE]);
        add(format!("{layer}.mlp.fc2.bias"), &[HIDDEN]);
        layer_norms.extend([1, 2].map(|n| format!("{layer}.layer_norm{n}")));
    }
    for norm in layer_norms {
        add(format!("{norm}.weight"), &[HIDDEN]);
        add(format!("{norm}.bias"), &[HIDDEN]);
    }
    let projector = "model.multi_modal_projector";
    add(format!("{projector}.mm_soft_emb_norm.weight"), &[HIDDEN]);
    add(
        format!("{projector}.mm_input_projection_weight"),
        &[HIDDEN, t],
    );
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (
            name,
            TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap(),
        )
    });
    let weights = safetensors::serialize(views, None).unwrap();
    let files = [
        ("config.json", Bytes::from(config().to_string())),
        ("model.safetensors", weights.into()),
    ];
    let checkpoint = Checkpoint::from_files("random", files).unwrap();
    Model::from_checkpoint(checkpoint, ModelOptions::default()).unwrap()
}

//! Random models of the shapes of Gemma 3, from a seed, in memory.

use std::collections::BTreeMap;
use std::time::Instant;

use context_patch::kernels::Backend;
use context_patch::model::{ModelOptions, Recorder};
use context_patch::tensor::{Element, Matrix};
use context_patch::{Checkpoint, Model, Session};
use half::bf16;
use rayon::prelude::*;
use serde_json::json;
use sha2::{Digest, Sha256};

/// The sizes of a Gemma 3.
pub struct Shape {
    pub name: &'static str,
    hidden: usize,
    intermediate: usize,
    pub layers: usize,
    heads: usize,
    kv_heads: usize,
    window: usize,
}

const HEAD_DIM: usize = 256;
const VOCABULARY: usize = 262_144;

pub const ONE_B: Shape = Shape {
    name: "the 1B's shape",
    hidden: 1152,
    intermediate: 6912,
    layers: 26,
    heads: 4,
    kv_heads: 1,
    window: 512,
};

pub const FOUR_B: Shape = Shape {
    name: "the 4B's shape",
    hidden: 2560,
    intermediate: 10_240,
    layers: 34,
    heads: 8,
    kv_heads: 4,
    window: 1024,
};

/// Positions that are compared.
const POSITIONS: u32 = 64;

impl Shape {
    /// The tensors of a layer, by name.
    fn layer(&self) -> Vec<(&'static str, Vec<usize>)> {
        let (hidden, inner) = (self.hidden, self.intermediate);
        let [queries, keys] = [self.heads, self.kv_heads].map(|heads| heads * HEAD_DIM);
        vec![
            ("input_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![queries, hidden]),
            ("self_attn.k_proj", vec![keys, hidden]),
            ("self_attn.v_proj", vec![keys, hidden]),
            ("self_attn.q_norm", vec![HEAD_DIM]),
            ("self_attn.k_norm", vec![HEAD_DIM]),
            ("self_attn.o_proj", vec![hidden, queries]),
            ("post_attention_layernorm", vec![hidden]),
            ("pre_feedforward_layernorm", vec![hidden]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
            ("post_feedforward_layernorm", vec![hidden]),
        ]
    }

    /// The weights that every token is multiplied by, but for the head's.
    pub fn layer_numbers(&self) -> usize {
        let of_layer = self
            .layer()
            .into_iter()
            .map(|(_, shape)| shape.iter().product::<usize>());
        self.layers * of_layer.sum::<usize>()
    }

    /// The bytes of all weights.
    pub fn bytes(&self) -> usize {
        2 * (self.layer_numbers() + VOCABULARY * self.hidden)
    }

    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let layers = (0..self.layers).flat_map(|i| {
            let layer = self.layer().into_iter();
            layer.map(move |(name, shape)| (format!("model.layers.{i}.{name}.weight"), shape))
        });
        let embed = (
            "model.embed_tokens.weight".into(),
            vec![VOCABULARY, self.hidden],
        );
        let norm = ("model.norm.weight".into(), vec![self.hidden]);
        layers.chain([embed, norm]).collect()
    }

    fn config(&self) -> String {
        let kind = |i| {
            if i % 6 == 5 {
                "full_attention"
            } else {
                "sliding_attention"
            }
        };
        json!({
            "model_type": "gemma3_text", "vocab_size": VOCABULARY, "hidden_size": self.hidden,
            "intermediate_size": self.intermediate, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": HEAD_DIM, "sliding_window": self.window,
            "layer_types": (0..self.layers).map(kind).collect::<Vec<_>>(), "max_position_embeddings": 32_768,
            "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
            "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": true,
        })
        .to_string()
    }

    /// The model: matrices uniform with a variance of 1 over their inputs, scales within 0.1 of 1.
    pub fn model(&self) -> Model {
        let (mut header, mut end) = (serde_json::Map::new(), 0);
        let tensors = self.tensors();
        for (name, shape) in &tensors {
            let start = end;
            end += 2 * shape.iter().product::<usize>();
            header.insert(
                name.clone(),
                json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}),
            );
        }
        let mut header = serde_json::Value::from(header).to_string();
        header += &" ".repeat(header.len().next_multiple_of(64) - header.len());
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.bytes());
        let mut seed = file.len() as u64;
        file.resize(file.len() + end, 0);
        let mut left = &mut file[8 + header.len()..];
        for (_, shape) in &tensors {
            let size = match shape[..] {
                [_, cols] => (3.0 / cols as f32).sqrt(),
                _ => 0.1,
            };
            let (now, later) = left.split_at_mut(2 * shape.iter().product::<usize>());
            fill(now, size, seed);
            seed += 1 << 40;
            left = later;
        }
        let files = [
            ("config.json", self.config().into_bytes().into()),
            ("model.safetensors", file.into()),
        ];
        let checkpoint = Checkpoint::from_files(self.name, files).unwrap();
        Model::from_checkpoint(checkpoint, ModelOptions::default()).unwrap()
    }

    /// Every layer's output and the logits of 64 positions, on the GPU and on this machine's processor.
    pub fn has_the_native_bits(&self, with_f64: bool) -> bool {
        let start = Instant::now();
        let native = self.model();
        let written = start.elapsed().as_secs_f64();
        let there = native.clone().on(Backend::Cuda(0)).unwrap();
        println!("{}: written in {written:.1} s", self.name);
        let mut good = same::<f32>(&native, &there) & same::<bf16>(&native, &there);
        if with_f64 {
            good &= same::<f64>(&native, &there);
        }
        good
    }
}

/// Fills `bytes` with bf16 numbers within `size` of 0.
fn fill(bytes: &mut [u8], size: f32, seed: u64) {
    bytes
        .par_chunks_mut(1 << 16)
        .enumerate()
        .for_each(|(i, piece)| {
            let mut state = (seed + i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            for number in piece.chunks_exact_mut(2) {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let unit = (state >> 40) as f32 / (1 << 23) as f32 - 1.0;
                number.copy_from_slice(&bf16::from_f32(unit * size).to_le_bytes());
            }
        });
}

/// A hash of every layer's output, and of the logits.
#[derive(Default)]
struct Hashes(BTreeMap<String, Sha256>);

impl Recorder for Hashes {
    fn wants(&self, name: &str) -> bool {
        let of_layer = name.strip_prefix("model.layers.");
        name == "lm_head" || of_layer.is_some_and(|rest| !rest.contains('.'))
    }

    fn record(&mut self, name: &str, rows: &Matrix<f64>) {
        let hash = self.0.entry(name.into()).or_default();
        for x in rows.as_slice() {
            hash.update(x.to_le_bytes());
        }
    }
}

fn same<E: Element>(native: &Model, there: &Model) -> bool {
    let ids: Vec<u32> = (0..POSITIONS).map(|i| 2 + i * 7919 % 200_000).collect();
    let hashes = |model| {
        let mut hashes = Hashes::default();
        let start = Instant::now();
        let mut session = Session::<E>::new(model);
        // The last ones token by token.
        let (prompt, rest) = ids.split_at(ids.len() - 4);
        session
            .forward_recorded(prompt, prompt.len(), &mut hashes)
            .unwrap();
        for id in rest {
            session.forward_recorded(&[*id], 1, &mut hashes).unwrap();
        }
        let hashes = hashes.0.into_iter();
        let hashes: Vec<_> = hashes.map(|(name, hash)| (name, hash.finalize())).collect();
        (hashes, start.elapsed().as_secs_f64())
    };
    let ((want, cpu), (got, gpu)) = (hashes(native), hashes(there));
    let pairs = want.iter().zip(&got);
    let equal = pairs.filter(|(want, got)| want == got).count();
    println!(
        "  {:4}: {equal} of {} tensors of {POSITIONS} positions equal ({cpu:.1} s on the CPU, {gpu:.1} s there)",
        E::DTYPE,
        want.len()
    );
    equal == want.len() && equal > 0
}

//! A sequence on a small random model, taken in in pieces: the bits of one piece on one thread. Shared by the fuzz
//! target and `tests/divisions.rs`.

use std::collections::BTreeMap;

use bytes::Bytes;
use context_patch::checkpoint::Checkpoint;
use context_patch::kernels::Level;
use context_patch::model::ModelOptions;
use context_patch::tensor::{Dtype, Element, Matrix, Storage, Tensor};
use context_patch::{Model, Session};
use half::bf16;
use serde_json::json;

use crate::parts::Parts;
use crate::pools::on_threads;
use crate::random::random;

/// A sequence and how it is divided. Its `Debug` output is a test case that can be pasted.
#[derive(Clone, Debug)]
pub struct Division {
    pub shape: Shape,
    /// Of the weights and tokens.
    pub seed: u64,
    pub dtype: Dtype,
    /// By name; the best one where the machine lacks it.
    pub level: String,
    pub tokens: usize,
    /// Tokens of the first calls; the next one takes what is left.
    pub pieces: Vec<usize>,
    pub chunk: usize,
    pub threads: usize,
    /// Logits that each call asks for.
    pub last: usize,
}

/// A small model.
#[derive(Clone, Debug)]
pub struct Shape {
    pub vocab: usize,
    pub hidden: usize,
    pub intermediate: usize,
    pub heads: usize,
    pub key_value_heads: usize,
    pub head_dim: usize,
    pub window: usize,
    /// Whether a layer is a sliding one.
    pub sliding: Vec<bool>,
    pub storage: Storage,
}

impl Division {
    /// Takes the sequence in both ways.
    pub fn check(&self) {
        let [whole, pieces] = self.bits();
        assert!(whole == pieces, "{self:?}");
    }

    /// The logits that the calls ask for: from one piece by the scalar level on one thread, and as this says.
    pub fn bits(&self) -> [Vec<u64>; 2] {
        match self.dtype {
            Dtype::F64 => self.bits_in::<f64>(),
            Dtype::F32 => self.bits_in::<f32>(),
            Dtype::Bf16 => self.bits_in::<bf16>(),
        }
    }

    fn bits_in<E: Element>(&self) -> [Vec<u64>; 2] {
        let mut next = random(self.seed);
        let files = self.shape.files(&mut next);
        let tokens = (0..self.tokens).map(|_| (next() % self.shape.vocab as u64) as u32);
        let tokens: Vec<_> = tokens.collect();
        let model = |level| {
            let options = ModelOptions {
                level,
                ..ModelOptions::default()
            };
            let checkpoint = Checkpoint::from_files("random", files.clone()).expect("sound files");
            Model::from_checkpoint(checkpoint, options).expect("all tensors")
        };
        let scalar = model(Some(Level::Scalar));
        let all = on_threads(1, || {
            let mut session = Session::<E>::new(&scalar).with_chunk(usize::MAX);
            let logits = session.forward(&tokens, tokens.len());
            logits.expect("finite numbers")
        });
        let model = model(self.level.parse().ok());
        on_threads(self.threads, || {
            let mut session = Session::<E>::new(&model).with_chunk(self.chunk);
            let (mut whole, mut pieces) = (Vec::new(), Vec::new());
            let mut end = 0;
            for piece in self.divided(&tokens) {
                end += piece.len();
                let asked = end - self.last.min(piece.len())..end;
                whole.extend(bits(&all.slice_rows(asked)));
                let logits = session.forward(piece, self.last);
                pieces.extend(bits(&logits.expect("finite numbers")));
            }
            [whole, pieces]
        })
    }

    fn divided<'a>(&self, mut tokens: &'a [u32]) -> Vec<&'a [u32]> {
        let mut divided = Vec::new();
        for &piece in &self.pieces {
            let (first, rest) = tokens.split_at(piece.min(tokens.len()));
            divided.push(first);
            tokens = rest;
        }
        divided.push(tokens);
        divided.retain(|piece| !piece.is_empty());
        divided
    }
}

fn bits<E: Element>(logits: &Matrix<E>) -> impl Iterator<Item = u64> {
    logits.as_slice().iter().map(|x| x.to_f64().to_bits())
}

impl Shape {
    /// config.json and random weights.
    fn files(&self, next: &mut impl FnMut() -> u64) -> Vec<(&'static str, Bytes)> {
        let kind = |&sliding: &bool| {
            if sliding {
                "sliding_attention"
            } else {
                "full_attention"
            }
        };
        let config = json!({
            "model_type": "gemma3_text",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.sliding.len(),
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "head_dim": self.head_dim,
            "query_pre_attn_scalar": self.head_dim,
            "sliding_window": self.window,
            "layer_types": self.sliding.iter().map(kind).collect::<Vec<_>>(),
        });
        let mut tensors = BTreeMap::new();
        for (name, shape) in self.tensors() {
            let count = shape.iter().product();
            let number = |_| next() as f64 / f64::from(1u32 << 30) - 1.0;
            let numbers: Vec<f64> = (0..count).map(number).collect();
            let tensor = Tensor::from_f64(self.storage, shape.clone(), &numbers);
            let bytes = tensor.expect("as many as the shape says").bytes().to_vec();
            tensors.insert(name, (self.storage.to_string(), shape, bytes));
        }
        let parts = Parts {
            metadata: BTreeMap::new(),
            tensors,
        };
        vec![
            ("config.json", Bytes::from(config.to_string())),
            ("model.safetensors", Bytes::from(parts.file())),
        ]
    }

    /// The name and shape of every tensor.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, inner) = (self.hidden, self.intermediate);
        let (queries, keys) = (
            self.heads * self.head_dim,
            self.key_value_heads * self.head_dim,
        );
        let of_layer = [
            ("input_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![queries, hidden]),
            ("self_attn.k_proj", vec![keys, hidden]),
            ("self_attn.v_proj", vec![keys, hidden]),
            ("self_attn.o_proj", vec![hidden, queries]),
            ("self_attn.q_norm", vec![self.head_dim]),
            ("self_attn.k_norm", vec![self.head_dim]),
            ("post_attention_layernorm", vec![hidden]),
            ("pre_feedforward_layernorm", vec![hidden]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
            ("post_feedforward_layernorm", vec![hidden]),
        ];
        let layers = 0..self.sliding.len();
        let layers = layers.flat_map(|i| {
            of_layer
                .clone()
                .map(|(name, shape)| (format!("layers.{i}.{name}"), shape))
        });
        let around = [
            ("embed_tokens", vec![self.vocab, hidden]),
            ("norm", vec![hidden]),
        ];
        let around = around.map(|(name, shape)| (name.to_owned(), shape));
        let all = layers.chain(around);
        all.map(|(name, shape)| (format!("model.{name}.weight"), shape))
            .collect()
    }
}

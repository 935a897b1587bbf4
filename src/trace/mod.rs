//! Recording the intermediates of a forward pass under their names.
//!
//! A tensor is called as the Hugging Face module whose output it is, `[tokens, width]`:
//!
//! | name | what |
//! |---|---|
//! | `model.embed_tokens` | x of the first layer, scaled |
//! | `model.layers.I.input_layernorm` | a |
//! | `model.layers.I.self_attn.q_proj`, `k_proj`, `v_proj` | heads side by side |
//! | `model.layers.I.self_attn.q_norm`, `k_norm` | the same, normalised |
//! | `model.layers.I.self_attn.o_proj` | the attention's output |
//! | `model.layers.I.post_attention_layernorm` | what the residual stream gets |
//! | `model.layers.I.pre_feedforward_layernorm` | z |
//! | `model.layers.I.mlp.gate_proj`, `up_proj`, `act_fn` | inside the inner function |
//! | `model.layers.I.mlp.down_proj` | d |
//! | `model.layers.I.post_feedforward_layernorm` | g = m ⊙ n(d) |
//! | `model.layers.I` | T(C, x), the block's output |
//! | `model.norm` | after the final norm |
//! | `lm_head` | the logits |
//!
//! Points that no module outputs:
//!
//! | name | what |
//! |---|---|
//! | `model.layers.I.self_attn.q_rope`, `k_rope` | q and k, turned to their positions |
//! | `model.layers.I.self_attn.mixed` | p v, the input of `o_proj` |
//! | `model.layers.I.residual_mid` | v = A(C, x) |
//! | `model.layers.I.mlp.product` | h, the input of `down_proj` |

mod error;
mod ids;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use globset::{Glob, GlobSet, GlobSetBuilder};
use half::bf16;

pub use error::{Error, Result};
pub use ids::{parse_ids, read_ids};

use crate::checkpoint::{Config, TensorData, write_safetensors};
use crate::model::{Model, Recorder, Session};
use crate::tensor::{Dtype, Element, Matrix, Storage};

/// The names of a layer's tensors, in forward order, relative to `model.layers.I`.
pub(crate) const LAYER_NAMES: [&str; 20] = [
    ".input_layernorm",
    ".self_attn.q_proj",
    ".self_attn.k_proj",
    ".self_attn.v_proj",
    ".self_attn.q_norm",
    ".self_attn.k_norm",
    ".self_attn.q_rope",
    ".self_attn.k_rope",
    ".self_attn.mixed",
    ".self_attn.o_proj",
    ".post_attention_layernorm",
    ".residual_mid",
    ".pre_feedforward_layernorm",
    ".mlp.gate_proj",
    ".mlp.act_fn",
    ".mlp.up_proj",
    ".mlp.product",
    ".mlp.down_proj",
    ".post_feedforward_layernorm",
    "",
];

/// Every name a pass of this model records, in forward order.
pub fn names(config: &Config) -> Vec<String> {
    let layers = (0..config.num_hidden_layers).flat_map(|layer| {
        LAYER_NAMES
            .iter()
            .map(move |name| format!("model.layers.{layer}{name}"))
    });
    let first = std::iter::once("model.embed_tokens".to_owned());
    let last = ["model.norm", "lm_head"].map(str::to_owned);
    first.chain(layers).chain(last).collect()
}

/// A recording: for each wanted name the last tokens' rows.
#[derive(Clone, Debug)]
pub struct Trace {
    wanted: GlobSet,
    last: usize,
    dtype: Dtype,
    tensors: BTreeMap<String, Recorded>,
}

/// The rows recorded under one name: F64 for compute type f64 and F32 for the others, which is exact.
#[derive(Clone, Debug)]
pub struct Recorded {
    cols: usize,
    storage: Storage,
    bytes: Vec<u8>,
}

impl Recorded {
    /// `[tokens, width]`.
    pub fn shape(&self) -> [usize; 2] {
        [
            self.bytes.len() / (self.cols * self.storage.size()),
            self.cols,
        ]
    }

    fn push(&mut self, rows: &Matrix<f64>, last: usize) {
        match self.storage {
            Storage::F64 => self
                .bytes
                .extend(rows.as_slice().iter().flat_map(|x| x.to_le_bytes())),
            _ => self.bytes.extend(
                rows.as_slice()
                    .iter()
                    .flat_map(|&x| (x as f32).to_le_bytes()),
            ),
        }
        let keep = last.saturating_mul(self.cols * self.storage.size());
        self.bytes.drain(..self.bytes.len().saturating_sub(keep));
    }
}

impl Trace {
    /// For a pass of `config`'s model in compute type `dtype`: records the tensors whose names match
    /// one of `globs` (all where there is none), the rows of the last `last` tokens.
    ///
    /// # Errors
    ///
    /// [`Error::Glob`] for a pattern that is malformed or matches no name.
    pub fn new(config: &Config, dtype: Dtype, globs: &[String], last: usize) -> Result<Self> {
        let all = ["*".to_owned()];
        let globs = if globs.is_empty() { &all } else { globs };
        let names = names(config);
        let mut set = GlobSetBuilder::new();
        for pattern in globs {
            let fail = |why: String| Error::Glob {
                pattern: pattern.clone(),
                why,
            };
            let glob = Glob::new(pattern).map_err(|e| fail(e.kind().to_string()))?;
            let matcher = glob.compile_matcher();
            if !names.iter().any(|name| matcher.is_match(name)) {
                return Err(fail("it matches no tensor of this model".into()));
            }
            set.add(glob);
        }
        let wanted = set.build().map_err(|e| Error::Glob {
            pattern: globs.join(" "),
            why: e.kind().to_string(),
        })?;
        Ok(Self {
            wanted,
            last,
            dtype,
            tensors: BTreeMap::new(),
        })
    }

    /// Runs `tokens` through `model` and records them.
    ///
    /// # Errors
    ///
    /// Those of [`Session::forward`].
    pub fn run(&mut self, model: &Model, tokens: &[u32]) -> Result<()> {
        match self.dtype {
            Dtype::F64 => self.run_in::<f64>(model, tokens),
            Dtype::F32 => self.run_in::<f32>(model, tokens),
            Dtype::Bf16 => self.run_in::<bf16>(model, tokens),
        }
    }

    fn run_in<E: Element>(&mut self, model: &Model, tokens: &[u32]) -> Result<()> {
        let mut session = Session::<E>::new(model);
        let ends = ["lm_head", "model.norm"]
            .iter()
            .any(|name| self.wants(name));
        let logits = if ends { self.last } else { 0 };
        Ok(session.forward_recorded(tokens, logits, self)?)
    }

    /// What was recorded, by name.
    pub fn tensors(&self) -> &BTreeMap<String, Recorded> {
        &self.tensors
    }

    /// Writes a safetensors file. Its metadata has `model`, `model_hash`, `dtype`, `backend`, `ids` (a JSON list of
    /// all `tokens` that were run) and `version` (of this crate).
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn write(&self, path: &Path, model: &Model, tokens: &[u32]) -> Result<()> {
        let metadata = [
            ("model", model.checkpoint().name().to_owned()),
            ("model_hash", model.checkpoint().tensors().content_hash()),
            ("dtype", self.dtype.to_string()),
            ("backend", model.backend().to_string()),
            ("ids", format!("{tokens:?}")),
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value));
        let tensors = self.tensors.iter().map(|(name, tensor)| {
            let data = TensorData {
                storage: tensor.storage,
                shape: tensor.shape().into(),
                bytes: Cow::Borrowed(&tensor.bytes),
            };
            (name.clone(), data)
        });
        Ok(write_safetensors(
            path,
            &metadata.into(),
            &tensors.collect(),
        )?)
    }
}

impl Recorder for Trace {
    fn wants(&self, name: &str) -> bool {
        self.wanted.is_match(name)
    }

    fn record(&mut self, name: &str, rows: &Matrix<f64>) {
        let recorded = self.tensors.entry(name.to_owned());
        let recorded = recorded.or_insert_with(|| Recorded {
            cols: rows.cols(),
            storage: match self.dtype {
                Dtype::F64 => Storage::F64,
                Dtype::F32 | Dtype::Bf16 => Storage::F32,
            },
            bytes: Vec::new(),
        });
        recorded.push(rows, self.last);
    }
}

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

mod ids;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use globset::{Glob, GlobSet, GlobSetBuilder};
use safetensors::tensor::{Dtype as FileDtype, TensorView};

pub use ids::{parse_ids, read_ids};

use crate::checkpoint::Config;
use crate::error::{Error, Result};
use crate::model::{Model, Recorder, Session};
use crate::output;
use crate::tensor::{Dtype, Element, Matrix};

/// The names of a layer's tensors, in forward order, relative to `model.layers.I`.
const LAYER_NAMES: [&str; 20] = [
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

/// A recording: for each wanted name the last tokens' rows, in the order they were computed.
#[derive(Clone, Debug)]
pub struct Trace {
    wanted: GlobSet,
    last: usize,
    tensors: BTreeMap<String, Matrix<f64>>,
}

impl Trace {
    /// Records the tensors of `config`'s model whose names match one of `globs` (all where there is
    /// none), the rows of the last `last` tokens.
    ///
    /// # Errors
    ///
    /// [`Error::Glob`] for a pattern that is malformed or matches no name.
    pub fn new(config: &Config, globs: &[String], last: usize) -> Result<Self> {
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
            tensors: BTreeMap::new(),
        })
    }

    /// Runs `tokens` through `model` in compute type `E` and records them.
    ///
    /// # Errors
    ///
    /// Those of [`Session::forward`].
    pub fn run<E: Element>(&mut self, model: &Model, tokens: &[u32]) -> Result<()> {
        let logits = self.last.min(tokens.len());
        let logits = if self.wants("lm_head") || self.wants("model.norm") {
            logits
        } else {
            0
        };
        Session::<E>::new(model).forward_recorded(tokens, logits, self)?;
        Ok(())
    }

    /// What was recorded, by name.
    pub fn tensors(&self) -> &BTreeMap<String, Matrix<f64>> {
        &self.tensors
    }

    /// Writes a safetensors file: F64 for `dtype` f64 and F32 for the others, which is exact. Its
    /// metadata has `model`, `model_hash`, `dtype`, `ids` (a JSON list) and `version` (of this crate).
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn write(&self, path: &Path, model: &Model, dtype: Dtype, tokens: &[u32]) -> Result<()> {
        let metadata = [
            ("model", model.checkpoint().name().to_owned()),
            ("model_hash", model.checkpoint().tensors().content_hash()),
            ("dtype", dtype.to_string()),
            ("ids", format!("{tokens:?}")),
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ];
        let metadata: HashMap<_, _> = metadata.map(|(key, value)| (key.to_owned(), value)).into();
        let tensors: Vec<_> = self
            .tensors
            .iter()
            .map(|(name, rows)| (name, [rows.rows(), rows.cols()], to_bytes(rows, dtype)))
            .collect();
        let file_dtype = match dtype {
            Dtype::F64 => FileDtype::F64,
            Dtype::F32 | Dtype::Bf16 => FileDtype::F32,
        };
        let views = tensors.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(file_dtype, shape.to_vec(), bytes);
            view.map(|view| (*name, view))
        });
        let file = views
            .collect::<Result<Vec<_>, _>>()
            .and_then(|views| safetensors::serialize(views, Some(metadata)))
            .map_err(|e| Error::io("write", path)(std::io::Error::other(e)))?;
        output::write_file(path, |out| out.write_all(&file))
    }
}

fn to_bytes(rows: &Matrix<f64>, dtype: Dtype) -> Vec<u8> {
    let numbers = rows.as_slice().iter();
    match dtype {
        Dtype::F64 => numbers.flat_map(|x| x.to_le_bytes()).collect(),
        Dtype::F32 | Dtype::Bf16 => numbers.flat_map(|&x| (x as f32).to_le_bytes()).collect(),
    }
}

impl Recorder for Trace {
    fn wants(&self, name: &str) -> bool {
        self.wanted.is_match(name)
    }

    fn record(&mut self, name: &str, rows: &Matrix<f64>) {
        let before = self.tensors.remove(name);
        let mut data = before.map(Matrix::into_vec).unwrap_or_default();
        data.extend_from_slice(rows.as_slice());
        let surplus = data
            .len()
            .saturating_sub(self.last.saturating_mul(rows.cols()));
        data.drain(..surplus);
        self.tensors
            .insert(name.to_owned(), Matrix::from_vec(rows.cols(), data));
    }
}

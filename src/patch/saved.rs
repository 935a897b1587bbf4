//! The native patch file: one safetensors file with the factors, the scales, and all it takes to check them.
//!
//! | tensor | what |
//! |---|---|
//! | `model.layers.I.mlp.gate_proj.lora_A`, `up_proj`, `down_proj` | V, `[rank, in]` |
//! | `model.layers.I.mlp.gate_proj.lora_B`, … | U, `[out, rank]` |
//! | `model.layers.I.post_feedforward_layernorm.scale` | m + Δm, `[hidden]` |
//!
//! The metadata has `format`, `model`, `model_hash`, `num_hidden_layers`, `dtype`, `split` (token ids, which of them
//! stay, for how many the patch is, and the positions), `method`, `report` (these three as JSON), `version`
//! (of this crate) and `hash` over all of it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::{LowRank, Method, Patch, Report, Split};
use crate::checkpoint::{Access, TensorData, Tensors, write_safetensors};
use crate::error::{Error, Result, one_line};
use crate::model::Model;
use crate::tensor::{Dtype, Matrix, Storage};

/// What the metadata's `format` says.
const FORMAT: &str = "context-patch 1";

/// A patch with what it is a patch of.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedPatch {
    /// The patch.
    pub patch: Patch,
    /// What is absorbed, what stays, and the positions.
    pub split: Split,
    /// How it was solved.
    pub method: Method,
    /// The compute type it was solved in.
    pub dtype: Dtype,
    /// The name of the model.
    pub model: String,
    /// The content hash of the model's tensors.
    pub model_hash: String,
    /// What the solver said.
    pub report: Report,
}

impl SavedPatch {
    /// Writes the file, with the numbers as they are (F64), or rounded to F32 in half the space.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn save(&self, path: &Path, storage: Storage) -> Result<()> {
        let tensors = self.tensors(storage);
        let json = |value: serde_json::Result<String>| {
            value.map_err(|error| bad(path, format!("it cannot be written: {error}")))
        };
        let mut metadata: BTreeMap<String, String> = [
            ("format", FORMAT.to_owned()),
            ("model", self.model.clone()),
            ("model_hash", self.model_hash.clone()),
            ("num_hidden_layers", self.patch.layers.len().to_string()),
            ("dtype", self.dtype.to_string()),
            ("split", json(serde_json::to_string(&self.split))?),
            ("method", json(serde_json::to_string(&self.method))?),
            ("report", json(serde_json::to_string(&self.report))?),
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        let contents = tensors
            .iter()
            .map(|(name, data)| (name.as_str(), &*data.bytes));
        let hash = hash(&metadata, contents);
        metadata.insert("hash".into(), hash);
        write_safetensors(path, &metadata, &tensors)
    }

    /// Every tensor of the patch under its name.
    fn tensors(&self, storage: Storage) -> BTreeMap<String, TensorData<'static>> {
        let mut tensors = BTreeMap::new();
        let mut add = |name: String, shape: Vec<usize>, numbers: &[f64]| {
            let bytes: Vec<u8> = match storage {
                Storage::F64 => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
                _ => numbers
                    .iter()
                    .flat_map(|x| (*x as f32).to_le_bytes())
                    .collect(),
            };
            let storage = match storage {
                Storage::F64 => Storage::F64,
                _ => Storage::F32,
            };
            let bytes = Cow::Owned(bytes);
            tensors.insert(
                name,
                TensorData {
                    storage,
                    shape,
                    bytes,
                },
            );
        };
        for (i, layer) in self.patch.layers.iter().enumerate() {
            for (part, delta) in [
                ("gate", &layer.gate),
                ("up", &layer.up),
                ("down", &layer.down),
            ] {
                let Some(LowRank { u, v }) = delta else {
                    continue;
                };
                let name = format!("model.layers.{i}.mlp.{part}_proj");
                add(
                    format!("{name}.lora_A"),
                    vec![v.rows(), v.cols()],
                    v.as_slice(),
                );
                add(
                    format!("{name}.lora_B"),
                    vec![u.rows(), u.cols()],
                    u.as_slice(),
                );
            }
            if let Some(scale) = &layer.scale {
                let name = format!("model.layers.{i}.post_feedforward_layernorm.scale");
                add(name, vec![scale.len()], scale);
            }
        }
        tensors
    }

    /// Reads a file that [`save`](Self::save) wrote.
    ///
    /// # Errors
    ///
    /// Those of [`Tensors::open_file`]; [`Error::PatchFile`] for a safetensors file that is no patch, or one that
    /// was changed since; [`Error::NotFinite`].
    pub fn load(path: &Path) -> Result<Self> {
        let (tensors, metadata) = Tensors::open_with_metadata(path, Access::Read)?;
        let field = |name: &str| {
            let value = metadata.get(name);
            value.ok_or_else(|| bad(path, format!("its metadata has no '{name}'")))
        };
        match metadata.get("format") {
            Some(format) if format == FORMAT => {}
            Some(other) => {
                return Err(bad(
                    path,
                    format!("its format is '{}', not '{FORMAT}'", one_line(other, 40)),
                ));
            }
            None => {
                return Err(bad(
                    path,
                    "it is no patch: its metadata names no format".into(),
                ));
            }
        }
        let contents = tensors.iter().map(|(name, tensor)| (name, tensor.bytes()));
        let mut hashed = metadata.clone();
        hashed.remove("hash");
        if hash(&hashed, contents) != *field("hash")? {
            return Err(bad(
                path,
                "its contents are not those that were saved".into(),
            ));
        }
        tensors.check_finite()?;
        let layers: usize = parse(path, "num_hidden_layers", field("num_hidden_layers")?)?;
        let dtype = field("dtype")?.parse();
        Ok(Self {
            patch: read_patch(path, &tensors, layers)?,
            split: parse(path, "split", field("split")?)?,
            method: parse(path, "method", field("method")?)?,
            dtype: dtype.map_err(|reason| bad(path, reason))?,
            model: field("model")?.clone(),
            model_hash: field("model_hash")?.clone(),
            report: parse(path, "report", field("report")?)?,
        })
    }

    /// Whether this is a patch of `model`: the same weights, and every factor of the right shape.
    ///
    /// # Errors
    ///
    /// [`Error::PatchOfAnotherModel`] with both hashes; [`Error::PatchShape`].
    pub fn check(&self, model: &Model) -> Result<()> {
        let hash = model.checkpoint().tensors().content_hash();
        if hash != self.model_hash {
            return Err(Error::PatchOfAnotherModel {
                patch: self.model_hash.clone(),
                name: self.model.clone(),
                model: hash,
            });
        }
        self.patch.check(model)
    }
}

fn bad(path: &Path, reason: String) -> Error {
    Error::PatchFile {
        path: path.into(),
        reason,
    }
}

/// SHA-256 over the metadata and the tensors, in the order of names.
fn hash<'a>(
    metadata: &'a BTreeMap<String, String>,
    contents: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> String {
    let mut hash = Sha256::new();
    let fields = metadata
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()));
    for (name, value) in fields.chain(contents) {
        for bytes in [name.as_bytes(), value] {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        }
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

fn parse<T: DeserializeOwned>(path: &Path, name: &str, json: &str) -> Result<T> {
    let parsed = serde_json::from_str(json);
    parsed.map_err(|error| {
        bad(
            path,
            one_line(&format!("its '{name}' is wrong: {error}"), 300),
        )
    })
}

/// The patch in a file's tensors: each must belong to a layer, each factor have its pair.
fn read_patch(path: &Path, tensors: &Tensors, layers: usize) -> Result<Patch> {
    // No model has as many, and a file can say anything.
    if layers > 10_000 {
        return Err(bad(path, format!("it claims {layers} layers")));
    }
    let mut patch = Patch::default();
    let mut found = 0;
    let mut matrix = |name: &str| {
        let (_, tensor) = tensors.iter().find(|(other, _)| *other == name)?;
        found += 1;
        let cols = tensor.cols().max(1);
        (tensor.shape().len() == 2).then(|| Matrix::from_vec(cols, tensor.to_vec::<f64>()))
    };
    for i in 0..layers {
        let mut factors = |part: &str| {
            let name = format!("model.layers.{i}.mlp.{part}_proj");
            match (
                matrix(&format!("{name}.lora_A")),
                matrix(&format!("{name}.lora_B")),
            ) {
                (None, None) => Ok(None),
                (Some(v), Some(u)) if u.cols() == v.rows() => Ok(Some(LowRank { u, v })),
                _ => Err(bad(
                    path,
                    format!("the factors {name}.lora_A and .lora_B do not fit each other"),
                )),
            }
        };
        patch.layers.push(super::LayerPatch {
            gate: factors("gate")?,
            up: factors("up")?,
            down: factors("down")?,
            scale: None,
        });
    }
    for (i, layer) in patch.layers.iter_mut().enumerate() {
        let name = format!("model.layers.{i}.post_feedforward_layernorm.scale");
        if let Some((_, tensor)) = tensors.iter().find(|(other, _)| *other == name) {
            found += 1;
            layer.scale = Some(tensor.to_vec());
        }
    }
    match found == tensors.len() {
        true => Ok(patch),
        false => Err(bad(
            path,
            format!(
                "{} of its tensors are no part of a patch",
                tensors.len() - found
            ),
        )),
    }
}

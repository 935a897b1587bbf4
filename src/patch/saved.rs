//! The native patch file: one safetensors file with the factors, the scales, and all it takes to check them.
//!
//! | tensor | what |
//! |---|---|
//! | `model.layers.I.mlp.gate_proj.lora_A`, `up_proj`, … | V, `[rank, in]` |
//! | `model.layers.I.mlp.gate_proj.lora_B`, … | U, `[out, rank]` |
//! | `model.layers.I.post_feedforward_layernorm.scale` | m + Δm, `[hidden]` |
//! | `model.layers.I.mlp.c_proj.bias` | b + Δb, `[hidden]` |
//!
//! A layer is `model.layers.I` here in every family, and its modules have the names of the family.
//!
//! The metadata has `format`, `model`, `model_hash`, `num_hidden_layers`, `dtype`, `split` (token ids, which of them
//! stay, for how many the patch is, and the positions), `method`, `report` (these three as JSON; a compiled prompt has `compiled`
//! instead), `images` (as JSON, where the context has some: name, format, size and SHA-256 of each file), `version` (of this crate) and `hash` over all of it: SHA-256 of, in the order of names, each other field's name and
//! value, then each tensor's name, dtype, dimensions and bytes; before each piece its length in bytes (u64,
//! little-endian), dimensions are u64 too.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::compile::Compiled;
use super::error::{Error, Result};
use super::{ApplyMode, LayerPatch, LowRank, Method, Patch, SolverReport, Split, TensorChange};
use crate::checkpoint::{TensorData, Tensors, write_safetensors};
use crate::message::{IoError, hex, one_line, shown};
use crate::model::Model;
use crate::tensor::{Dtype, Matrix, Storage, Tensor};
use crate::vision::PictureRecord;

/// The metadata's `format`.
const FORMAT: &str = "context-patch 1";

/// The field of pictures, which a file about a text does not have.
const IMAGES: &str = "images";

/// Layers that a file may claim: more than any model has.
const MOST_LAYERS: usize = 10_000;

/// A patch with what it is a patch of.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedPatch {
    /// The patch.
    pub patch: Patch,
    /// What it was made from, and how.
    pub source: Source,
    /// The compute type it was solved in.
    pub dtype: Dtype,
    /// The name of the model.
    pub model: String,
    /// The content hash of the model's tensors.
    pub model_hash: String,
}

/// What a patch was made from, and how.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// For known tokens.
    Solved(Box<Solved>),
    /// From samples, for tokens that are not known.
    Compiled(Box<Compiled>),
}

/// What a patch for known tokens was solved from.
#[derive(Clone, Debug, PartialEq)]
pub struct Solved {
    /// What is absorbed, what stays, and the positions.
    pub split: Split,
    /// How it was solved.
    pub method: Method,
    /// What the solver said.
    pub report: SolverReport,
    /// The pictures in the context, in order.
    pub images: Vec<PictureRecord>,
}

impl Source {
    /// How the patch is applied unless someone asks otherwise.
    pub fn form(&self) -> ApplyMode {
        match self {
            Self::Solved(solved) => solved.method.form,
            Self::Compiled(_) => ApplyMode::Overlay,
        }
    }

    /// The fields of the file that say it.
    fn metadata(&self) -> Result<Vec<(&'static str, String)>> {
        Ok(match self {
            Self::Solved(solved) => {
                let mut fields = vec![
                    ("split", json("split", &solved.split)?),
                    ("method", json("method", &solved.method)?),
                    ("report", json("report", &solved.report)?),
                ];
                if !solved.images.is_empty() {
                    fields.push((IMAGES, json(IMAGES, &solved.images)?));
                }
                fields
            }
            Self::Compiled(compiled) => vec![("compiled", json("compiled", &**compiled)?)],
        })
    }

    /// What the metadata of a file says of a patch with this many layers.
    fn parse(path: &Path, metadata: &BTreeMap<String, String>, layers: usize) -> Result<Self> {
        if let Some(compiled) = metadata.get("compiled") {
            return Ok(Self::Compiled(parse(path, "compiled", compiled)?));
        }
        let field = |name: &str| field(path, metadata, name);
        let report: SolverReport = parse(path, "report", field("report")?)?;
        let finite = json("report", &report);
        finite.map_err(|_| bad(path, "its 'report' has a number that is not finite"))?;
        // What reports on no layer is a patch that no solver made.
        if !report.layers.is_empty() && report.layers.len() != layers {
            let reported = report.layers.len();
            let reason = format!("its report is about {reported} of {layers} layers");
            return Err(bad(path, reason));
        }
        Ok(Self::Solved(Box::new(Solved {
            split: parse(path, "split", field("split")?)?,
            method: parse(path, "method", field("method")?)?,
            report,
            images: match metadata.get(IMAGES) {
                Some(images) => parse(path, IMAGES, images)?,
                None => Vec::new(),
            },
        })))
    }

    /// The tokens that it names, which are the model's.
    fn tokens(&self) -> &[u32] {
        match self {
            Self::Solved(solved) => solved.split.tokens(),
            Self::Compiled(compiled) => &compiled.context,
        }
    }
}

impl SavedPatch {
    /// A patch of a model, solved in `dtype`.
    pub fn new(model: &Model, patch: Patch, source: Source, dtype: Dtype) -> Self {
        let checkpoint = model.checkpoint();
        Self {
            patch,
            source,
            dtype,
            model: checkpoint.name().to_owned(),
            model_hash: checkpoint.tensors().content_hash(),
        }
    }

    /// Writes the file: F64 keeps the numbers as they are, any other type stands for F32, which rounds them and
    /// takes half the space.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::PatchValue`] and [`Error::PatchField`] for a number that is not finite.
    pub fn save(&self, path: &Path, storage: Storage) -> Result<()> {
        let tensors = self.tensors(storage)?;
        let mut metadata = self.metadata()?;
        let contents = tensors.iter().map(|(name, data)| Content {
            name,
            storage: data.storage,
            shape: &data.shape,
            bytes: &data.bytes,
        });
        let hash = hash(&metadata, contents);
        metadata.insert("hash".into(), hash);
        Ok(write_safetensors(path, &metadata, &tensors)?)
    }

    /// All fields but the hash.
    fn metadata(&self) -> Result<BTreeMap<String, String>> {
        let fields = [
            ("format", FORMAT.to_owned()),
            ("model", self.model.clone()),
            ("model_hash", self.model_hash.clone()),
            ("num_hidden_layers", self.patch.layers.len().to_string()),
            ("dtype", self.dtype.to_string()),
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ];
        let fields = fields.into_iter().chain(self.source.metadata()?);
        Ok(fields.map(|(key, value)| (key.to_owned(), value)).collect())
    }

    /// Every tensor of the patch under its name.
    fn tensors(&self, storage: Storage) -> Result<BTreeMap<String, TensorData<'static>>> {
        let storage = match storage {
            Storage::F64 => Storage::F64,
            _ => Storage::F32,
        };
        let mut tensors = BTreeMap::new();
        let mut add = |name: String, shape: Vec<usize>, numbers: &[f64]| {
            let Some(data) = TensorData::rounded(storage, shape, numbers) else {
                return Err(Error::PatchValue { tensor: name });
            };
            tensors.insert(name, data);
            Ok(())
        };
        for (i, layer) in self.patch.layers.iter().enumerate() {
            for (tensor, change) in layer {
                let (module, kind) = tensor.rsplit_once('.').unwrap_or((tensor, ""));
                let module = format!("model.layers.{i}.{module}");
                match change {
                    TensorChange::LowRank(LowRank { u, v }) => {
                        for (factor, matrix) in [("lora_A", v), ("lora_B", u)] {
                            let shape = vec![matrix.rows(), matrix.cols()];
                            add(format!("{module}.{factor}"), shape, matrix.as_slice())?;
                        }
                    }
                    TensorChange::Vector(vector) => {
                        let kind = if kind == "weight" { SCALE } else { kind };
                        add(format!("{module}.{kind}"), vec![vector.len()], vector)?;
                    }
                }
            }
        }
        Ok(tensors)
    }

    /// Reads a file that [`save`](Self::save) wrote.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] and those of [`parse`](Self::parse).
    pub fn load(path: &Path) -> Result<Self> {
        let data = std::fs::read(path).map_err(IoError::at("read", path))?;
        Self::parse(path, &data.into())
    }

    /// The patch in the bytes of such a file; `path` only serves the messages.
    ///
    /// # Errors
    ///
    /// Those of [`Tensors::parse`](crate::checkpoint::Tensors::parse) about the file;
    /// [`Error::PatchFile`] for a safetensors file that is no patch, or one that was changed since;
    /// [`checkpoint::Error::NotFinite`](crate::checkpoint::Error::NotFinite).
    pub fn parse(path: &Path, data: &Bytes) -> Result<Self> {
        let (tensors, names, mut metadata) = Tensors::parse_whole(path, data)?;
        match metadata.get("format") {
            Some(format) if format == FORMAT => {}
            Some(other) => {
                let reason = format!("its format is '{}', not '{FORMAT}'", shown(other));
                return Err(bad(path, reason));
            }
            None => return Err(bad(path, "it is no patch: its metadata names no format")),
        }
        // Such as the vision tensors of a model, which are left out.
        if let Some(name) = names.iter().find(|name| !tensors.contains(name)) {
            return Err(no_part(path, name));
        }
        let stored = metadata.remove("hash");
        let contents = tensors.iter().map(|(name, tensor)| Content {
            name,
            storage: tensor.storage(),
            shape: tensor.shape(),
            bytes: tensor.bytes(),
        });
        if stored != Some(hash(&metadata, contents)) {
            return Err(bad(path, "its contents are not those that were saved"));
        }
        tensors.check_finite()?;
        let field = |name: &str| field(path, &metadata, name);
        let layers: usize = parse(path, "num_hidden_layers", field("num_hidden_layers")?)?;
        Ok(Self {
            patch: read_patch(path, &tensors, layers)?,
            source: Source::parse(path, &metadata, layers)?,
            dtype: field("dtype")?
                .parse()
                .map_err(|reason: String| bad(path, reason))?,
            model: field("model")?.to_owned(),
            model_hash: field("model_hash")?.to_owned(),
        })
    }

    /// Whether this is a patch of `model`: the same weights, and every factor of the right shape.
    ///
    /// # Errors
    ///
    /// [`Error::PatchOfAnotherModel`] with both hashes; [`Error::PatchShape`]; and for tokens that it does not have
    /// [`model::Error`](crate::model::Error)'s `TokenId` and `PromptTooLong`; where the context has pictures, those of
    /// [`Checkpoint::vision_config`](crate::Checkpoint::vision_config).
    pub fn check(&self, model: &Model) -> Result<()> {
        let hash = model.checkpoint().tensors().content_hash();
        if hash != self.model_hash {
            return Err(Error::PatchOfAnotherModel {
                patch: self.model_hash.clone(),
                name: self.model.clone(),
                model: hash,
            });
        }
        self.patch.check(model)?;
        let mut tokens = self.source.tokens().to_vec();
        if matches!(&self.source, Source::Solved(solved) if !solved.images.is_empty()) {
            // It stands for a part of an image, and needs no place in the vocabulary.
            let image = model.checkpoint().vision_config()?.image_token_index;
            tokens.iter_mut().filter(|id| **id == image).for_each(|id| *id = 0);
        }
        Ok(model.check_tokens(&tokens, 0)?)
    }
}

/// What the file calls the weight of a norm, because it holds m and not w.
const SCALE: &str = "scale";

/// An error about the file; `reason` may quote it.
fn bad(path: &Path, reason: impl AsRef<str>) -> Error {
    Error::PatchFile {
        path: path.into(),
        reason: one_line(reason.as_ref(), 300),
    }
}

/// A field that has to be there.
fn field<'m>(path: &Path, metadata: &'m BTreeMap<String, String>, name: &str) -> Result<&'m str> {
    let value = metadata.get(name).map(String::as_str);
    value.ok_or_else(|| bad(path, format!("its metadata has no '{name}'")))
}

/// A field as JSON, which does not hold every number.
fn json<T: Serialize + DeserializeOwned + PartialEq>(name: &str, value: &T) -> Result<String> {
    let text = serde_json::to_string(value).unwrap_or_default();
    match serde_json::from_str::<T>(&text) {
        Ok(again) if again == *value => Ok(text),
        _ => Err(Error::PatchField { field: name.into() }),
    }
}

fn parse<T: DeserializeOwned>(path: &Path, name: &str, json: &str) -> Result<T> {
    let parsed = serde_json::from_str(json);
    parsed.map_err(|error| bad(path, format!("its '{name}' is wrong: {error}")))
}

/// A tensor as the hash sees it.
struct Content<'a> {
    name: &'a str,
    storage: Storage,
    shape: &'a [usize],
    bytes: &'a [u8],
}

/// The hash of a file, as the module's documentation defines it.
fn hash<'a>(
    metadata: &BTreeMap<String, String>,
    contents: impl Iterator<Item = Content<'a>>,
) -> String {
    let mut hash = Sha256::new();
    let mut piece = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    for (name, value) in metadata {
        piece(name.as_bytes());
        piece(value.as_bytes());
    }
    for content in contents {
        piece(content.name.as_bytes());
        piece(content.storage.to_string().as_bytes());
        let dimensions = content.shape.iter().map(|&d| (d as u64).to_le_bytes());
        piece(&dimensions.collect::<Vec<_>>().concat());
        piece(content.bytes);
    }
    hex(&hash.finalize())
}

/// The patch in a file's tensors: each must belong to a layer, each factor have its pair.
fn read_patch(path: &Path, tensors: &Tensors, layers: usize) -> Result<Patch> {
    if layers > MOST_LAYERS {
        return Err(bad(path, format!("it claims {layers} layers")));
    }
    let mut patch = Patch {
        layers: vec![LayerPatch::new(); layers],
    };
    for (name, tensor) in tensors.iter() {
        let place = name.strip_prefix("model.layers.");
        let place = place
            .and_then(|rest| rest.split_once('.'))
            .and_then(|(layer, rest)| {
                let (module, kind) = rest.rsplit_once('.')?;
                Some((
                    patch.layers.get_mut(layer.parse::<usize>().ok()?)?,
                    module,
                    kind,
                ))
            });
        let Some((layer, module, kind)) = place else {
            return Err(no_part(path, name));
        };
        match kind {
            "lora_A" | "lora_B" => {
                let stem = &name[..name.len() - kind.len() - 1];
                let factor = |kind: &str| {
                    let name = format!("{stem}.{kind}");
                    let tensor = tensors.iter().find(|(known, _)| *known == name);
                    tensor.map(|(_, tensor)| (name, tensor))
                };
                let delta = low_rank(path, stem, factor("lora_B"), factor("lora_A"))?;
                let change = delta.map(TensorChange::LowRank);
                layer.extend(change.map(|change| (format!("{module}.weight"), change)));
            }
            SCALE | "bias" => {
                let vector = TensorChange::Vector(numbers::<1>(path, name, tensor)?);
                let kind = if kind == SCALE { "weight" } else { kind };
                layer.insert(format!("{module}.{kind}"), vector);
            }
            _ => return Err(no_part(path, name)),
        }
    }
    Ok(patch)
}

/// ΔW from its two factors, each with its name.
fn low_rank(
    path: &Path,
    name: &str,
    u: Option<(String, &Tensor)>,
    v: Option<(String, &Tensor)>,
) -> Result<Option<LowRank>> {
    let ((u_name, u), (v_name, v)) = match (u, v) {
        (None, None) => return Ok(None),
        (Some(u), Some(v)) => (u, v),
        (u, v) => {
            let there = u.or(v).map_or_else(String::new, |(there, _)| there);
            return Err(bad(path, format!("it has only one factor, {there}")));
        }
    };
    let matrix = |name: &str, tensor: &Tensor| -> Result<_> {
        let numbers = numbers::<2>(path, name, tensor)?;
        Ok(Matrix::from_vec(tensor.cols(), numbers))
    };
    let (u, v) = (matrix(&u_name, u)?, matrix(&v_name, v)?);
    if u.cols() != v.rows() {
        let (u, v) = (u.cols(), v.rows());
        let reason = format!("the factors of {name} have the ranks {u} and {v}");
        return Err(bad(path, reason));
    }
    Ok(Some(LowRank { u, v }))
}

/// The numbers of a tensor that must have `N` dimensions, none of them empty, and a type that is ever saved.
fn numbers<const N: usize>(path: &Path, name: &str, tensor: &Tensor) -> Result<Vec<f64>> {
    let (storage, shape) = (tensor.storage(), tensor.shape());
    if shape.len() != N || shape.contains(&0) {
        let reason = format!("its tensor {name} has the shape {shape:?}");
        return Err(bad(path, reason));
    }
    if !matches!(storage, Storage::F64 | Storage::F32) {
        let reason = format!("its tensor {name} is {storage}, not F64 or F32");
        return Err(bad(path, reason));
    }
    Ok(tensor.to_vec())
}

fn no_part(path: &Path, name: &str) -> Error {
    bad(
        path,
        format!("its tensor {} is no part of a patch", shown(name)),
    )
}

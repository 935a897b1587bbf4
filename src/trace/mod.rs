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
//!
//! A sequence with images has before these the names of its vision part, whose rows are not of tokens, for each image after
//! the other:
//!
//! | name | what |
//! |---|---|
//! | `pixel_values` | what goes into the tower, before it is rounded to the compute type, `[3 · image_size, image_size]` |
//! | `model.vision_tower.embeddings.patch_embedding` | the patches mapped, `[patches, hidden]` |
//! | `model.vision_tower.embeddings.position_embedding` | the learned positions, for all images once |
//! | `model.vision_tower.embeddings` | their sum |
//! | `model.vision_tower.encoder.layers.I.…` | as in a block of text, `self_attn.out_proj`, `mlp.fc1` and `mlp.fc2` |
//! | `model.vision_tower.post_layernorm` | after the last norm |
//! | `model.multi_modal_projector.avg_pool` | the mean of each square of patches, `[mm_tokens_per_image, hidden]` |
//! | `model.multi_modal_projector.mm_soft_emb_norm` | the same, normalised |
//! | `model.multi_modal_projector` | what takes the place of embeddings |
//! | `inputs_embeds` | x of the first layer: `model.embed_tokens` with that in its place |

mod error;
mod ids;
mod points;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use globset::{Glob, GlobSet, GlobSetBuilder};
use half::bf16;
use sha2::{Digest, Sha256};

pub use error::{Error, Result};
pub use ids::parse_ids;
pub use points::{Point, Rows, names};

use crate::checkpoint::{Layout, TensorsFile};
use crate::message::{IoError, hex};
use crate::model::{Images, Inputs, Model, Recorder, Session, Tokens};
use crate::tensor::{Dtype, Element, Matrix, Storage, encoded};

/// What is recorded of a pass: some tensors, the rows of the last tokens.
#[derive(Clone, Debug)]
pub struct Trace {
    wanted: GlobSet,
    /// The points of which a pass gives only the rows that it is asked for: the last norm and the logits.
    ends: [String; 2],
    last: usize,
    dtype: Dtype,
    cancel: Option<Arc<AtomicBool>>,
}

impl Trace {
    /// For a pass of `model` in compute type `dtype`: records the tensors whose names match
    /// one of `globs` (all where there is none), the rows of the last `last` tokens.
    ///
    /// # Errors
    ///
    /// [`Error::Glob`] for a pattern that is malformed or matches no name.
    pub fn new(model: &Model, dtype: Dtype, globs: &[String], last: usize) -> Result<Self> {
        let all = ["*".to_owned()];
        let globs = if globs.is_empty() { &all } else { globs };
        // A vision part that is broken is found when an image is to be seen.
        let points = Point::with_images(model).unwrap_or_else(|_| Point::all(model));
        let mut set = GlobSetBuilder::new();
        for pattern in globs {
            let fail = |why: String| Error::Glob {
                pattern: pattern.clone(),
                why,
            };
            let glob = Glob::new(pattern).map_err(|e| fail(e.kind().to_string()))?;
            let matcher = glob.compile_matcher();
            if !points.iter().any(|point| matcher.is_match(&point.name)) {
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
            ends: model.ends().map(str::to_owned),
            last,
            dtype,
            cancel: None,
        })
    }

    /// Gives up when `cancel` becomes true, as a [`Session`] does.
    #[must_use]
    pub fn with_cancel(mut self, cancel: Arc<AtomicBool>) -> Self {
        self.cancel = Some(cancel);
        self
    }

    /// The type of the recorded numbers: F64 for compute type f64 and F32 for the others, which is exact.
    fn storage(&self) -> Storage {
        match self.dtype {
            Dtype::F64 => Storage::F64,
            Dtype::F32 | Dtype::Bf16 => Storage::F32,
        }
    }

    /// The tensors that a pass over some inputs records, in forward order: name and shape, `[tokens, width]` where they are not
    /// of images.
    ///
    /// # Errors
    ///
    /// Those of [`Model::vision`], where there are images.
    pub fn shapes<'i>(
        &self,
        model: &Model,
        inputs: impl Into<Inputs<'i>>,
    ) -> Result<Vec<(String, [usize; 2])>> {
        let Inputs { ids, pixel_values } = inputs.into();
        let tokens = ids.len().min(self.last);
        let points = points_of(model, pixel_values)?.into_iter();
        let wanted = points.filter(|point| self.wanted.is_match(&point.name));
        let shape = |point: Point| {
            let rows = point.rows.of(tokens, pixel_values.len());
            (point.name, [rows, point.width])
        };
        Ok(wanted.map(shape).collect())
    }

    /// Runs some inputs through `model` and writes a safetensors file.
    ///
    /// Its metadata has `model`, `model_hash`, `dtype`, `backend`, `ids` (a JSON list of all tokens that were run), `images`
    /// (how many there were, unless there were none) and `version` (of this crate). Room for the file is taken before anything is computed, and rows are written as
    /// they come: no more is in memory than a pass needs, and a tensor's rows of one chunk of tokens.
    ///
    /// # Errors
    ///
    /// Those of [`Session::forward`], and [`Error::Io`]; no file appears then.
    pub fn write<'i>(
        &self,
        path: &Path,
        model: &Model,
        inputs: impl Into<Inputs<'i>>,
    ) -> Result<()> {
        let inputs = inputs.into();
        check(model, inputs)?;
        let shapes = self.shapes(model, inputs)?;
        let storage = self.storage();
        let layout = shapes.iter().map(|(name, shape)| Layout {
            name,
            dtype: storage.into(),
            shape,
            length: shape.iter().product::<usize>() * storage.block().bytes,
        });
        let layout: Vec<_> = layout.collect();
        let mut file = TensorsFile::create(path, &self.metadata(model, inputs), &layout)?;
        self.record(model, inputs, &mut |name, bytes| file.append(name, bytes))?;
        Ok(file.finish()?)
    }

    /// Runs some inputs through `model`, and gives the SHA-256 of every tensor's bytes as [`write`](Self::write) would write them,
    /// in forward order: two machines have the same bits if these are the same.
    ///
    /// # Errors
    ///
    /// Those of [`Session::forward`].
    pub fn hashes<'i>(
        &self,
        model: &Model,
        inputs: impl Into<Inputs<'i>>,
    ) -> Result<Vec<(String, String)>> {
        let inputs = inputs.into();
        check(model, inputs)?;
        let mut hashes: BTreeMap<String, Sha256> = BTreeMap::new();
        self.record(model, inputs, &mut |name, bytes| {
            hashes.entry(name.to_owned()).or_default().update(bytes);
            Ok(())
        })?;
        let shapes = self.shapes(model, inputs)?.into_iter();
        let named = shapes.map(|(name, _)| {
            let hash = hashes.remove(&name).unwrap_or_default().finalize();
            (name, hex(&hash))
        });
        Ok(named.collect())
    }

    /// Runs some inputs through `model`; `put` gets the bytes of each tensor's next rows.
    fn record(&self, model: &Model, inputs: Inputs<'_>, put: &mut Put<'_>) -> Result<()> {
        let points = points_of(model, inputs.pixel_values)?.into_iter();
        let of_images = points.filter(|point| point.rows != Rows::Tokens);
        let whole = of_images.map(|point| point.name);
        let mut sink = Sink {
            trace: self,
            whole: whole.chain(self.ends.clone()).collect(),
            skip: inputs.ids.len().saturating_sub(self.last),
            skipped: BTreeMap::new(),
            put,
            error: None,
        };
        match self.dtype {
            Dtype::F64 => self.run::<f64>(model, inputs, &mut sink)?,
            Dtype::F32 => self.run::<f32>(model, inputs, &mut sink)?,
            Dtype::Bf16 => self.run::<bf16>(model, inputs, &mut sink)?,
        }
        sink.error.map_or(Ok(()), |error| Err(error.into()))
    }

    fn run<E: Element>(
        &self,
        model: &Model,
        inputs: Inputs<'_>,
        sink: &mut Sink<'_, '_>,
    ) -> Result<()> {
        let images = self.images(model, inputs, sink)?;
        let mut session = Session::<E>::new(model);
        if let Some(cancel) = &self.cancel {
            session = session.with_cancel(Arc::clone(cancel));
        }
        let ends = self.ends.iter().any(|name| self.wanted.is_match(name));
        let logits = if ends { self.last } else { 0 };
        Ok(session.forward_recorded(Tokens::new(inputs.ids, images.as_ref()), logits, sink)?)
    }

    fn images<E: Element>(
        &self,
        model: &Model,
        inputs: Inputs<'_>,
        sink: &mut Sink<'_, '_>,
    ) -> Result<Option<Images<E>>> {
        if inputs.pixel_values.is_empty() {
            return Ok(None);
        }
        let mut vision = model.vision()?;
        if let Some(cancel) = &self.cancel {
            vision = vision.with_cancel(Arc::clone(cancel));
        }
        let features = vision.features(inputs.pixel_values, Some(sink))?;
        Ok(Some(Images::new(vision.config(), inputs.ids, features)?))
    }

    fn metadata(&self, model: &Model, inputs: Inputs<'_>) -> BTreeMap<String, String> {
        let metadata = [
            ("model", model.checkpoint().name().to_owned()),
            ("model_hash", model.checkpoint().tensors().content_hash()),
            ("dtype", self.dtype.to_string()),
            ("backend", model.backend().to_string()),
            ("ids", format!("{:?}", inputs.ids)),
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ];
        let images = match inputs.pixel_values.len() {
            0 => None,
            images => Some(("images", images.to_string())),
        };
        let metadata = metadata.into_iter().chain(images);
        metadata
            .map(|(key, value)| (key.to_owned(), value))
            .collect()
    }
}

/// The points of a pass over a text, with images where there are some.
fn points_of(model: &Model, pixel_values: &[&[f32]]) -> Result<Vec<Point>> {
    Ok(match pixel_values {
        [] => Point::all(model),
        _ => Point::with_images(model)?,
    })
}

/// Refuses inputs that the model does not take, before a file is begun.
fn check(model: &Model, inputs: Inputs<'_>) -> Result<()> {
    Ok(model.check_with_images(inputs.ids, &inputs.spans(model)?, 0)?)
}

/// Takes the bytes of a tensor's next rows.
type Put<'p> = dyn FnMut(&str, &[u8]) -> Result<(), IoError> + 'p;

/// Puts what a pass gives where it belongs.
struct Sink<'t, 'p> {
    trace: &'t Trace,
    /// The tensors of which every row that comes is recorded.
    whole: BTreeSet<String>,
    /// The first rows of every other tensor, which are not recorded.
    skip: usize,
    /// How many of them are gone by.
    skipped: BTreeMap<String, usize>,
    put: &'t mut Put<'p>,
    /// What went wrong; nothing is written after it.
    error: Option<IoError>,
}

impl Recorder for Sink<'_, '_> {
    fn wants(&self, name: &str) -> bool {
        self.error.is_none() && self.trace.wanted.is_match(name)
    }

    fn record(&mut self, name: &str, rows: &Matrix<f64>) {
        let mut first = 0;
        if !self.whole.contains(name) {
            let skipped = self.skipped.entry(name.to_owned()).or_default();
            first = (self.skip - *skipped).min(rows.rows());
            *skipped += first;
        }
        let numbers = &rows.as_slice()[first * rows.cols()..];
        let storage = self.trace.storage();
        let bytes = encoded(storage, numbers);
        self.error = (self.put)(name, &bytes).err();
    }
}

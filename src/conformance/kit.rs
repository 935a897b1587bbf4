//! Writing the kit.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::error::Result;
use super::{CASES, Case};
use crate::checkpoint::{Access, Checkpoint};
use crate::compare::{Floor, Recording, Rules, floors};
use crate::message::{IoError, hex};
use crate::model::{Inputs, Model, ModelOptions};
use crate::output::write_dir;
use crate::tensor::Dtype;
use crate::trace::Trace;
use crate::vision::{Picture, PixelValues, Processor};

/// What the kit says of itself.
#[derive(Serialize)]
struct Manifest {
    version: &'static str,
    cases: Vec<Entry>,
}

/// A case in the manifest.
#[derive(Serialize)]
struct Entry {
    name: &'static str,
    feature: &'static str,
    tokens: usize,
    model_hash: String,
    /// SHA-256 of every file, relative to the kit.
    files: BTreeMap<String, String>,
    /// What f32 and bf16 are off from f64, by tensor.
    noise_floors: BTreeMap<String, Floor>,
}

/// The file of a case's picture.
const PICTURE: &str = "picture.png";

const DTYPES: [Dtype; 3] = [Dtype::F64, Dtype::F32, Dtype::Bf16];

const README: &str = "\
# Conformance kit for engines

Each folder is a case: a small checkpoint in `model`, the token ids in `ids.json`, and recordings of every tensor of a pass
in `f64.safetensors`, `f32.safetensors` and `bf16.safetensors`. `manifest.json` says what each case is for, and has
hashes and noise floors.

Run each model on its ids, all tokens at once from position 0, and record what you can under the names of Hugging Face's
modules (or those of llama.cpp, candle or TransformerLens): at least the logits of every token, `lm_head`. A case with a
`picture.png` shows it at the image tokens of its ids; it has the size that the model takes in, and what becomes of it
before the model is `pixel_values` of the recordings. Put what you record into a folder of its own as
CASE/f32.safetensors or CASE/bf16.safetensors (or .npz, or a folder of .npy files), then

    context-patch conformance --check RESULTS

A single case: context-patch compare CASE/f64.safetensors RESULTS/CASE/f32.safetensors
";

/// Writes the kit as the new folder `dir`; `on_case` is called after each case.
///
/// # Errors
///
/// [`Error::Io`](super::Error::Io).
pub fn write(dir: &Path, mut on_case: impl FnMut()) -> Result<()> {
    write_dir(dir, |dir| {
        let mut cases = Vec::new();
        for case in &CASES {
            let folder = dir.join(case.name);
            write_case(case, &folder)?;
            cases.push(entry(case, dir, &folder)?);
            on_case();
        }
        let manifest = Manifest {
            version: env!("CARGO_PKG_VERSION"),
            cases,
        };
        let path = dir.join("manifest.json");
        let json = serde_json::to_vec_pretty(&manifest).map_err(std::io::Error::from);
        put(&path, &json.map_err(IoError::at("write", &path))?)?;
        Ok(put(&dir.join("README.md"), README.as_bytes())?)
    })
}

/// A case's checkpoint, ids and recordings.
pub(super) fn write_case(case: &Case, folder: &Path) -> Result<()> {
    let model = folder.join("model");
    // Not what is above them: that may be gone because the program is about to end.
    for new in [folder, &model] {
        fs::create_dir(new).map_err(IoError::at("write", new))?;
    }
    for (name, bytes) in case.files {
        put(&model.join(name), bytes)?;
    }
    let ids = case.ids();
    put(&folder.join("ids.json"), format!("{ids:?}\n").as_bytes())?;
    let model = open(folder)?;
    let images = images(case, folder, &model, &ids)?;
    let pixel_values: Vec<_> = images.iter().map(|image| &*image.values).collect();
    let inputs = Inputs {
        ids: &ids,
        pixel_values: &pixel_values,
    };
    for dtype in DTYPES {
        let trace = Trace::new(&model, dtype, &[], usize::MAX)?;
        trace.write(&recording(folder, dtype), &model, inputs)?;
    }
    Ok(())
}

/// What the model reads of a case's picture, which is written beside the ids.
fn images(case: &Case, folder: &Path, model: &Model, ids: &[u32]) -> Result<Vec<PixelValues>> {
    let Some(shown) = case.picture else {
        return Ok(Vec::new());
    };
    let path = folder.join(PICTURE);
    put(&path, shown.png)?;
    let picture = Picture::decode(&path, shown.png)?;
    let processor = Processor::of(model.checkpoint())?;
    Ok(processor.pixel_values(ids, &[picture])?)
}

/// The model of a case. It is called after its folder, which stands beside the recordings.
pub(super) fn open(folder: &Path) -> Result<Model> {
    let checkpoint = Checkpoint::open_dir("model", &folder.join("model"), Access::Read)?;
    Ok(Model::from_checkpoint(checkpoint, ModelOptions::default())?)
}

/// Where a case's recording is.
pub(super) fn recording(folder: &Path, dtype: Dtype) -> std::path::PathBuf {
    folder.join(format!("{dtype}.safetensors"))
}

fn entry(case: &Case, dir: &Path, folder: &Path) -> Result<Entry> {
    let model = open(folder)?;
    let reference = recording(folder, Dtype::F64);
    let reference = Recording::open(&reference, &model, &Rules::default())?;
    let mut files = BTreeMap::new();
    let names = case.files.iter().map(|(name, _)| format!("model/{name}"));
    let recordings = DTYPES.map(|dtype| format!("{dtype}.safetensors"));
    let picture = case.picture.map(|_| PICTURE.to_owned());
    let others = recordings.into_iter().chain(["ids.json".to_owned()]);
    let others = others.chain(picture);
    for name in names.chain(others) {
        let path = folder.join(&name);
        let bytes = fs::read(&path).map_err(IoError::at("read", &path))?;
        let relative = path.strip_prefix(dir).unwrap_or(&path);
        let hash = Sha256::digest(bytes);
        files.insert(relative.display().to_string(), hex(&hash));
    }
    Ok(Entry {
        name: case.name,
        feature: case.feature,
        tokens: case.tokens,
        model_hash: model.checkpoint().tensors().content_hash(),
        files,
        noise_floors: floors(&model, &reference)?,
    })
}

fn put(path: &Path, bytes: &[u8]) -> Result<(), IoError> {
    fs::write(path, bytes).map_err(IoError::at("write", path))
}

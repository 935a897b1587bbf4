//! The small model that is built in, which every command takes as `--model tiny`.

use std::path::Path;

use bytes::Bytes;
use context_patch::Result;
use context_patch::checkpoint::{Access, Checkpoint};
use context_patch::model::{Model, ModelOptions};

/// What the model is called. A folder of that name wins.
pub(super) const TINY: &str = "tiny";

macro_rules! files {
    ($($name:literal),*) => {
        [$(($name, Bytes::from_static(include_bytes!(concat!("../../reference/tiny/", $name))))),*]
    };
}

fn is_meant(model: &str) -> bool {
    model == TINY && !Path::new(model).exists()
}

/// The model that is built in.
pub(super) fn tiny(options: ModelOptions) -> Result<Model> {
    Ok(Model::from_checkpoint(tiny_checkpoint()?, options)?)
}

fn tiny_checkpoint() -> Result<Checkpoint> {
    let files = files!(
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json"
    );
    Ok(Checkpoint::from_files(TINY, files)?)
}

/// Opens what a user calls `model`; the built-in one has no revisions.
pub(super) fn open(model: &str, revision: Option<&str>, options: ModelOptions) -> Result<Model> {
    if is_meant(model) && revision.is_none() {
        return tiny(options);
    }
    let checkpoint = Checkpoint::open_revision(model, revision, options.access)?;
    Ok(Model::from_checkpoint(checkpoint, options)?)
}

/// The checkpoint of what a user calls `model`.
pub(super) fn open_checkpoint(model: &str) -> Result<Checkpoint> {
    if is_meant(model) {
        tiny_checkpoint()
    } else {
        Ok(Checkpoint::open(model, Access::Mapped)?)
    }
}

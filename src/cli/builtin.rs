//! The small models that are built in, which every command takes as `--model tiny` and `--model tiny-vision`.

use std::path::Path;

use bytes::Bytes;
use context_patch::Result;
use context_patch::checkpoint::{Access, Checkpoint};
use context_patch::model::{Model, ModelOptions};

/// What the model is called. A folder of that name wins.
pub(super) const TINY: &str = "tiny";

/// What the one that sees is called.
const TINY_VISION: &str = "tiny-vision";

/// The picture of the demonstration.
pub(super) const PICTURE: &[u8] = include_bytes!("../../reference/tiny-vision/examples/00.png");

macro_rules! files {
    ($folder:literal, $($name:literal),*) => {
        [$(($name, Bytes::from_static(include_bytes!(concat!("../../reference/", $folder, "/", $name))))),*]
    };
}

/// The checkpoint that is built in under this name, if it is one and there is no folder of the name.
fn built_in(model: &str) -> Option<Result<Checkpoint>> {
    let checkpoint = match model {
        _ if Path::new(model).exists() => return None,
        TINY => tiny_checkpoint(),
        TINY_VISION => vision_checkpoint(),
        _ => return None,
    };
    Some(checkpoint)
}

/// The model that is built in.
pub(super) fn tiny(options: ModelOptions) -> Result<Model> {
    Ok(Model::from_checkpoint(tiny_checkpoint()?, options)?)
}

/// The model that sees.
pub(super) fn tiny_vision(options: ModelOptions) -> Result<Model> {
    Ok(Model::from_checkpoint(vision_checkpoint()?, options)?)
}

fn tiny_checkpoint() -> Result<Checkpoint> {
    let files = files!(
        "tiny",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json"
    );
    Ok(Checkpoint::from_files(TINY, files)?)
}

fn vision_checkpoint() -> Result<Checkpoint> {
    let files = files!(
        "tiny-vision",
        "chat_template.json",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json"
    );
    Ok(Checkpoint::from_files(TINY_VISION, files)?)
}

/// Opens what a user calls `model`; the built-in ones have no revisions.
pub(super) fn open(model: &str, revision: Option<&str>, options: ModelOptions) -> Result<Model> {
    let built_in = revision.is_none().then(|| built_in(model)).flatten();
    let checkpoint = match built_in {
        Some(checkpoint) => checkpoint?,
        None => Checkpoint::open_revision(model, revision, options.access)?,
    };
    Ok(Model::from_checkpoint(checkpoint, options)?)
}

/// The checkpoint of what a user calls `model`.
pub(super) fn open_checkpoint(model: &str) -> Result<Checkpoint> {
    match built_in(model) {
        Some(checkpoint) => checkpoint,
        None => Ok(Checkpoint::open(model, Access::Mapped)?),
    }
}

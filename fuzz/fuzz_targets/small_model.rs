//! A small model, read once.

use std::sync::LazyLock;

use bytes::Bytes;
use context_patch::model::ModelOptions;
use context_patch::{Checkpoint, Model};

pub static SMALL: LazyLock<Model> = LazyLock::new(|| {
    let files: [(&str, &[u8]); 2] = [
        (
            "config.json",
            include_bytes!("../../reference/checkpoints/window-3/config.json"),
        ),
        (
            "model.safetensors",
            include_bytes!("../../reference/checkpoints/window-3/model.safetensors"),
        ),
    ];
    let files = files.map(|(name, data)| (name, Bytes::from_static(data)));
    let checkpoint = Checkpoint::from_files("window-3", files).unwrap();
    Model::from_checkpoint(checkpoint, ModelOptions::default()).unwrap()
});

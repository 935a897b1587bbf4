//! Any bytes as a GGUF file: a model of it and its tokenizer, or an error of one line.
#![no_main]

use bytes::Bytes;
use context_patch::model::ModelOptions;
use context_patch::{Checkpoint, Model, Session};
use libfuzzer_sys::fuzz_target;

fn is_one_line(error: impl std::fmt::Display) {
    assert_eq!(error.to_string().lines().count(), 1, "{error}");
}

fuzz_target!(|file: &[u8]| {
    let checkpoint = match Checkpoint::from_gguf("model.gguf", Bytes::copy_from_slice(file)) {
        Ok(checkpoint) => checkpoint,
        Err(error) => return is_one_line(error),
    };
    let stored: usize = checkpoint
        .tensors()
        .iter()
        .map(|(_, tensor)| tensor.bytes().len())
        .sum();
    // A copy of each matrix in another order, and norms in f64, at most.
    assert!(stored <= 2 * file.len());
    if let Err(error) = checkpoint.tokenizer() {
        is_one_line(error);
    }
    if let Err(error) = checkpoint.chat_template() {
        is_one_line(error);
    }
    match Model::from_checkpoint(checkpoint, ModelOptions::default()) {
        Ok(model) if model.config().num_hidden_layers <= 4 => {
            if let Err(error) = Session::<f32>::new(&model).forward(&[0, 0], 1) {
                is_one_line(error);
            }
        }
        Ok(_) => {}
        Err(error) => is_one_line(error),
    }
});

//! Any bytes as a recording of each kind: tensors that can be read, or an error of one line.
#![no_main]

mod small_model;

use std::path::Path;

use bytes::Bytes;
use context_patch::compare::{Recording, Rules};
use libfuzzer_sys::fuzz_target;
use small_model::SMALL;

fuzz_target!(|file: &[u8]| {
    let data = Bytes::copy_from_slice(file);
    for name in ["a.safetensors", "a.npz", "lm_head.npy"] {
        let opened = Recording::parse(Path::new(name), &data, &SMALL, &Rules::default());
        let read = opened.and_then(|recording| {
            recording.names().try_for_each(|name| {
                let rows = recording.read(name)?.map_or(0, |matrix| matrix.rows());
                assert!(0 < rows && rows <= file.len());
                Ok(())
            })
        });
        if let Err(error) = read {
            assert_eq!(error.to_string().lines().count(), 1);
        }
    }
});

//! Any bytes as a safetensors file: tensors that lie inside it, or an error of one line.
#![no_main]

use std::path::Path;

use bytes::Bytes;
use context_patch::checkpoint::Tensors;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    match Tensors::parse(Path::new("model.safetensors"), Bytes::copy_from_slice(file)) {
        Ok(tensors) => {
            let stored: usize = tensors.iter().map(|(_, tensor)| tensor.bytes().len()).sum();
            assert!(stored <= file.len());
            for (name, tensor) in tensors.iter() {
                assert_eq!(
                    tensor.to_vec::<f64>().len(),
                    tensor.shape().iter().product::<usize>()
                );
                assert!(tensors.get(name, tensor.shape()).is_ok());
            }
        }
        Err(error) => assert_eq!(error.to_string().lines().count(), 1),
    }
});

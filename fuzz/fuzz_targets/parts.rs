//! A patch file taken apart, shared by the fuzz target and `tests/patch_files.rs`. Nothing here uses the crate's own
//! reading or writing: the hash is the one that its documentation describes.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The metadata and the tensors of a safetensors file.
#[derive(Clone, Debug)]
pub struct Parts {
    pub metadata: BTreeMap<String, String>,
    /// dtype, shape and bytes.
    pub tensors: BTreeMap<String, (String, Vec<usize>, Vec<u8>)>,
}

impl Parts {
    /// Those of a sound file.
    #[allow(clippy::unwrap_used, dead_code, reason = "only tests take files apart")]
    pub fn of(file: &[u8]) -> Self {
        let (length, rest) = file.split_first_chunk::<8>().unwrap();
        let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
        let mut header: BTreeMap<String, Value> = serde_json::from_slice(header).unwrap();
        let metadata = header.remove("__metadata__").unwrap();
        let tensors = header.into_iter().map(|(name, entry)| {
            let [start, end]: [usize; 2] =
                serde_json::from_value(entry["data_offsets"].clone()).unwrap();
            let dtype = entry["dtype"].as_str().unwrap().to_owned();
            let shape = serde_json::from_value(entry["shape"].clone()).unwrap();
            (name, (dtype, shape, data[start..end].to_vec()))
        });
        Self {
            metadata: serde_json::from_value(metadata).unwrap(),
            tensors: tensors.collect(),
        }
    }

    /// Sets the hash that fits.
    #[allow(dead_code, reason = "files of weights have none")]
    pub fn sign(&mut self) {
        self.metadata.remove("hash");
        let mut all = Vec::new();
        let mut piece = |bytes: &[u8]| {
            all.extend((bytes.len() as u64).to_le_bytes());
            all.extend(bytes);
        };
        for (name, value) in &self.metadata {
            piece(name.as_bytes());
            piece(value.as_bytes());
        }
        for (name, (dtype, shape, bytes)) in &self.tensors {
            piece(name.as_bytes());
            piece(dtype.as_bytes());
            let shape: Vec<_> = shape.iter().map(|&d| (d as u64).to_le_bytes()).collect();
            piece(&shape.concat());
            piece(bytes);
        }
        let hash = Sha256::digest(&all);
        let hash = hash.iter().map(|b| format!("{b:02x}")).collect();
        self.metadata.insert("hash".into(), hash);
    }

    /// The file.
    pub fn file(&self) -> Vec<u8> {
        let mut header = BTreeMap::from([("__metadata__".to_owned(), json!(self.metadata))]);
        let mut data = Vec::new();
        for (name, (dtype, shape, bytes)) in &self.tensors {
            let offsets = [data.len(), data.len() + bytes.len()];
            data.extend(bytes);
            let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": offsets});
            header.insert(name.clone(), entry);
        }
        let header = json!(header).to_string();
        let length = (header.len() as u64).to_le_bytes();
        [&length, header.as_bytes(), &data].concat()
    }

    /// Changes a field that is JSON.
    #[allow(clippy::unwrap_used, dead_code, reason = "only tests change fields")]
    pub fn json(&mut self, field: &str, change: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_str(&self.metadata[field]).unwrap();
        change(&mut value);
        self.metadata.insert(field.into(), value.to_string());
    }
}

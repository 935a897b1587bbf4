//! Writing safetensors.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use crate::error::Result;
use crate::output;
use crate::tensor::Storage;

/// A tensor to be written.
#[derive(Clone, Debug)]
pub struct TensorData<'a> {
    /// The type of its numbers.
    pub storage: Storage,
    /// Its dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Its numbers, little-endian, row after row; as many as type and shape say.
    pub bytes: Cow<'a, [u8]>,
}

/// Writes a safetensors file: the same tensors and metadata always give the same bytes.
///
/// Not through the safetensors crate, which would copy all of it and give the metadata in another order
/// each time.
///
/// # Errors
///
/// [`Error::Io`](crate::Error::Io).
pub fn write_safetensors(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: &BTreeMap<String, TensorData<'_>>,
) -> Result<()> {
    let header = header(metadata, tensors);
    output::write_file(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        tensors
            .values()
            .try_for_each(|tensor| out.write_all(&tensor.bytes))
    })
}

/// Where each tensor lies, filled with spaces to whole 8 bytes.
fn header(
    metadata: &BTreeMap<String, String>,
    tensors: &BTreeMap<String, TensorData<'_>>,
) -> Vec<u8> {
    let mut entries = BTreeMap::from([("__metadata__", serde_json::json!(metadata))]);
    let mut offset = 0;
    for (name, tensor) in tensors {
        let end = offset + tensor.bytes.len();
        let entry = serde_json::json!({
            "dtype": tensor.storage.to_string(),
            "shape": tensor.shape,
            "data_offsets": [offset, end],
        });
        entries.insert(name, entry);
        offset = end;
    }
    let mut header = serde_json::json!(entries).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    header
}

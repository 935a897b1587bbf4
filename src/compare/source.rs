//! What lies in a recording's files: tensors under the names of the engine, ids, metadata.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;

use super::error::{Error, Result};
use super::npy::{self, Array};
use crate::checkpoint::{self, Access};
use crate::message::{IoError, one_line};
use crate::tensor::Tensor;

/// The name of the array that holds the ids, in a folder or an archive.
const IDS: &str = "ids";

/// Everything of a recording, before its names are looked at.
#[derive(Default)]
pub(super) struct Source {
    /// By the engine's names.
    pub(super) tensors: BTreeMap<String, Found>,
    pub(super) ids: Option<Vec<u32>>,
    pub(super) metadata: BTreeMap<String, String>,
}

/// A tensor of a file.
pub(super) struct Found {
    /// The tensor, or the name of a type that is not read.
    pub(super) numbers: Result<Tensor, String>,
    /// Whether the file has the axes in the other order than the tensor.
    pub(super) reversed: bool,
}

impl Source {
    /// A file of any kind, or a folder.
    pub(super) fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Self::open_folder(path);
        }
        Self::parse(path, &checkpoint::load(path, Access::Mapped)?)
    }

    /// The `.npy` files of a folder, by their names without the ending.
    fn open_folder(folder: &Path) -> Result<Self> {
        let mut source = Self::default();
        for entry in folder.read_dir().map_err(IoError::at("read", folder))? {
            let path = entry.map_err(IoError::at("read", folder))?.path();
            let is_array = path.extension().is_some_and(|ending| ending == "npy");
            if let (true, Some(name)) = (is_array, path.file_stem()) {
                let data = checkpoint::load(&path, Access::Mapped)?;
                source.add_array(&path, &name.to_string_lossy(), &data)?;
            }
        }
        if source.tensors.is_empty() {
            let reason = "the folder has no .npy files of tensors; give a recording".into();
            return Err(file_error(folder)(reason));
        }
        Ok(source)
    }

    /// A file with the content `data`, of the kind that its ending says.
    pub(super) fn parse(path: &Path, data: &Bytes) -> Result<Self> {
        let mut source = Self::default();
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("npz") => {
                for (name, data) in npy::unpack(data).map_err(file_error(path))? {
                    source.add_array(path, &name, &data)?;
                }
            }
            Some("npy") => {
                let name = path.file_stem().unwrap_or_default().to_string_lossy();
                source.add_array(path, &name, data)?;
            }
            // Archives and pickles, which torch.save writes.
            _ if data.starts_with(b"PK\x03\x04") || data.starts_with(b"\x80\x02") => {
                let reason = "it is a file of torch.save; write the same tensors with safetensors.torch.save_file";
                return Err(file_error(path)(reason.into()));
            }
            _ => {
                let (tensors, metadata) = checkpoint::list(path, data)?;
                let found = |(name, numbers)| {
                    (
                        name,
                        Found {
                            numbers,
                            reversed: false,
                        },
                    )
                };
                source.tensors = tensors.into_iter().map(found).collect();
                source.metadata = metadata;
                if let Some(ids) = source.metadata.get("ids") {
                    source.ids = Some(crate::trace::parse_ids(path, ids.as_bytes())?);
                }
            }
        }
        Ok(source)
    }

    /// Adds the array in the content `data` of a `.npy` file.
    fn add_array(&mut self, path: &Path, name: &str, data: &Bytes) -> Result<()> {
        let wrong = |reason: String| file_error(path)(format!("array {name}: {reason}"));
        let (array, reversed) = Array::parse(data).map_err(wrong)?;
        if name == IDS {
            self.ids = Some(array.ids().map_err(wrong)?);
            return Ok(());
        }
        let numbers = array.numbers;
        let found = Found { numbers, reversed };
        match self.tensors.insert(name.into(), found) {
            None => Ok(()),
            Some(_) => Err(wrong("it is there twice; leave one out".into())),
        }
    }
}

/// What is wrong with the file `path`, on one line.
fn file_error(path: &Path) -> impl Fn(String) -> Error {
    let path = path.to_owned();
    move |reason| Error::RecordingFile {
        path: path.clone(),
        reason: one_line(&reason, 300),
    }
}

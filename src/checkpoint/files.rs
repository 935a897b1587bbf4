//! Where a checkpoint's files are: in a directory, in memory, or in what a GGUF file says.

use std::collections::BTreeMap;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::error::Result;
use crate::message::IoError;

/// What stands for the files of a checkpoint without being a folder.
pub(super) trait Source: fmt::Debug + Send + Sync {
    /// What messages name.
    fn path(&self) -> &Path;
    /// The content of the file `name`, or `None` where there would be none.
    fn file(&self, name: &str) -> Result<Option<Bytes>>;
}

/// The files of one checkpoint.
#[derive(Clone, Debug)]
pub(super) enum Files {
    /// On disk.
    Dir(PathBuf),
    /// In memory, under a name that stands for the directory.
    Memory {
        name: PathBuf,
        files: BTreeMap<String, Bytes>,
    },
    /// What something else, a GGUF file, says in their place.
    Of(Arc<dyn Source>),
}

impl Files {
    /// The path of `file` for messages; the directory itself for an empty name.
    pub(super) fn path(&self, file: &str) -> PathBuf {
        match (self, file) {
            (Self::Of(source), _) => source.path().into(),
            (Self::Dir(dir) | Self::Memory { name: dir, .. }, "") => dir.clone(),
            (Self::Dir(dir) | Self::Memory { name: dir, .. }, file) => dir.join(file),
        }
    }

    /// The content of `file`, or `None` where there is no such file.
    pub(super) fn read(&self, file: &str) -> Result<Option<Bytes>> {
        match self {
            Self::Memory { files, .. } => Ok(files.get(file).cloned()),
            Self::Of(source) => source.file(file),
            Self::Dir(_) => {
                let path = self.path(file);
                match std::fs::read(&path) {
                    Ok(data) => Ok(Some(data.into())),
                    Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
                    Err(e) => Err(IoError::at("read", path)(e).into()),
                }
            }
        }
    }

    /// The names of the files in `folder`, sorted; none where there is no such folder.
    pub(super) fn list(&self, folder: &str) -> Result<Vec<String>> {
        let mut names: Vec<String> = match self {
            Self::Memory { files, .. } => {
                let within =
                    |name: &String| Some(name.strip_prefix(folder)?.strip_prefix('/')?.into());
                files.keys().filter_map(within).collect()
            }
            Self::Of(_) => Vec::new(),
            Self::Dir(_) => {
                let path = self.path(folder);
                let entries = match std::fs::read_dir(&path) {
                    Ok(entries) => entries,
                    Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
                    Err(e) => return Err(IoError::at("read", path)(e).into()),
                };
                let entries: std::io::Result<Vec<_>> = entries.collect();
                let entries = entries.map_err(IoError::at("read", path))?;
                let name = |entry: std::fs::DirEntry| entry.file_name().into_string().ok();
                entries.into_iter().filter_map(name).collect()
            }
        };
        names.sort();
        Ok(names)
    }
}

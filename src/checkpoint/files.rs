//! Where a checkpoint's files are: in a directory, or in memory.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;

use bytes::Bytes;

use super::error::Result;
use crate::message::IoError;

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
}

impl Files {
    /// The path of `file` for messages; the directory itself for an empty name.
    pub(super) fn path(&self, file: &str) -> PathBuf {
        let (Self::Dir(dir) | Self::Memory { name: dir, .. }) = self;
        match file {
            "" => dir.clone(),
            file => dir.join(file),
        }
    }

    /// The content of `file`, or `None` where there is no such file.
    pub(super) fn read(&self, file: &str) -> Result<Option<Bytes>> {
        match self {
            Self::Memory { files, .. } => Ok(files.get(file).cloned()),
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
}

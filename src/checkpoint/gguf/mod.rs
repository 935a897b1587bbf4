//! GGUF files, read as the checkpoint that Hugging Face would have of the same model: its config.json, its tokenizer's files, and
//! its tensors by their names there, as they are stored.

mod architecture;
mod config;
mod cursor;
mod described;
mod export;
mod header;
mod metadata;
mod outgoing;
mod rope_factors;
mod rows;
mod split;
mod tensors;
mod tokenizer;
mod types;
mod writer;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::error::Result;
use super::files::Source;
use super::safetensors::{Access, load};
use super::tokenizer::Bpe;
use crate::message::IoError;
use crate::tensor::Tensor;
use architecture::Architecture;
use header::Parts;
use metadata::Metadata;
pub(crate) use writer::{Layout, Values, write_gguf};

/// A model's file, or all files of one that is split.
#[derive(Clone, Debug)]
pub(super) struct Gguf {
    metadata: Metadata,
    architecture: &'static Architecture,
    /// The tensors by the names and in the orders of the files, and the file that each is in.
    tensors: Vec<Placed>,
}

/// A tensor and its place.
#[derive(Clone, Debug)]
struct Placed {
    name: String,
    tensor: Tensor,
    file: Arc<Path>,
}

/// Whether `path` is a file that begins as GGUF files do.
///
/// # Errors
///
/// [`Error::Io`](super::Error::Io) for a file that cannot be read.
pub(super) fn is_gguf(path: &Path) -> Result<bool> {
    if !path.is_file() {
        return Ok(false);
    }
    let mut begin = [0; header::MAGIC.len()];
    let mut file = File::open(path).map_err(IoError::at("read", path))?;
    let whole = file.read_exact(&mut begin).is_ok();
    Ok(whole && begin == header::MAGIC)
}

/// The files of the checkpoint that Hugging Face would have; messages name the file, or the first of several.
impl Source for Gguf {
    fn path(&self) -> &Path {
        self.metadata.path()
    }

    fn file(&self, name: &str) -> Result<Option<Bytes>> {
        let json = |map| Some(serde_json::Value::Object(map).to_string().into());
        match name {
            "config.json" => Ok(json(self.config()?)),
            "generation_config.json" => {
                let ids = tokenizer::end_tokens(&self.metadata)?;
                let ids = (!ids.is_empty()).then_some(ids);
                Ok(json(
                    [("eos_token_id".into(), ids.into())].into_iter().collect(),
                ))
            }
            "tokenizer.json" => tokenizer::tokenizer_json(&self.metadata),
            "tokenizer_config.json" => Ok(json(tokenizer::tokenizer_config(&self.metadata)?)),
            _ => Ok(None),
        }
    }
}

impl Gguf {
    /// Opens `file`, and where it is the first of several the others beside it.
    ///
    /// # Errors
    ///
    /// Those of [`parse`](Self::parse), and [`Error::Io`](super::Error::Io).
    pub(super) fn open(file: &Path, access: Access) -> Result<Self> {
        Self::of_files(file, load(file, access)?, |path| load(path, access))
    }

    /// A model in the content `data` of one file; `file` only serves the messages.
    ///
    /// # Errors
    ///
    /// [`Error::NotGguf`](super::Error::NotGguf),
    /// [`Error::FieldType`](super::Error::FieldType) and [`Error::FieldValue`](super::Error::FieldValue).
    pub(super) fn parse(file: &Path, data: Bytes) -> Result<Self> {
        let alone = |path: &Path| {
            Err(super::Error::NotGguf {
                path: path.into(),
                reason: "a model in memory is one file".into(),
            })
        };
        Self::of_files(file, data, alone)
    }

    fn of_files(file: &Path, data: Bytes, load: impl Fn(&Path) -> Result<Bytes>) -> Result<Self> {
        let Parts { metadata, tensors } = Parts::read(file, &data)?;
        let placed = |path: &Path, tensors: Vec<(String, Tensor)>| {
            let file: Arc<Path> = path.into();
            let place = move |(name, tensor)| Placed {
                name,
                tensor,
                file: file.clone(),
            };
            tensors.into_iter().map(place).collect::<Vec<_>>()
        };
        let mut tensors = placed(file, tensors);
        for path in split::others(file, &metadata)? {
            let parts = Parts::read(&path, &load(&path)?)?;
            split::check(&metadata, &parts.metadata)?;
            tensors.extend(placed(&path, parts.tensors));
        }
        split::check_count(&metadata, tensors.len())?;
        let has = |name: &str| tensors.iter().any(|placed| placed.name == name);
        Ok(Self {
            architecture: Architecture::of(&metadata, has)?,
            metadata,
            tensors,
        })
    }

    /// All values as the files have them, but for the division into several files and the alignment.
    fn copied_values(&self) -> Values {
        let mut values = Values::default();
        for (key, written) in self.metadata.written() {
            if !key.starts_with("split.") && key != header::ALIGNMENT_KEY {
                values.copied(written);
            }
        }
        values
    }

    /// The tokenizer that tokenizer.json would have, without that being written.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`](super::Error::Tokenizer), also where there is none, and those of [`file`](Self::file).
    pub(super) fn tokenizer(&self) -> Result<Bpe> {
        let found = tokenizer::tokenizer(&self.metadata)?;
        found.ok_or_else(|| super::Error::Tokenizer {
            path: self.path().into(),
            reason: "it has no tokenizer; give token ids instead of text".into(),
        })
    }

    fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors
            .iter()
            .map(|placed| (placed.name.as_str(), &placed.tensor))
    }

    /// Whether there is a tensor of this name.
    fn has(&self, name: &str) -> bool {
        self.tensors.iter().any(|placed| placed.name == name)
    }
}

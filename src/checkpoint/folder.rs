//! A checkpoint written as a Hugging Face folder.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::error::Result;
use super::fields::parse_object;
use super::safetensors::SINGLE;
use super::writer::{Layout, TensorsFile};
use super::{Checkpoint, Error};
use crate::message::IoError;
use crate::output;
use crate::tensor::{Storage, Tensor, encode};

/// What belongs to a checkpoint beside its weights, where it is there.
const FILES: [&str; 13] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "LICENSE",
    "NOTICE",
];

/// Numbers that are converted at once.
const CONVERTED: usize = 1 << 20;

/// Tensors of one type that were given another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Converted {
    /// As they were stored.
    pub from: Storage,
    /// As they are stored now.
    pub to: Storage,
    /// How many tensors.
    pub tensors: usize,
}

impl Checkpoint {
    /// Writes what belongs to the checkpoint beside its weights into the folder `dir`.
    pub(crate) fn write_files(&self, dir: &Path) -> Result<()> {
        for name in FILES {
            if let Some(content) = self.file(name)? {
                write(&dir.join(name), &content)?;
            }
        }
        Ok(())
    }

    /// Writes the model to the new folder `dir`, as Hugging Face's transformers reads it, and says which tensors have another
    /// type there: all that are not `storage`; where that is `None` the quantised ones, which such a folder cannot have, in bf16.
    /// Numbers of quantised types are widened to f32 and then rounded once.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where `dir` is there and not empty or cannot be written, and those of [`file`](Self::file).
    pub fn write_dir(&self, dir: &Path, storage: Option<Storage>) -> Result<Vec<Converted>> {
        let tensors: Vec<_> = self.tensors().iter().collect();
        let target = |tensor: &Tensor| match storage {
            None if tensor.storage().is_quantised() => Storage::Bf16,
            None => tensor.storage(),
            Some(storage) => storage,
        };
        let targets: Vec<_> = tensors.iter().map(|(_, tensor)| target(tensor)).collect();
        let most = storage.unwrap_or(Storage::Bf16);
        output::write_dir(dir, |dir| {
            self.write_files(dir)?;
            self.say_dtype(dir, most)?;
            let layout = tensors
                .iter()
                .zip(&targets)
                .map(|((name, tensor), &to)| Layout {
                    name,
                    dtype: to.into(),
                    shape: tensor.shape(),
                    length: tensor.rows() * to.bytes_of(tensor.cols()).unwrap_or(0),
                });
            let metadata = BTreeMap::from([("format".into(), "pt".into())]);
            let mut file =
                TensorsFile::create(&dir.join(SINGLE), &metadata, &layout.collect::<Vec<_>>())?;
            for ((name, tensor), &to) in tensors.iter().zip(&targets) {
                convert(tensor, to, |bytes| file.append(name, bytes))?;
            }
            Ok::<_, Error>(file.finish()?)
        })?;
        let mut converted: Vec<Converted> = Vec::new();
        for ((_, tensor), &to) in tensors.iter().zip(&targets) {
            let from = tensor.storage();
            match converted
                .iter_mut()
                .find(|known| (known.from, known.to) == (from, to))
            {
                Some(known) => known.tensors += 1,
                None if from == to => {}
                None => converted.push(Converted {
                    from,
                    to,
                    tensors: 1,
                }),
            }
        }
        Ok(converted)
    }

    /// Makes config.json say the type of most weights, which transformers loads them in.
    fn say_dtype(&self, dir: &Path, dtype: Storage) -> Result<()> {
        const NAME: &str = "config.json";
        let path = dir.join(NAME);
        let mut config = parse_object(&path, &self.file(NAME)?.unwrap_or_default())?;
        let name = match dtype {
            Storage::F64 => "float64",
            Storage::F16 => "float16",
            Storage::Bf16 => "bfloat16",
            _ => "float32",
        };
        config.insert("torch_dtype".into(), name.into());
        let text = serde_json::to_string_pretty(&Value::Object(config)).unwrap_or_default();
        write(&path, text.as_bytes())
    }
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    Ok(std::fs::write(path, content).map_err(IoError::at("write", path))?)
}

/// Gives the bytes of a tensor as `to`, some rows at a time.
pub(super) fn convert<E>(
    tensor: &Tensor,
    to: Storage,
    mut append: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    if tensor.storage() == to {
        return append(tensor.bytes());
    }
    let cols = tensor.cols();
    let mut row = vec![0.0f32; cols];
    let mut bytes = vec![0; cols * to.block().bytes];
    let mut gathered = Vec::new();
    for i in 0..tensor.rows() {
        tensor.read_row(i, &mut row);
        let wide: Vec<f64> = row.iter().map(|&x| x.into()).collect();
        encode(to, &wide, &mut bytes);
        gathered.extend(&bytes);
        if gathered.len() >= CONVERTED || i + 1 == tensor.rows() {
            append(&gathered)?;
            gathered.clear();
        }
    }
    Ok(())
}

//! Safetensors files: one, or a set of shards with its index, mapped or read.
//!
//! The `safetensors` crate decides whether a header is sound: every tensor's bytes as many as its
//! dtype and shape say, laid end to end, nothing overlapping and nothing between. This module compares
//! the total with the file, and where the crate refuses, looks for the one tensor to blame.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
#[cfg(target_os = "linux")]
use memmap2::Advice;
use memmap2::{Mmap, MmapMut};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::Deserialize;

use super::error::{Error, Result};
use super::fields::{Fields, brief, is_file_name, parse_object};
use super::refuse_dangling;
use super::tensors::{Entry, OtherTensor, Tensors};
use crate::message::{IoError, one_line, shown};
use crate::tensor::{Storage, Tensor};

/// How weights get into memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Mapped: pages come from the disk as they are touched and are shared between processes. The
    /// file must not change while the model is in use: a page not yet touched would show the change,
    /// and a file cut short kills the process.
    #[default]
    Mapped,
    /// Read into memory as a whole: for files that may change underneath, and a little faster afterwards, in larger
    /// pages.
    Read,
}

/// The largest header that the `safetensors` crate accepts, in bytes.
const MAX_HEADER: u64 = 100_000_000;

/// The file or index of weights that is looked for first, and the one after it.
pub(crate) const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

impl Tensors {
    /// Opens `model.safetensors` in `dir`, or the shards that `model.safetensors.index.json` names.
    ///
    /// # Errors
    ///
    /// [`Error::NoWeights`] and [`Error::DanglingLink`] where neither is there, [`Error::MissingShard`] and [`Error::ShardName`] for an index
    /// that does not fit its shards, [`Error::Io`], and those of [`parse`](Self::parse) for each file.
    pub fn open(dir: &Path, access: Access) -> Result<Self> {
        // A directory of such a name is no file, but no sign of absent weights either.
        match [SINGLE, INDEX]
            .into_iter()
            .find(|name| dir.join(name).exists())
        {
            Some(name) => Self::open_named(dir, name, access),
            None => {
                refuse_dangling(&dir.join(SINGLE))?;
                Err(Error::NoWeights {
                    dir: dir.into(),
                    other: other_weights(dir),
                })
            }
        }
    }

    /// Opens the file of weights `name` in `dir`, or the shards of the index `name`.
    pub(super) fn open_named(dir: &Path, name: &str, access: Access) -> Result<Self> {
        let path = dir.join(name);
        if !is_index(name) {
            return Self::open_file(&path, access);
        }
        let json = fs::read(&path).map_err(IoError::at("read", &path))?;
        let shard = |name: &str| match dir.join(name) {
            path if path.exists() => load(&path, access).map(Some),
            _ => Ok(None),
        };
        Self::from_index(&path, &json, shard)
    }

    /// Opens one safetensors file of any name.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], and those of [`parse`](Self::parse).
    pub fn open_file(file: &Path, access: Access) -> Result<Self> {
        Self::parse(file, load(file, access)?)
    }

    /// The tensors of one safetensors file with the content `data`; `file` only serves the messages.
    /// Nothing is copied: the tensors share `data`.
    ///
    /// # Errors
    ///
    /// [`Error::NotSafetensors`], [`Error::HeaderTooLong`], [`Error::OverlappingTensors`],
    /// [`Error::TensorGap`], [`Error::TensorBytes`], [`Error::TruncatedTensors`] and
    /// [`Error::TrailingBytes`].
    pub fn parse(file: &Path, data: Bytes) -> Result<Self> {
        let mut files = Files::default();
        files.add(file, &data)?;
        Ok(Self::new(file, files.entries, files.metadata))
    }

    /// The same with the names that the file gives its tensors, and its metadata.
    ///
    /// # Errors
    ///
    /// Those of [`parse`](Self::parse).
    pub(crate) fn parse_whole(
        file: &Path,
        data: &Bytes,
    ) -> Result<(Self, BTreeSet<String>, BTreeMap<String, String>)> {
        let tensors = Self::parse(file, data.clone())?;
        let names = tensors
            .stored()
            .map(|tensor| tensor.name.to_owned())
            .collect();
        let metadata = tensors.metadata().clone();
        Ok((tensors, names, metadata))
    }

    /// The tensors of the shards that an index names, all of them, wherever it says that they are: of several of one
    /// name that of the last shard. `shard` brings a shard's content, or `None` where there is no such file.
    pub(super) fn from_index(
        index: &Path,
        json: &[u8],
        shard: impl Fn(&str) -> Result<Option<Bytes>>,
    ) -> Result<Self> {
        let mut files = Files::default();
        for name in parse_index(index, json)? {
            let Some(data) = shard(&name)? else {
                return Err(Error::MissingShard {
                    index: index.into(),
                    shard: name,
                });
            };
            files.add(&index.with_file_name(&name), &data)?;
        }
        Ok(Self::new(index, files.entries, files.metadata))
    }
}

/// Whether `name` is that of an index of shards.
pub(crate) fn is_index(name: &str) -> bool {
    name.ends_with(".json")
}

/// A file of weights in `dir` that is not opened by itself, the first by name.
fn other_weights(dir: &Path) -> Option<String> {
    let names = fs::read_dir(dir)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let weights = |name: &String| {
        [".safetensors", ".bin", ".gguf", ".pth", ".h5", ".npz"]
            .iter()
            .any(|end| name.ends_with(end))
    };
    names.filter(weights).min()
}

/// What has been read of a checkpoint's files.
#[derive(Default)]
struct Files {
    /// Under the files' names.
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

impl Files {
    /// Adds the tensors of one file; they take the place of others of the same names.
    fn add(&mut self, file: &Path, data: &Bytes) -> Result<()> {
        let (header, start) = split_header(file, data)?;
        let metadata = parse_header(file, header)?;
        check_length(file, metadata.data_len(), data.len() - start)?;
        let file: Arc<Path> = file.into();
        for (name, info) in metadata.tensors() {
            let entry = Entry {
                tensor: tensor(&file, &name, info, data, start)?,
                file: file.clone(),
                stored: name.clone(),
            };
            self.entries.insert(name, entry);
        }
        self.metadata
            .extend(metadata.metadata().clone().unwrap_or_default());
        Ok(())
    }
}

/// A file's tensors under its own names, those of types that [`Storage`] lacks as the type's name, and its metadata.
type Listed = (
    Vec<(String, Result<Tensor, String>)>,
    BTreeMap<String, String>,
);

/// Every tensor of a file with the content `data`, which need not be a checkpoint.
///
/// # Errors
///
/// Those of [`Tensors::parse`], but for types and names.
pub(crate) fn list(file: &Path, data: &Bytes) -> Result<Listed> {
    let (header, start) = split_header(file, data)?;
    let metadata = parse_header(file, header)?;
    check_length(file, metadata.data_len(), data.len() - start)?;
    let listed = metadata.tensors().into_iter().map(|(name, info)| {
        let found = tensor(file, &name, info, data, start)?;
        Ok((name, found.map_err(|other| other.dtype.to_string())))
    });
    let listed = listed.collect::<Result<_>>()?;
    let metadata = metadata.metadata().clone();
    Ok((listed, metadata.into_iter().flatten().collect()))
}

/// The content of `file`.
pub(crate) fn load(file: &Path, access: Access) -> Result<Bytes> {
    // Opening a directory succeeds on some systems, and mapping it fails with "no such device".
    if file.is_dir() {
        return Err(IoError::at("open", file)(ErrorKind::IsADirectory.into()).into());
    }
    if access == Access::Read {
        return Ok(read(file).map_err(IoError::at("read", file))?);
    }
    let opened = File::open(file).map_err(IoError::at("open", file))?;
    // SAFETY: a shared mapping is sound only while nobody changes or shortens the file, which no
    // process can promise for another. `Access::Mapped` says so, and `Access::Read` (`--no-mmap`) is
    // there for files that may change. Nothing here relies on two reads of a byte being equal after
    // the header has been parsed: offsets and shapes are copied out, and weights are only numbers.
    let map = unsafe { Mmap::map(&opened) }.map_err(IoError::at("map", file))?;
    // As for `read`, where the file system can; a file that is in memory already stays in the pages it is in.
    #[cfg(target_os = "linux")]
    let _ = map.advise(Advice::HugePage);
    Ok(Bytes::from_owner(map))
}

/// The content of `file` in memory of our own, in large pages where the system has them: a decoding step goes
/// through half a gigabyte, and looking up its pages costs a tenth of the time where they are 4 KB.
fn read(file: &Path) -> io::Result<Bytes> {
    let mut opened = File::open(file)?;
    let bytes = usize::try_from(opened.metadata()?.len()).map_err(io::Error::other)?;
    if bytes == 0 {
        return Ok(Bytes::new());
    }
    let mut memory = MmapMut::map_anon(bytes)?;
    // Advice only: where it is not taken, pages are small.
    #[cfg(target_os = "linux")]
    let _ = memory.advise(Advice::HugePage);
    opened.read_exact(&mut memory)?;
    Ok(Bytes::from_owner(memory.make_read_only()?))
}

/// The shards that an index names.
fn parse_index(index: &Path, json: &[u8]) -> Result<BTreeSet<String>> {
    let map = parse_object(index, json)?;
    let wrong = |field: String, expected, found| Error::FieldType {
        path: index.into(),
        field,
        expected,
        found,
    };
    let top = Fields::new(index, "", &map);
    let Some(weights) = top.object("weight_map")? else {
        return Err(wrong("weight_map".into(), "an object", "left out".into()));
    };
    let mut shards = BTreeSet::new();
    for (tensor, shard) in weights {
        let Some(shard) = shard.as_str() else {
            let field = format!("weight_map.{tensor}");
            return Err(wrong(field, "a file name", brief(shard)));
        };
        if !is_file_name(shard) {
            return Err(Error::ShardName {
                index: index.into(),
                shard: shard.into(),
            });
        }
        shards.insert(shard.into());
    }
    Ok(shards)
}

/// The header of a file, and where its tensors' bytes start.
fn split_header<'a>(file: &Path, data: &'a [u8]) -> Result<(&'a [u8], usize)> {
    let not = |reason: String| Error::NotSafetensors {
        file: file.into(),
        reason,
    };
    let Some((length, rest)) = data.split_first_chunk::<8>() else {
        return Err(not(format!("it has only {} bytes", data.len())));
    };
    if data.starts_with(b"version https://git-lfs") {
        return Err(not("it is a Git LFS pointer to one".into()));
    }
    let header = u64::from_le_bytes(*length);
    if rest.first().is_some_and(|b| *b != b'{') {
        return Err(not("it does not begin with a JSON header".into()));
    }
    match usize::try_from(header).ok().and_then(|n| rest.get(..n)) {
        None => Err(Error::HeaderTooLong {
            file: file.into(),
            header,
            available: rest.len() as u64,
        }),
        Some(_) if header > MAX_HEADER => Err(not(format!(
            "its header claims {header} bytes, above the limit of {MAX_HEADER}"
        ))),
        Some(bytes) => Ok((bytes, 8 + bytes.len())),
    }
}

/// Parses and checks a header. Not `SafeTensors::read_metadata`: its sum of the tensors' end, the
/// header and 8 can overflow (safetensors 0.8.0), which [`check_length`] cannot.
fn parse_header(file: &Path, header: &[u8]) -> Result<Metadata> {
    let explain = |error: serde_json::Error| {
        find_defect(file, header).unwrap_or_else(|| Error::NotSafetensors {
            file: file.into(),
            reason: one_line(&format!("its header has {error}"), 300),
        })
    };
    serde_json::from_slice(header).map_err(explain)
}

/// A tensor's entry in the header, with a dtype of any name.
#[derive(Deserialize)]
#[serde(expecting = "an object with dtype, shape and data_offsets")]
struct RawInfo {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// The first tensor that makes a header unacceptable, or `None` where the header as a whole is.
fn find_defect(file: &Path, header: &[u8]) -> Option<Error> {
    let mut raw: BTreeMap<String, serde_json::Value> = serde_json::from_slice(header).ok()?;
    raw.remove("__metadata__");
    let mut tensors = Vec::new();
    for (tensor, entry) in raw {
        match RawInfo::deserialize(entry) {
            Ok(info) => tensors.push((tensor, info)),
            Err(error) => {
                let reason = format!("its tensor {} has {error}", shown(&tensor));
                return Some(Error::NotSafetensors {
                    file: file.into(),
                    reason: one_line(&reason, 300),
                });
            }
        }
    }
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let mut end = 0;
    for (tensor, info) in tensors {
        if let Some(error) = info.defect(file, tensor, end) {
            return Some(error);
        }
        end = info.data_offsets.1;
    }
    None
}

impl RawInfo {
    /// What is wrong with this entry of a tensor, the one before which ends at byte `end`.
    fn defect(&self, file: &Path, tensor: String, end: usize) -> Option<Error> {
        let file = PathBuf::from(file);
        let dtype: Option<Dtype> = serde_json::from_value(self.dtype.as_str().into()).ok();
        let Some(dtype) = dtype else {
            return Some(Error::UnsupportedDtype {
                file,
                tensor,
                dtype: self.dtype.clone(),
            });
        };
        let (start, stop) = self.data_offsets;
        if start < end {
            return Some(Error::OverlappingTensors {
                file,
                tensor,
                start,
                end,
            });
        }
        if start > end {
            return Some(Error::TensorGap {
                file,
                tensor,
                start,
                end,
            });
        }
        let bits = self
            .shape
            .iter()
            .try_fold(dtype.bitsize(), |n, &d| n.checked_mul(d));
        let found = stop.saturating_sub(start);
        let fits = bits.is_some_and(|bits| bits % 8 == 0 && bits / 8 == found && start <= stop);
        (!fits).then(|| Error::TensorBytes {
            file,
            tensor,
            dtype: self.dtype.clone(),
            shape: self.shape.clone(),
            found,
        })
    }
}

/// Whether the bytes after the header are as many as its tensors need.
fn check_length(file: &Path, expected: usize, found: usize) -> Result<()> {
    let file = || file.to_path_buf();
    match found.checked_sub(expected) {
        Some(0) => Ok(()),
        Some(extra) => Err(Error::TrailingBytes {
            file: file(),
            extra,
        }),
        None => Err(Error::TruncatedTensors {
            file: file(),
            expected,
            found,
        }),
    }
}

/// One tensor of a file whose header has been checked.
fn tensor(
    file: &Path,
    name: &str,
    info: &TensorInfo,
    data: &Bytes,
    start: usize,
) -> Result<Result<Tensor, OtherTensor>> {
    let (from, to) = info.data_offsets;
    let bytes = data.slice(start + from..start + to);
    let storage = match info.dtype {
        Dtype::F64 => Storage::F64,
        Dtype::F32 => Storage::F32,
        Dtype::F16 => Storage::F16,
        Dtype::BF16 => Storage::Bf16,
        dtype => {
            return Ok(Err(OtherTensor {
                dtype,
                shape: info.shape.clone(),
                bytes,
            }));
        }
    };
    let tensor = Tensor::new(storage, info.shape.clone(), bytes);
    tensor.map(Ok).ok_or_else(|| Error::TensorBytes {
        file: file.into(),
        tensor: name.into(),
        dtype: storage.to_string(),
        shape: info.shape.clone(),
        found: to - from,
    })
}

#[cfg(test)]
mod tests;

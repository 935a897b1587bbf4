//! Models in several files, `NAME-00001-of-00003.gguf` and so on: the first has the metadata, each some of the tensors.

use std::path::{Path, PathBuf};

use super::super::error::Result;
use super::metadata::Metadata;

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";

/// Files of one model, at most: five digits are there for their number.
const MAX_FILES: u64 = 99_999;

/// The files that follow `file`, whose metadata this is.
///
/// # Errors
///
/// [`FieldType`](super::super::Error::FieldType) and [`FieldValue`](super::super::Error::FieldValue), where it is not the
/// first or its name does not fit.
pub(super) fn others(file: &Path, metadata: &Metadata) -> Result<Vec<PathBuf>> {
    let count = metadata.unsigned(COUNT)?.unwrap_or(1);
    if count <= 1 {
        return Ok(Vec::new());
    }
    if count > MAX_FILES {
        return Err(metadata.wrong(COUNT, format!("at most {MAX_FILES}")));
    }
    if metadata.unsigned(NUMBER)?.unwrap_or(0) != 0 {
        return Err(metadata.wrong(NUMBER, "0; give the first of the model's files"));
    }
    let end = |number: u64| format!("-{number:05}-of-{count:05}.gguf");
    let name = file.file_name().and_then(|name| name.to_str());
    match name.and_then(|name| name.strip_suffix(&end(1))) {
        Some(stem) => Ok((2..=count)
            .map(|number| file.with_file_name(format!("{stem}{}", end(number))))
            .collect()),
        None => Err(metadata.wrong(
            COUNT,
            format!("1 in a file whose name does not end with {}", end(1)),
        )),
    }
}

/// That a further file belongs to the first one.
pub(super) fn check(first: &Metadata, further: &Metadata) -> Result<()> {
    let count = first.unsigned(COUNT)?;
    if further.unsigned(COUNT)? == count {
        return Ok(());
    }
    let count = count.unwrap_or_default();
    Err(further.wrong(COUNT, format!("{count}, as in {}", first.path().display())))
}

/// That there are as many tensors as the first file says.
pub(super) fn check_count(first: &Metadata, tensors: usize) -> Result<()> {
    match first.unsigned(TENSORS)? {
        Some(count) if count != tensors as u64 => {
            Err(first.wrong(TENSORS, format!("{tensors}, as many as the files have")))
        }
        _ => Ok(()),
    }
}

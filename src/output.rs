//! Files written beside their place and renamed into it, so that a failure leaves nothing half done.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Writes `path` through `write`; the file appears when all of it is there.
///
/// # Errors
///
/// [`Error::Io`] for `path`, and then nothing is left of it.
pub fn write_file(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<()> {
    check_folder(path)?;
    let attempt = || {
        let mut file = std::io::BufWriter::new(tempfile::Builder::new().tempfile_in(folder(path))?);
        write(&mut file)?;
        let file = file
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error)?;
        make_readable(file.as_file())?;
        file.persist(path).map_err(|failed| failed.error)?;
        Ok(())
    };
    attempt().map_err(Error::io("write", path))
}

/// Looks whether `path` can be written, before work is done that would be lost.
///
/// # Errors
///
/// [`Error::Io`] where its folder is missing or refuses new files, or `path` is a folder.
pub fn check_writable(path: &Path) -> Result<()> {
    if path.is_dir() {
        let is_a_folder = std::io::Error::from(std::io::ErrorKind::IsADirectory);
        return Err(Error::io("write", path)(is_a_folder));
    }
    check_folder(path)?;
    let attempt = tempfile::Builder::new().tempfile_in(folder(path));
    attempt.map(drop).map_err(Error::io("write", path))
}

fn check_folder(path: &Path) -> Result<()> {
    let folder = folder(path);
    if folder.is_dir() {
        return Ok(());
    }
    let why = format!("there is no folder {}; make it first", folder.display());
    Err(Error::io("write", path)(std::io::Error::new(
        std::io::ErrorKind::NotFound,
        why,
    )))
}

fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.into(),
        _ => ".".into(),
    }
}

/// Temporary files are for their owner alone; what is kept is an ordinary file.
#[cfg(unix)]
fn make_readable(file: &std::fs::File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn make_readable(_: &std::fs::File) -> std::io::Result<()> {
    Ok(())
}

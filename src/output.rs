//! Files written beside their place and renamed into it, so that a failure leaves nothing half done.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{Error, Result};

/// Writes `path` through `write`; the file appears when all of it is there. A link is followed, and what is
/// not a file (a pipe, a device) is written to directly.
///
/// # Errors
///
/// [`Error::Io`] for `path`; a file that was there stays as it was.
pub fn write_file(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> std::io::Result<()>,
) -> Result<()> {
    let fill = |file: &File| {
        let mut out = BufWriter::new(file);
        write(&mut out)?;
        out.flush()
    };
    let attempt = || {
        if is_special(path) {
            return fill(&OpenOptions::new().write(true).open(path)?);
        }
        let path = path.canonicalize().unwrap_or_else(|_| path.into());
        let file = beside(&path)?;
        fill(file.as_file())?;
        file.persist(&path).map_err(|failed| failed.error)?;
        Ok(())
    };
    check_folder(path)?;
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
    if is_special(path) {
        return Ok(());
    }
    check_folder(path)?;
    beside(path).map(drop).map_err(Error::io("write", path))
}

/// Whether something is there that is neither a file nor a folder.
fn is_special(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|there| !there.is_file() && !there.is_dir())
}

/// A new file in the folder of `path`, with the permissions of the file it is to replace, or those of any
/// new file.
fn beside(path: &Path) -> std::io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let file = builder.tempfile_in(folder(path))?;
    if let Ok(there) = path.metadata() {
        file.as_file().set_permissions(there.permissions())?;
    }
    Ok(file)
}

fn check_folder(path: &Path) -> Result<()> {
    let folder = folder(path);
    if folder.is_dir() {
        return Ok(());
    }
    let why = format!("there is no folder {}; make it first", folder.display());
    let missing = std::io::Error::new(std::io::ErrorKind::NotFound, why);
    Err(Error::io("write", path)(missing))
}

fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.into(),
        _ => ".".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        write_file(&path, |out| out.write_all(b"old")).unwrap();
        let failed = write_file(&path, |out| {
            out.write_all(b"half")?;
            Err(std::io::Error::other("no more"))
        });
        assert!(failed.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_permissions_kept() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, "old").unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write_file(&link, |out| out.write_all(b"new")).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"new");
        assert!(link.is_symlink());
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[cfg(unix)]
    #[test]
    fn devices_stay_devices() {
        write_file(Path::new("/dev/null"), |out| out.write_all(b"gone")).unwrap();
        assert!(is_special(Path::new("/dev/null")));
    }
}

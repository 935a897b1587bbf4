//! Files written beside their place and renamed into it, so that a failure leaves nothing half done, and a process that is killed
//! nothing that the next one does not remove.

mod part;
mod pending;

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

pub use part::exit;
pub(crate) use pending::{Pending, shown_bytes};

use part::{FilePart, FolderPart};

use crate::message::IoError;

/// Writes `path` through `write`; the file appears when all of it is there. A link is followed, and what is
/// not a file (a pipe, a device) is written to directly.
///
/// # Errors
///
/// [`IoError`] for `path`; a file that was there stays as it was.
pub fn write_file(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> std::io::Result<()>,
) -> Result<(), IoError> {
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
        let part = FilePart::beside(&path)?;
        fill(part.file())?;
        part.place(&path)
    };
    check_folder(path)?;
    attempt().map_err(IoError::at("write", path))
}

/// Makes the file `path`, which appears with what `write` begins it with; `None` where something is there already.
pub(crate) fn create_new(
    path: &Path,
    write: impl FnOnce(&File) -> std::io::Result<()>,
) -> Result<Option<File>, IoError> {
    if path.exists() {
        return Ok(None);
    }
    check_folder(path)?;
    let attempt = || {
        let part = FilePart::beside(path)?;
        write(part.file())?;
        match part.place_new(path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(None),
            Err(error) => Err(error),
        }
    };
    attempt().map_err(IoError::at("write", path))
}

/// Looks whether `path` can be written, before work is done that would be lost.
///
/// # Errors
///
/// [`IoError`] where its folder is missing or refuses new files, or `path` is a folder.
pub fn check_writable(path: &Path) -> Result<(), IoError> {
    if path.is_dir() {
        let is_a_folder = std::io::Error::from(std::io::ErrorKind::IsADirectory);
        return Err(IoError::at("write", path)(is_a_folder));
    }
    if is_special(path) {
        return Ok(());
    }
    check_folder(path)?;
    FilePart::beside(path)
        .map(drop)
        .map_err(IoError::at("write", path))
}

/// An error that may be an [`IoError`].
pub trait MaybeIo: From<IoError> {
    /// That one.
    fn io_mut(&mut self) -> Option<&mut IoError>;
}

impl MaybeIo for IoError {
    fn io_mut(&mut self) -> Option<&mut IoError> {
        Some(self)
    }
}

/// Makes the folder `path` and fills it through `write`, which is given a folder beside it: it appears when
/// all of it is there.
///
/// # Errors
///
/// Those of [`check_new_dir`] and of `write`; nothing is left behind.
pub fn write_dir<E: MaybeIo>(
    path: &Path,
    write: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    check_new_dir(path)?;
    let failed = IoError::at("write", path);
    let path = path.canonicalize().unwrap_or_else(|_| path.into());
    let part = match FolderPart::beside(&path) {
        Ok(part) => part,
        Err(error) => return Err(failed(error).into()),
    };
    write(part.path()).map_err(|error| in_place(error, part.path(), &path))?;
    Ok(part.place(&path).map_err(failed)?)
}

/// A folder among the system's temporary files, gone when it is dropped. What a killed process leaves of the same `name` goes when
/// the next one is made.
pub(crate) fn scratch_dir(name: &str) -> Result<FolderPart, IoError> {
    let all = std::env::temp_dir();
    FolderPart::beside(&all.join(name)).map_err(IoError::at("write", all))
}

/// Looks whether `path` can become a new folder, before work is done that would be lost.
///
/// # Errors
///
/// [`IoError`] where its folder is missing, or there is something at `path` other than an empty folder.
pub fn check_new_dir(path: &Path) -> Result<(), IoError> {
    check_folder(path)?;
    let there = match std::fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => path.symlink_metadata().is_ok(),
    };
    if !there {
        return Ok(());
    }
    let why = "there is something there already; give a new folder, or empty that one";
    let there = std::io::Error::new(std::io::ErrorKind::AlreadyExists, why);
    Err(IoError::at("write", path)(there))
}

/// An error in the folder `beside` as one in `path`, for which it stands.
fn in_place<E: MaybeIo>(mut error: E, beside: &Path, path: &Path) -> E {
    if let Some(IoError { path: at, .. }) = error.io_mut()
        && let Ok(inside) = at.strip_prefix(beside)
    {
        *at = path.join(inside);
    }
    error
}

/// Whether something is there that is neither a file nor a folder.
fn is_special(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|there| !there.is_file() && !there.is_dir())
}

/// Whether there is a folder for `path`, and `path` names a file.
fn check_folder(path: &Path) -> Result<(), IoError> {
    let no_name = match path.as_os_str().to_str() {
        Some("") => "a file has a name of at least a letter",
        Some("-") => "write /dev/stdout for standard output, or ./- for a file of that name",
        _ => "",
    };
    if !no_name.is_empty() {
        let no_name = std::io::Error::new(ErrorKind::InvalidInput, no_name);
        return Err(IoError::at("write", path)(no_name));
    }
    let folder = folder(path);
    if folder.is_dir() {
        return Ok(());
    }
    let why = format!("there is no folder {}; make it first", folder.display());
    let missing = std::io::Error::new(std::io::ErrorKind::NotFound, why);
    Err(IoError::at("write", path)(missing))
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

    #[test]
    fn folders_appear_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let failed = write_dir(&path, |beside| {
            std::fs::write(beside.join("half"), "").unwrap();
            Err(IoError::at("write", beside.join("rest"))(
                std::io::Error::other("no more"),
            ))
        });
        let message = failed.unwrap_err().to_string();
        let rest = path.join("rest");
        assert_eq!(message, format!("cannot write {}: no more", rest.display()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

        std::fs::create_dir(&path).unwrap();
        let fill = |beside: &Path| {
            std::fs::write(beside.join("file"), "new").map_err(IoError::at("write", beside))
        };
        write_dir(&path, fill).unwrap();
        assert_eq!(std::fs::read(path.join("file")).unwrap(), b"new");
        let refused = write_dir(&path, fill).unwrap_err().to_string();
        assert!(refused.contains("already; give a new folder"), "{refused}");
        assert!(write_dir(&path.join("file"), fill).is_err());
        assert!(write_dir(&dir.path().join("none/out"), fill).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_has_a_name() {
        for (name, hint) in [("", "at least a letter"), ("-", "./-")] {
            let refused = write_file(Path::new(name), |out| out.write_all(b"x"));
            assert!(refused.unwrap_err().to_string().contains(hint));
            assert!(check_writable(Path::new(name)).is_err());
            assert!(check_new_dir(Path::new(name)).is_err());
        }
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

//! Files and folders that are being written, beside their place and under a name that says what they are to become:
//! `.NAME.tmp-` and six letters.
//!
//! A part is locked as long as its process lives. However that ends, the system gives the lock back, and whoever writes the same
//! target next removes the parts of it that nobody holds. Where a file system has no locks, they stay.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::{Builder, NamedTempFile, TempDir};

/// Letters that tell the parts of one target apart.
const LETTERS: usize = 6;
/// The longest name, in bytes, that has room for what is put around it in the 255 that file systems allow.
const LONGEST: usize = 200;

/// The parts of this process. A part is made, and put in its place or given up, while this is locked.
static PARTS: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn parts() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    PARTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the process with `code`, whatever its other threads do, and leaves none of its parts.
pub fn exit(code: i32) -> ! {
    // Locked to the end: a thread that finds its files gone waits here, and says nothing of it.
    let parts = parts();
    for path in parts.iter() {
        // Another thread may still be putting a file into the folder. What cannot be removed now goes when the target is next written.
        let more = |removed: io::Result<()>| {
            removed.is_err_and(|error| error.kind() == ErrorKind::DirectoryNotEmpty)
        };
        while more(remove(path)) {}
    }
    std::process::exit(code)
}

/// The entry of a part among [`PARTS`].
#[derive(Debug)]
struct Listed(PathBuf);

fn list(parts: &mut BTreeSet<PathBuf>, path: &Path) -> Listed {
    parts.insert(path.into());
    Listed(path.into())
}

impl Drop for Listed {
    fn drop(&mut self) {
        parts().remove(&self.0);
    }
}

/// A file that is being written.
#[derive(Debug)]
pub(super) struct FilePart {
    file: NamedTempFile,
    _listed: Listed,
}

impl FilePart {
    /// A new file in the folder of `target`, with the permissions of the file it is to replace, or those of any new file.
    pub(super) fn beside(target: &Path) -> io::Result<Self> {
        let prefix = prefix(target);
        remove_leftovers(&super::folder(target), &prefix);
        let mut builder = builder(&prefix, 0o666);
        builder.rand_bytes(LETTERS);
        let part = loop {
            let mut parts = parts();
            let file = builder.tempfile_in(super::folder(target))?;
            if hold(file.as_file(), file.path()) {
                let _listed = list(&mut parts, file.path());
                break Self { file, _listed };
            }
        };
        if let Ok(there) = target.metadata() {
            part.file().set_permissions(there.permissions())?;
        }
        Ok(part)
    }

    pub(super) fn file(&self) -> &File {
        self.file.as_file()
    }

    /// Puts it in the place of whatever is at `target`.
    pub(super) fn place(self, target: &Path) -> io::Result<()> {
        self.file.persist(target).map_err(|failed| failed.error)?;
        Ok(())
    }

    /// Puts it at `target`, unless something is there; the file stays locked.
    pub(super) fn place_new(self, target: &Path) -> io::Result<File> {
        self.file
            .persist_noclobber(target)
            .map_err(|failed| failed.error)
    }
}

/// A folder that is being filled.
pub(crate) struct FolderPart {
    folder: TempDir,
    _lock: Option<File>,
    _listed: Listed,
}

impl FolderPart {
    /// A new folder beside `target`.
    pub(super) fn beside(target: &Path) -> io::Result<Self> {
        let prefix = prefix(target);
        remove_leftovers(&super::folder(target), &prefix);
        let builder = builder(&prefix, 0o777);
        loop {
            let mut parts = parts();
            let folder = builder.tempdir_in(super::folder(target))?;
            // Some systems do not open folders.
            let lock = File::open(folder.path()).ok();
            if lock.as_ref().is_none_or(|lock| hold(lock, folder.path())) {
                let _listed = list(&mut parts, folder.path());
                return Ok(Self {
                    folder,
                    _lock: lock,
                    _listed,
                });
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Puts it at `target`, where there is nothing or an empty folder.
    pub(super) fn place(self, target: &Path) -> io::Result<()> {
        {
            let _whole = parts(); // Nobody removes half of it meanwhile.
            if target.is_dir() {
                std::fs::remove_dir(target)?;
            }
            std::fs::rename(self.folder.path(), target)?;
        }
        let _ = self.folder.keep(); // It is there no more under that name.
        Ok(())
    }
}

/// What the names of the parts of `target` begin with.
fn prefix(target: &Path) -> OsString {
    let name = target.file_name().unwrap_or_default();
    let name = if name.len() > LONGEST {
        OsStr::new("long-name")
    } else {
        name
    };
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(".tmp-");
    prefix
}

#[cfg_attr(
    not(unix),
    allow(unused_variables, reason = "there are no permissions of that kind")
)]
fn builder(prefix: &OsStr, permissions: u32) -> Builder<'_, 'static> {
    let mut builder = Builder::new();
    builder.prefix(prefix).rand_bytes(LETTERS);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(permissions));
    builder
}

/// Locks a part; `false` where another process took it for a leftover before that.
fn hold(part: &File, path: &Path) -> bool {
    !matches!(part.try_lock(), Err(TryLockError::WouldBlock)) && path.exists()
}

/// Removes the parts that nobody holds.
fn remove_leftovers(folder: &Path, prefix: &OsStr) {
    let Ok(entries) = folder.read_dir() else {
        return;
    };
    let is_part = |name: &OsStr| {
        let letters = name
            .as_encoded_bytes()
            .strip_prefix(prefix.as_encoded_bytes());
        letters.is_some_and(|letters| {
            letters.len() == LETTERS && letters.iter().all(u8::is_ascii_alphanumeric)
        })
    };
    for entry in entries.flatten() {
        let kind = entry.file_type();
        if !is_part(&entry.file_name()) || !kind.is_ok_and(|kind| kind.is_file() || kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        // The lock is kept until it is gone, so that nobody else takes it for their new one.
        if let Ok(part) = File::open(&path)
            && part.try_lock().is_ok()
        {
            // A leftover that cannot be removed is no reason not to write.
            let _ = remove(&path);
        }
    }
}

fn remove(part: &Path) -> io::Result<()> {
    if part.is_dir() {
        std::fs::remove_dir_all(part)
    } else {
        std::fs::remove_file(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<OsString> {
        let entries = folder.read_dir().unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }

    #[test]
    fn leftovers_go_and_what_is_held_or_another_targets_stays() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let held = FilePart::beside(&target).unwrap();
        let folder = FolderPart::beside(&target).unwrap();
        let stays = [
            "out",
            ".out.tmp-",
            ".out.tmp-abc",
            ".out.tmp-abcdefg",
            ".other.tmp-abcdef",
            "out.tmp-abcdef",
        ];
        for name in stays {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let before = names(dir.path());
        std::fs::write(dir.path().join(".out.tmp-abcdef"), "half").unwrap();
        std::fs::create_dir(dir.path().join(".out.tmp-ABC123")).unwrap();
        std::fs::write(dir.path().join(".out.tmp-ABC123/half"), "").unwrap();
        drop(FilePart::beside(&target).unwrap());
        assert_eq!(names(dir.path()), before);
        assert!(held.file.path().exists() && folder.path().exists());
    }

    #[cfg(unix)]
    #[test]
    fn links_of_such_a_name_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (target, other) = (dir.path().join("out"), dir.path().join("other"));
        std::fs::create_dir(&other).unwrap();
        std::fs::write(other.join("file"), "").unwrap();
        std::os::unix::fs::symlink(&other, dir.path().join(".out.tmp-abcdef")).unwrap();
        drop(FolderPart::beside(&target).unwrap());
        assert!(other.join("file").exists());
    }

    #[test]
    fn writers_of_one_target_do_not_disturb_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        std::thread::scope(|scope| {
            for writer in 0..4u8 {
                let target = &target;
                scope.spawn(move || {
                    for _ in 0..50 {
                        let part = FilePart::beside(target).unwrap();
                        let mut file = part.file();
                        io::Write::write_all(&mut file, &[writer; 8]).unwrap();
                        part.place(target).unwrap();
                    }
                });
            }
        });
        let written = std::fs::read(&target).unwrap();
        assert_eq!(written, [written[0]; 8]);
        assert_eq!(names(dir.path()), ["out"]);
    }

    #[test]
    fn names_of_any_length_have_parts() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("x".repeat(255));
        FilePart::beside(&target).unwrap().place(&target).unwrap();
        assert!(target.exists());
    }
}

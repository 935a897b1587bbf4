//! A file whose length is known before it is written, in whatever order.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::part::FilePart;
use super::{check_folder, is_special};
use crate::message::IoError;

/// A file that has its room on the disk from the start, and appears when it is [finished](Self::finish).
///
/// What is not a file (a pipe, a device) gets all of it then, from a temporary file.
#[derive(Debug)]
pub(crate) struct Pending {
    path: PathBuf,
    to: To,
}

#[derive(Debug)]
enum To {
    /// A part, and its place.
    Place(FilePart, PathBuf),
    /// A temporary file, and the device.
    Device(File, File),
}

impl Pending {
    /// Takes room for `length` bytes, which are zeros at first.
    ///
    /// # Errors
    ///
    /// [`IoError`], with the figure where there is not as much room.
    pub(crate) fn create(path: &Path, length: u64) -> Result<Self, IoError> {
        check_folder(path)?;
        let attempt = || {
            if is_special(path) {
                let device = OpenOptions::new().write(true).open(path)?;
                return Ok(To::Device(tempfile::tempfile()?, device));
            }
            let place = path.canonicalize().unwrap_or_else(|_| path.into());
            Ok(To::Place(FilePart::beside(&place)?, place))
        };
        let to = attempt().map_err(IoError::at("write", path))?;
        let path = path.to_owned();
        let pending = Self { path, to };
        reserve(pending.file(), length).map_err(|error| {
            let size = shown_bytes(length);
            let why = format!("no room for its {size}: {error}");
            IoError::at("write", &pending.path)(io::Error::new(error.kind(), why))
        })?;
        Ok(pending)
    }

    fn file(&self) -> &File {
        match &self.to {
            To::Place(part, _) => part.file(),
            To::Device(file, _) => file,
        }
    }

    /// Writes `bytes` from byte `offset` on.
    ///
    /// # Errors
    ///
    /// [`IoError`].
    pub(crate) fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), IoError> {
        let mut file = self.file();
        let written = file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| file.write_all(bytes));
        written.map_err(IoError::at("write", &self.path))
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    ///
    /// [`IoError`].
    pub(crate) fn finish(self) -> Result<(), IoError> {
        let place = || match self.to {
            To::Place(part, place) => part.place(&place),
            To::Device(mut file, mut device) => {
                file.rewind()?;
                io::copy(&mut file, &mut device).map(drop)
            }
        };
        place().map_err(IoError::at("write", &self.path))
    }
}

/// Makes `file` as long as `length`, with its room taken where the system can do that.
fn reserve(file: &File, length: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    if length > 0 {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;
        match fallocate(file, FallocateFlags::empty(), 0, length) {
            // Not every file system takes room beforehand.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            reserved => return reserved.map_err(io::Error::from),
        }
    }
    file.set_len(length)
}

/// A number of bytes as people say it.
pub(crate) fn shown_bytes(bytes: u64) -> String {
    let power = bytes.checked_ilog10().unwrap_or(0) / 3;
    if power == 0 {
        return format!("{bytes} bytes");
    }
    let unit = ["", "kB", "MB", "GB", "TB", "PB", "EB"][power as usize];
    format!("{:.1} {unit}", bytes as f64 / 1000f64.powi(power as i32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_writing_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let mut pending = Pending::create(&path, 6).unwrap();
        pending.write_at(4, b"ef").unwrap();
        pending.write_at(0, b"abcd").unwrap();
        assert!(!path.exists());
        pending.finish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"abcdef");
        assert_eq!(dir.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_no_disk_has_room_for_is_refused_with_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let refused = Pending::create(&path, 8_000_000_000_000_000).unwrap_err();
        let refused = refused.to_string();
        assert!(refused.contains("no room for its "), "{refused}");
        assert_eq!(refused.lines().count(), 1, "{refused}");
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn sizes_are_said_in_units() {
        for (bytes, said) in [
            (0, "0 bytes"),
            (999, "999 bytes"),
            (4_194_304_000, "4.2 GB"),
            (1_000_000, "1.0 MB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(shown_bytes(bytes), said);
        }
    }
}

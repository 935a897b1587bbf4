//! What every module's error messages are made of.

use std::io;
use std::path::PathBuf;

/// The operating system refused something.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct IoError {
    /// What was tried: "read", "write", "map", …
    pub action: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// The system's answer.
    pub source: io::Error,
}

impl IoError {
    /// One about `path`, to be given to `map_err`.
    pub(crate) fn at(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self {
            action,
            path,
            source,
        }
    }
}

/// Bytes in hexadecimal, as hashes are shown.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `From<module::Error> for Error`: what the module's error holds of the modules below it goes into the variants named in
/// brackets, so that it is found there whichever way it came; anything else goes into the module's own.
macro_rules! flattened {
    ($($module:ident => $own:ident($($lower:ident),+);)+) => {$(
        impl From<$module::Error> for Error {
            fn from(error: $module::Error) -> Self {
                match error {
                    $($module::Error::$lower(error) => error.into(),)+
                    error => Self::$own(error),
                }
            }
        }
    )+};
}
pub(crate) use flattened;

/// A name or value from a file, made fit for a message: on one line, cut after 80 characters.
pub(crate) fn shown(text: &str) -> String {
    one_line(text, 80)
}

/// `text` with control characters escaped, cut after `limit` characters.
pub(crate) fn one_line(text: &str, limit: usize) -> String {
    let mut out: String = text.chars().take(limit).flat_map(escape_control).collect();
    if text.chars().nth(limit).is_some() {
        out.push('…');
    }
    out
}

/// `c` itself, or its escape where it would break a line or steer a terminal.
fn escape_control(c: char) -> impl Iterator<Item = char> {
    let escaped = c.is_control().then(|| c.escape_default());
    let plain = escaped.is_none().then_some(c);
    escaped.into_iter().flatten().chain(plain)
}

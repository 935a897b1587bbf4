//! Token ids in a file: a JSON list of numbers.

use std::path::Path;

use super::error::{Error, Result};

/// The ids in a file's bytes; `path` only serves the messages.
///
/// # Errors
///
/// [`Error::Ids`] where it is not a JSON list of whole numbers from 0 to 2³² − 1.
pub fn parse_ids(path: &Path, json: &[u8]) -> Result<Vec<u32>> {
    // Some editors begin a file with a mark of its encoding.
    let json = json.strip_prefix(b"\xef\xbb\xbf").unwrap_or(json);
    serde_json::from_slice(json).map_err(|source| Error::Ids {
        path: path.into(),
        source,
    })
}

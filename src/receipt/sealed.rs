//! The file of a receipt: JSON with a line for each field, and the hash of every field behind them.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Serialize};

use super::{Error, Result, sha256};

/// What has such a file.
pub(super) trait Sealed: DeserializeOwned {
    /// What the field `format` says.
    const FORMAT: &'static str;

    /// Every field and its value as compact JSON, the fields of an object in a fixed order.
    fn fields(&self) -> Vec<(&'static str, String)>;

    /// What nobody can run.
    fn wrong(&self) -> Option<&'static str>;

    /// The content of the file.
    fn sealed(&self) -> String {
        let fields = self.fields().into_iter();
        let format = ("format", as_json(&Self::FORMAT));
        let hashes = ("hashes", as_json(&self.hashes()));
        let lines = [format].into_iter().chain(fields).chain([hashes]);
        let lines: Vec<_> = lines
            .map(|(name, json)| format!("  \"{name}\": {json}"))
            .collect();
        format!("{{\n{}\n}}\n", lines.join(",\n"))
    }

    /// The hash of every field.
    fn hashes(&self) -> BTreeMap<&'static str, String> {
        let fields = self.fields().into_iter();
        fields
            .map(|(name, json)| (name, sha256(json.as_bytes())))
            .collect()
    }

    /// What a file has, and which of its fields are not those that were written: their hashes differ.
    fn unsealed(path: &Path, bytes: &[u8]) -> Result<(Self, Vec<&'static str>)> {
        #[derive(Deserialize)]
        struct File<T> {
            hashes: BTreeMap<String, String>,
            #[serde(flatten)]
            receipt: T,
        }
        let fail = |source| Error::Parse {
            path: path.into(),
            source,
        };
        let File::<Self> { hashes, receipt } = serde_json::from_slice(bytes).map_err(fail)?;
        if let Some(reason) = receipt.wrong() {
            return Err(fail(serde_json::Error::custom(reason)));
        }
        let is_changed = |(name, hash): (&'static str, String)| {
            (hashes.get(name) != Some(&hash)).then_some(name)
        };
        let changed = receipt.hashes().into_iter().filter_map(is_changed);
        let changed = changed.collect();
        Ok((receipt, changed))
    }
}

/// The field `format` of a file.
pub(super) fn format(path: &Path, bytes: &[u8]) -> Result<String> {
    #[derive(Deserialize)]
    struct Format {
        format: String,
    }
    let format: Format = serde_json::from_slice(bytes).map_err(|source| Error::Parse {
        path: path.into(),
        source,
    })?;
    Ok(format.format)
}

/// A value as JSON; the values here have one.
pub(super) fn as_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

//! Numbers that JSON does not have.

use serde::{Deserialize, Deserializer};

/// A number, or the `null` that serde_json writes for one that is not finite: NaN.
pub(crate) fn or_nan<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

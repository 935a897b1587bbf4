//! Which tokens of a prompt stay in a verification.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What of a context is not absorbed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// Nothing: the patched model sees the query alone.
    #[default]
    Nothing,
    /// The token that begins a sequence.
    Bos,
    /// The first half.
    Half,
}

impl Keep {
    /// The indices of the tokens that stay, of a context of `context` tokens.
    pub fn indices(self, context: usize) -> Vec<usize> {
        let kept = match self {
            Self::Nothing => 0,
            Self::Bos => 1,
            Self::Half => context / 2,
        };
        (0..kept).collect()
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Nothing => "nothing",
            Self::Bos => "bos",
            Self::Half => "half",
        })
    }
}

impl FromStr for Keep {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "nothing" => Ok(Self::Nothing),
            "bos" => Ok(Self::Bos),
            "half" => Ok(Self::Half),
            _ => Err(format!("'{s}' cannot be kept: use nothing, bos or half")),
        }
    }
}

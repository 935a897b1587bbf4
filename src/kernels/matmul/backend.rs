//! Who computes the matrix products.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::gemm;
use super::native;
use super::rows::Rows;
use crate::kernels::simd::Level;
use crate::tensor::{Element, Matrix};

/// What multiplies matrices. Everything else of a pass is the same code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Backend {
    /// This crate's own kernels: the documented order, the same bits everywhere.
    #[default]
    Native,
    /// The `gemm` crate: a second platform on the same machine. Its order of sums, and so its bits, depend on the
    /// machine and on how many tokens are multiplied at once, though not on the threads.
    Gemm,
}

impl Backend {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Native, Self::Gemm];

    /// W x for every row x of `x` `[tokens, in]`: `[tokens, out]`, not yet rounded to the compute type.
    ///
    /// `level` is for [`Backend::Native`]; the `gemm` crate looks for itself what the machine has.
    pub fn matmul<'w, E: Element>(
        self,
        level: Level,
        x: &Matrix<E>,
        w: impl Into<Rows<'w, E>>,
    ) -> Matrix<E::Acc> {
        let [y] = self.matmuls(level, x, [w.into()]);
        y
    }

    /// [`matmul`](Self::matmul) with several W.
    pub(crate) fn matmuls<E: Element, const N: usize>(
        self,
        level: Level,
        x: &Matrix<E>,
        ws: [Rows<'_, E>; N],
    ) -> [Matrix<E::Acc>; N] {
        match self {
            Self::Native => native::matmuls(level, x, ws),
            Self::Gemm => ws.map(|w| gemm::matmul(level, x, w)),
        }
    }

    /// How many roundings a term goes through at most in a sum of `terms` products.
    pub(crate) fn roundings(self, terms: usize) -> f64 {
        match self {
            // In its lane and in the tree.
            Self::Native => terms as f64 / 16.0 + 4.0,
            // In whatever order: once with its product, or as what is added to at most all the others.
            Self::Gemm => terms as f64,
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Native => "native",
            Self::Gemm => "gemm",
        })
    }
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let named = Self::ALL
            .into_iter()
            .find(|backend| backend.to_string() == s);
        named.ok_or_else(|| format!("'{s}' is no backend: use native or gemm"))
    }
}

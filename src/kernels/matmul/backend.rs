//! Who computes the matrix products.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::gemm;
use super::map::Map;
use super::native;
use super::rows::Rows;
use crate::kernels::simd::Level;
use crate::tensor::{Element, Matrix};

/// What multiplies matrices. Everything else of a pass is the same code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
#[non_exhaustive]
pub enum Backend {
    /// This crate's own kernels: the documented order, the same bits everywhere.
    #[default]
    Native,
    /// The `gemm` crate: a second platform on the same machine. Its order of sums, and so its bits, depend on the
    /// machine and on how many tokens are multiplied at once, though not on the threads.
    Gemm,
    /// A CUDA device by its number, with the bits of [`Backend::Native`]: a whole pass of a [`Model`](crate::Model) runs there.
    #[cfg(feature = "cuda")]
    Cuda(u8),
}

impl Backend {
    /// Whether it has the documented order of sums, and so the same bits as all others that have it.
    pub fn is_exact(self) -> bool {
        self != Self::Gemm
    }

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
            // The same bits, where no model is on a device.
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => native::matmuls(level, x, ws),
            Self::Gemm => ws.map(|w| gemm::matmul(level, x, w)),
        }
    }

    /// W x + b in the compute type, for several maps.
    pub(crate) fn linears<E: Element, const N: usize>(
        self,
        level: Level,
        x: &Matrix<E>,
        maps: [Map<'_, E>; N],
    ) -> [Matrix<E>; N] {
        match self {
            Self::Gemm => maps.map(|map| map.finish(level, gemm::matmul(level, x, map.weight))),
            _ => native::linears(level, x, maps),
        }
    }

    /// How many roundings a term goes through at most in a sum of `terms` products.
    pub(crate) fn roundings(self, terms: usize) -> f64 {
        match self {
            // In whatever order: once with its product, or as what is added to at most all the others.
            Self::Gemm => terms as f64,
            // In its lane and in the tree.
            _ => terms as f64 / 16.0 + 4.0,
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Native => f.pad("native"),
            Self::Gemm => f.pad("gemm"),
            #[cfg(feature = "cuda")]
            Self::Cuda(0) => f.pad("cuda"),
            #[cfg(feature = "cuda")]
            Self::Cuda(ordinal) => f.pad(&format!("cuda:{ordinal}")),
        }
    }
}

impl From<Backend> for String {
    fn from(backend: Backend) -> Self {
        backend.to_string()
    }
}

impl TryFrom<String> for Backend {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        name.parse()
    }
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "native" => return Ok(Self::Native),
            "gemm" => return Ok(Self::Gemm),
            _ => {}
        }
        let Some(ordinal) = s.strip_prefix("cuda") else {
            return Err(format!("'{s}' is no backend: use native, gemm or cuda"));
        };
        let ordinal = match ordinal.strip_prefix(':') {
            Some(ordinal) => ordinal.parse().ok(),
            None => ordinal.is_empty().then_some(0),
        };
        ordinal.map_or_else(
            || {
                Err(format!(
                    "'{s}' is no backend: a CUDA device is cuda, or cuda:1 by its number"
                ))
            },
            cuda,
        )
    }
}

/// A CUDA device.
#[cfg(feature = "cuda")]
fn cuda(ordinal: u8) -> Result<Backend, String> {
    Ok(Backend::Cuda(ordinal))
}

/// What a program without the feature says.
#[cfg(not(feature = "cuda"))]
fn cuda(_: u8) -> Result<Backend, String> {
    Err("this program has no CUDA in it: build it with cargo's --features cuda".into())
}

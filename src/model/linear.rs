//! A linear map: y = W x + b.

use crate::checkpoint::form::LinearForm;
use crate::kernels::Bias;
use crate::tensor::{Element, Tensor};

/// A linear map under its name.
#[derive(Clone, Debug)]
pub struct Linear {
    pub(crate) form: LinearForm,
    /// W `[out, in]`, as it is stored or a copy of what is stored `[in, out]`.
    pub(crate) weight: Tensor,
    /// b `[out]`.
    pub(crate) bias: Option<Tensor>,
}

impl Linear {
    /// The module's path, relative to its layer: `mlp.down_proj`.
    pub fn name(&self) -> &str {
        &self.form.name
    }

    /// W `[out, in]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// b in the type of sums, where it is rounded to the compute type, as all weights are.
    pub(crate) fn bias<E: Element>(&self) -> Option<Vec<E::Acc>> {
        let bias = self.bias.as_ref()?.to_vec::<E>();
        Some(bias.into_iter().map(E::acc).collect())
    }

    /// How this map has b added, its own or a patch's.
    pub(crate) fn added<'b, A>(&self, b: &'b [A]) -> Bias<'b, A> {
        Bias {
            numbers: b,
            rounded_first: self.form.rounded_first,
        }
    }
}

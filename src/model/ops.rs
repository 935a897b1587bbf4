//! What a forward pass is made of: the seam between the blocks, which are written once, and where they compute.
//!
//! [`Pass`](super::pass::Pass) computes on the CPU, [`Plan`](super::plan::Plan) only writes down what would be computed. `Rows`
//! stay where they are computed; what comes back to the host is what is recorded, and which experts a router chooses.

use super::parts::{Active, Attention, Experts};
use super::{Linear, Norm};
use crate::kernels::activation::Activation;

/// The operations of a pass over some tokens.
pub(crate) trait Ops: Sized {
    /// Activations of the tokens, `[tokens, width]`, in the compute type.
    type Rows;

    /// The norm of every row, or of every head of it.
    fn norm(&mut self, norm: &Norm, x: &Self::Rows) -> Self::Rows;

    /// W x + b of several maps of one x, each under the changes that a patch makes of it.
    fn linear<const N: usize>(&mut self, maps: [&Linear; N], x: &Self::Rows) -> [Self::Rows; N];

    /// Queries, keys and values from the output of a fused map.
    fn split_heads(&mut self, attention: &Attention, qkv: &Self::Rows) -> [Self::Rows; 3];

    /// Gate and up from the output of a fused map.
    fn split_halves(&mut self, x: &Self::Rows) -> [Self::Rows; 2];

    /// q or k, turned to the tokens' positions.
    fn rope(&mut self, attention: &Attention, x: Self::Rows) -> Self::Rows;

    /// [`attend`](Self::attend) for q and k that still have to go through their norms, where they have some, and to be turned.
    fn attend_projected(&mut self, attention: &Attention, qkv: [Self::Rows; 3]) -> Self::Rows {
        attention.attend_projected(self, qkv)
    }

    /// softmax(q kᵀ · scaling) v, `[tokens, heads · head_dim]`; k and v enter the caches.
    fn attend(
        &mut self,
        attention: &Attention,
        q: &Self::Rows,
        k: &Self::Rows,
        v: &Self::Rows,
    ) -> Self::Rows;

    /// The activation function of every number.
    fn activate(&mut self, activation: Activation, x: Self::Rows) -> Self::Rows;

    /// x ⊙ y.
    fn multiply(&mut self, x: &Self::Rows, y: &Self::Rows) -> Self::Rows;

    /// x + y.
    fn add(&mut self, x: &Self::Rows, y: &Self::Rows) -> Self::Rows;

    /// The experts that each token chooses by the router's output: those that any token chooses, ascending.
    fn route(&mut self, experts: &Experts, router: &Self::Rows) -> Vec<Active>;

    /// The rows of the tokens of one expert.
    fn gather(&mut self, active: &Active, x: &Self::Rows) -> Self::Rows;

    /// [`linear`](Self::linear) for the rows of one expert's tokens.
    fn linear_of<const N: usize>(
        &mut self,
        active: &Active,
        maps: [&Linear; N],
        x: &Self::Rows,
    ) -> [Self::Rows; N];

    /// Σ gate · said over the experts, a row for each of the router's: the experts ascend, each product and sum is rounded.
    fn combine(&mut self, router: &Self::Rows, said: &[(&Active, Self::Rows)]) -> Self::Rows;

    /// x again.
    fn copy(&mut self, x: &Self::Rows) -> Self::Rows;

    /// The logits: the head's map, soft-capped where there is a cap.
    fn logits(&mut self, head: &Linear, softcap: Option<f64>, x: &Self::Rows) -> Self::Rows;

    /// Offers a tensor of the current layer; `name` is relative to it, and empty for its output.
    fn record(&mut self, name: &str, x: &Self::Rows);

    /// Offers a tensor outside the layers, under its whole name.
    fn record_global(&mut self, name: &str, x: &Self::Rows);
}

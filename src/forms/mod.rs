//! Theorem 5 for the blocks of other families: small random ones, made of parts.
//!
//! Every family that the paper names is one entry of [`FORMS`]: which norms, which inner function, which outer
//! function, in sequence or in parallel. The parts know how they are patched ([`FirstMaps`] by Lemmas 6 and 7, [`Outer`]
//! by 8, 9 and 10, [`ExpertsOuter`] by 11), and [`theorem_5`](crate::patch::theorem_5::theorem_5) puts any two of them
//! together. [`Block::measure`] says how far the patched block is from T(C, x), against [a derived
//! bound](mod@bounds), and that it is far off without the patch.

mod attention;
pub mod bounds;
mod build;
mod experts;
mod inner;
mod linear;
mod measure;
mod norm;
mod outer;
mod preconditions;
mod summary;
mod table;

pub use crate::kernels::activation::Activation;
pub use attention::Attention;
pub use experts::{Active, ExpertsInner, ExpertsOuter};
pub use inner::{FirstMap, FirstMaps, Inner, Mlp};
pub use linear::Linear;
pub use measure::{Controls, Difference, Measured};
pub use norm::Norm;
pub use outer::Outer;
pub use preconditions::{Refusal, refusals};
pub use summary::{CONTROL, Summary};
pub use table::{BlockForm, Control, FORMS, NormKind, Residual, Sizes};

use measure::measure;

use crate::kernels::Level;
use crate::patch::Precondition;
use crate::patch::theorem_5::Pass;
use crate::tensor::{Float, Matrix};

/// A block: A, f and g, and how they are added up.
#[derive(Clone, Debug)]
pub struct Block<A: Float> {
    attention: Attention<A>,
    residual: Residual,
    branch: Branch<A>,
}

/// f and g.
#[derive(Clone, Debug)]
enum Branch<A: Float> {
    Dense(Inner<A>, Outer<A>),
    Experts(ExpertsInner<A>, ExpertsOuter<A>),
}

/// The tokens of the two passes, each `[tokens, hidden]` with x last.
#[derive(Clone, Debug)]
pub struct Tokens<A: Float> {
    /// C and x.
    pub contextual: Matrix<A>,
    /// C∖Y and x.
    pub reduced: Matrix<A>,
}

impl<A: Float> Block<A> {
    /// What A(C, x) hands to f and g.
    pub fn pass(&self, level: Level, tokens: &Matrix<A>) -> Pass<A> {
        let x = tokens.row(tokens.rows() - 1).to_vec();
        let attended = self.attention.forward(level, tokens);
        let sum = x.iter().zip(&attended).map(|(&x, &a)| x + a);
        let residual: Vec<_> = sum.collect();
        Pass {
            input: match self.residual {
                Residual::Sequential => residual.clone(),
                Residual::Parallel => x,
            },
            residual,
        }
    }

    /// Patches the block by Theorem 5 and measures the result.
    ///
    /// # Errors
    ///
    /// A precondition of one of the lemmas does not hold.
    pub fn measure(&self, level: Level, tokens: &Tokens<A>) -> Result<Measured, Precondition> {
        let contextual = self.pass(level, &tokens.contextual);
        let reduced = self.pass(level, &tokens.reduced);
        match &self.branch {
            Branch::Dense(f, g) => measure(level, f, g, &reduced, &contextual),
            Branch::Experts(f, g) => measure(level, f, g, &reduced, &contextual),
        }
    }
}

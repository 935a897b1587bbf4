//! The functions between the linear maps.

use crate::tensor::Float;

/// An element-wise function. No lemma asks anything of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// GeLU in the tanh form, as [`kernels::activation`](crate::kernels::activation) computes it.
    GeluTanh,
    /// GeLU itself, x/2 · (1 + erf(x/√2)): in f64 with the `libm` crate's erf, rounded once.
    Gelu,
    /// SiLU, x / (1 + e^−x).
    Silu,
    /// ReLU.
    Relu,
}

impl Activation {
    pub(super) fn apply<A: Float>(self, x: A) -> A {
        match self {
            Self::GeluTanh => x.gelu_tanh(),
            Self::Gelu => {
                let x = x.to_f64();
                A::from_f64(0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2)))
            }
            Self::Silu => x / (A::ONE + (-x).exp()),
            // A NaN stays one.
            Self::Relu if x < A::ZERO => A::ZERO,
            Self::Relu => x,
        }
    }
}

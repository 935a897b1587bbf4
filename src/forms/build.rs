//! Blocks of a form, from random numbers.

use rand_core::Rng;
use rand_pcg::Pcg64;

use super::table::{BlockForm, Control, NormKind, Residual};
use super::{
    Attention, Block, Branch, ExpertsInner, ExpertsOuter, Inner, Linear, Mlp, Norm, Outer, Tokens,
};
use crate::tensor::{Float, Matrix};

/// The gain of the linear maps: large enough that both branches matter beside the residual, and the context to the attention.
const GAIN: f64 = 1.75;

/// The numbers of a seed: uniform with mean 0 and variance 1, the same on every machine.
pub(super) fn numbers(seed: u64) -> impl FnMut() -> f64 {
    let mut random = Pcg64::new(seed.into(), 0);
    move || {
        let share = (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        (2.0 * share - 1.0) * 1.732_050_807_568_877_2
    }
}

impl<A: Float> Block<A> {
    /// A block of a form and tokens for it, from a seed.
    pub fn random(form: &BlockForm, seed: u64) -> (Self, Tokens<A>) {
        Self::new(form, &mut numbers(seed))
    }

    /// A block of a form and tokens for it, from any numbers, which are scaled to weights, scales and tokens.
    pub fn new(form: &BlockForm, number: &mut dyn FnMut() -> f64) -> (Self, Tokens<A>) {
        let mut parts = Parts { form, number };
        let block = parts.block();
        (block, parts.tokens())
    }
}

struct Parts<'a> {
    form: &'a BlockForm,
    number: &'a mut dyn FnMut() -> f64,
}

impl Parts<'_> {
    fn block<A: Float>(&mut self) -> Block<A> {
        let attention = self.attention();
        // A parallel block has one norm for both branches.
        let norm = match self.form.residual {
            Residual::Sequential => self.norm(self.form.norm),
            Residual::Parallel => attention.norm.clone(),
        };
        Block {
            branch: self.branch(norm),
            attention,
            residual: self.form.residual,
        }
    }

    fn attention<A: Float>(&mut self) -> Attention<A> {
        let BlockForm {
            qkv_bias, o_bias, ..
        } = *self.form;
        let hidden = self.form.sizes.hidden;
        Attention {
            norm: self.norm(self.form.norm),
            q: self.linear(hidden, hidden, 0.25, qkv_bias),
            k: self.linear(hidden, hidden, 0.25, qkv_bias),
            v: self.linear(hidden, hidden, 1.5 * GAIN, qkv_bias),
            o: self.linear(hidden, hidden, 1.5 * GAIN, o_bias),
            post_norm: match self.form.control {
                Control::Scale => self.norm(NormKind::Rms),
                _ => Norm::None,
            },
        }
    }

    fn branch<A: Float>(&mut self, norm: Norm<A>) -> Branch<A> {
        let (hidden, bias) = (self.form.sizes.hidden, self.form.mlp_bias);
        let intermediate = self.form.sizes.intermediate;
        let control = self.form.control;
        if let Control::Experts { count, active } = control {
            let inner = ExpertsInner {
                norm,
                router: self.linear(hidden, count, 1.0, bias),
                experts: (0..count).map(|_| self.mlp()).collect(),
                active,
            };
            let down = (0..count).map(|_| self.linear(intermediate, hidden, GAIN, bias));
            let down = down.collect();
            return Branch::Experts(inner, ExpertsOuter { down });
        }
        let mlp = self.mlp();
        let down = self.linear(intermediate, hidden, GAIN, bias);
        let outer = match control {
            Control::Bias => Outer::Bias(down),
            Control::Scale => Outer::Scale {
                down,
                scale: self.scale(),
            },
            _ => Outer::Weight(down),
        };
        Branch::Dense(Inner { norm, mlp }, outer)
    }

    fn mlp<A: Float>(&mut self) -> Mlp<A> {
        let (sizes, bias) = (self.form.sizes, self.form.mlp_bias);
        let gated = self.form.gated;
        Mlp {
            gate: gated.then(|| self.linear(sizes.hidden, sizes.intermediate, GAIN, bias)),
            up: self.linear(sizes.hidden, sizes.intermediate, GAIN, bias),
            activation: self.form.activation,
        }
    }

    /// A linear map whose output is `gain` times as large as its input.
    fn linear<A: Float>(
        &mut self,
        inputs: usize,
        outputs: usize,
        gain: f64,
        bias: bool,
    ) -> Linear<A> {
        let transposed = self.form.transposed;
        let size = gain / (inputs as f64).sqrt();
        let weights = self.vector(inputs * outputs, 0.0, size);
        Linear {
            stored: Matrix::from_vec(if transposed { outputs } else { inputs }, weights),
            transposed,
            bias: bias.then(|| self.vector(outputs, 0.0, 0.25)),
        }
    }

    fn norm<A: Float>(&mut self, kind: NormKind) -> Norm<A> {
        match kind {
            NormKind::None => Norm::None,
            NormKind::Rms => Norm::Rms {
                scale: self.scale(),
            },
            NormKind::Layer => Norm::Layer {
                scale: self.scale(),
                bias: self.vector(self.form.sizes.hidden, 0.0, 0.25),
            },
        }
    }

    fn scale<A: Float>(&mut self) -> Vec<A> {
        self.vector(self.form.sizes.hidden, 1.0, 0.25)
    }

    fn vector<A: Float>(&mut self, n: usize, mean: f64, size: f64) -> Vec<A> {
        let number = |_| A::from_f64(mean + size * (self.number)());
        (0..n).map(number).collect()
    }

    /// C and x, and the first tokens of C and x.
    fn tokens<A: Float>(&mut self) -> Tokens<A> {
        let sizes = self.form.sizes;
        let numbers = self.vector((sizes.context + 1) * sizes.hidden, 0.0, 1.0);
        let contextual = Matrix::from_vec(sizes.hidden, numbers);
        let kept = contextual.slice_rows(0..sizes.kept).into_vec();
        let x = contextual.row(sizes.context);
        let reduced = Matrix::from_vec(sizes.hidden, [&kept, x].concat());
        Tokens {
            contextual,
            reduced,
        }
    }
}

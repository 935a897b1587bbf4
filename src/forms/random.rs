//! Blocks of a form, from random numbers.

use std::convert::Infallible;

use rand_core::Rng;
use rand_pcg::Pcg64;

use super::table::{Control, Form};
use crate::checkpoint::form::{LinearForm, NormForm, NormKind};
use crate::model::{Block, Linear, Norm, Weights};
use crate::tensor::{Element, Matrix, Storage, Tensor};

/// What a linear map multiplies the size of its input by: large enough that both branches matter beside the residual.
const GAIN: f64 = 1.5;

/// A block of a form, and the tokens of two passes through it.
#[derive(Clone, Debug)]
pub struct Sample<E: Element> {
    pub(super) block: Block,
    pub(super) control: Control,
    /// C and x.
    pub(super) contextual: Tokens<E>,
    /// C∖Y and x.
    pub(super) reduced: Tokens<E>,
}

/// The tokens of one pass.
#[derive(Clone, Debug)]
pub(super) struct Tokens<E: Element> {
    /// `[tokens, hidden]`, with x last.
    pub(super) rows: Matrix<E>,
    /// Of each token; those that stay keep theirs.
    pub(super) positions: Vec<usize>,
}

impl<E: Element> Sample<E> {
    /// From a seed: uniform numbers with mean 0 and variance 1, the same on every machine.
    pub fn from_seed(form: &Form, seed: u64) -> Self {
        let mut random = Pcg64::new(seed.into(), 0);
        Self::new(form, &mut || {
            let share = (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
            (2.0 * share - 1.0) * 1.732_050_807_568_877_2
        })
    }

    /// From any numbers, which are scaled to weights, scales and tokens.
    pub fn new(form: &Form, number: &mut dyn FnMut() -> f64) -> Self {
        let storage = Storage::from(E::DTYPE);
        let sizes = form.sizes;
        let (hidden, context) = (sizes.heads * sizes.head_dim, sizes.context);
        let mut random = Random { storage, number };
        let Ok(block) = Block::build(&form.block, hidden, &mut random);
        let rows = (0..(context + 1) * hidden).map(|_| E::from_f64((random.number)()));
        let rows = Matrix::from_vec(hidden, rows.collect());
        let positions: Vec<_> = (0..sizes.kept).chain([context]).collect();
        let kept = positions.iter().flat_map(|&at| rows.row(at).to_vec());
        Self {
            block,
            control: form.control,
            reduced: Tokens {
                rows: Matrix::from_vec(hidden, kept.collect()),
                positions,
            },
            contextual: Tokens {
                rows,
                positions: (0..=context).collect(),
            },
        }
    }
}

/// Random weights.
struct Random<'a> {
    storage: Storage,
    number: &'a mut dyn FnMut() -> f64,
}

impl Random<'_> {
    /// `mean` and up to about twice `size` more or less.
    fn tensor(&mut self, rows: usize, cols: usize, mean: f64, size: f64) -> Tensor {
        let numbers = (0..rows * cols).map(|_| mean + size * (self.number)());
        Tensor::from_matrix(self.storage, &Matrix::from_vec(cols, numbers.collect()))
    }

    fn bias(&mut self, length: usize) -> Tensor {
        self.tensor(1, length, 0.0, 0.25)
    }
}

impl Weights for Random<'_> {
    type Error = Infallible;

    fn linear(
        &mut self,
        form: &LinearForm,
        outputs: usize,
        inputs: usize,
    ) -> Result<Linear, Infallible> {
        Ok(Linear {
            form: form.clone(),
            weight: self.tensor(outputs, inputs, 0.0, GAIN / (inputs as f64).sqrt()),
            bias: form.bias.then(|| self.bias(outputs)),
        })
    }

    fn norm(&mut self, form: &NormForm, length: usize) -> Result<Norm, Infallible> {
        let (mean, bias) = match form.kind {
            NormKind::Rms { unit_offset, .. } => (if unit_offset { 0.0 } else { 1.0 }, false),
            NormKind::Layer { bias } => (1.0, bias),
        };
        Ok(Norm {
            form: form.clone(),
            weight: self.tensor(1, length, mean, 0.25),
            bias: bias.then(|| self.bias(length)),
        })
    }
}

//! One form over many seeds.

use std::num::NonZeroU64;

use super::measure::{Controls, Difference};
use super::table::{BlockForm, Residual};
use super::{Block, Measured};
use crate::kernels::Level;
use crate::patch::Precondition;
use crate::patch::theorem_5::ParameterDelta;
use crate::tensor::{Dtype, Float};

/// What a control must at least be off by, relative to the largest |T(C, x)|.
pub const CONTROL: f64 = 0.1;

/// The worst of many blocks of one form.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The form's name.
    pub form: &'static str,
    /// The compute type.
    pub dtype: Dtype,
    /// How many blocks.
    pub seeds: NonZeroU64,
    /// The lemmas, and the parameters that they change: `7: gate, up · 10: scale`.
    pub patch: String,
    /// The largest rank of a matrix's change, 0 where only vectors change.
    pub rank: usize,
    /// The first linear maps; `None` where no inner patch is needed.
    pub inner: Option<Difference>,
    /// The block.
    pub block: Difference,
    /// The smallest of each control.
    pub controls: Controls,
}

impl Summary {
    /// Measures blocks of a form from the seeds 0, 1, …
    ///
    /// # Errors
    ///
    /// A precondition fails, which in the random blocks of [`FORMS`](super::FORMS) it does not.
    pub fn new<A: Float>(
        level: Level,
        form: &BlockForm,
        seeds: NonZeroU64,
    ) -> Result<Self, Precondition> {
        let measure = |seed| {
            let (block, tokens) = Block::<A>::random(form, seed);
            block.measure(level, &tokens)
        };
        let first = measure(0)?;
        let mut summary = Self {
            form: form.name,
            dtype: A::DTYPE,
            seeds,
            patch: describe(form, &first.changes),
            rank: rank(&first.changes),
            inner: first.inner,
            block: first.block,
            controls: first.controls,
        };
        for seed in 1..seeds.get() {
            summary.add(&measure(seed)?);
        }
        Ok(summary)
    }

    fn add(&mut self, measured: &Measured) {
        let inner = self.inner.into_iter().chain(measured.inner);
        self.rank = self.rank.max(rank(&measured.changes));
        self.inner = inner.reduce(Difference::max);
        self.block = self.block.max(measured.block);
        self.controls = self.controls.min(measured.controls);
    }

    /// Whether every difference is within its bound.
    pub fn holds(&self) -> bool {
        self.block.holds() && self.inner.is_none_or(|inner| inner.holds())
    }

    /// Whether every control is off by at least [`CONTROL`].
    pub fn controls_fail(&self) -> bool {
        self.controls.least() >= CONTROL
    }
}

/// The largest rank of a matrix's change.
fn rank(changes: &[ParameterDelta]) -> usize {
    changes
        .iter()
        .filter_map(ParameterDelta::rank)
        .max()
        .unwrap_or(0)
}

/// Every lemma with the parameters that it changes, each name once.
fn describe(form: &BlockForm, changes: &[ParameterDelta]) -> String {
    let mut lemmas: Vec<(u8, Vec<&str>)> = Vec::new();
    if form.residual == Residual::Parallel {
        lemmas.push((12, Vec::new()));
    }
    for change in changes {
        match lemmas.last_mut() {
            Some((lemma, names)) if *lemma == change.lemma => {
                if !names.contains(&change.parameter) {
                    names.push(change.parameter);
                }
            }
            _ => lemmas.push((change.lemma, vec![change.parameter])),
        }
    }
    let parts = lemmas.iter().map(|(lemma, names)| match names[..] {
        [] => lemma.to_string(),
        _ => format!("{lemma}: {}", names.join(", ")),
    });
    parts.collect::<Vec<_>>().join(" · ")
}

//! One form over many seeds.

use std::num::NonZeroU64;

use super::measure::{Controls, Difference, Measured};
use super::random::Sample;
use super::table::Form;
use crate::checkpoint::form::{MapsForm, Sum};
use crate::kernels::Level;
use crate::patch::{Precondition, TensorChange};
use crate::tensor::{Dtype, Element};

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
    /// A precondition fails, which in the random blocks of [`Form::all`] it does not.
    pub fn new<E: Element>(
        level: Level,
        form: &Form,
        seeds: NonZeroU64,
    ) -> Result<Self, Precondition> {
        let measure = |seed| Sample::<E>::from_seed(form, seed).measure(level);
        let first = measure(0)?;
        let mut summary = Self {
            form: form.name,
            dtype: E::DTYPE,
            seeds,
            patch: describe(form, &first),
            rank: rank(&first),
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
        self.rank = self.rank.max(rank(measured));
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
fn rank(measured: &Measured) -> usize {
    let changes = measured.delta_inner.values();
    let ranks = changes.chain(measured.delta_outer.values());
    let ranks = ranks.map(|change| match change {
        TensorChange::LowRank(delta) => delta.v.rows(),
        TensorChange::Vector(_) => 0,
    });
    ranks.max().unwrap_or(0)
}

/// Every lemma with the parameters that it changes.
fn describe(form: &Form, measured: &Measured) -> String {
    let block = &form.block;
    let maps = match block.inner.maps {
        MapsForm::Gated { .. } => "gate, up",
        MapsForm::Fused(_) => "gate/up",
        MapsForm::Plain(_) => "up",
        MapsForm::Experts(_) => "router, gate, up",
    };
    let inner = match (block.sum, &block.inner.norm) {
        (Sum::Parallel, _) => "12".to_owned(),
        (Sum::Sequential, None) => format!("6: {maps}"),
        (Sum::Sequential, Some(_)) => format!("7: {maps}"),
    };
    let mut outer = measured.delta_outer.keys();
    let outer = match (&block.outer.post_norm, &block.inner.maps) {
        (Some(_), _) => "10: scale",
        (None, _) if outer.any(|name| name.ends_with(".bias")) => "8: bias",
        (None, MapsForm::Experts(_)) => "11: down",
        (None, _) => "9: down",
    };
    format!("{inner} · {outer}")
}

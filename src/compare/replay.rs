//! Every operation done again on what another engine recorded.

use std::collections::BTreeMap;

use super::activations::Activations;
use super::distance::Measure;
use super::error::Result;
use super::interval::{Interval, Rounding};
use super::operation::Operation;
use super::passes::{Pass, Tensors};
use super::report::Beyond;
use super::step::{Input, Step};
use super::{Distance, Precision, Recording, last_rows};
use crate::model::{Model, Plan};
use crate::tensor::{Dtype, Matrix};

/// Numbers that are looked at together: some 100 MB.
const TOGETHER: usize = 1 << 22;

/// A model, right or wrong, that another engine's recording is held against.
pub(super) struct Replay<'a> {
    model: &'a Model,
    plan: Plan,
    dtype: Precision,
    tokens: &'a [u32],
    other: &'a Recording,
    /// Our own pass, for the tensors that cannot be replayed, and how far off they may be.
    whole: Tensors,
    allowed: BTreeMap<String, f64>,
}

/// What a check of one tensor finds.
pub(super) struct Checked {
    pub(super) replayed: bool,
    /// From the reference.
    pub(super) distance: Distance,
    pub(super) inherited: f64,
    pub(super) added: f64,
    /// What its activations were rounded to, where that alone explains what is beyond.
    pub(super) activations: Option<Activations>,
    pub(super) beyond: Option<Beyond>,
    pub(super) numbers: usize,
    pub(super) overflowed: usize,
}

impl<'a> Replay<'a> {
    /// For the tensors `names`.
    pub(super) fn new(
        model: &'a Model,
        dtype: Precision,
        tokens: &'a [u32],
        other: &'a Recording,
        names: &[String],
    ) -> Result<Self> {
        let mut replay = Self {
            model,
            plan: model.plan(),
            dtype,
            tokens,
            other,
            whole: Tensors::new(),
            allowed: BTreeMap::new(),
        };
        let names = names.iter();
        let whole = names.filter(|name| !replay.can_replay(name)).cloned();
        let whole: Vec<_> = whole.collect();
        if !whole.is_empty() {
            let pass = |dtype| Pass {
                model,
                dtype,
                tokens,
                names: &whole,
            };
            replay.whole = pass(dtype.pass()).record(other.tokens())?;
            replay.allowed = match dtype {
                // What rounding to bf16 does is eight times what rounding to f16 does.
                Precision::F16 => {
                    let bf16 = pass(Dtype::Bf16).disturbed(&replay.whole)?.into_iter();
                    bf16.map(|(name, off)| (name, off / 8.0)).collect()
                }
                _ => pass(dtype.pass()).disturbed(&replay.whole)?,
            };
        }
        Ok(replay)
    }

    /// Whether all that the operation takes in was recorded, or is known without.
    fn can_replay(&self, name: &str) -> bool {
        Operation::of(&self.plan, name, self.other).is_some_and(|operation| {
            let all = self.other.tokens() == self.tokens.len();
            let mut inputs = operation.inputs.iter();
            let known = inputs
                .all(|input| self.other.contains(&input.name) || self.is_looked_up(&input.name));
            known && (all || !operation.looks_back())
        })
    }

    /// Whether a tensor comes from the tokens alone: the embedding, and learned positions.
    fn is_looked_up(&self, name: &str) -> bool {
        let operation = Operation::of(&self.plan, name, self.other);
        operation.is_some_and(|operation| operation.inputs.is_empty())
    }

    /// Holds a tensor against the replay, and against the reference where there is one. Where it is beyond, the replay is done again
    /// with activations in 8 bits, if the operation may have them.
    pub(super) fn check(&self, name: &str, reference: Option<&Recording>) -> Result<Checked> {
        let mut step = self.step(name, self.other.rows(name))?;
        let mut checked = self.hold(name, step.as_ref(), reference)?;
        if checked.beyond.is_some()
            && let Some(step) = &mut step
            && let Some(activations) = step.round_activations()
            && self.hold(name, Some(step), None)?.beyond.is_none()
        {
            checked.beyond = None;
            checked.activations = Some(activations);
        }
        Ok(checked)
    }

    /// Holds a tensor against `step`, or against our own pass where there is none.
    fn hold(
        &self,
        name: &str,
        step: Option<&Step<'_>>,
        reference: Option<&Recording>,
    ) -> Result<Checked> {
        let rows = self.other.rows(name);
        let stored = self.other.stored(name).unwrap_or(self.dtype);
        let mut check = Check::new(self.dtype, stored);
        let mut first = 0;
        while first < rows {
            let together = match check.cols {
                0 => 1,
                cols => (TOGETHER / cols).clamp(1, rows - first),
            };
            let these = first..first + together;
            let Some(got) = self.other.read_rows(name, these.clone())? else {
                break;
            };
            let expected = match step {
                Some(step) => step.rows(these.clone()),
                None => self.whole_rows(name, rows, these.clone()),
            };
            if let Some(reference) = reference {
                let ahead = reference.rows(name) - rows;
                let these = these.start + ahead..these.end + ahead;
                let want = reference.read_rows(name, these)?;
                check.against(&got, want.as_ref(), &expected);
            }
            check.take(&got, &expected, first);
            first += together;
        }
        Ok(check.finish(step.is_some()))
    }

    /// The operation with what the other engine recorded of its inputs, the last `rows` rows of them.
    fn step(&self, name: &str, rows: usize) -> Result<Option<Step<'_>>> {
        if !self.can_replay(name) {
            return Ok(None);
        }
        let Some(operation) = Operation::of(&self.plan, name, self.other) else {
            return Ok(None);
        };
        let mut inputs = Vec::new();
        for input in &operation.inputs {
            let Some((all, stored)) = self.input(&input.name, rows)? else {
                return Ok(None);
            };
            let all = match &input.columns {
                Some(columns) => all.select_columns(columns),
                None => all,
            };
            let rows = if operation.looks_back() {
                all
            } else {
                last_rows(all, rows)
            };
            inputs.push(Input { rows, stored });
        }
        let first = self.tokens.len() - rows;
        Ok(Some(Step::new(
            self.model,
            operation,
            (&self.tokens[first..], first),
            inputs,
            Rounding(self.dtype),
        )))
    }

    /// What an operation takes in, at least the last `rows` rows of it, and its type: as it was recorded, or looked up in the
    /// model where it was not.
    fn input(&self, name: &str, rows: usize) -> Result<Option<(Matrix<f64>, Precision)>> {
        if let (Some(all), Some(stored)) = (self.other.read(name)?, self.other.stored(name)) {
            return Ok(Some((all, stored)));
        }
        let Some(step) = self.step(name, rows)? else {
            return Ok(None);
        };
        let numbers: Vec<f64> = step.rows(0..rows).iter().map(|x| x.value).collect();
        let cols = numbers.len() / rows.max(1);
        Ok(Some((Matrix::from_vec(cols, numbers), self.dtype)))
    }

    /// Some of the last `last` rows of our own pass.
    fn whole_rows(&self, name: &str, last: usize, rows: std::ops::Range<usize>) -> Vec<Interval> {
        let allowed = 2.0 * self.allowed.get(name).copied().unwrap_or_default();
        let Some(whole) = self.whole.get(name) else {
            return vec![];
        };
        let first = whole.rows() - last;
        let rows = rows.start + first..rows.end + first;
        let numbers = rows.flat_map(|row| whole.row(row));
        numbers.map(|&x| Interval::around(x, allowed)).collect()
    }
}

/// A check that is done some rows at a time.
struct Check {
    dtype: Precision,
    stored: Precision,
    cols: usize,
    measure: Measure,
    inherited: f64,
    added: f64,
    beyond: Option<Beyond>,
    numbers: usize,
    overflowed: usize,
}

impl Check {
    fn new(dtype: Precision, stored: Precision) -> Self {
        Self {
            dtype,
            stored,
            cols: 0,
            measure: Measure::new(dtype),
            inherited: 0.0,
            added: 0.0,
            beyond: None,
            numbers: 0,
            overflowed: 0,
        }
    }

    /// Takes in the reference's rows.
    fn against(&mut self, got: &Matrix<f64>, want: Option<&Matrix<f64>>, expected: &[Interval]) {
        let Some(want) = want else { return };
        for (got, want) in got.iter_rows().zip(want.iter_rows()) {
            if got.iter().all(|x| x.is_finite()) {
                self.measure.take(got, want);
            } else {
                // How far what overflowed is off is not known.
                let pairs = got.iter().copied().zip(want.iter().copied());
                let known = pairs.filter(|(got, _)| got.is_finite());
                let (got, want): (Vec<_>, Vec<_>) = known.unzip();
                self.measure.take(&got, &want);
            }
        }
        let pairs = expected.iter().zip(want.as_slice());
        let inherited = pairs.map(|(e, want)| (e.value - want).abs());
        self.inherited = inherited.fold(self.inherited, f64::max);
    }

    /// Takes in some rows, of which `first` came before.
    fn take(&mut self, got: &Matrix<f64>, expected: &[Interval], first: usize) {
        self.cols = got.cols();
        self.numbers += got.as_slice().len();
        for (i, (&got, expected)) in got.as_slice().iter().zip(expected).enumerate() {
            if got.is_finite() {
                // Where nothing is known of what was expected, this is NaN, and no maximum.
                self.added = self.added.max((got - expected.value).abs());
            } else {
                self.overflowed += 1;
            }
            if !expected.meets(Interval::recorded(self.dtype, self.stored, got)) {
                let (row, column) = (first + i / self.cols, i % self.cols);
                self.beyond(row, column, got, expected);
            }
        }
    }

    fn beyond(&mut self, row: usize, column: usize, got: f64, expected: &Interval) {
        let so_far = self.beyond;
        let numbers = so_far.map_or(0, |beyond| beyond.numbers) + 1;
        let further = so_far
            .is_none_or(|beyond| (beyond.got - beyond.want).abs() < (got - expected.value).abs());
        let side = if got > expected.value {
            expected.high
        } else {
            expected.low
        };
        self.beyond = match so_far {
            Some(beyond) if !further => Some(Beyond { numbers, ..beyond }),
            _ => Some(Beyond {
                numbers,
                row,
                column,
                got,
                want: expected.value,
                allowed: (side - expected.value).abs(),
            }),
        };
    }

    fn finish(self, replayed: bool) -> Checked {
        Checked {
            replayed,
            distance: self.measure.distance(),
            inherited: self.inherited,
            added: self.added,
            activations: None,
            beyond: self.beyond,
            numbers: self.numbers,
            overflowed: self.overflowed,
        }
    }
}

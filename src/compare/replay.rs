//! Every operation done again on what another engine recorded.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use super::activations::Activations;
use super::distance::Measure;
use super::error::Result;
use super::interval::{Interval, Rounding};
use super::operation::{Kind, Operation};
use super::passes::{Pass, Tensors};
use super::report::Beyond;
use super::sequence::Sequence;
use super::step::{Input, Run, Step};
use super::{Distance, Precision, Recording, last_rows};
use crate::model::{Model, Plan};
use crate::tensor::{Dtype, Matrix};
use crate::trace::{Point, Rows};

/// Numbers that are looked at together: some 100 MB.
const TOGETHER: usize = 1 << 22;

/// A model, right or wrong, that another engine's recording is held against.
pub(super) struct Replay<'a> {
    model: &'a Model,
    plan: Plan,
    dtype: Precision,
    sequence: Sequence<'a>,
    /// Where tokens of images stand, and the tokens as they are looked up.
    spans: Vec<Range<usize>>,
    ids: Cow<'a, [u32]>,
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
    /// For the tensors of `points`.
    pub(super) fn new(
        model: &'a Model,
        dtype: Precision,
        sequence: Sequence<'a>,
        other: &'a Recording,
        points: &[Point],
    ) -> Result<Self> {
        let mut replay = Self {
            model,
            plan: match sequence.images.count() {
                0 => model.plan(),
                _ => model.plan_with(&model.vision()?),
            },
            dtype,
            sequence,
            spans: sequence.spans(model)?,
            ids: sequence.looked_up(model)?,
            other,
            whole: Tensors::new(),
            allowed: BTreeMap::new(),
        };
        let points = points.iter();
        let whole = points
            .filter(|point| !replay.can_replay(&point.name))
            .cloned();
        let whole: Vec<_> = whole.collect();
        if !whole.is_empty() {
            let pass = |dtype| Pass {
                model,
                dtype,
                sequence,
                points: &whole,
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
            let all = self.other.tokens() == self.sequence.tokens.len();
            let mut inputs = operation.inputs.iter();
            let known = inputs.all(|input| self.is_known(&input.name));
            known && (all || !operation.sees_others())
        })
    }

    /// Whether a tensor was recorded, or comes without a calculation from what is: the embedding and learned positions from the tokens
    /// alone, pixels from the reference, and what images put in the place of embeddings.
    fn is_known(&self, name: &str) -> bool {
        self.other.contains(name)
            || Operation::of(&self.plan, name, self.other).is_some_and(|operation| {
                let copies =
                    operation.inputs.is_empty() || matches!(operation.kind, Kind::PutImages);
                let mut inputs = operation.inputs.iter();
                copies && inputs.all(|input| self.is_known(&input.name))
            })
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
        let rounding = Rounding(self.dtype);
        let mut inputs = Vec::new();
        for input in &operation.inputs {
            let needed = match input.rows {
                Rows::Tokens => rows,
                of_images => self.sequence.rows(of_images),
            };
            let Some((all, stored)) = self.input(&input.name, needed)? else {
                return Ok(None);
            };
            let all = input.view(all, rounding);
            let rows = match (input.rows, operation.rows) {
                (Rows::Tokens, _) if !operation.sees_others() => last_rows(all, rows),
                (Rows::AllImages(_), Rows::EachImage(_)) => {
                    repeated(&all, self.sequence.images.count())
                }
                _ => all,
            };
            inputs.push(Input { rows, stored });
        }
        let first = match operation.rows {
            Rows::Tokens => self.sequence.tokens.len() - rows,
            _ => 0,
        };
        let run = Run {
            model: self.model,
            ids: &self.ids,
            spans: &self.spans,
            images: self.sequence.images,
            first,
        };
        Ok(Some(Step::new(run, operation, inputs, rounding)))
    }

    /// What an operation takes in, at least the last `rows` rows of it, and its type: as it was recorded, or
    /// [known](Self::is_known) without.
    fn input(&self, name: &str, rows: usize) -> Result<Option<(Matrix<f64>, Precision)>> {
        if let (Some(all), Some(stored)) = (self.other.read(name)?, self.other.stored(name)) {
            return Ok(Some((all, stored)));
        }
        let Some(step) = self.step(name, rows)? else {
            return Ok(None);
        };
        let numbers: Vec<f64> = step.rows(0..rows).iter().map(|x| x.value).collect();
        let cols = numbers.len() / rows.max(1);
        Ok(Some((Matrix::from_vec(cols, numbers), step.stored())))
    }

    /// Some of the last `last` rows of our own pass.
    fn whole_rows(&self, name: &str, last: usize, rows: Range<usize>) -> Vec<Interval> {
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

/// The rows of a tensor as often as there are images.
fn repeated(rows: &Matrix<f64>, images: usize) -> Matrix<f64> {
    Matrix::stack(rows.cols(), vec![rows.clone(); images])
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

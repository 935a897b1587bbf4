//! Where another engine's recording parts from ours, and why.
//!
//! [`Recording`] opens what an engine recorded: a safetensors file, an `.npz`, or a folder of `.npy` files. The names of
//! Hugging Face modules, llama.cpp and TransformerLens are known ([`Point`]), whatever else there is can be said by a map
//! file ([`Rules`]). [`Comparison`] holds it against a recording by [`trace`](crate::trace).
//!
//! Two recordings of one pass never agree to the last bit, so a difference by itself says little: it may have come in with
//! what an operation was given. So every operation is done again on the numbers that the other engine itself recorded
//! (`step`), and its own outcome is held against that. What is left is the error that it **added**; what the
//! replay is off from our recording is the error that it **inherited**. A number that no order of sums and no fused
//! operation could give is *beyond* what rounding may do, and the first tensor that has one is the finding.
//!
//! An embedding that was not recorded is looked up in the model. Where another input was not recorded there is nothing to
//! replay from. Then the tensor is held against our whole pass, and it is beyond where it is further off than twice what
//! passes are that have random errors of the size of rounding in every product.
//!
//! ggml rounds the activations of a product with a quantised weight to 8 bits. Such a product is beyond f32's rounding and yet as it
//! is meant to be: it is replayed with that rounding, and where this explains it, it is no finding ([`Row::activations`]).
//!
//! The finding's cause is looked for among the [known bugs](KnownBug): one whose replay leaves nothing beyond.

mod activations;
mod aliases;
mod aside;
mod distance;
mod error;
mod interval;
mod layout;
mod names;
mod npy;
mod operation;
mod passes;
mod pattern;
mod precision;
mod recording;
mod replay;
mod report;
mod rules;
mod sequence;
mod source;
mod step;

use std::collections::BTreeMap;
use std::ops::Range;

pub use activations::Activations;
pub use aliases::{Alias, aliases};
pub use aside::Aside;
pub use distance::Distance;
pub use error::{Error, Result};
pub use precision::Precision;
pub use recording::{Recording, model_of};
pub use report::{Beyond, Cause, Finding, Floor, Report, Row};
pub use rules::Rules;

use passes::Pass;
use replay::Replay;
use sequence::{Images, Sequence};

use crate::checkpoint::VisionConfig;
use crate::model::{Inputs, KnownBug, Model, PIXEL_VALUES};
use crate::tensor::{Dtype, Matrix};
pub use crate::trace::Point;
use crate::trace::Rows;

/// Two recordings of one pass, fit to be compared.
pub struct Comparison<'a> {
    model: &'a Model,
    reference: &'a Recording,
    other: &'a Recording,
    tokens: &'a [u32],
    images: Images,
    /// The compute type of `other`.
    dtype: Precision,
    /// Whether that is only what its numbers look like.
    guessed: bool,
    /// What both have, in forward order.
    points: Vec<Point>,
    /// What the reference has and `other` has not.
    missing: Vec<String>,
}

impl<'a> Comparison<'a> {
    /// Looks whether `other`, which an engine recorded in compute type `dtype` (what it says itself, or what its numbers
    /// are, where that is `None`), can be held against `reference`, which is a recording of `model` by [`trace`](crate::trace).
    /// `partial`: it may lack tensors.
    ///
    /// # Errors
    ///
    /// [`Error::NotAReference`], [`Error::NoPixels`], [`Error::OtherModel`], [`Error::OtherTokens`], [`Error::NothingInCommon`],
    /// [`Error::MissingRecordings`], [`Error::RecordedRows`], and those of [`Recording::read`].
    pub fn new(
        model: &'a Model,
        reference: &'a Recording,
        other: &'a Recording,
        dtype: Option<Precision>,
        partial: bool,
    ) -> Result<Self> {
        let (hash, tokens) = identity(reference)?;
        same_model(model, hash, other)?;
        let images = Images::of(model, reference)?;
        let sequence = Sequence {
            tokens,
            images: &images,
        };
        let (points, missing) = common(sequence.points(model)?, reference, other)?;
        if !partial && let Some(name) = missing.first() {
            return Err(Error::MissingRecordings {
                path: other.path().into(),
                missing: missing.len(),
                first: name.clone(),
            });
        }
        let said = dtype.or(other.dtype());
        let comparison = Self {
            model,
            reference,
            other,
            tokens,
            dtype: match said {
                Some(dtype) => dtype,
                None => guess(other, &points)?,
            },
            guessed: said.is_none(),
            images,
            points,
            missing,
        };
        if !comparison.lacks_bos()? {
            comparison.check_tokens()?;
        }
        Ok(comparison)
    }

    /// The compute type of the other recording.
    pub fn dtype(&self) -> Precision {
        self.dtype
    }

    /// How many tensors are compared.
    pub fn tensors(&self) -> usize {
        self.points.len()
    }

    /// Compares; `on_tensor` is called after each.
    ///
    /// # Errors
    ///
    /// [`Error::ComparisonMemory`], and those of [`Recording::read`] and of
    /// [`Session::forward`](crate::Session::forward).
    pub fn run(&self, mut on_tensor: impl FnMut()) -> Result<Report> {
        let mut report = Report {
            reference: self.reference.path().display().to_string(),
            other: self.other.path().display().to_string(),
            model: self.model.checkpoint().name().to_owned(),
            dtype: self.dtype.to_string(),
            guessed: self.guessed,
            tokens: self.tokens.len(),
            rows: vec![],
            missing: self.missing.clone(),
            aside: self.other.aside().to_vec(),
            finding: None,
        };
        if self.lacks_bos()? {
            report.finding = Some(self.missing_bos()?);
            return Ok(report);
        }
        let floors = floors_of(self.model, self.reference, self.sequence(), &self.points)?;
        let replay = Replay::new(
            self.model,
            self.dtype,
            self.sequence(),
            self.other,
            &self.points,
        )?;
        for point in &self.points {
            let floor = floors.get(&point.name).copied().unwrap_or_default();
            let row = self.row(&replay, &point.name, floor)?;
            if report.finding.is_none() && row.beyond.is_some() {
                report.finding = Some(self.finding(&row)?);
            }
            report.rows.push(row);
            on_tensor();
        }
        Ok(report)
    }

    fn sequence(&self) -> Sequence<'_> {
        Sequence {
            tokens: self.tokens,
            images: &self.images,
        }
    }

    fn row(&self, replay: &Replay<'_>, name: &str, floor: Floor) -> Result<Row> {
        let checked = replay.check(name, Some(self.reference))?;
        let stored = self.other.stored(name).unwrap_or(self.dtype);
        Ok(Row {
            name: name.to_owned(),
            distance: checked.distance,
            floor,
            replayed: checked.replayed,
            inherited: checked.inherited,
            added: checked.added,
            numbers: checked.numbers,
            stored: stored.to_string(),
            coarse: self.dtype.coarsened_by(stored),
            overflowed: checked.overflowed,
            activations: checked.activations,
            beyond: checked.beyond,
        })
    }

    /// The finding, with the bugs that explain it.
    fn finding(&self, row: &Row) -> Result<Finding> {
        let mut causes = Vec::new();
        for &bug in KnownBug::ALL {
            if self.explains(bug, &row.name)? {
                causes.push(Cause::from(bug));
            }
        }
        Ok(Finding {
            tensor: row.name.clone(),
            causes,
        })
    }

    /// Whether a bug gives the tensor as the other engine has it.
    fn explains(&self, bug: KnownBug, name: &str) -> Result<bool> {
        let inputs = Inputs {
            ids: self.tokens,
            pixel_values: &self.images.pixel_values(),
        };
        let shows = bug
            .without_effect(self.model, self.dtype.pass(), inputs)
            .is_none();
        if !shows || bug == KnownBug::MissingBos {
            return Ok(false);
        }
        let wrong = self.model.clone().with_bug(bug);
        let sequence = Sequence {
            tokens: self.tokens,
            images: &self.images.with_bug(bug, self.model)?,
        };
        // What comes before in the layer has to be as the bug has it, too.
        for point in self.up_to(name).iter().rev() {
            let points = std::slice::from_ref(point);
            let replay = Replay::new(&wrong, self.dtype, sequence, self.other, points)?;
            if replay.check(&point.name, None)?.beyond.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The tensors of a layer up to `name`; `name` alone outside the layers.
    fn up_to(&self, name: &str) -> &[Point] {
        let stacks = [self.model.config().decoder.layers, VisionConfig::LAYERS];
        let layer = |name: &str| -> Option<(usize, usize)> {
            stacks.iter().enumerate().find_map(|(stack, path)| {
                let rest = name.strip_prefix(path)?.strip_prefix('.')?;
                Some((stack, rest.split('.').next()?.parse().ok()?))
            })
        };
        let end = self.points.iter().position(|known| known.name == name);
        let points = &self.points[..end.map_or(0, |end| end + 1)];
        let own = layer(name);
        let others = points.iter().rposition(|before| layer(&before.name) != own);
        let start = match own {
            Some(_) => others.map_or(0, |other| other + 1),
            None => points.len().saturating_sub(1),
        };
        &points[start..]
    }

    /// Whether the other recording has a row less, or says itself that it ran all tokens but the first, which is no image's.
    fn lacks_bos(&self) -> Result<bool> {
        let spans = self.sequence().spans(self.model)?;
        if spans.first().is_some_and(|span| span.start == 0) {
            return Ok(false);
        }
        let all_but_first = self.tokens.len() - 1;
        Ok(match self.other.ids() {
            Some(ids) => ids == &self.tokens[1..],
            None => {
                let reference = self.reference.tokens();
                reference == self.tokens.len() && self.other.tokens() == all_but_first
            }
        })
    }

    /// The finding for a recording of all tokens but the first: that what it has fits these.
    fn missing_bos(&self) -> Result<Finding> {
        let sequence = Sequence {
            tokens: KnownBug::MissingBos.tokens(self.tokens),
            ..self.sequence()
        };
        let of_tokens = self.of_tokens();
        let points = of_tokens.map(std::slice::from_ref).unwrap_or_default();
        let name = of_tokens.map_or("", |point| &point.name);
        let replay = Replay::new(self.model, self.dtype, sequence, self.other, points)?;
        match replay.check(name, None)?.beyond {
            None => Ok(Finding {
                tensor: name.to_owned(),
                causes: vec![KnownBug::MissingBos.into()],
            }),
            Some(_) => Err(self.other_rows(name, self.reference.tokens())),
        }
    }

    /// The first point whose rows are of tokens.
    fn of_tokens(&self) -> Option<&Point> {
        let mut points = self.points.iter();
        points.find(|point| point.rows == Rows::Tokens)
    }

    fn check_tokens(&self) -> Result<()> {
        if self.other.ids().is_some_and(|ids| ids != self.tokens) {
            return Err(Error::OtherTokens {
                path: self.other.path().into(),
            });
        }
        let of_tokens = self.of_tokens().map(|point| &point.name);
        if let Some(name) = of_tokens
            && self.other.tokens() != self.reference.tokens()
        {
            return Err(self.other_rows(name, self.reference.tokens()));
        }
        let mut of_images = self
            .points
            .iter()
            .filter(|point| point.rows != Rows::Tokens);
        let rows = |point: &&Point| self.reference.rows(&point.name);
        match of_images.find(|point| self.other.rows(&point.name) != rows(point)) {
            Some(point) => Err(self.other_rows(&point.name, rows(&point))),
            None => Ok(()),
        }
    }

    fn other_rows(&self, name: &str, expected: usize) -> Error {
        Error::RecordedRows {
            path: self.other.path().into(),
            tensor: name.to_owned(),
            rows: self.other.rows(name),
            expected,
        }
    }
}

/// What f32 and bf16 are off from f64 at every tensor of a reference.
///
/// # Errors
///
/// [`Error::NotAReference`] and [`Error::NoPixels`], and those of [`Session::forward`](crate::Session::forward).
pub fn floors(model: &Model, reference: &Recording) -> Result<BTreeMap<String, Floor>> {
    let (_, tokens) = identity(reference)?;
    let sequence = Sequence {
        tokens,
        images: &Images::of(model, reference)?,
    };
    let (points, _) = common(sequence.points(model)?, reference, reference)?;
    floors_of(model, reference, sequence, &points)
}

fn floors_of(
    model: &Model,
    reference: &Recording,
    sequence: Sequence<'_>,
    points: &[Point],
) -> Result<BTreeMap<String, Floor>> {
    let pass = |dtype| Pass {
        model,
        dtype,
        sequence,
        points,
    };
    let own = match reference.dtype() {
        Some(Precision::F64) => None,
        _ => Some(pass(Dtype::F64).record(sequence.tokens.len())?),
    };
    let exact = |name: &str, rows: Range<usize>| match &own {
        None => {
            // It may have the last rows only.
            let there = pass(Dtype::F64).there(name, reference.rows(name), rows);
            reference.read_rows(name, there)
        }
        Some(own) => Ok(own.get(name).map(|own| own.slice_rows(rows))),
    };
    let off = |dtype| pass(dtype).distances(&exact);
    let (f32, bf16) = (off(Dtype::F32)?, off(Dtype::Bf16)?);
    let pairs = f32.into_iter().map(|(name, f32)| {
        let bf16 = bf16.get(&name).copied().unwrap_or_default();
        (name, Floor { f32, bf16 })
    });
    Ok(pairs.collect())
}

/// The hash of the weights and the tokens of a reference.
fn identity(reference: &Recording) -> Result<(&str, &[u32])> {
    match (reference.model_hash(), reference.ids()) {
        (Some(hash), Some(ids)) if !ids.is_empty() => Ok((hash, ids)),
        _ => Err(Error::NotAReference {
            path: reference.path().into(),
        }),
    }
}

/// Refuses recordings of other weights than the model's.
fn same_model(model: &Model, reference: &str, other: &Recording) -> Result<()> {
    let hash = model.checkpoint().tensors().content_hash();
    let differs = reference != hash || other.model_hash().is_some_and(|other| other != hash);
    if differs {
        Err(Error::OtherModel {
            path: other.path().into(),
            model: model.checkpoint().name().to_owned(),
        })
    } else {
        Ok(())
    }
}

/// Those of the points that both recordings have, and the names of those that the second lacks.
fn common(
    points: Vec<Point>,
    reference: &Recording,
    other: &Recording,
) -> Result<(Vec<Point>, Vec<String>)> {
    let points = points.into_iter();
    let recorded = points.filter(|point| reference.contains(&point.name));
    let (points, missing): (Vec<_>, Vec<_>) =
        recorded.partition(|point| other.contains(&point.name));
    if points.is_empty() {
        return Err(Error::NothingInCommon {
            path: other.path().into(),
            reference: reference.path().into(),
        });
    }
    let missing = missing.into_iter().map(|point| point.name);
    Ok((points, missing.collect()))
}

/// The narrowest compute type that has the numbers of a recording, as far as the first row of every tensor tells.
fn guess(recording: &Recording, points: &[Point]) -> Result<Precision> {
    let mut left = vec![Precision::Bf16, Precision::F16, Precision::F32];
    // Pixels are what they are before a model computes.
    for point in points.iter().filter(|point| point.name != PIXEL_VALUES) {
        let Some(numbers) = recording.read_rows(&point.name, 0..1)? else {
            continue;
        };
        // What overflowed says nothing.
        let numbers = numbers.as_slice().iter().filter(|x| x.is_finite());
        left.retain(|dtype| numbers.clone().all(|&x| dtype.nearest(x) == x));
    }
    Ok(left.first().copied().unwrap_or(Precision::F64))
}

/// The last rows, as many as were recorded.
fn last_rows(tensor: Matrix<f64>, rows: usize) -> Matrix<f64> {
    match tensor.rows().checked_sub(rows) {
        None | Some(0) => tensor,
        Some(first) => tensor.slice_rows(first..tensor.rows()),
    }
}

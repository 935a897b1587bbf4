//! Where another engine's recording parts from ours, and why.
//!
//! [`Recording`] opens what an engine recorded: a safetensors file, an `.npz`, or a folder of `.npy` files. The names of
//! Hugging Face modules, llama.cpp and TransformerLens are known ([`Point`]), whatever else there is can be said by a map
//! file ([`Rules`]). [`Comparison`] holds it against a recording by [`trace`].
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

use crate::model::{KnownBug, Model};
use crate::tensor::{Dtype, Matrix};
use crate::trace;
pub use crate::trace::Point;

/// Two recordings of one pass, fit to be compared.
pub struct Comparison<'a> {
    model: &'a Model,
    reference: &'a Recording,
    other: &'a Recording,
    tokens: &'a [u32],
    /// The compute type of `other`.
    dtype: Precision,
    /// Whether that is only what its numbers look like.
    guessed: bool,
    /// What both have, in forward order.
    names: Vec<String>,
    /// What the reference has and `other` has not.
    missing: Vec<String>,
}

impl<'a> Comparison<'a> {
    /// Looks whether `other`, which an engine recorded in compute type `dtype` (what it says itself, or what its numbers
    /// are, where that is `None`), can be held against `reference`, which is a recording of `model` by [`trace`].
    /// `partial`: it may lack tensors.
    ///
    /// # Errors
    ///
    /// [`Error::NotAReference`], [`Error::OtherModel`], [`Error::OtherTokens`], [`Error::NothingInCommon`],
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
        refuse_images(model, reference, tokens)?;
        let (names, missing) = common(model, reference, other)?;
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
                None => guess(other, &names)?,
            },
            guessed: said.is_none(),
            names,
            missing,
        };
        if !comparison.lacks_bos() {
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
        self.names.len()
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
        if self.lacks_bos() {
            report.finding = Some(self.missing_bos()?);
            return Ok(report);
        }
        let floors = floors_of(self.model, self.reference, self.tokens, &self.names)?;
        let replay = self.replay(self.model)?;
        for name in &self.names {
            let floor = floors.get(name).copied().unwrap_or_default();
            let row = self.row(&replay, name, floor)?;
            if report.finding.is_none() && row.beyond.is_some() {
                report.finding = Some(self.finding(&row)?);
            }
            report.rows.push(row);
            on_tensor();
        }
        Ok(report)
    }

    fn replay<'r>(&'r self, model: &'r Model) -> Result<Replay<'r>> {
        Replay::new(model, self.dtype, self.tokens, self.other, &self.names)
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
        let (config, tokens) = (self.model.config(), self.tokens.len());
        let shows = bug
            .without_effect(config, self.dtype.pass(), tokens)
            .is_none();
        if !shows || bug == KnownBug::MissingBos {
            return Ok(false);
        }
        let wrong = self.model.clone().with_bug(bug);
        // What comes before in the layer has to be as the bug has it, too.
        for name in self.up_to(name).iter().rev() {
            let names = std::slice::from_ref(name);
            let replay = Replay::new(&wrong, self.dtype, self.tokens, self.other, names)?;
            if replay.check(name, None)?.beyond.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The tensors of a layer up to `name`; `name` alone outside the layers.
    fn up_to(&self, name: &str) -> &[String] {
        let path = self.model.config().decoder.layers;
        let layer = |name: &str| -> Option<usize> {
            let rest = name.strip_prefix(path)?.strip_prefix('.')?;
            rest.split('.').next()?.parse().ok()
        };
        let end = self.names.iter().position(|known| known == name);
        let names = &self.names[..end.map_or(0, |end| end + 1)];
        let own = layer(name);
        let others = names.iter().rposition(|before| layer(before) != own);
        let start = match own {
            Some(_) => others.map_or(0, |other| other + 1),
            None => names.len().saturating_sub(1),
        };
        &names[start..]
    }

    /// Whether the other recording has a row less, or says itself that it ran all tokens but the first.
    fn lacks_bos(&self) -> bool {
        let all_but_first = self.tokens.len() - 1;
        match self.other.ids() {
            Some(ids) => ids == &self.tokens[1..],
            None => {
                let reference = self.reference.tokens();
                reference == self.tokens.len() && self.other.tokens() == all_but_first
            }
        }
    }

    /// The finding for a recording of all tokens but the first: that what it has fits these.
    fn missing_bos(&self) -> Result<Finding> {
        let name = &self.names[0];
        let tokens = KnownBug::MissingBos.tokens(self.tokens);
        let names = std::slice::from_ref(name);
        let replay = Replay::new(self.model, self.dtype, tokens, self.other, names)?;
        match replay.check(name, None)?.beyond {
            None => Ok(Finding {
                tensor: name.clone(),
                causes: vec![KnownBug::MissingBos.into()],
            }),
            Some(_) => Err(self.other_rows(name, self.other.rows(name))),
        }
    }

    fn check_tokens(&self) -> Result<()> {
        if self.other.ids().is_some_and(|ids| ids != self.tokens) {
            return Err(Error::OtherTokens {
                path: self.other.path().into(),
            });
        }
        if self.other.tokens() == self.reference.tokens() {
            Ok(())
        } else {
            Err(self.other_rows(&self.names[0], self.other.tokens()))
        }
    }

    fn other_rows(&self, name: &str, rows: usize) -> Error {
        Error::RecordedRows {
            path: self.other.path().into(),
            tensor: name.to_owned(),
            rows,
            expected: self.reference.tokens(),
        }
    }
}

/// What f32 and bf16 are off from f64 at every tensor of a reference.
///
/// # Errors
///
/// [`Error::NotAReference`], and those of [`Session::forward`](crate::Session::forward).
pub fn floors(model: &Model, reference: &Recording) -> Result<BTreeMap<String, Floor>> {
    let (_, tokens) = identity(reference)?;
    refuse_images(model, reference, tokens)?;
    let (names, _) = common(model, reference, reference)?;
    floors_of(model, reference, tokens, &names)
}

fn floors_of(
    model: &Model,
    reference: &Recording,
    tokens: &[u32],
    names: &[String],
) -> Result<BTreeMap<String, Floor>> {
    let pass = |dtype| Pass {
        model,
        dtype,
        tokens,
        names,
    };
    let own = match reference.dtype() {
        Some(Precision::F64) => None,
        _ => Some(pass(Dtype::F64).record(tokens.len())?),
    };
    let exact = |name: &str, rows: Range<usize>| match &own {
        None => {
            // It may have the last rows only.
            let absent = tokens.len() - reference.rows(name);
            let [start, end] = [rows.start, rows.end].map(|row| row.saturating_sub(absent));
            reference.read_rows(name, start..end)
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

/// Images are not replayed.
fn refuse_images(model: &Model, reference: &Recording, tokens: &[u32]) -> Result<()> {
    let vision = model.checkpoint().vision_config();
    if vision.is_ok_and(|vision| tokens.contains(&vision.image_token_index)) {
        return Err(Error::Images {
            path: reference.path().into(),
        });
    }
    Ok(())
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

/// The names that both recordings have, and those that the second lacks.
fn common(
    model: &Model,
    reference: &Recording,
    other: &Recording,
) -> Result<(Vec<String>, Vec<String>)> {
    let names = trace::names(model).into_iter();
    let recorded = names.filter(|name| reference.contains(name));
    let (names, missing): (Vec<_>, Vec<_>) = recorded.partition(|name| other.contains(name));
    if names.is_empty() {
        Err(Error::NothingInCommon {
            path: other.path().into(),
            reference: reference.path().into(),
        })
    } else {
        Ok((names, missing))
    }
}

/// The narrowest compute type that has the numbers of a recording, as far as the first row of every tensor tells.
fn guess(recording: &Recording, names: &[String]) -> Result<Precision> {
    let mut left = vec![Precision::Bf16, Precision::F16, Precision::F32];
    for name in names {
        let Some(numbers) = recording.read_rows(name, 0..1)? else {
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

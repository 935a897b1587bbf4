//! Our own passes over the tokens of a recording.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use half::bf16;

use super::error::{Error, Result};
use super::sequence::Sequence;
use crate::model::{Images, Model, Recorder, Session, Tokens};
use crate::tensor::{Dtype, Element, Matrix};
use crate::trace::{self, Point};

/// Passes whose products are disturbed, of which the worst counts.
const DISTURBED: u64 = 4;

/// Tensors by name, `[tokens, width]` each.
pub(super) type Tensors = BTreeMap<String, Matrix<f64>>;

/// What a distance is taken from: some rows of a tensor, or `None` where it does not matter.
pub(super) type Rows<'a> = dyn Fn(&str, Range<usize>) -> Result<Option<Matrix<f64>>> + 'a;

/// The most bytes of tensors that are held at once: enough for the logits of 1000 tokens in Gemma's vocabulary.
const MOST: usize = 2 << 30;

/// A model's pass over the tokens of a recording, and the tensors that matter.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub(super) model: &'a Model,
    pub(super) dtype: Dtype,
    pub(super) sequence: Sequence<'a>,
    pub(super) points: &'a [Point],
}

impl Pass<'_> {
    /// The tensors, at least the last `last` rows of them.
    ///
    /// # Errors
    ///
    /// [`Error::ComparisonMemory`] where they are too large to be held.
    pub(super) fn record(self, last: usize) -> Result<Tensors> {
        let most = |point: &Point| match point.rows {
            trace::Rows::Tokens => last.min(self.sequence.tokens.len()),
            rows => self.sequence.rows(rows),
        };
        let bytes = self.points.iter().map(|point| {
            let numbers = point.width.saturating_mul(most(point));
            numbers.saturating_mul(8)
        });
        let needed = bytes.fold(0, usize::saturating_add);
        if needed > MOST {
            return Err(Error::ComparisonMemory {
                tokens: last.min(self.sequence.tokens.len()),
                needed: needed as u64,
                most: MOST as u64,
            });
        }
        let last = self.points.iter();
        let last = last.map(|point| (point.name.as_str(), most(point)));
        let mut kept = Kept {
            last: last.collect(),
            rows: HashMap::new(),
        };
        self.run(None, &mut kept)?;
        let tensors = kept.rows.into_iter();
        let stacked = tensors.map(|(name, parts)| {
            let cols = parts[0].cols();
            (name, Matrix::stack(cols, parts))
        });
        Ok(stacked.collect())
    }

    /// How far the tensors are from those that `want` has, the largest difference of each.
    pub(super) fn distances(self, want: &Rows<'_>) -> Result<BTreeMap<String, f64>> {
        self.distances_of(None, want)
    }

    /// How far rounding may take the tensors, which are `want`: the worst of some passes whose matrix products are off by
    /// as much as another order of sums may make them.
    pub(super) fn disturbed(self, want: &Tensors) -> Result<BTreeMap<String, f64>> {
        let want = |name: &str, rows: Range<usize>| {
            Ok(want
                .get(name)
                .map(|tensor| tensor.slice_rows(self.there(name, tensor.rows(), rows))))
        };
        let mut worst: BTreeMap<String, f64> = BTreeMap::new();
        for seed in 0..DISTURBED {
            for (name, off) in self.distances_of(Some(seed), &want)? {
                let worst = worst.entry(name).or_default();
                *worst = worst.max(off);
            }
        }
        Ok(worst)
    }

    /// Where some of all rows of a tensor are among its last `last` rows.
    pub(super) fn there(self, name: &str, last: usize, rows: Range<usize>) -> Range<usize> {
        let point = self.points.iter().find(|point| point.name == name);
        let all = point.map_or(last, |point| self.sequence.rows(point.rows));
        let absent = all - last;
        rows.start.saturating_sub(absent)..rows.end.saturating_sub(absent)
    }

    fn distances_of(
        self,
        disturbed: Option<u64>,
        want: &Rows<'_>,
    ) -> Result<BTreeMap<String, f64>> {
        let mut apart = Apart {
            points: self.points,
            want,
            rows: HashMap::new(),
            largest: BTreeMap::new(),
            error: None,
        };
        self.run(disturbed, &mut apart)?;
        match apart.error {
            Some(error) => Err(error),
            None => Ok(apart.largest),
        }
    }

    fn run(self, disturbed: Option<u64>, recorder: &mut dyn Recorder) -> Result<()> {
        match self.dtype {
            Dtype::F64 => self.run_in::<f64>(disturbed, recorder),
            Dtype::F32 => self.run_in::<f32>(disturbed, recorder),
            Dtype::Bf16 => self.run_in::<bf16>(disturbed, recorder),
        }
    }

    fn run_in<E: Element>(self, disturbed: Option<u64>, recorder: &mut dyn Recorder) -> Result<()> {
        let tokens = self.sequence.tokens;
        let images = self.images::<E>(disturbed, recorder)?;
        let mut session = Session::<E>::new(self.model);
        if let Some(seed) = disturbed {
            session = session.disturbed(seed);
        }
        let ends = self.model.ends().iter().any(|name| recorder.wants(name));
        let logits = if ends { tokens.len() } else { 0 };
        let tokens = Tokens::new(tokens, images.as_ref());
        Ok(session.forward_recorded(tokens, logits, recorder)?)
    }

    /// What the vision part makes of the images.
    fn images<E: Element>(
        self,
        disturbed: Option<u64>,
        recorder: &mut dyn Recorder,
    ) -> Result<Option<Images<E>>> {
        let Sequence { tokens, images } = self.sequence;
        if images.count() == 0 {
            return Ok(None);
        }
        let vision = self.model.vision()?.disturbed(disturbed);
        let features = vision.features(&images.pixel_values(), Some(recorder))?;
        Ok(Some(Images::new(vision.config(), tokens, features)?))
    }
}

/// Keeps what is wanted.
struct Kept<'a> {
    /// Rows of each that have to be kept.
    last: BTreeMap<&'a str, usize>,
    rows: HashMap<String, Vec<Matrix<f64>>>,
}

impl Recorder for Kept<'_> {
    fn wants(&self, name: &str) -> bool {
        self.last.contains_key(name)
    }

    fn record(&mut self, name: &str, rows: &Matrix<f64>) {
        let parts = self.rows.entry(name.to_owned()).or_default();
        parts.push(rows.clone());
        let all: usize = parts.iter().map(Matrix::rows).sum();
        if all - parts[0].rows() >= self.last.get(name).copied().unwrap_or_default() {
            parts.remove(0);
        }
    }
}

/// Looks how far rows are from what they should be, and keeps none.
struct Apart<'a> {
    points: &'a [Point],
    want: &'a Rows<'a>,
    /// How many rows of each have been seen.
    rows: HashMap<String, usize>,
    largest: BTreeMap<String, f64>,
    error: Option<Error>,
}

impl Recorder for Apart<'_> {
    fn wants(&self, name: &str) -> bool {
        self.error.is_none() && self.points.iter().any(|point| point.name == name)
    }

    fn record(&mut self, name: &str, rows: &Matrix<f64>) {
        let seen = self.rows.entry(name.to_owned()).or_default();
        let first = *seen;
        *seen += rows.rows();
        let want = match (self.want)(name, first..*seen) {
            Ok(Some(want)) => want,
            Ok(None) => return,
            Err(error) => return self.error = Some(error),
        };
        // A recording may have the last rows only.
        let absent = (rows.rows() - want.rows()) * rows.cols();
        let pairs = rows.as_slice()[absent..].iter().zip(want.as_slice());
        let largest = self.largest.entry(name.to_owned()).or_default();
        *largest = pairs.fold(*largest, |largest, (got, want)| {
            largest.max((got - want).abs())
        });
    }
}

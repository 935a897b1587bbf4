//! Verifications in parts: what is still missing of a record, or a share of it.

use std::fmt;
use std::str::FromStr;

use super::batches::batches;
use super::error::{Error, Result};
use super::record::{Added, Place};
use super::{Begun, Crossing, Kind, Record, Run, Step};
use crate::model::Model;
use crate::tensor::{Dtype, Element};

/// A share of a verification: of all pairs of a kind and a prompt every N-th, so that N shares are the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// From 0.
    index: usize,
    /// How many shares there are.
    count: usize,
}

impl Shard {
    /// Everything.
    pub const WHOLE: Self = Self { index: 0, count: 1 };

    /// The pairs of this share: the index of a kind, and a prompt.
    fn pairs(self, record: &Record) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (kinds, prompts) = (record.runs.len(), record.setting.prompts.len());
        let pairs = (0..kinds).flat_map(move |kind| (0..prompts).map(move |prompt| (kind, prompt)));
        pairs.skip(self.index).step_by(self.count)
    }

    /// How many of its steps a record has, and how many there will be.
    pub fn progress(self, record: &Record) -> (usize, usize) {
        let (mut done, mut all) = (0, 0usize);
        for (kind, prompt) in self.pairs(record) {
            let run = &record.runs[kind];
            done += run.prompt(prompt).len();
            all = all.saturating_add(record.setting.steps(run.kind));
        }
        (done, all)
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.index + 1, self.count))
    }
}

/// `I/N`, I from 1 to N.
impl FromStr for Shard {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let parts = s.split_once('/').and_then(|(number, count)| {
            let (number, count): (usize, usize) = (number.parse().ok()?, count.parse().ok()?);
            let index = number.checked_sub(1)?;
            (index < count).then_some(Self { index, count })
        });
        parts.ok_or_else(|| format!("'{s}' is no share: use I/N, I from 1 to N, such as 2/8"))
    }
}

/// Computes what is missing of a share; `pixel_values` are those of each prompt's images, where any has some; `on_step` gets each new step as it is done, before the record has it.
///
/// A prompt that was interrupted goes on where it was left. Where its steps have to be computed together, or in the same
/// calls for the same bits (a span, another backend than the native one), all of them are computed again, and must be
/// what the record has. Otherwise several prompts go [through the layers together](super::Verification::batch).
///
/// A prompt that cannot be solved does not stop the others: its error comes back when all are done, the first one as an
/// [`Error::Unsolved`].
///
/// # Errors
///
/// At once those of `on_step`, and [`Error::StepRepeats`].
pub fn run(
    model: &Model,
    record: &mut Record,
    pixel_values: &[Vec<&[f32]>],
    shard: Shard,
    mut on_step: impl FnMut(Kind, &Step) -> Result<()>,
) -> Result<Option<Error>> {
    let mut unsolved = None;
    let pairs: Vec<_> = shard.pairs(record).collect();
    for of_kind in pairs.chunk_by(|a, b| a.0 == b.0) {
        let kind = of_kind[0].0;
        let prompts: Vec<_> = of_kind.iter().map(|(_, prompt)| *prompt).collect();
        let run_batch = match record.runs[kind].kind.dtype {
            Dtype::F64 => run_batch::<f64>,
            Dtype::F32 => run_batch::<f32>,
            Dtype::Bf16 => run_batch::<half::bf16>,
        };
        for mut batch in batches(&record.setting, record.runs[kind].kind, &prompts) {
            let (run, setting) = (&record.runs[kind], &record.setting);
            batch.retain(|&prompt| run.done(prompt) < setting.steps(run.kind));
            let done = run_batch(model, record, pixel_values, kind, &batch, &mut on_step)?;
            for (prompt, done) in batch.into_iter().zip(done) {
                let Err(error) = done else { continue };
                let run = &record.runs[kind];
                let place = Place {
                    kind: run.kind,
                    prompt,
                    step: run.done(prompt),
                };
                unsolved.get_or_insert(Error::Unsolved {
                    step: place.to_string(),
                    source: Box::new(error),
                });
            }
        }
    }
    Ok(unsolved)
}

/// Adds a step, unless it is there already.
fn push(
    run: &mut Run,
    step: Step,
    on_step: &mut dyn FnMut(Kind, &Step) -> Result<()>,
) -> Result<()> {
    match run.compare(&step) {
        Added::There => Ok(()),
        Added::New(at) => {
            on_step(run.kind, &step)?;
            run.steps.insert(at, step);
            Ok(())
        }
        Added::Differs => Err(Error::StepRepeats {
            step: Place::new(run.kind, &step).to_string(),
        }),
    }
}

/// Computes the missing steps of some prompts of a kind. The result is an error where a step is refused, else says for each
/// prompt whether it was solved.
fn run_batch<E: Element>(
    model: &Model,
    record: &mut Record,
    pixel_values: &[Vec<&[f32]>],
    kind: usize,
    prompts: &[usize],
    on_step: &mut dyn FnMut(Kind, &Step) -> Result<()>,
) -> Result<Vec<Result<()>>> {
    let Record { setting, runs, .. } = record;
    let run = &mut runs[kind];
    let kind = run.kind;
    let begun = prompts.iter().map(|&prompt| Begun {
        prompt,
        inputs: setting.inputs(prompt, pixel_values),
        written: written(run, prompt),
    });
    let begun: Vec<_> = begun.collect();
    let solved = model.clone().on(kind.solved_on)?;
    let verification = setting.verification(kind, &solved);
    let mut push = |step| push(run, step, on_step);
    if !kind.crosses() {
        return verification.batch::<E>(&begun, push);
    }
    let applied = model.clone().on(kind.applied_on)?;
    let crossing = Crossing {
        solved: verification,
        applied: &applied,
    };
    let each = begun.iter().map(|begun| {
        // A step that is refused stops everything.
        let mut refused = false;
        let on_step = |step| push(step).inspect_err(|_| refused = true);
        match crossing.prompt::<E>(begun.prompt, begun.inputs, on_step) {
            Err(error) if refused => Err(error),
            done => Ok(done),
        }
    });
    each.collect()
}

/// What the model wrote after a prompt in the steps that are done.
fn written(run: &Run, prompt: usize) -> Vec<u32> {
    let steps = &run.prompt(prompt)[..run.done(prompt)];
    steps.iter().map(|step| step.next).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_written_as_fractions() {
        for good in ["1/1", "2/8", "8/8"] {
            assert_eq!(good.parse::<Shard>().unwrap().to_string(), good);
        }
        for bad in ["", "1", "0/3", "4/3", "1/0", "-1/3", "a/b", "1/2/3"] {
            let message = bad.parse::<Shard>().unwrap_err();
            assert_eq!(message.lines().count(), 1, "{bad}");
        }
    }
}

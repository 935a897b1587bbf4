//! Scoring an engine's recordings of the kit.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::error::{Error, Result};
use super::kit::{open, recording, write_case};
use super::{CASES, Case};
use crate::compare::{Comparison, Finding, Recording, Rules};
use crate::output::scratch_dir;
use crate::tensor::Dtype;

/// One case in one compute type.
#[derive(Clone, Debug, Serialize)]
pub struct Score {
    /// The case.
    pub case: &'static str,
    /// What it is for.
    pub feature: &'static str,
    /// The compute type.
    pub dtype: String,
    /// What came out.
    pub outcome: Outcome,
}

/// What a case came to.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// No recording of it.
    Absent,
    /// A recording that cannot be compared, and why.
    Unusable(String),
    /// Within rounding at all its tensors, so many.
    Within(usize),
    /// Beyond rounding.
    Beyond(Finding),
}

/// Where a case's recording of a compute type may be.
fn found(results: &Path, case: &Case, dtype: Dtype) -> Option<PathBuf> {
    let folder = results.join(case.name);
    let names = [".safetensors", ".npz", ""].map(|end| folder.join(format!("{dtype}{end}")));
    names.into_iter().find(|path| path.exists())
}

/// Scores the recordings in the folder `results`; `on_case` is called after each case. `rules` say what names
/// mean, as for a [`Comparison`].
///
/// # Errors
///
/// [`Error::NoResults`] where there are none, and [`Error::Io`]. What is wrong with a recording goes into its score.
pub fn check(results: &Path, rules: &Rules, mut on_case: impl FnMut()) -> Result<Vec<Score>> {
    let scratch = scratch_dir("context-patch-kit")?;
    let mut scores = Vec::new();
    for case in &CASES {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let outcome = match found(results, case, dtype) {
                None => Outcome::Absent,
                Some(other) => {
                    let folder = scratch.path().join(case.name);
                    if !folder.exists() {
                        write_case(case, &folder)?;
                    }
                    match compare(&folder, &other, dtype, rules) {
                        Ok(outcome) => outcome,
                        Err(error) => Outcome::Unusable(error.to_string()),
                    }
                }
            };
            scores.push(Score {
                case: case.name,
                feature: case.feature,
                dtype: dtype.to_string(),
                outcome,
            });
        }
        on_case();
    }
    let absent = |score: &Score| matches!(score.outcome, Outcome::Absent);
    if scores.iter().all(absent) {
        Err(Error::NoResults {
            path: results.into(),
        })
    } else {
        Ok(scores)
    }
}

fn compare(folder: &Path, other: &Path, dtype: Dtype, rules: &Rules) -> Result<Outcome> {
    let model = open(folder)?;
    let reference = recording(folder, Dtype::F64);
    let reference = Recording::open(&reference, &model, &Rules::default())?;
    let other = Recording::open(other, &model, rules)?;
    let comparison = Comparison::new(&model, &reference, &other, Some(dtype.into()), true)?;
    let report = comparison.run(|| ())?;
    Ok(match report.finding {
        None => Outcome::Within(report.rows.len()),
        Some(finding) => Outcome::Beyond(finding),
    })
}

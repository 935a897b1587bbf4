//! Which prompts of a verification go through the layers together.

use super::{Kind, Setting};
use crate::patch::{Solver, Variant};
use crate::tensor::Dtype;

/// Rows at once at most: with more of them it is no longer reading weights that takes the time.
const ROWS: usize = 32;

/// Some prompts of a kind in the groups that are computed together. This is also the order in which files have the steps: of
/// each group the first steps, then the next ones.
pub(super) fn batches(setting: &Setting, kind: Kind, prompts: &[usize]) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut rows = 0;
    for &prompt in prompts {
        let more = rows_of(setting, kind, prompt);
        match batches.last_mut() {
            Some(batch) if together(kind) && rows + more <= ROWS => {
                batch.push(prompt);
                rows += more;
            }
            _ => {
                batches.push(vec![prompt]);
                rows = more;
            }
        }
    }
    batches
}

/// Whether prompts of a kind have the same figures together as by themselves, and are done sooner: f64 is busy multiplying with
/// one already.
fn together(kind: Kind) -> bool {
    let exact = kind.solved_on.is_exact() && kind.applied_on.is_exact();
    exact && kind.solver != Solver::Span && kind.dtype != Dtype::F64
}

/// The rows of a prompt's token: of each reduced pass its own and those of the tokens that stay, and the contextual one.
fn rows_of(setting: &Setting, kind: Kind, prompt: usize) -> usize {
    let tokens = setting.prompt_ids.get(prompt).map_or(0, Vec::len);
    let kept = setting.keep.indices(tokens.saturating_sub(1)).len();
    let passes = 1 + Variant::most_controls(kind.solver);
    (kept + 1) * passes + 1
}

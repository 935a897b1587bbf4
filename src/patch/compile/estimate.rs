//! How good a patch will be for queries that nobody has asked: compiled without some of those there are, and tried on them.

use serde::{Deserialize, Serialize};

use super::{Lesson, Recipe, Summary, Trial, compile};
use crate::model::{Model, Overlay};
use crate::patch::{ApplyMode, Result};
use crate::tensor::Element;

/// Parts that the queries are divided into; each is left out once.
pub const FOLDS: usize = 3;

/// What three patches did, each on the queries and anchors that it was not compiled from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Queries under the patch.
    pub patched: Summary,
    /// The same queries without prompt and patch.
    pub bare: Summary,
    /// Texts that must not change; where their number is too small to leave some out, of none.
    pub elsewhere: Summary,
}

impl Estimate {
    /// The recipe with the lesser [`loss`](Self::loss), the first of equals, and its estimate; `on_layer` is called as by
    /// [`new`](Self::new).
    ///
    /// # Errors
    ///
    /// Those of [`compile`].
    pub fn best<E: Element>(
        model: &Model,
        lessons: &[Lesson<E>],
        [first, second]: [Recipe; 2],
        mut on_layer: impl FnMut(),
    ) -> Result<(Recipe, Self)> {
        let of_first = Self::new(model, lessons, &first, &mut on_layer)?;
        let of_second = Self::new(model, lessons, &second, on_layer)?;
        Ok(match of_second.loss() < of_first.loss() {
            true => (second, of_second),
            false => (first, of_first),
        })
    }

    /// KL a token of the queries from the model with the prompt, and of the other texts from the model as it is, added: what a patch
    /// does not do, and what it does that it should not.
    pub fn loss(&self) -> f64 {
        self.patched.kl + self.elsewhere.kl
    }

    /// Of a recipe; `on_layer` is called after each layer of each of the [`FOLDS`] patches.
    ///
    /// # Errors
    ///
    /// Those of [`compile`].
    pub fn new<E: Element>(
        model: &Model,
        lessons: &[Lesson<E>],
        recipe: &Recipe,
        mut on_layer: impl FnMut(),
    ) -> Result<Self> {
        let (mut patched, mut bare, mut elsewhere) = (Vec::new(), Vec::new(), Vec::new());
        for fold in 0..FOLDS {
            let (left_out, used) = divided(lessons, fold);
            if left_out.is_empty() || used.is_empty() {
                continue;
            }
            let patch = compile(model, &used, recipe, &mut on_layer)?;
            let overlay = Overlay::<E>::new(model, &patch, ApplyMode::Overlay);
            let (queries, anchors): (Vec<_>, Vec<_>) = left_out
                .into_iter()
                .partition(|lesson| !lesson.sample.anchor);
            patched.extend(Trial::all(model, Some(&overlay), &queries)?);
            bare.extend(Trial::all(model, None, &queries)?);
            elsewhere.extend(Trial::all(model, Some(&overlay), &anchors)?);
        }
        Ok(Self {
            patched: Summary::new(&patched),
            bare: Summary::new(&bare),
            elsewhere: Summary::new(&elsewhere),
        })
    }
}

/// The lessons that a fold leaves out, and the others: every third of the queries, and of the anchors.
pub(super) fn divided<E: Element>(
    lessons: &[Lesson<E>],
    fold: usize,
) -> (Vec<&Lesson<E>>, Vec<&Lesson<E>>) {
    let left_out = |lesson: &&Lesson<E>| lesson.sample.about % FOLDS == fold;
    lessons.iter().partition(left_out)
}

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
    /// Of a recipe; `on_layer` is called after each layer of each of the [`FOLDS`] patches.
    ///
    /// # Errors
    ///
    /// Those of [`compile`].
    pub fn new<E: Element>(
        model: &Model,
        lessons: &[Lesson<E>],
        recipe: &Recipe,
        on_layer: impl FnMut(),
    ) -> Result<Self> {
        let (_, estimate) = Self::best(model, lessons, *recipe, None, on_layer)?;
        Ok(estimate)
    }

    /// The recipe, or the other one where its [`loss`](Self::loss) is less, and its estimate; `on_layer` is called after each layer
    /// of each of the [`FOLDS`] patches of each recipe.
    ///
    /// # Errors
    ///
    /// Those of [`compile`].
    pub fn best<E: Element>(
        model: &Model,
        lessons: &[Lesson<E>],
        recipe: Recipe,
        other: Option<Recipe>,
        mut on_layer: impl FnMut(),
    ) -> Result<(Recipe, Self)> {
        let (mut usual, mut other) = (Tried::new(recipe), other.map(Tried::new));
        let mut bare = Vec::new();
        for fold in 0..FOLDS {
            let (left_out, used) = divided(lessons, fold);
            if left_out.is_empty() || used.is_empty() {
                continue;
            }
            let left_out: (Vec<_>, Vec<_>) = left_out
                .into_iter()
                .partition(|lesson| !lesson.sample.anchor);
            bare.extend(Trial::all(model, None, &left_out.0)?);
            for tried in std::iter::once(&mut usual).chain(&mut other) {
                tried.fold(model, &used, &left_out, &mut on_layer)?;
            }
        }
        let bare = Summary::new(&bare);
        let usual = usual.estimate(bare);
        Ok(match other.map(|other| other.estimate(bare)) {
            Some(other) if other.1.loss() < usual.1.loss() => other,
            _ => usual,
        })
    }

    /// KL a token of the queries from the model with the prompt, and of the other texts from the model as it is, added: what a patch
    /// does not do, and what it does that it should not.
    pub fn loss(&self) -> f64 {
        self.patched.kl + self.elsewhere.kl
    }
}

/// A recipe, and what its patches did with what they were not compiled from.
struct Tried {
    recipe: Recipe,
    patched: Vec<Trial>,
    elsewhere: Vec<Trial>,
}

impl Tried {
    fn new(recipe: Recipe) -> Self {
        Self {
            recipe,
            patched: Vec::new(),
            elsewhere: Vec::new(),
        }
    }

    /// Compiles from the lessons used, and tries the queries and texts left out.
    fn fold<E: Element>(
        &mut self,
        model: &Model,
        used: &[&Lesson<E>],
        (queries, anchors): &(Vec<&Lesson<E>>, Vec<&Lesson<E>>),
        on_layer: impl FnMut(),
    ) -> Result<()> {
        let patch = compile(model, used, &self.recipe, on_layer)?;
        let overlay = Overlay::<E>::new(model, &patch, ApplyMode::Overlay);
        self.patched
            .extend(Trial::all(model, Some(&overlay), queries)?);
        self.elsewhere
            .extend(Trial::all(model, Some(&overlay), anchors)?);
        Ok(())
    }

    fn estimate(self, bare: Summary) -> (Recipe, Estimate) {
        let estimate = Estimate {
            patched: Summary::new(&self.patched),
            bare,
            elsewhere: Summary::new(&self.elsewhere),
        };
        (self.recipe, estimate)
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

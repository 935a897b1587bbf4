//! How good a patch will be for queries that nobody has asked: compiled without some of those there are, and tried on them.

use serde::{Deserialize, Serialize};

use super::fit::Start;
use super::trial::states;
use super::{Lesson, Recipe, Role, Summary, Trial};
use crate::model::Model;
use crate::patch::Result;
use crate::tensor::Element;

/// Parts that the queries are divided into; each is left out once.
pub const FOLDS: usize = 3;

/// How many times the loss of another recipe one must have to be given up before all folds are through. A tenth more in the first fold
/// often turns in the others.
const CLEARLY: f64 = 1.15;

/// What three patches did, each on the queries and texts that it was not compiled from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Queries under the patch.
    pub patched: Summary,
    /// The same queries without prompt and patch.
    pub bare: Summary,
    /// Texts that must not change; where their number is too small to leave some out, of none.
    pub elsewhere: Summary,
    /// Queries of other kinds; likewise.
    #[serde(default)]
    pub away: Summary,
}

impl Estimate {
    /// Of a recipe; `on_layer` is called after each layer of each of the [`FOLDS`] patches.
    ///
    /// # Errors
    ///
    /// Those of [`compile`](super::compile).
    pub fn new<E: Element>(
        model: &Model,
        lessons: &[Lesson<E>],
        recipe: &Recipe,
        on_layer: impl FnMut(),
    ) -> Result<Self> {
        let (_, estimate) = Self::best(model, lessons, *recipe, None, on_layer)?;
        Ok(estimate)
    }

    /// The recipe, or the other one where its [`loss`](Self::loss) is less, and its estimate. One that is clearly off by more
    /// than the other is not tried further; `on_layer` is called after each layer of each patch that is tried.
    ///
    /// # Errors
    ///
    /// Those of [`compile`](super::compile).
    pub fn best<E: Element>(
        model: &Model,
        lessons: &[Lesson<E>],
        recipe: Recipe,
        other: Option<Recipe>,
        mut on_layer: impl FnMut(),
    ) -> Result<(Recipe, Self)> {
        let all: Vec<_> = lessons.iter().collect();
        let recipes = std::iter::once(recipe).chain(other);
        let tried = recipes.map(|recipe| Tried::new(model, &all, recipe));
        let mut tried = tried.collect::<Result<Vec<_>>>()?;
        let mut bare = Vec::new();
        for fold in 0..FOLDS {
            let used = lessons.iter().map(|lesson| fold_of(lesson) != Some(fold));
            let used: Vec<_> = used.collect();
            if !used.contains(&true) || !used.contains(&false) {
                continue;
            }
            bare.extend(Tried::fold(
                model,
                lessons,
                &used,
                &mut tried,
                &mut on_layer,
            )?);
            let loss = |tried: &Tried<'_, '_, E>| tried.estimate(&bare).loss();
            let most = CLEARLY * tried.iter().map(loss).fold(f64::INFINITY, f64::min);
            tried.retain(|tried| loss(tried) <= most);
        }
        let estimates = tried
            .iter()
            .map(|tried| (tried.recipe, tried.estimate(&bare)));
        let best = estimates.min_by(|a, b| a.1.loss().total_cmp(&b.1.loss()));
        Ok(best.unwrap_or((recipe, Self::default())))
    }

    /// KL a token of the queries from the model with the prompt, and of the other texts and of queries of other kinds from the model as it
    /// is, added: what a patch does not do, and what it does that it should not.
    pub fn loss(&self) -> f64 {
        self.patched.kl + self.elsewhere.kl + self.away.kl
    }
}

/// A recipe, and what its patches did with what they were not compiled from.
struct Tried<'m, 'l, E: Element> {
    recipe: Recipe,
    start: Start<'m, 'l, E>,
    /// Of each [`Role`] that is tried.
    trials: [Vec<Trial>; 3],
}

impl<'m, 'l, E: Element> Tried<'m, 'l, E> {
    fn new(model: &'m Model, lessons: &[&'l Lesson<E>], recipe: Recipe) -> Result<Self> {
        Ok(Self {
            recipe,
            start: Start::new(model, lessons.to_vec(), &recipe)?,
            trials: Default::default(),
        })
    }

    /// Compiles by each recipe from the lessons that are `used`, and tries the others; of these the queries without prompt and patch,
    /// too.
    fn fold(
        model: &Model,
        lessons: &[Lesson<E>],
        used: &[bool],
        tried: &mut [Self],
        mut on_layer: impl FnMut(),
    ) -> Result<Vec<Trial>> {
        let fits = tried
            .iter()
            .map(|tried| tried.start.fit(used, tried.recipe.rank, &mut on_layer));
        let fits = fits.collect::<Result<Vec<_>>>()?;
        let mut bare = Vec::new();
        for role in Role::TRIED {
            let is_left_out = |i: &usize| !used[*i] && lessons[*i].sample.role == role;
            let at: Vec<_> = (0..lessons.len()).filter(is_left_out).collect();
            let of_role: Vec<_> = at.iter().map(|&i| &lessons[i]).collect();
            let under = fits
                .iter()
                .map(|(_, states)| at.iter().map(|&i| states[i].clone()).collect());
            let mut all: Vec<_> = under.collect();
            if role == Role::Query {
                all.push(states(model, None, &of_role)?);
            }
            let mut trials = Trial::on(model, &of_role, all)?.into_iter();
            for (tried, trials) in tried.iter_mut().zip(&mut trials) {
                tried.trials[role as usize].extend(trials);
            }
            bare.extend(trials.next().unwrap_or_default());
        }
        Ok(bare)
    }

    fn estimate(&self, bare: &[Trial]) -> Estimate {
        let [patched, elsewhere, away] = self.trials.each_ref().map(Summary::new);
        Estimate {
            patched,
            bare: Summary::new(bare),
            elsewhere,
            away,
        }
    }
}

/// The fold that leaves a lesson out: every third query, and every third text that must not change. None leaves out what the model
/// made up.
pub(super) fn fold_of<E: Element>(lesson: &Lesson<E>) -> Option<usize> {
    let is_tried = Role::TRIED.contains(&lesson.sample.role);
    is_tried.then_some(lesson.sample.about % FOLDS)
}

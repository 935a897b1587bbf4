//! What more queries, or a higher rank, would be worth: patches of one fold, each tried on what the fold leaves out.

use serde::{Deserialize, Serialize};

use super::estimate::fold_of;
use super::fit::Start;
use super::{Kept, Lesson, Prompt, Recipe, Role, Sample, Summary, Trial, Until, answers};
use crate::model::{Model, Overlay};
use crate::patch::{ApplyMode, Error, Patch, Result};
use crate::tensor::Element;

/// The fold whose queries are left out.
const FOLD: usize = 0;

/// The learning curve has every eighth query, every fourth, every second, and all.
const EVERY: [usize; 3] = [8, 4, 2];

/// The ranks that are tried besides the recipe's.
const RANKS: [usize; 5] = [4, 8, 16, 32, 64];

/// Queries that are answered at most: an answer takes as long as many queries' trials.
const ANSWERED: usize = 64;

/// What patches of one fold do, all on the same queries and texts, from which none of them was compiled.
#[derive(Clone, Debug)]
pub struct Survey {
    /// The queries left out, without prompt and patch.
    pub bare: Summary,
    /// By the recipe, from more and more queries, up to all that the fold has.
    pub learning: Vec<Point>,
    /// From all queries of the fold, by higher and higher rank, up to 64 or what there is; the recipe's is among them.
    pub ranks: Vec<Point>,
    left_out: Vec<Sample>,
    /// By the recipe from all queries of the fold.
    patch: Patch,
}

/// One of these patches.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// How many queries it was compiled from.
    pub queries: usize,
    /// Its rank.
    pub rank: usize,
    /// The queries left out, under it.
    pub patched: Summary,
    /// The texts that must not change and were left out, under it.
    pub elsewhere: Summary,
}

/// A query that was left out, and the likeliest answers to it: its tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The query as the model reads it without the prompt.
    pub query: Vec<u32>,
    /// With the prompt.
    pub prompted: Vec<u32>,
    /// Under the patch of the fold, without the prompt.
    pub patched: Vec<u32>,
    /// Without both.
    pub bare: Vec<u32>,
}

/// The lessons of a fold.
struct Fold<'l, E: Element> {
    queries: Vec<&'l Lesson<E>>,
    /// What every patch of it is compiled from besides.
    others: Vec<&'l Lesson<E>>,
    /// Queries, and texts that must not change.
    left_out: [Vec<&'l Lesson<E>>; 2],
    /// No ΔW has a higher rank.
    most: usize,
}

impl<'l, E: Element> Fold<'l, E> {
    fn new(model: &Model, lessons: &'l [Lesson<E>]) -> Result<Self> {
        let is = |role| move |lesson: &&Lesson<E>| lesson.sample.role == role;
        let (left_out, used): (Vec<_>, Vec<_>) = lessons
            .iter()
            .partition(|lesson| fold_of(lesson) == Some(FOLD));
        let rows: usize = used.iter().map(|lesson| lesson.sample.rows()).sum();
        let (queries, others): (Vec<_>, Vec<_>) = used.into_iter().partition(is(Role::Query));
        if queries.is_empty() {
            let queries = lessons.iter().filter(is(Role::Query)).count();
            return Err(Error::FewQueries { queries });
        }
        let left_out_of = |role| left_out.iter().copied().filter(is(role)).collect();
        Ok(Self {
            queries,
            others,
            left_out: [Role::Query, Role::Text].map(left_out_of),
            most: rows.min(model.config().hidden_size),
        })
    }

    /// Of the patches of the learning curve but the last, how many queries apart those are that each is compiled from: two at least.
    fn every(&self) -> impl Iterator<Item = usize> {
        let queries = self.queries.len();
        let enough = move |every: &usize| queries.div_ceil(*every) >= 2;
        EVERY.into_iter().filter(enough)
    }

    /// A recipe's rank, or all there is.
    fn rank(&self, rank: usize) -> usize {
        match rank {
            0 => self.most,
            rank => rank.min(self.most),
        }
    }

    fn ranks(&self, recipe: &Recipe) -> Vec<usize> {
        let usual = RANKS.map(|rank| rank.min(self.most));
        let mut ranks = [&usual[..], &[self.rank(recipe.rank)]].concat();
        ranks.sort_unstable();
        ranks.dedup();
        ranks
    }

    /// All its lessons: the queries and texts that are used, and those that are left out.
    fn start<'m>(&self, model: &'m Model, recipe: &Recipe) -> Result<Start<'m, 'l, E>> {
        let [queries, anchors] = &self.left_out;
        let all = [&self.queries[..], &self.others, queries, anchors].concat();
        Start::new(model, all, recipe)
    }

    /// A patch of a rank from every so many queries and all the rest, and what it does.
    fn point(
        &self,
        start: &Start<'_, '_, E>,
        every: usize,
        rank: usize,
        on_layer: impl FnMut(),
    ) -> Result<(Point, Patch)> {
        let [queries, anchors] = &self.left_out;
        let (used, left_out) = (self.queries.len(), queries.len() + anchors.len());
        let mut is_used = vec![true; used + self.others.len()];
        (0..used).for_each(|i| is_used[i] = i.is_multiple_of(every));
        is_used.resize(is_used.len() + left_out, false);
        let (patch, mut states) = start.fit(&is_used, rank, on_layer)?;
        let of_anchors = states.split_off(states.len() - anchors.len());
        let of_queries = states.split_off(states.len() - queries.len());
        let summary = |lessons: &[&Lesson<E>], states| -> Result<Summary> {
            let trials = Trial::on(start.model(), lessons, vec![states])?;
            Ok(Summary::new(trials.iter().flatten()))
        };
        let point = Point {
            queries: used.div_ceil(every),
            rank: self.rank(rank),
            patched: summary(queries, of_queries)?,
            elsewhere: summary(anchors, of_anchors)?,
        };
        Ok((point, patch))
    }
}

impl Survey {
    /// How many patches are compiled for one.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Self::new).
    pub fn patches<E: Element>(
        model: &Model,
        lessons: &[Lesson<E>],
        recipe: &Recipe,
    ) -> Result<usize> {
        let fold = Fold::new(model, lessons)?;
        // That of all queries and the recipe's rank, which is in both curves, is among the ranks.
        Ok(fold.every().count() + fold.ranks(recipe).len())
    }

    /// Of a recipe; `on_layer` is called after each layer of each patch.
    ///
    /// # Errors
    ///
    /// [`Error::FewQueries`] where the fold leaves no query to compile from, and those of [`compile`](super::compile).
    pub fn new<E: Element>(
        model: &Model,
        lessons: &[Lesson<E>],
        recipe: &Recipe,
        mut on_layer: impl FnMut(),
    ) -> Result<Self> {
        let fold = Fold::new(model, lessons)?;
        let start = fold.start(model, recipe)?;
        let (all, patch) = fold.point(&start, 1, recipe.rank, &mut on_layer)?;
        let mut learning = Vec::new();
        for every in fold.every() {
            learning.push(fold.point(&start, every, recipe.rank, &mut on_layer)?.0);
        }
        learning.push(all);
        let mut ranks = Vec::new();
        for rank in fold.ranks(recipe) {
            if rank == all.rank {
                ranks.push(all);
                continue;
            }
            ranks.push(fold.point(&start, 1, rank, &mut on_layer)?.0);
        }
        let [queries, _] = &fold.left_out;
        Ok(Self {
            bare: Summary::new(&Trial::all(model, None, queries)?),
            learning,
            ranks,
            left_out: queries.iter().map(|lesson| lesson.sample.clone()).collect(),
            patch,
        })
    }

    /// How many queries [`answers`](Self::answers) answers.
    pub fn answered(&self) -> usize {
        self.left_out.len().min(ANSWERED)
    }

    /// The first queries that were left out and the likeliest answers to them, in the compute type `E`; `on_token` is called after each token.
    ///
    /// # Errors
    ///
    /// Those of [`Session::forward`](crate::Session::forward).
    pub fn answers<E: Element>(
        &self,
        model: &Model,
        prompt: &Prompt<'_>,
        mut on_token: impl FnMut(),
    ) -> Result<Vec<Answered>> {
        let asked = self.left_out.iter().take(ANSWERED).map(asked);
        let (prompted, bare): (Vec<_>, Vec<_>) = asked.unzip();
        let overlay = Overlay::<E>::new(model, &self.patch, ApplyMode::Overlay);
        let until = Until {
            most: prompt.answer_tokens,
            ended: &|written| prompt.ended(written),
        };
        let mut said = |overlay, queries: &[Vec<u32>]| {
            let kept = &mut Kept::default();
            answers::<E>(model, overlay, queries, &until, kept, &mut on_token)
        };
        let (with, under) = (said(None, &prompted)?, said(Some(&overlay), &bare)?);
        let without = said(None, &bare)?;
        let texts = with.into_iter().zip(under).zip(without).zip(bare);
        let answered = texts.map(|(((prompted, patched), bare), query)| Answered {
            query,
            prompted,
            patched,
            bare,
        });
        Ok(answered.collect())
    }
}

/// What a sample asks, with the prompt and without it. Where the model wrote the query itself and went on, the first half is
/// asked.
fn asked(sample: &Sample) -> (Vec<u32>, Vec<u32>) {
    let no_query = sample.bare.len().saturating_sub(sample.answer) <= 1;
    let answer = if no_query {
        sample.answer / 2
    } else {
        sample.answer
    };
    let before = |tokens: &[u32]| tokens[..tokens.len().saturating_sub(answer)].to_vec();
    (before(&sample.prompted), before(&sample.bare))
}

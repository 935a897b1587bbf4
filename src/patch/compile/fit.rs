//! The layers of the model without the prompt, each fitted to what the ones before it really give.

use rayon::prelude::*;

use super::lesson::{Lesson, answers_of, taken};
use super::passes::Batch;
use super::ridge::{Ridge, Rows};
use super::step::{PostNorm, Row, targets};
use super::{Recipe, Role, Through};
use crate::model::{Hidden, LayerOverlay, Linear, Model, Pass, consecutive};
use crate::patch::before_outer::{d_of, products};
use crate::patch::branch::Branch;
use crate::patch::{
    ApplyMode, Error, LayerPatch, Patch, Precondition, Result, TensorChange, overlay, wide,
};
use crate::tensor::{Element, Matrix};

/// Lessons before the first layer that is changed. The layers below it do the same under every patch, so that several which are
/// fitted to some of the lessons start here.
pub(super) struct Start<'m, 'l, E: Element> {
    model: &'m Model,
    lessons: Vec<&'l Lesson<E>>,
    recipe: Recipe,
    /// What enters the layer, at all tokens of all lessons.
    x: Matrix<E>,
}

impl<'m, 'l, E: Element> Start<'m, 'l, E> {
    /// The start of some lessons by a recipe. A sample that stays as it is gives below the first layer what it is
    /// taught: it goes through these layers with its first token alone, for which nothing is taught.
    pub(super) fn new(
        model: &'m Model,
        lessons: Vec<&'l Lesson<E>>,
        recipe: &Recipe,
    ) -> Result<Self> {
        recipe.check(model)?;
        let below = |pass: &mut Pass<'_, '_, '_, E>, layer: usize, x| {
            Ok(model.layers()[layer].forward(pass, x))
        };
        let known = lessons.iter().map(|lesson| {
            let layer = recipe.first.checked_sub(1)?;
            lesson.sample.stays().then_some(&lesson.targets[layer])
        });
        let known: Vec<Option<&Matrix<E>>> = known.collect();
        let mut tokens = taken(&lessons);
        for (tokens, known) in tokens.iter_mut().zip(&known) {
            if known.is_some() {
                *tokens = &tokens[..tokens.len().min(1)];
            }
        }
        let rows = consecutive(tokens.iter().map(|tokens| tokens.len()));
        let rows: Vec<_> = rows.collect();
        let batch = &mut Batch::bare(model, &lessons);
        let x = batch.layer_by_layer(tokens, None, 0..recipe.first, below)?;
        let parts = rows.into_iter().zip(known).flat_map(|(rows, known)| {
            let went_through = x.slice_rows(rows);
            std::iter::once(went_through).chain(known.cloned())
        });
        Ok(Self {
            x: Matrix::stack(x.cols(), parts.collect()),
            model,
            lessons,
            recipe: *recipe,
        })
    }

    pub(super) fn model(&self) -> &'m Model {
        self.model
    }

    /// The patch of a rank that makes the model without the prompt say of the rows of the lessons that are `used` what it says with
    /// it, and of all of them the states that their answers follow on under it. `on_layer` is called after each layer that is
    /// changed.
    pub(super) fn fit(
        &self,
        used: &[bool],
        rank: usize,
        mut on_layer: impl FnMut(),
    ) -> Result<(Patch, Vec<Matrix<E>>)> {
        let recipe = Recipe {
            rank,
            ..self.recipe
        };
        let fitted = Fitted::new(self, &recipe, used);
        if fitted.rows.is_empty() {
            return Err(Error::FewQueries { queries: 0 });
        }
        let (model, layers) = (self.model, self.model.layers());
        let mut patch = Patch {
            layers: vec![LayerPatch::new(); recipe.first],
        };
        let fit = |pass: &mut Pass<'_, '_, '_, E>, layer: usize, x: Matrix<E>| {
            let block = &layers[layer];
            let attended = block.attend(pass, x);
            let h = block
                .inner
                .output(&mut Pass::of_rows(pass.run, &[]), &attended.z);
            let branch = Branch {
                block,
                products: products(pass.run, block, &h),
                h,
                rest: &attended.rest,
            };
            let solved = fitted
                .layer(layer, &branch)
                .map_err(|failed| failed.at_layer(layer))?;
            let (change, layer_patch) = solved;
            patch.layers.push(layer_patch);
            on_layer();
            Ok(branch.output(pass.run, &change))
        };
        let x = Batch::bare(model, &self.lessons).layer_by_layer(
            taken(&self.lessons),
            Some(self.x.clone()),
            recipe.first..layers.len(),
            fit,
        )?;
        Ok((patch, answers_of(&self.lessons, &x)))
    }
}

/// The rows of the lessons that are used, in the batch of all tokens of all lessons.
struct Fitted<'l, E: Element> {
    model: &'l Model,
    lessons: Vec<&'l Lesson<E>>,
    recipe: &'l Recipe,
    /// The batch's row of a first token.
    begins: usize,
    /// The batch's row of each fitted row.
    rows: Vec<usize>,
    /// w.
    weights: Vec<f64>,
}

impl<'l, E: Element> Fitted<'l, E> {
    fn new(start: &'l Start<'_, '_, E>, recipe: &'l Recipe, used: &[bool]) -> Self {
        let starts = consecutive(taken(&start.lessons).into_iter().map(<[u32]>::len));
        let mut fitted = Self {
            model: start.model,
            lessons: Vec::new(),
            recipe,
            begins: 0,
            rows: Vec::new(),
            weights: Vec::new(),
        };
        let each = start.lessons.iter().zip(starts).zip(used);
        for ((lesson, batch), _) in each.filter(|(_, used)| **used) {
            let rows = lesson.sample.fitted();
            let weight = match lesson.sample.role {
                Role::Query | Role::Own => 1.0,
                Role::Text | Role::Away => recipe.anchor_weight,
            };
            if fitted.lessons.is_empty() {
                fitted.begins = batch.start;
            }
            fitted.lessons.push(lesson);
            fitted.weights.extend(rows.clone().map(|_| weight));
            fitted.rows.extend(rows.map(|row| batch.start + row));
        }
        fitted
    }

    /// One layer's change of W_down, or of every expert's that fires.
    fn layer(
        &self,
        layer: usize,
        branch: &Branch<'_, E>,
    ) -> std::result::Result<(LayerOverlay<E>, LayerPatch), Precondition> {
        let block = branch.block;
        let last = layer + 1 == self.model.layers().len();
        let norm = match self.recipe.through {
            Through::Nothing => None,
            through => (block.outer.post_norm())
                .map(|norm| PostNorm::new::<E>(norm, last, through == Through::Damped)),
        };
        let gain = if last { 1.0 } else { self.recipe.gain };
        let (delta, mut weights) = self.targets(layer, branch, norm.as_ref(), gain);
        weights
            .iter_mut()
            .zip(&self.weights)
            .for_each(|(weight, w)| *weight *= w);
        let scale = norm.as_ref().map(PostNorm::floored);
        let (mut change, mut patch) = (LayerOverlay::new(), LayerPatch::new());
        for (map, still, rows) in self.of_each_map(branch, delta, weights) {
            let ridge = Ridge {
                still: still.as_deref(),
                lambda: self.recipe.lambda,
                rank: self.recipe.rank,
                scale: scale.as_deref(),
            };
            let down = ridge.solve(self.model.level(), rows)?;
            let name = format!("{}.weight", map.name());
            let overlay = overlay::low_rank(map.weight(), &down, ApplyMode::Overlay);
            change.insert(name.clone(), overlay);
            patch.insert(name, TensorChange::LowRank(down));
        }
        Ok((change, patch))
    }

    /// W_down with its h of the first token and what it is to add, or the same of every expert that fires: its share of δ where
    /// it does (Lemma 11).
    fn of_each_map<'b>(
        &self,
        branch: &'b Branch<'_, E>,
        delta: Matrix<f64>,
        weights: Vec<f64>,
    ) -> Vec<(&'b Linear, Option<Vec<f64>>, Rows)> {
        let maps = branch.block.outer.down();
        let active = match &branch.h {
            Hidden::Experts { active, .. } => active,
            Hidden::Dense(h) => {
                let rows = Rows {
                    h: select(h, &self.rows),
                    delta,
                    weights,
                };
                return vec![(&maps[0], Some(wide(h, self.begins)), rows)];
            }
        };
        let mut gates = vec![0.0; self.rows.len()];
        for (active, _) in active {
            for (at, row) in among(&self.rows, &active.rows) {
                gates[row] += active.gates[at];
            }
        }
        let each = active.iter().filter_map(|(active, h)| {
            let pairs: Vec<_> = among(&self.rows, &active.rows).collect();
            let shares = pairs.iter().flat_map(|&(_, row)| {
                let share = 1.0 / gates[row];
                delta.row(row).iter().map(move |delta| delta * share)
            });
            let rows = Rows {
                h: select(h, &pairs.iter().map(|(at, _)| *at).collect::<Vec<_>>()),
                delta: Matrix::from_vec(delta.cols(), shares.collect()),
                weights: pairs.iter().map(|(_, row)| weights[*row]).collect(),
            };
            let still = active.rows.binary_search(&self.begins).ok();
            let still = still.map(|at| wide(h, at));
            (!pairs.is_empty()).then_some((&maps[active.expert], still, rows))
        });
        each.collect()
    }

    /// δ and ω of every row.
    fn targets(
        &self,
        layer: usize,
        branch: &Branch<'_, E>,
        norm: Option<&PostNorm>,
        gain: f64,
    ) -> (Matrix<f64>, Vec<f64>) {
        let hidden = self.model.config().hidden_size;
        let wanted = self.lessons.iter().flat_map(|lesson| {
            let targets = &lesson.targets[layer];
            (0..targets.rows()).map(move |row| (targets, row))
        });
        let each: Vec<_> = self.rows.iter().zip(wanted).collect();
        let rows = each.par_iter().map(|&(&row, (targets, at))| Row {
            d: d_of(branch.block, &branch.h, &branch.products, row, hidden),
            rest: branch.rest.to_f64(row),
            target: wide(targets, at),
        });
        let rows: Vec<_> = rows.collect();
        targets(norm, gain, hidden, &rows)
    }
}

/// Some rows in f64.
fn select<E: Element>(h: &Matrix<E>, rows: &[usize]) -> Matrix<f64> {
    let mut selected = Matrix::recycled(rows.len(), h.cols());
    let each = selected.as_mut_slice().par_chunks_mut(h.cols());
    each.zip(rows).for_each(|(to, &row)| {
        to.iter_mut()
            .zip(h.row(row))
            .for_each(|(to, h)| *to = h.to_f64());
    });
    selected
}

/// Where the rows of an expert are rows that are fitted: its number there, and here. Both ascend.
fn among<'r>(fitted: &'r [usize], rows: &'r [usize]) -> impl Iterator<Item = (usize, usize)> + 'r {
    let pairs = rows.iter().enumerate();
    pairs.filter_map(|(at, row)| Some((at, fitted.binary_search(row).ok()?)))
}

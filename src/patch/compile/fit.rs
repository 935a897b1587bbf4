//! The layers of the model without the prompt, each fitted to what the ones before it really give.

use super::lesson::Lesson;
use super::passes::Batch;
use super::ridge::{Ridge, Rows};
use super::step::{PostNorm, Row, targets};
use super::{Recipe, Through};
use crate::model::{Hidden, LayerOverlay, Linear, Model, Pass, Session, consecutive};
use crate::patch::before_outer::{d_of, products};
use crate::patch::branch::Branch;
use crate::patch::{
    ApplyMode, LayerPatch, Patch, Precondition, Result, TensorChange, overlay, wide,
};
use crate::tensor::{Element, Matrix};

/// The rows of the samples, in the batch of all their tokens.
struct Fitted<'l, E: Element> {
    model: &'l Model,
    lessons: &'l [&'l Lesson<E>],
    recipe: &'l Recipe,
    /// The batch's row of each fitted row.
    rows: Vec<usize>,
    /// w.
    weights: Vec<f64>,
}

/// The patch that makes the model without the prompt say of the lessons' rows what it says with it; `on_layer` is called after
/// each layer that is changed.
pub(super) fn fit<E: Element>(
    model: &Model,
    lessons: &[&Lesson<E>],
    recipe: &Recipe,
    mut on_layer: impl FnMut(),
) -> Result<Patch> {
    let tokens: Vec<&[u32]> = lessons.iter().map(|lesson| lesson.sample.taken()).collect();
    let starts = consecutive(tokens.iter().map(|tokens| tokens.len()));
    let mut fitted = Fitted {
        model,
        lessons,
        recipe,
        rows: Vec::new(),
        weights: Vec::new(),
    };
    for (lesson, batch) in lessons.iter().zip(starts) {
        let rows = lesson.sample.fitted();
        let weight = if lesson.sample.anchor {
            recipe.anchor_weight
        } else {
            1.0
        };
        fitted.weights.extend(rows.clone().map(|_| weight));
        fitted.rows.extend(rows.map(|row| batch.start + row));
    }
    let mut patch = Patch { layers: Vec::new() };
    let mut batch = Batch::new(model, vec![Session::new(model); lessons.len()]);
    batch.layer_by_layer(tokens, |pass, layer, x| {
        let block = &model.layers()[layer];
        if layer < recipe.first {
            patch.layers.push(LayerPatch::new());
            return Ok(block.forward(pass, x));
        }
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
    })?;
    Ok(patch)
}

impl<E: Element> Fitted<'_, E> {
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
        let (delta, mut weights) = self.targets(layer, branch, norm.as_ref());
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
                    h: select(h, self.rows.iter().copied()),
                    delta,
                    weights,
                };
                return vec![(&maps[0], Some(wide(h, 0)), rows)];
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
                h: select(h, pairs.iter().map(|(at, _)| *at)),
                delta: Matrix::from_vec(delta.cols(), shares.collect()),
                weights: pairs.iter().map(|(_, row)| weights[*row]).collect(),
            };
            let still = (active.rows.first() == Some(&0)).then(|| wide(h, 0));
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
    ) -> (Matrix<f64>, Vec<f64>) {
        let hidden = self.model.config().hidden_size;
        let targets_of = self.lessons.iter().flat_map(|lesson| {
            let targets = &lesson.targets[layer];
            (0..targets.rows()).map(|row| wide(targets, row))
        });
        let rows = self.rows.iter().zip(targets_of).map(|(&row, target)| {
            let d = d_of(branch.block, &branch.h, &branch.products, row, hidden);
            (d, branch.rest.to_f64(row), target)
        });
        let rows: Vec<_> = rows.collect();
        targets(
            norm,
            hidden,
            rows.iter().map(|(d, rest, target)| Row { d, rest, target }),
        )
    }
}

/// Some rows in f64.
fn select<E: Element>(h: &Matrix<E>, rows: impl Iterator<Item = usize>) -> Matrix<f64> {
    let numbers = rows.flat_map(|row| h.row(row).iter().map(|h| h.to_f64()));
    Matrix::from_vec(h.cols(), numbers.collect())
}

/// Where the rows of an expert are rows that are fitted: its number there, and here. Both ascend.
fn among<'r>(fitted: &'r [usize], rows: &'r [usize]) -> impl Iterator<Item = (usize, usize)> + 'r {
    let pairs = rows.iter().enumerate();
    pairs.filter_map(|(at, row)| Some((at, fitted.binary_search(row).ok()?)))
}

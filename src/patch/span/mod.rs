//! A span of tokens at once: one change of W_down that serves all of them, a plain LoRA.
//!
//! No norm is changed, so what a branch can say is m ⊙ y with mean(y²) = k, k = R²/(R² + ε). At the last
//! layer that is enough, because the final norm ignores length: for token i it is enough to reach
//! c·T(C, x_i) for some c > 0. Where |m_j| is small, y_j = 0, and what is missing there is added to the
//! target of the layer before. Earlier layers come as near as they can. With d'_i = y_i √(R_i² + ε),
//!
//! ```text
//! ΔW_down = (D' − W_down H) H⁺,  H = [h_1 … h_N] of full column rank
//! ```
//!
//! The solution is found in passes over the layers that are changed, each correcting what the one before
//! it left.

mod contextual;
mod least_squares;
pub mod reach;
mod rounding;

use rayon::prelude::*;

use self::contextual::Contextual;
use self::reach::{Said, exactly, last, near, weak};
use super::before_outer::{d_of, products};
use super::branch::Branch;
use super::solver::has_post_norm;
use super::{
    ApplyMode, Case, LayerPatch, LayerReport, LowRank, Method, Patch, Precondition, SolverReport,
    Split, TensorChange, lemmas, overlay, wide,
};
use crate::checkpoint::form::Sum;
use crate::model::generate::greedy;
use crate::model::{
    Attended, Cache, ForwardRun, Hidden, Images, LayerOverlay, Linear, Model, Pass, Sequence,
    Tokens,
};
use crate::patch::{Error, Result};
use crate::tensor::{Element, Matrix, in_lanes};

/// Passes that are no better than the best one after which a solve ends.
const PATIENCE: usize = 3;

/// How often a layer without a norm behind it is corrected by what rounding left, at most.
const CORRECTIONS: usize = 4;

/// How good a pass is; less is better.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Quality {
    /// Tokens of the span after which another token is the likeliest than in the contextual pass.
    pub differing: usize,
    /// The largest difference of a logit.
    pub linf: f64,
}

/// Solves the patch of the tokens at the end of `split` in compute type `E`; `on_pass` gets each pass's
/// quality. The patch is that of the best pass. `images` are those of the context.
///
/// As long as a token differs the solve goes on, up to the method's number of passes: rounding falls
/// differently each time.
///
/// # Errors
///
/// [`Error::KeptImage`]; [`Error::SpanTooLong`] and [`Error::RepeatedState`] where H has not full column rank; [`Error::Precondition`];
/// those of [`Session::forward`](crate::Session::forward).
pub fn solve<E: Element>(
    model: &Model,
    split: &Split,
    images: Option<&Images<E>>,
    method: &Method,
    mut on_pass: impl FnMut(Quality),
) -> Result<(Patch, SolverReport)> {
    let mut solving = Solving::new(model, split, images, method)?;
    let mut best = solving.pass()?;
    let mut passes = vec![best.0.linf];
    on_pass(best.0);
    let mut since = 0;
    // Without a norm each pass does what the one before it did.
    let most = if has_post_norm(model) {
        method.passes
    } else {
        1
    };
    while passes.len() < most && (since < PATIENCE || best.0.differing > 0) {
        let pass = solving.pass()?;
        passes.push(pass.0.linf);
        on_pass(pass.0);
        since += 1;
        if pass.0 < best.0 {
            (best, since) = (pass, 0);
        }
    }
    let (_, patch, mut layers) = best;
    let solved = layers.iter_mut().zip(&patch.layers).zip(model.layers());
    for ((report, patch), block) in solved.skip(solving.first) {
        report.measure(patch, block);
    }
    Ok((patch, SolverReport { layers, passes }))
}

/// What all passes share, and what one hands to the next.
struct Solving<'a, E> {
    model: &'a Model,
    method: &'a Method,
    positions: Vec<usize>,
    /// Kept tokens.
    stay: usize,
    /// The first layer that is changed.
    first: usize,
    /// The input of that layer in the reduced pass.
    x: Matrix<E>,
    contextual: Contextual,
    /// The contextual pass's logits of the span, `[N, vocab]`.
    logits: Matrix<E>,
    /// Which coordinates of the last layer's scale are too weak to carry anything.
    weak: Vec<bool>,
    /// What the last layer could not give, left to the one before it.
    ahead: Matrix<f64>,
}

/// A precondition that failed, as an error.
fn at_layer(failed: Precondition, layer: usize) -> Error {
    if failed.quantity == least_squares::CONDITION {
        Error::RepeatedState {
            layer,
            condition: failed.value,
        }
    } else {
        failed.at_layer(layer)
    }
}

/// One pass over the changed layers: how good it is, its patch, and how each layer was solved.
type Attempt = (Quality, Patch, Vec<LayerReport>);

impl<'a, E: Element> Solving<'a, E> {
    fn new(
        model: &'a Model,
        split: &Split,
        images: Option<&Images<E>>,
        method: &'a Method,
    ) -> Result<Self> {
        let layers = model.layers().len();
        // In parallel the first layer's inner function sees the embedding alone: of a token that is there twice, the same h.
        let parallel = model.layers()[0].sum == Sum::Parallel;
        let least = usize::from(parallel && layers > 1);
        let first = (layers - method.layers.clamp(1, layers)).max(least);
        let tokens = split.reduced_tokens();
        let positions = split.reduced_positions();
        let contextual = Tokens::new(split.tokens(), images);
        split.check_images(model, images)?;
        let most = model.config().intermediate_size;
        if tokens.len() > most {
            return Err(Error::SpanTooLong {
                tokens: tokens.len(),
                most,
            });
        }
        let (contextual, logits) =
            Contextual::new(model, contextual, split.queries().len(), first)?;
        let span = split.queries().len();
        let last_norm = model.layers()[layers - 1].outer.post_norm();
        let last_scale = last_norm.map(|norm| norm.scale::<f64>());
        let mut solving = Self {
            model,
            method,
            positions,
            stay: tokens.len() - span,
            first,
            x: Matrix::zeros(0, 1),
            contextual,
            logits,
            weak: last_scale.as_deref().map(weak).unwrap_or_default(),
            ahead: Matrix::zeros(span, model.config().hidden_size),
        };
        let mut run = solving.run();
        let mut x = model.embed(&mut run, &tokens, &solving.positions);
        let mut cache = model.new_cache();
        for (layer, block) in model.layers()[..first].iter().enumerate() {
            run.enter(layer)?;
            let mut sequences = [solving.sequence(&mut cache)];
            x = block.forward(&mut Pass::new(&mut run, &mut sequences, &[]), x);
            model.check_layer(layer, &x)?;
        }
        solving.x = x;
        Ok(solving)
    }

    fn run(&self) -> ForwardRun<'static> {
        ForwardRun::new(self.model, None, None)
    }

    fn sequence<'s>(&'s self, cache: &'s mut Cache<E>) -> Sequence<'s, E> {
        Sequence {
            rows: 0..self.positions.len(),
            positions: &self.positions,
            cache,
        }
    }

    /// Solves the layers one after the other, each for the output that the ones before it really gave.
    fn pass(&mut self) -> Result<Attempt> {
        let mut run = self.run();
        let mut cache = self.model.new_cache();
        let mut patch = Patch {
            layers: vec![LayerPatch::new(); self.first],
        };
        let mut reports = vec![LayerReport::default(); self.first];
        let mut x = self.x.clone();
        for layer in self.first..self.model.layers().len() {
            run.enter(layer)?;
            let block = &self.model.layers()[layer];
            let mut sequences = [self.sequence(&mut cache)];
            let attended = block.attend(&mut Pass::new(&mut run, &mut sequences, &[]), x);
            let solved = self.layer(&mut run, layer, &attended);
            let (t, layer_patch, report) = solved.map_err(|failed| at_layer(failed, layer))?;
            x = t;
            self.model.check_layer(layer, &x)?;
            patch.layers.push(layer_patch);
            reports.push(report);
        }
        Ok((self.quality(&mut run, &x)?, patch, reports))
    }

    /// Solves a layer for all tokens of the span, and takes it through.
    fn layer(
        &mut self,
        run: &mut ForwardRun<'_>,
        layer: usize,
        Attended { z, rest }: &Attended<Matrix<E>>,
    ) -> Result<(Matrix<E>, LayerPatch, LayerReport), Precondition> {
        let block = &self.model.layers()[layer];
        let h = block.inner.output(&mut Pass::of_rows(run, &[]), z);
        let branch = Branch {
            block,
            products: products(run, block, &h),
            h,
            rest,
        };
        let mut report = LayerReport::default();
        let (mut delta_d, said) = self.delta_d(layer, &branch);
        let mut left = CORRECTIONS;
        loop {
            let (change, patch, condition) = self.down(run, &branch, &delta_d)?;
            let out = branch.output(run, &change);
            if left > 0
                && block.outer.post_norm().is_none()
                && self.correct(layer, &out, &mut delta_d)
            {
                left -= 1;
                continue;
            }
            report.condition = condition;
            let backend = self.model.backend();
            let rounded = rounding::replaced(&branch, &change, &patch, out.rows(), backend);
            let lengths = &rounded[self.stay..];
            self.compare(&mut report, layer, &said, lengths, &branch, &out);
            return Ok((out, patch, report));
        }
    }

    /// δd for each token of the span, and what its branch is to say.
    fn delta_d(&mut self, layer: usize, branch: &Branch<'_, E>) -> (Matrix<f64>, Vec<Said>) {
        let span = self.positions.len() - self.stay;
        let hidden = self.model.config().hidden_size;
        let mut delta_d = Matrix::zeros(span, hidden);
        let mut all = Vec::new();
        for i in 0..span {
            let row = self.stay + i;
            let d = d_of(branch.block, &branch.h, &branch.products, row, hidden);
            let rest = branch.rest.to_f64(row);
            let (said, stretch) = match branch.block.outer.post_norm() {
                None => {
                    let target = self.contextual.targets[layer - self.first].row(i);
                    (exactly(target, &rest), 1.0)
                }
                Some(norm) => {
                    let m: Vec<f64> = norm.scale::<E>().into_iter().map(Element::to_f64).collect();
                    let d_ctx = self.contextual.d[layer - self.first].row(i);
                    let length = self.method.length(&d, d_ctx, norm.eps());
                    let k = length * length / (length * length + norm.eps());
                    let said = self.say(layer, &m, i, &rest, k * hidden as f64);
                    (said, (length * length + norm.eps()).sqrt())
                }
            };
            for (delta, (y, d)) in delta_d.row_mut(i).iter_mut().zip(said.y.iter().zip(&d)) {
                *delta = y * stretch - d;
            }
            all.push(said);
        }
        (delta_d, all)
    }

    /// Adds to δd what the output is off; whether that is anything.
    fn correct(&self, layer: usize, out: &Matrix<E>, delta_d: &mut Matrix<f64>) -> bool {
        let mut any = false;
        for (i, delta) in delta_d.iter_rows_mut().enumerate() {
            let target = self.contextual.targets[layer - self.first].row(i);
            let out = out.row(self.stay + i);
            for ((delta, target), out) in delta.iter_mut().zip(target).zip(out) {
                let off = target - out.to_f64();
                any |= off != 0.0;
                *delta += off;
            }
        }
        any
    }

    /// ΔW_down as it will run, of every expert that a token of the span chooses where there are experts, and the worst
    /// condition of an H.
    fn down(
        &self,
        run: &mut ForwardRun<'_>,
        branch: &Branch<'_, E>,
        delta_d: &Matrix<f64>,
    ) -> Result<(LayerOverlay<E>, LayerPatch, f64), Precondition> {
        let (mut change, mut patch, mut worst) = (LayerOverlay::new(), LayerPatch::new(), 0.0f64);
        let mut set = |map: &Linear, (down, condition): (LowRank, f64)| {
            let name = format!("{}.weight", map.name());
            let overlay = overlay::low_rank(map.weight(), &down, self.method.form);
            change.insert(name.clone(), overlay);
            patch.insert(name, TensorChange::LowRank(down));
            worst = worst.max(condition);
        };
        let maps = branch.block.outer.down();
        match &branch.h {
            Hidden::Dense(h) => set(&maps[0], self.low_rank(run, h, self.stay, delta_d)?),
            Hidden::Experts { active, .. } => {
                let mut gates = vec![0.0; delta_d.rows()];
                for (active, _) in active {
                    for (&row, gate) in active.rows.iter().zip(&active.gates) {
                        if let Some(i) = row.checked_sub(self.stay) {
                            gates[i] += gate;
                        }
                    }
                }
                for (active, h) in active {
                    let stay = active.rows.partition_point(|&row| row < self.stay);
                    let span = active.rows[stay..].iter().map(|row| row - self.stay);
                    let shares = span.flat_map(|i| {
                        let share = 1.0 / gates[i];
                        delta_d.row(i).iter().map(move |delta| delta * share)
                    });
                    let shares = Matrix::from_vec(delta_d.cols(), shares.collect());
                    if shares.rows() > 0 {
                        let solved = self.low_rank(run, h, stay, &shares)?;
                        set(&maps[active.expert], solved);
                    }
                }
            }
        }
        Ok((change, patch, worst))
    }

    /// ΔW = δD H⁺ as it will run, and the condition of H. The first `stay` rows of `h` are those of tokens whose d stays.
    fn low_rank(
        &self,
        run: &mut ForwardRun<'_>,
        h: &Matrix<E>,
        stay: usize,
        delta_d: &Matrix<f64>,
    ) -> Result<(LowRank, f64), Precondition> {
        let (mut down, condition) = reach::down(&h.map(E::to_f64), delta_d, E::Acc::DTYPE)?;
        if self.method.form == ApplyMode::Overlay {
            let v = down.v.map(E::Acc::from_f64);
            let span = h.slice_rows(stay..h.rows()).map(E::acc);
            let vh = run.matmul(&span, &v).map(|x| x.to_f64());
            down.u = reach::for_products(&vh, delta_d)?;
            down.v = v.map(|x| x.to_f64());
        }
        Ok((down, condition))
    }

    /// The branch output required at a layer for token i of the span.
    fn say(&mut self, layer: usize, m: &[f64], i: usize, v: &[f64], square: f64) -> Said {
        let last_layer = self.model.layers().len() - 1;
        let mut target = self.contextual.targets[layer - self.first].row(i).to_vec();
        if layer == last_layer {
            let said = last(m, &self.weak, &target, v, square);
            let ahead = self.ahead.row_mut(i);
            for j in 0..m.len() {
                ahead[j] += said.c * target[j] - v[j] - m[j] * said.y[j];
            }
            return said;
        }
        let next_to_last = layer + 1 == last_layer;
        if next_to_last {
            let ahead = self.ahead.row(i);
            target
                .iter_mut()
                .zip(ahead)
                .for_each(|(t, ahead)| *t += ahead);
        }
        let exact: Vec<bool> = self.weak.iter().map(|weak| *weak && next_to_last).collect();
        let t: Vec<f64> = target.iter().zip(v).map(|(target, v)| target - v).collect();
        near(m, &exact, &t, square)
    }

    /// Records how near the layer came to its targets; `rounded` is what rounding leaves of the branch of each token.
    fn compare(
        &self,
        report: &mut LayerReport,
        layer: usize,
        said: &[Said],
        rounded: &[f64],
        branch: &Branch<'_, E>,
        out: &Matrix<E>,
    ) {
        let norm = branch.block.outer.post_norm();
        let m = norm.map(|norm| norm.scale::<E>().into_iter().map(Element::to_f64));
        let m: Option<Vec<f64>> = m.map(Iterator::collect);
        let (mut left, mut whole) = (0.0f64, 0.0f64);
        for (i, said) in said.iter().enumerate() {
            let target = self.contextual.targets[layer - self.first].row(i);
            let target: Vec<f64> = target.iter().map(|target| said.c * target).collect();
            let rest = branch.rest.to_f64(self.stay + i);
            for j in 0..target.len() {
                let g = m.as_ref().map_or(1.0, |m| m[j]) * said.y[j];
                left += (rest[j] + g - target[j]).powi(2);
                whole += (target[j] - rest[j]).powi(2);
            }
            report.compare(E::DTYPE, &wide(out, self.stay + i), &target);
            if norm.is_none() {
                report.says(lemmas::norm(&said.y).max(rounded[i]), &target);
            }
            if report.case != Case::OutOfReach {
                report.case = said.case;
            }
        }
        report.residual = (left / whole.max(f64::MIN_POSITIVE)).sqrt();
    }

    /// The logits of the span against the contextual ones.
    fn quality(&self, run: &mut ForwardRun<'_>, x: &Matrix<E>) -> Result<Quality> {
        // A few tokens at a time: each reads all of the head, and each token's logits are a megabyte.
        const LOGITS: usize = 16;
        let (mut differing, mut linf) = (0, 0.0f64);
        for first in (0..self.logits.rows()).step_by(LOGITS) {
            let end = self.logits.rows().min(first + LOGITS);
            let rows = x.slice_rows(self.stay + first..self.stay + end);
            let got = self.model.logits(run, &rows)?;
            let pairs = (first..end).into_par_iter();
            let each = pairs.map(|row| {
                let (got, want) = (got.row(row - first), self.logits.row(row));
                (greedy(got) != greedy(want), largest_difference(got, want))
            });
            for (differs, off) in each.collect::<Vec<_>>() {
                differing += usize::from(differs);
                linf = linf.max(off);
            }
        }
        Ok(Quality { differing, linf })
    }
}

/// max |a − b|; NaN is passed over.
fn largest_difference<E: Element>(a: &[E], b: &[E]) -> f64 {
    let mut largest = [0.0f64; 16];
    in_lanes(a, b, |l, a, b| {
        let difference = (a.to_f64() - b.to_f64()).abs();
        if difference > largest[l] {
            largest[l] = difference;
        }
    });
    largest.into_iter().fold(0.0, f64::max)
}

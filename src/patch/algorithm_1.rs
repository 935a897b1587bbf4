//! Algorithm 1: all layers, one after the other, each correcting what the ones before it left.
//!
//! The contextual and the reduced pass go through a layer together. Layer i of the reduced pass gets
//! the actual, rounded output of the already patched layer i − 1, and its target is T_i(C, x_i) of the
//! contextual pass.

use std::ops::Range;

use super::lemmas::norm;
use super::overlay::{self, Form};
use super::{LayerPatch, LayerReport, LowRank, Patch, theorem_1};
use crate::error::{Error, Result};
use crate::kernels::unscaled_rms_norm;
use crate::model::{Block, Cache, Changed, LayerChange, Run, Sequence, Session};
use crate::tensor::{Element, Matrix};

/// What of a solved patch a reduced pass runs under: the whole of it, or a negative control.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// All of it.
    Whole,
    /// Nothing.
    NoPatch,
    /// ΔW_gate and ΔW_up without Δm.
    WithoutDeltaM,
    /// Δm without ΔW_gate and ΔW_up.
    WithoutGateUp,
}

impl Variant {
    /// The negative controls: each must fail.
    pub const CONTROLS: [Self; 3] = [Self::NoPatch, Self::WithoutDeltaM, Self::WithoutGateUp];

    fn has_inner(self) -> bool {
        matches!(self, Self::Whole | Self::WithoutDeltaM)
    }

    fn has_outer(self) -> bool {
        matches!(self, Self::Whole | Self::WithoutGateUp)
    }
}

impl std::fmt::Display for Variant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Whole => "patched",
            Self::NoPatch => "no patch",
            Self::WithoutDeltaM => "Δm left out",
            Self::WithoutGateUp => "gate/up left out",
        })
    }
}

/// A solved patch, and what both passes said.
#[derive(Clone, Debug)]
pub struct Solution<E> {
    /// The patch.
    pub patch: Patch,
    /// One for each layer.
    pub layers: Vec<LayerReport>,
    /// The logits of the contextual pass, `[vocab]`.
    pub contextual: Vec<E>,
    /// The logits of the reduced pass for each variant asked for, `[variants, vocab]`.
    pub reduced: Matrix<E>,
}

/// A reduced pass under one variant of the patch.
struct Reduced<E: Element> {
    variant: Variant,
    rows: Range<usize>,
    cache: Cache<E>,
}

/// Solves the patch of the token `query` that comes next in `contextual`, a session that has seen the
/// whole context; it takes the query in. `kept` are the tokens of the context that stay, with their
/// positions; they run through the same patched weights. The rest is absorbed.
///
/// The reduced pass runs once under the whole patch in the given form, and once under each of
/// `controls`; [`Solution::reduced`] has them in this order.
///
/// # Errors
///
/// [`Error::KeptTokens`] where the kept tokens' positions do not ascend to the query's;
/// [`Error::Precondition`] of [`theorem_1`], with the layer; those of [`Session::forward`].
pub fn solve<E: Element>(
    contextual: &mut Session<'_, E>,
    query: u32,
    kept: &[(u32, usize)],
    form: Form,
    controls: &[Variant],
) -> Result<Solution<E>> {
    let model = contextual.model();
    let mut run = contextual.start(&[query], None)?;
    let position = contextual.position();
    let (mut tokens, mut positions): (Vec<_>, Vec<_>) = kept.iter().copied().unzip();
    tokens.push(query);
    positions.push(position);
    if !positions.is_sorted_by(|a, b| a < b) {
        return Err(Error::KeptTokens { query: position });
    }
    model.check_tokens(&tokens, 0)?;

    let mut batch = vec![query];
    let mut passes = Vec::new();
    for &variant in [Variant::Whole].iter().chain(controls) {
        let rows = batch.len()..batch.len() + tokens.len();
        batch.extend(&tokens);
        let cache = model.new_cache();
        passes.push(Reduced {
            variant,
            rows,
            cache,
        });
    }
    let mut x = model.embed(&mut run, &batch);
    let mut solved = Vec::new();
    for (layer, block) in model.layers().iter().enumerate() {
        run.enter(layer)?;
        let mut sequences = vec![contextual.as_rows(0..1, std::slice::from_ref(&position))];
        sequences.extend(passes.iter_mut().map(|pass| Sequence {
            rows: pass.rows.clone(),
            positions: &positions,
            cache: &mut pass.cache,
        }));
        let v = block.attention.forward(&mut run, &x, &mut sequences);
        let (t, layer_solved) = solve_layer(&mut run, block, &v, &passes, form)?;
        x = t;
        model.check_layer(layer, &x)?;
        solved.push(layer_solved);
    }
    contextual.skip(1);

    let last_rows = passes.iter().map(|pass| pass.rows.end - 1);
    let rows = std::iter::once(0).chain(last_rows);
    let hidden = rows.flat_map(|row| x.row(row).to_vec()).collect();
    let logits = model.logits(&mut run, &Matrix::from_vec(x.cols(), hidden))?;
    let (layers, reports) = solved.into_iter().unzip();
    Ok(Solution {
        patch: Patch { layers },
        layers: reports,
        contextual: logits.row(0).to_vec(),
        reduced: logits.slice_rows(1..logits.rows()),
    })
}

/// Inner and outer function of one layer for all rows of v: row 0 is the contextual pass, the last row of
/// the first reduced pass the one that is solved for. Returns the block's output.
fn solve_layer<E: Element>(
    run: &mut Run<'_>,
    block: &Block,
    v: &Matrix<E>,
    passes: &[Reduced<E>],
    form: Form,
) -> Result<(Matrix<E>, (LayerPatch, LayerReport))> {
    let layer = run.layer;
    let query = passes[0].rows.end - 1;
    let wide =
        |m: &Matrix<E>, row: usize| -> Vec<f64> { m.row(row).iter().map(|x| x.to_f64()).collect() };

    let z = block.inner.input(run, v);
    let (w_gate, w_up) = (block.inner.gate_proj().into(), block.inner.up_proj().into());
    let (gate, up) = theorem_1::inner(run.level, w_gate, w_up, &wide(&z, query), &wide(&z, 0))
        .map_err(|failed| failed.at_layer(layer))?;
    let mut patch = LayerPatch {
        gate: Some(gate),
        up: Some(up),
        ..LayerPatch::default()
    };
    let inner = overlay::change(block, &patch, form);
    let inner = applied(passes, Variant::has_inner, &inner);
    let h = block.inner.output(run, &z, &inner);
    let d = block.outer.project(run, &h, &inner);

    // Row 0 runs under no change, so its output is known before Δm is.
    let norm = block.outer.post_feedforward_layernorm();
    let g = block.outer.output(run, &d.slice_rows(0..1), &[]);
    let target = wide(&block.add(run, &v.slice_rows(0..1), &g), 0);
    let n = unscaled_rms_norm(run.level, &wide(&d, query), norm.eps());
    let delta_m = theorem_1::outer(&norm.scale(), &n, &wide(v, query), &target)
        .map_err(|failed| failed.at_layer(layer))?;
    let outer = overlay::scale_change(block, &delta_m, form);
    let g = block
        .outer
        .output(run, &d, &applied(passes, Variant::has_outer, &outer));
    let t = block.add(run, v, &g);

    patch.delta_m = Some(delta_m);
    let report = report(&patch, &wide(&z, query), &n, &target, &wide(&t, query));
    Ok((t, (patch, report)))
}

/// `change` for the rows of the passes whose variant takes it.
fn applied<'a, E: Element>(
    passes: &[Reduced<E>],
    takes: impl Fn(Variant) -> bool,
    change: &'a LayerChange<E>,
) -> Vec<Changed<'a, LayerChange<E>>> {
    let taking = passes.iter().filter(|pass| takes(pass.variant));
    taking.map(|pass| (pass.rows.clone(), change)).collect()
}

/// The figures of a solved layer: z of the reduced pass, n its divisors, T_C and T.
fn report(patch: &LayerPatch, _z: &[f64], n: &[f64], target: &[f64], t: &[f64]) -> LayerReport {
    let largest = |x: &[f64]| x.iter().fold(0.0f64, |max, x| max.max(x.abs()));
    let error: Vec<_> = t.iter().zip(target).map(|(t, target)| t - target).collect();
    LayerReport {
        largest_delta_m: patch.largest_delta_m(),
        smallest_divisor: n.iter().fold(f64::INFINITY, |min, n| min.min(n.abs())),
        hidden_error: largest(&error) / largest(target).max(f64::MIN_POSITIVE),
        ..LayerReport::default()
    }
}

//! A pass on the CPU: the operations of [`Ops`] by the kernels.

use std::array::from_fn;
use std::ops::Range;

use rayon::prelude::*;

use super::attend::{self, softcapped};
use super::cache::Cache;
use super::ops::Ops;
use super::overlay::{OverlaidRows, TensorOverlay};
use super::parts::{Active, Attention, Experts};
use super::run::ForwardRun;
use super::{Linear, Norm};
use crate::checkpoint::form::{RopeForm, RopePairing};
use crate::kernels::activation::Activation;
use crate::kernels::{CosSin, Level, Map, Rows, elementwise, finish_row, rotate};
use crate::tensor::{Element, Matrix};

/// Fewer rows of q or k than this are not worth a second thread.
const ROTATED_ROWS_PER_TASK: usize = 8;

/// The rows of a batch that belong to one sequence, and what that sequence has seen.
pub(crate) struct Sequence<'a, E> {
    pub(crate) rows: Range<usize>,
    /// The position of each row, ascending.
    pub(crate) positions: &'a [usize],
    pub(crate) cache: &'a mut Cache<E>,
}

/// A layer of a pass over a batch of rows: whose they are, and under which changes they run.
pub(crate) struct Pass<'p, 'r, 's, E: Element> {
    pub(crate) run: &'p mut ForwardRun<'r>,
    sequences: &'p mut [Sequence<'s, E>],
    changes: &'p [OverlaidRows<'p, E>],
}

impl<'p, 'r, 's, E: Element> Pass<'p, 'r, 's, E> {
    pub(crate) fn new(
        run: &'p mut ForwardRun<'r>,
        sequences: &'p mut [Sequence<'s, E>],
        changes: &'p [OverlaidRows<'p, E>],
    ) -> Self {
        Self {
            run,
            sequences,
            changes,
        }
    }

    /// Of no sequence: for everything but attention.
    pub(crate) fn of_rows(run: &'p mut ForwardRun<'r>, changes: &'p [OverlaidRows<'p, E>]) -> Self {
        Self::new(run, &mut [], changes)
    }

    /// W x, not yet rounded to the compute type.
    pub(crate) fn products(&mut self, map: &Linear, x: &Matrix<E>) -> Matrix<E::Acc> {
        self.run.matmul(x, &map.weight)
    }

    /// W x + b in the compute type, where `y` is W x; the rows of x are those of the batch, or of `tokens` of it.
    pub(crate) fn finish(
        &mut self,
        map: &Linear,
        x: &Matrix<E>,
        mut y: Matrix<E::Acc>,
        tokens: Option<&[usize]>,
    ) -> Matrix<E> {
        let cols = y.cols();
        let weight = changes_of(self.changes, map.name(), "weight");
        for (rows, change) in weight {
            let rows = among(tokens, &rows);
            let x = x.slice_rows(rows.clone());
            let y = &mut y.as_mut_slice()[rows.start * cols..rows.end * cols];
            match change {
                TensorOverlay::LowRank { u, v } => {
                    let vx = self
                        .run
                        .matmul(&elementwise::map(self.run.level, &x, E::acc), v);
                    let delta = self.run.matmul(&vx, u);
                    for (y, &delta) in y.iter_mut().zip(delta.as_slice()) {
                        *y = *y + delta;
                    }
                }
                TensorOverlay::Replaced(w) => y.copy_from_slice(self.run.matmul(&x, w).as_slice()),
                TensorOverlay::Vector(_) => {}
            }
        }
        let level = self.run.level;
        let stored = map.bias::<E>();
        let stored = stored.as_deref().map(|numbers| map.added(numbers));
        let biases = changes_of(self.changes, map.name(), "bias");
        if stored.is_none() && biases.is_empty() {
            return elementwise::round(level, y);
        }
        let mut out = Matrix::recycled(y.rows(), cols);
        let mut finish = |rows: Range<usize>, bias| {
            for row in rows {
                finish_row(level, y.row(row), bias, out.row_mut(row));
            }
        };
        let mut next = 0;
        for (rows, change) in biases {
            let TensorOverlay::Vector(bias) = change else {
                continue;
            };
            let rows = among(tokens, &rows);
            finish(next..rows.start, stored);
            next = rows.end;
            finish(rows, Some(map.added(bias)));
        }
        finish(next..x.rows(), stored);
        out
    }

    /// [`linear`](Ops::linear) for the rows of the whole batch, or of some tokens of it.
    fn linear_rows<const N: usize>(
        &mut self,
        maps: [&Linear; N],
        x: &Matrix<E>,
        tokens: Option<&[usize]>,
    ) -> [Matrix<E>; N] {
        let is_changed = |map: &Linear| {
            let tensors = ["weight", "bias"];
            let mut changes = tensors.map(|tensor| changes_of(self.changes, map.name(), tensor));
            changes.iter_mut().any(|changes| !changes.is_empty())
        };
        if !maps.iter().any(|map| is_changed(map)) {
            let biases = maps.map(Linear::bias::<E>);
            let whole = from_fn(|i| Map {
                weight: Rows::Stored(&maps[i].weight),
                bias: biases[i].as_deref().map(|b| maps[i].added(b)),
            });
            return self.run.linears::<E, N>(x, whole);
        }
        let sums = self
            .run
            .matmuls(x, maps.map(|map| Rows::Stored(&map.weight)));
        let mut maps = maps.into_iter();
        sums.map(|y| match maps.next() {
            Some(map) => self.finish(map, x, y, tokens),
            None => Matrix::zeros(0, 1),
        })
    }
}

/// What patches make of a tensor, and in which rows of the batch, which ascend.
pub(crate) fn changes_of<'c, E: Element>(
    changes: &[OverlaidRows<'c, E>],
    name: &str,
    tensor: &str,
) -> Vec<(Range<usize>, &'c TensorOverlay<E>)> {
    if changes.is_empty() {
        return Vec::new();
    }
    let name = format!("{name}.{tensor}");
    let changes = changes.iter();
    let of_this = changes.filter_map(|(rows, change)| Some((rows.clone(), change.get(&name)?)));
    of_this.collect()
}

/// Which of `tokens`, which are rows of a batch, are among `rows` of it.
pub(crate) fn among(tokens: Option<&[usize]>, rows: &Range<usize>) -> Range<usize> {
    match tokens {
        None => rows.clone(),
        Some(tokens) => {
            let place = |row: usize| tokens.partition_point(|&token| token < row);
            place(rows.start)..place(rows.end)
        }
    }
}

impl<E: Element> Ops for Pass<'_, '_, '_, E> {
    type Rows = Matrix<E>;

    fn norm(&mut self, norm: &Norm, x: &Matrix<E>) -> Matrix<E> {
        let mut y = norm.forward(self.run.level, x);
        for (rows, change) in changes_of(self.changes, norm.name(), "weight") {
            let TensorOverlay::Vector(scale) = change else {
                continue;
            };
            let bias = norm.bias::<E>();
            for row in rows {
                norm.stretches(self.run.level, x.row(row), (scale, &bias), y.row_mut(row));
            }
        }
        y
    }

    fn linear<const N: usize>(&mut self, maps: [&Linear; N], x: &Matrix<E>) -> [Matrix<E>; N] {
        self.linear_rows(maps, x, None)
    }

    fn linear_of<const N: usize>(
        &mut self,
        active: &Active,
        maps: [&Linear; N],
        x: &Matrix<E>,
    ) -> [Matrix<E>; N] {
        self.linear_rows(maps, x, Some(&active.rows))
    }

    fn split_heads(&mut self, attention: &Attention, qkv: &Matrix<E>) -> [Matrix<E>; 3] {
        let columns = attention.fused_columns();
        columns.map(|columns| qkv.select_columns(&columns))
    }

    fn split_halves(&mut self, x: &Matrix<E>) -> [Matrix<E>; 2] {
        let half = x.cols() / 2;
        [0..half, half..2 * half].map(|columns| x.select_columns(&[columns]))
    }

    fn rope(&mut self, attention: &Attention, mut x: Matrix<E>) -> Matrix<E> {
        let Some((rotation, form)) = attention.rotation.as_ref().zip(attention.form.rope) else {
            return x;
        };
        let (level, sequences) = (self.run.level, &*self.sequences);
        let positions = sequences.iter().flat_map(|sequence| sequence.positions);
        let positions: Vec<_> = positions.copied().collect();
        let rows = sequences.iter().flat_map(|sequence| sequence.rows.clone());
        let rows = x.parts_mut(rows.map(|row| row..row + 1));
        let cos_sin = self.run.cos_sin(rotation, &positions);
        let rows = rows.into_par_iter().zip(cos_sin);
        rows.with_min_len(ROTATED_ROWS_PER_TASK)
            .for_each(|(row, cos_sin)| {
                rotate_row(level, form, attention.form.head_dim, row, cos_sin);
            });
        x
    }

    fn attend(
        &mut self,
        attention: &Attention,
        q: &Matrix<E>,
        k: &Matrix<E>,
        v: &Matrix<E>,
    ) -> Matrix<E> {
        let mut mixed = Matrix::zeros(q.rows(), q.cols());
        let (layer, level, form) = (self.run.layer, self.run.level, &attention.form);
        #[cfg(feature = "cuda")]
        for sequence in self.sequences.iter_mut() {
            if let Some(cache) = sequence.cache.device_mut() {
                let qkv = [q, k, v].map(|x| x.slice_rows(sequence.rows.clone()));
                let said = cache.attended(layer, form, sequence.positions, &qkv);
                for (row, said) in sequence.rows.clone().zip(said.iter_rows()) {
                    mixed.row_mut(row).copy_from_slice(said);
                }
            }
        }
        let rows = self.sequences.iter().map(|sequence| sequence.rows.clone());
        let parts = mixed.parts_mut(rows);
        let sequences = self.sequences.par_iter_mut().zip(parts);
        sequences.for_each(|(sequence, mixed)| {
            if let Some(cache) = sequence.cache.layer_mut(layer) {
                let rows = sequence.rows.clone();
                attend::enter(
                    form,
                    level,
                    [q, k, v],
                    rows,
                    sequence.positions,
                    cache,
                    mixed,
                );
            }
        });
        mixed
    }

    fn activate(&mut self, activation: Activation, mut x: Matrix<E>) -> Matrix<E> {
        activation.update(self.run.level, x.as_mut_slice());
        x
    }

    fn multiply(&mut self, x: &Matrix<E>, y: &Matrix<E>) -> Matrix<E> {
        elementwise::multiply(self.run.level, x, y)
    }

    fn add(&mut self, x: &Matrix<E>, y: &Matrix<E>) -> Matrix<E> {
        elementwise::add(self.run.level, x, y)
    }

    fn route(&mut self, experts: &Experts, router: &Matrix<E>) -> Vec<Active> {
        experts.route(self.run.level, router)
    }

    fn gather(&mut self, active: &Active, x: &Matrix<E>) -> Matrix<E> {
        let rows = active.rows.iter().flat_map(|&row| x.row(row));
        Matrix::from_vec(x.cols(), rows.copied().collect())
    }

    fn combine(&mut self, router: &Matrix<E>, said: &[(&Active, Matrix<E>)]) -> Matrix<E> {
        let cols = said.first().map_or(1, |(_, said)| said.cols());
        let mut sums: Matrix<E> = Matrix::zeros(router.rows(), cols);
        for (active, said) in said {
            for ((&row, &gate), said) in active.rows.iter().zip(&active.gates).zip(said.iter_rows())
            {
                let gate = E::Acc::from_f64(gate);
                for (sum, said) in sums.row_mut(row).iter_mut().zip(said) {
                    let share: E = E::round(said.acc() * gate);
                    *sum = E::round(sum.acc() + share.acc());
                }
            }
        }
        sums
    }

    fn copy(&mut self, x: &Matrix<E>) -> Matrix<E> {
        x.clone()
    }

    fn logits(&mut self, head: &Linear, softcap: Option<f64>, x: &Matrix<E>) -> Matrix<E> {
        let [logits] = self.linear([head], x);
        match softcap {
            None => logits,
            Some(cap) => elementwise::map(self.run.level, &logits, |l: E| {
                softcapped::<E>(l.acc(), cap)
            }),
        }
    }

    fn record(&mut self, name: &str, x: &Matrix<E>) {
        self.run.record(name, x);
    }

    fn record_global(&mut self, name: &str, x: &Matrix<E>) {
        self.run.record_global(name, x);
    }
}

/// q or k of one token, turned to its position.
fn rotate_row<E: Element>(
    level: Level,
    form: RopeForm,
    head_dim: usize,
    row: &mut [E],
    cos_sin: &CosSin<f64>,
) {
    let dims = 2 * cos_sin.0.len();
    if form.rounded_once {
        let cos_sin = rounded(cos_sin);
        let mut wide: Vec<E::Acc> = row.iter().map(|x| x.acc()).collect();
        for head in wide.chunks_exact_mut(head_dim) {
            rotate_part(level, form.pairing, &mut head[..dims], &cos_sin);
        }
        for (x, wide) in row.iter_mut().zip(wide) {
            *x = E::round(wide);
        }
        return;
    }
    let cos_sin = rounded(cos_sin);
    if form.pairing == RopePairing::Halves && dims == head_dim {
        return rotate(level, row, &cos_sin);
    }
    for head in row.chunks_exact_mut(head_dim) {
        rotate_part(level, form.pairing, &mut head[..dims], &cos_sin);
    }
}

/// cos and sin in the type that they multiply.
fn rounded<E: Element>((cos, sin): &CosSin<f64>) -> CosSin<E> {
    let rounded = |x: &[f64]| x.iter().map(|&x| E::from_f64(x)).collect();
    (rounded(cos), rounded(sin))
}

/// [`rotate`] for the rotated part of one head.
fn rotate_part<E: Element>(
    level: Level,
    pairing: RopePairing,
    head: &mut [E],
    cos_sin: &CosSin<E>,
) {
    if pairing == RopePairing::Halves {
        return rotate(level, head, cos_sin);
    }
    let (even, odd) = (head.iter().step_by(2), head.iter().skip(1).step_by(2));
    let mut halves: Vec<E> = even.chain(odd).copied().collect();
    rotate(level, &mut halves, cos_sin);
    let (first, second) = halves.split_at(head.len() / 2);
    for (pair, (&a, &b)) in head.chunks_exact_mut(2).zip(first.iter().zip(second)) {
        pair.copy_from_slice(&[a, b]);
    }
}

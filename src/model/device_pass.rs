//! A pass on a device: the operations of [`Ops`] by its kernels.
//!
//! What fails makes everything after it fail, and is told in the end: the operations themselves have no errors.

use std::ops::Range;
use std::sync::Arc;

use super::ops::Ops;
use super::overlay::{OverlaidRows, TensorOverlay};
use super::parts::{Active, Attention, Experts};
use super::pass::{Sequence, among, changes_of};
use super::run::ForwardRun;
use super::{Linear, Model, Norm};
use crate::checkpoint::form::{NormKind, RopePairing};
use crate::cuda::{Device, DeviceRows, Error, Into, Memory, OnDevice, Result, Weights};
use crate::kernels::Rotation;
use crate::kernels::activation::Activation;
use crate::tensor::{Element, Matrix};

/// cos and sin of every row of the batch, `[rows, half]` each, under the rotation that they are of.
type Angles = (Rotation, [Memory; 2]);

/// A pass over a batch of rows, layer by layer.
pub(super) struct DevicePass<'p, 'r, 's, 'c, E: Element> {
    run: &'p mut ForwardRun<'r>,
    on: Arc<OnDevice>,
    sequences: &'p mut [Sequence<'s, E>],
    /// What patches change in the current layer.
    changes: Vec<OverlaidRows<'c, E>>,
    angles: Vec<Angles>,
    failure: Option<Error>,
}

impl<'p, 'r, 's, 'c, E: Element> DevicePass<'p, 'r, 's, 'c, E> {
    fn new(
        on: Arc<OnDevice>,
        run: &'p mut ForwardRun<'r>,
        sequences: &'p mut [Sequence<'s, E>],
    ) -> Self {
        Self {
            run,
            on,
            sequences,
            changes: Vec::new(),
            angles: Vec::new(),
            failure: None,
        }
    }

    /// Rows on the device.
    fn upload(&mut self, x: &Matrix<E>) -> DeviceRows<E> {
        let absent = DeviceRows::absent(x.rows(), x.cols());
        self.attempt(absent, |pass| DeviceRows::upload(pass.device(), x))
    }

    /// Rows on the host.
    ///
    /// # Errors
    ///
    /// What failed first on the way to them.
    fn download(&mut self, x: &DeviceRows<E>) -> Result<Matrix<E>> {
        match self.failure.take() {
            None => x.download(self.device()),
            Some(failure) => Err(failure),
        }
    }

    /// A flag for each of `n`, none of which is set.
    fn flags(&mut self, n: usize) -> DeviceRows<f32> {
        self.attempt(DeviceRows::absent(1, n), |pass| {
            DeviceRows::zeros(pass.device(), 1, n)
        })
    }

    /// Sets a flag where any number of x is not finite.
    fn look_for_infinities(&mut self, x: &DeviceRows<E>, flags: &DeviceRows<f32>, at: usize) {
        self.attempt((), |pass| {
            let flag = flags.address() + (at * size_of::<u32>()) as u64;
            pass.device().look_for_infinities(x, flag)
        });
    }

    fn device(&self) -> &Arc<Device> {
        self.on.device()
    }

    /// Does something unless something failed before; gives `absent` where there is nothing to be had.
    fn attempt<T>(&mut self, absent: T, step: impl FnOnce(&mut Self) -> Result<T>) -> T {
        if self.failure.is_some() {
            return absent;
        }
        step(self).unwrap_or_else(|error| {
            self.failure = Some(error);
            absent
        })
    }

    /// Rows on the host, unless something failed.
    fn on_host(&mut self, x: &DeviceRows<E>) -> Option<Matrix<E>> {
        self.attempt(None, |pass| x.download(pass.device()).map(Some))
    }

    /// New rows that `write` fills.
    fn rows(
        &mut self,
        [rows, cols]: [usize; 2],
        write: impl FnOnce(&mut Self, &DeviceRows<E>) -> Result<()>,
    ) -> DeviceRows<E> {
        self.attempt(DeviceRows::absent(rows, cols), |pass| {
            let out = DeviceRows::new(pass.device(), rows, cols)?;
            write(pass, &out)?;
            Ok(out)
        })
    }

    /// W x + b for the rows of the batch, or of `tokens` of it.
    fn linear_rows<const N: usize>(
        &mut self,
        maps: [&Linear; N],
        x: &DeviceRows<E>,
        tokens: Option<&[usize]>,
    ) -> [DeviceRows<E>; N] {
        maps.map(|map| {
            self.rows([x.rows(), map.weight.rows()], |pass, out| {
                pass.linear_map(map, x, tokens, out)
            })
        })
    }

    fn linear_map(
        &mut self,
        map: &Linear,
        x: &DeviceRows<E>,
        tokens: Option<&[usize]>,
        out: &DeviceRows<E>,
    ) -> Result<()> {
        let device = self.device().clone();
        let w = self.on.weights::<E>(&map.weight)?;
        let changes = changes_of(&self.changes, map.name(), "weight");
        let biases = changes_of(&self.changes, map.name(), "bias");
        let stored = map.bias.as_ref().map(|bias| {
            let numbers = || map.bias::<E>().unwrap_or_default();
            self.on.vector::<E>(bias, false, numbers)
        });
        let stored = stored.transpose()?;
        if changes.is_empty() && biases.is_empty() && stored.is_none() {
            return device.multiply(x, &w, Into::Rounded(out));
        }
        let sums = DeviceRows::new(&device, out.rows(), out.cols())?;
        device.multiply(x, &w, Into::Sums(&sums))?;
        for (rows, change) in changes {
            let rows = among(tokens, &rows);
            self.change(change, &x.view(rows.clone()), &sums.view(rows))?;
        }
        // The stored bias, or none, for the rows that no other has.
        let mut next = 0;
        let finish = |rows: Range<usize>, bias: Option<&Memory>| {
            let (sums, out) = (sums.view(rows.clone()), out.view(rows));
            match bias {
                Some(bias) => device.add_bias(&sums, bias, map.form.rounded_first, &out),
                None => device.round(&sums, &out),
            }
        };
        for (rows, change) in biases {
            let TensorOverlay::Vector(bias) = change else {
                continue;
            };
            let rows = among(tokens, &rows);
            finish(next..rows.start, stored.as_ref())?;
            next = rows.end;
            finish(rows, Some(&Memory::of(&device, bias)?))?;
        }
        finish(next..x.rows(), stored.as_ref())
    }

    /// What a patch makes of W x.
    fn change(
        &mut self,
        change: &TensorOverlay<E>,
        x: &DeviceRows<E>,
        sums: &DeviceRows<E::Acc>,
    ) -> Result<()> {
        let device = self.device().clone();
        match change {
            TensorOverlay::Vector(_) => Ok(()),
            TensorOverlay::Replaced(w) => {
                let w = self.lent(w)?;
                device.multiply(x, &w, Into::Sums(sums))
            }
            TensorOverlay::LowRank { u, v } => {
                let (u, v) = (self.lent(u)?, self.lent(v)?);
                let vx = DeviceRows::<E::Acc>::new(&device, x.rows(), v.rows)?;
                device.multiply(&self.widened(x)?, &v, Into::<E::Acc>::Rounded(&vx))?;
                let delta = DeviceRows::new(&device, x.rows(), u.rows)?;
                device.multiply(&vx, &u, Into::<E::Acc>::Rounded(&delta))?;
                device.of_pairs("add", [sums, &delta, sums])
            }
        }
    }

    /// A matrix of a patch, which lives as long as the sequences of the pass.
    fn lent<F: Element>(&mut self, matrix: &Matrix<F>) -> Result<Weights> {
        let cache = self.sequences.first_mut();
        let cache = cache.and_then(|sequence| sequence.cache.device_mut());
        let memory = match cache {
            Some(cache) => cache.lent(matrix)?,
            None => Memory::of(self.on.device(), matrix.as_slice())?,
        };
        Ok(Weights {
            memory,
            storage: F::DTYPE,
            rows: matrix.rows(),
            cols: matrix.cols(),
        })
    }

    /// x in the type of sums.
    fn widened(&self, x: &DeviceRows<E>) -> Result<DeviceRows<E::Acc>> {
        if E::DTYPE == E::Acc::DTYPE {
            return Ok(x.retyped());
        }
        let out = DeviceRows::new(self.device(), x.rows(), x.cols())?;
        self.device().widen(x, &out)?;
        Ok(out)
    }

    /// cos and sin of the positions of all rows, under a rotation; unrounded where the outcome is what is rounded.
    fn angles(&mut self, rotation: &Rotation, rounded_once: bool) -> Result<[Memory; 2]> {
        if let Some((_, angles)) = self.angles.iter().find(|(known, _)| known == rotation) {
            return Ok(angles.clone());
        }
        let (mut cos, mut sin): (Vec<E::Acc>, Vec<E::Acc>) = (Vec::new(), Vec::new());
        for position in self
            .sequences
            .iter()
            .flat_map(|sequence| sequence.positions)
        {
            if rounded_once {
                let (c, s) = self.run.cos_sin::<E::Acc>(rotation, *position);
                cos.extend(c);
                sin.extend(s);
            } else {
                let (c, s) = self.run.cos_sin::<E>(rotation, *position);
                cos.extend(c.into_iter().map(E::acc));
                sin.extend(s.into_iter().map(E::acc));
            }
        }
        let device = self.on.device();
        let angles = [Memory::of(device, &cos)?, Memory::of(device, &sin)?];
        self.angles.push((rotation.clone(), angles.clone()));
        Ok(angles)
    }

    /// A norm with some scale and bias.
    fn norm_rows(
        &self,
        norm: &Norm,
        u: &DeviceRows<E>,
        scale: &Memory,
        out: &DeviceRows<E>,
    ) -> Result<()> {
        let n = norm.weight.cols();
        match norm.form.kind {
            NormKind::Layer { .. } => {
                let bias = norm.bias.as_ref().map(|bias| {
                    let numbers = || norm.bias::<E>();
                    self.on.vector::<E>(bias, false, numbers)
                });
                let bias = bias.transpose()?;
                self.device()
                    .layer_norm(u, (scale, bias.as_ref()), norm.eps(), out, n)
            }
            NormKind::Rms { rounded_first, .. } => {
                let how = (norm.eps(), rounded_first);
                self.device().rms_norm(u, scale, how, out, n)
            }
        }
    }
}

impl<E: Element> Ops for DevicePass<'_, '_, '_, '_, E> {
    type Rows = DeviceRows<E>;

    fn norm(&mut self, norm: &Norm, x: &DeviceRows<E>) -> DeviceRows<E> {
        self.rows([x.rows(), x.cols()], |pass, out| {
            let unit = norm.unit_offset();
            let scale = pass
                .on
                .vector::<E>(&norm.weight, unit, || norm.scale::<E>())?;
            pass.norm_rows(norm, x, &scale, out)?;
            for (rows, change) in changes_of(&pass.changes, norm.name(), "weight") {
                if let TensorOverlay::Vector(scale) = change {
                    let scale = Memory::of(pass.device(), scale)?;
                    pass.norm_rows(norm, &x.view(rows.clone()), &scale, &out.view(rows))?;
                }
            }
            Ok(())
        })
    }

    fn linear<const N: usize>(
        &mut self,
        maps: [&Linear; N],
        x: &DeviceRows<E>,
    ) -> [DeviceRows<E>; N] {
        self.linear_rows(maps, x, None)
    }

    fn linear_of<const N: usize>(
        &mut self,
        active: &Active,
        maps: [&Linear; N],
        x: &DeviceRows<E>,
    ) -> [DeviceRows<E>; N] {
        self.linear_rows(maps, x, Some(&active.rows))
    }

    fn split_heads(&mut self, attention: &Attention, qkv: &DeviceRows<E>) -> [DeviceRows<E>; 3] {
        attention
            .fused_columns()
            .map(|columns| self.select_columns(qkv, &columns))
    }

    fn split_halves(&mut self, x: &DeviceRows<E>) -> [DeviceRows<E>; 2] {
        let half = x.cols() / 2;
        [0..half, half..2 * half].map(|columns| self.select_columns(x, &[columns]))
    }

    fn rope(&mut self, attention: &Attention, x: DeviceRows<E>) -> DeviceRows<E> {
        let Some((rotation, form)) = attention.rotation.as_ref().zip(attention.form.rope) else {
            return x;
        };
        let absent = DeviceRows::absent(x.rows(), x.cols());
        self.attempt(absent, |pass| {
            let [cos, sin] = pass.angles(rotation, form.rounded_once)?;
            let x = if x.is_ones_own() {
                x
            } else {
                x.copied(pass.device())?
            };
            let sizes = [attention.form.head_dim, rotation.dims() / 2];
            let neighbours = form.pairing != RopePairing::Halves;
            let how = [neighbours, form.rounded_once];
            pass.device().rope(&x, [&cos, &sin], sizes, how)?;
            Ok(x)
        })
    }

    fn attend(
        &mut self,
        attention: &Attention,
        q: &DeviceRows<E>,
        k: &DeviceRows<E>,
        v: &DeviceRows<E>,
    ) -> DeviceRows<E> {
        self.rows([q.rows(), q.cols()], |pass, mixed| {
            let layer = pass.run.layer;
            for sequence in pass.sequences.iter_mut() {
                let rows = sequence.rows.clone();
                let qkv = [q, k, v].map(|x| x.view(rows.clone()));
                let Some(cache) = sequence.cache.device_mut() else {
                    continue;
                };
                let mixed = mixed.view(rows);
                cache.attend(
                    layer,
                    &attention.form,
                    sequence.positions,
                    qkv.each_ref(),
                    &mixed,
                )?;
            }
            Ok(())
        })
    }

    fn activate(&mut self, activation: Activation, x: &DeviceRows<E>) -> DeviceRows<E> {
        self.attempt(DeviceRows::absent(x.rows(), x.cols()), |pass| {
            let out = DeviceRows::new(pass.device(), x.rows(), x.cols())?;
            match pass.device().activate(activation, x, &out) {
                Some(done) => done.map(|()| out),
                None => {
                    let x = x.download(pass.device())?;
                    DeviceRows::upload(pass.device(), &activation.map(pass.run.level, &x))
                }
            }
        })
    }

    fn multiply(&mut self, x: &DeviceRows<E>, y: &DeviceRows<E>) -> DeviceRows<E> {
        self.rows([x.rows(), x.cols()], |pass, out| {
            pass.device().of_pairs("multiply", [x, y, out])
        })
    }

    fn add(&mut self, x: &DeviceRows<E>, y: &DeviceRows<E>) -> DeviceRows<E> {
        self.rows([x.rows(), x.cols()], |pass, out| {
            pass.device().of_pairs("add", [x, y, out])
        })
    }

    fn route(&mut self, experts: &Experts, router: &DeviceRows<E>) -> Vec<Active> {
        self.attempt(Vec::new(), |pass| {
            let router = router.download(pass.device())?;
            Ok(experts.route(pass.run.level, &router))
        })
    }

    fn gather(&mut self, active: &Active, x: &DeviceRows<E>) -> DeviceRows<E> {
        self.rows([active.rows.len(), x.cols()], |pass, out| {
            let rows = pass.device().indices(active.rows.iter().copied())?;
            pass.device().gather_rows(x, &rows, out)
        })
    }

    fn combine(
        &mut self,
        router: &DeviceRows<E>,
        said: &[(&Active, DeviceRows<E>)],
    ) -> DeviceRows<E> {
        let cols = said.first().map_or(1, |(_, said)| said.cols());
        self.attempt(DeviceRows::absent(router.rows(), cols), |pass| {
            let device = pass.device();
            let sums = DeviceRows::zeros(device, router.rows(), cols)?;
            for (active, said) in said {
                let rows = device.indices(active.rows.iter().copied())?;
                let gates = Memory::of(device, &active.gates)?;
                device.combine(said, [&rows, &gates], &sums)?;
            }
            Ok(sums)
        })
    }

    fn copy(&mut self, x: &DeviceRows<E>) -> DeviceRows<E> {
        x.clone()
    }

    fn logits(&mut self, head: &Linear, softcap: Option<f64>, x: &DeviceRows<E>) -> DeviceRows<E> {
        let [logits] = self.linear([head], x);
        match softcap {
            None => logits,
            Some(cap) => self.rows([logits.rows(), logits.cols()], |pass, out| {
                pass.device().softcap(&logits, cap, out)
            }),
        }
    }

    fn record(&mut self, name: &str, x: &DeviceRows<E>) {
        if self.run.records(name)
            && let Some(x) = self.on_host(x)
        {
            self.run.record(name, &x);
        }
    }

    fn record_global(&mut self, name: &str, x: &DeviceRows<E>) {
        if self.run.records_global(name)
            && let Some(x) = self.on_host(x)
        {
            self.run.record_global(name, &x);
        }
    }
}

impl<E: Element> DevicePass<'_, '_, '_, '_, E> {
    fn select_columns(&mut self, x: &DeviceRows<E>, columns: &[Range<usize>]) -> DeviceRows<E> {
        let width = columns.iter().map(Range::len).sum();
        self.rows([x.rows(), width], |pass, out| {
            let columns = pass.device().indices(columns.iter().cloned().flatten())?;
            pass.device().select_columns(x, &columns, out)
        })
    }
}

impl Model {
    /// [`blocks`](Self::blocks) on a device.
    ///
    /// # Errors
    ///
    /// Those of [`blocks`](Self::blocks), and [`Error::Cuda`](super::Error::Cuda).
    pub(super) fn device_blocks<'c, E: Element>(
        &self,
        on: Arc<OnDevice>,
        run: &mut ForwardRun<'_>,
        x: &Matrix<E>,
        sequences: &mut [Sequence<'_, E>],
        changes: impl Fn(usize) -> Vec<OverlaidRows<'c, E>>,
    ) -> super::Result<Matrix<E>> {
        let mut pass = DevicePass::new(on, run, sequences);
        let flags = pass.flags(self.layers().len());
        let mut x = pass.upload(x);
        for (layer, block) in self.layers().iter().enumerate() {
            pass.run.enter(layer)?;
            pass.changes = changes(layer);
            x = block.forward(&mut pass, x);
            pass.look_for_infinities(&x, &flags, layer);
        }
        let x = pass.download(&x)?;
        if !x.is_finite() {
            let flags = flags.download(pass.device())?;
            let mut flags = flags.as_slice().iter();
            let first = flags.position(|flag| flag.to_bits() != 0);
            self.check_layer(first.unwrap_or(0), &x)?;
        }
        Ok(x)
    }

    /// [`logits`](Self::logits) on a device, without the check that they are finite.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`](super::Error::Cuda).
    pub(super) fn device_logits<E: Element>(
        &self,
        on: Arc<OnDevice>,
        run: &mut ForwardRun<'_>,
        x: &Matrix<E>,
    ) -> super::Result<Matrix<E>> {
        let mut pass = DevicePass::new(on, run, &mut []);
        let x = pass.upload(x);
        let logits = self.decoder().logits(&mut pass, &x);
        Ok(pass.download(&logits)?)
    }
}

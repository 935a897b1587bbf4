//! A pass on a device: the operations of [`Ops`] by its kernels.
//!
//! What fails makes everything after it fail, and is told in the end: the operations themselves have no errors.

mod activations;
mod heads;
mod linear;
mod waiting;

use std::ops::Range;
use std::sync::Arc;

use waiting::Waiting;

use super::ops::Ops;
use super::overlay::{OverlaidRows, TensorOverlay};
use super::parts::{Active, Attention, Experts};
use super::pass::{Sequence, changes_of};
use super::run::ForwardRun;
use super::{Linear, Model, Norm};
use crate::checkpoint::form::NormKind;
use crate::cuda::{
    self, Angles, Device, DeviceRows, Error, HeadShape, Memory, OnDevice, Preparation, Result,
    RowNorm, RowNormKind,
};
use crate::kernels::Rotation;
use crate::kernels::activation::Activation;
use crate::tensor::{Element, Matrix};

/// A pass over a batch of rows, layer by layer.
pub(super) struct DevicePass<'p, 'r, 's, 'c, E: Element> {
    run: &'p mut ForwardRun<'r>,
    on: Arc<OnDevice>,
    sequences: &'p mut [Sequence<'s, E>],
    /// What patches change in the current layer.
    changes: Vec<OverlaidRows<'c, E>>,
    /// cos and sin of every row of the batch, under the rotation that they are of.
    angles: Vec<(Rotation, Angles)>,
    waiting: Option<Waiting<E>>,
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
            waiting: None,
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
        self.attempt((), |_| Ok(()));
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
        let flag = flags.address() + (at * size_of::<u32>()) as u64;
        self.attempt_with_waiting((), |pass| pass.wait_with_flag(x, flag));
    }

    fn device(&self) -> &Arc<Device> {
        self.on.device()
    }

    /// Does something unless something failed before; gives `absent` where there is nothing to be had.
    fn attempt<T>(&mut self, absent: T, step: impl FnOnce(&mut Self) -> Result<T>) -> T {
        self.attempt_with_waiting(absent, |pass| {
            pass.launch_waiting()?;
            step(pass)
        })
    }

    /// The same for a step that may go with the kernel that waits, and launches nothing before it.
    fn attempt_with_waiting<T>(
        &mut self,
        absent: T,
        step: impl FnOnce(&mut Self) -> Result<T>,
    ) -> T {
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
        size: [usize; 2],
        write: impl FnOnce(&mut Self, &DeviceRows<E>) -> Result<()>,
    ) -> DeviceRows<E> {
        self.rows_with_waiting(size, |pass, out| {
            pass.launch_waiting()?;
            write(pass, out)
        })
    }

    /// The same where what fills them may go with the kernel that waits.
    fn rows_with_waiting(
        &mut self,
        [rows, cols]: [usize; 2],
        write: impl FnOnce(&mut Self, &DeviceRows<E>) -> Result<()>,
    ) -> DeviceRows<E> {
        self.attempt_with_waiting(DeviceRows::absent(rows, cols), |pass| {
            let out = DeviceRows::new(pass.device(), rows, cols)?;
            write(pass, &out)?;
            Ok(out)
        })
    }

    /// A norm on the device.
    fn row_norm(&self, norm: &Norm) -> Result<RowNorm> {
        let scale = || norm.scale::<E>();
        let bias = norm.bias.as_ref().map(|bias| {
            let numbers = || norm.bias::<E>();
            self.on.vector::<E>(bias, false, numbers)
        });
        let kind = match norm.form.kind {
            NormKind::Layer { .. } => RowNormKind::Layer,
            NormKind::Rms { rounded_first, .. } if rounded_first => RowNormKind::RmsRoundedFirst,
            NormKind::Rms { .. } => RowNormKind::Rms,
        };
        Ok(RowNorm {
            kind,
            scale: (self.on).vector::<E>(&norm.weight, norm.unit_offset(), scale)?,
            bias: bias.transpose()?,
            eps: norm.eps(),
        })
    }
}

impl<E: Element> Ops for DevicePass<'_, '_, '_, '_, E> {
    type Rows = DeviceRows<E>;

    fn norm(&mut self, norm: &Norm, x: &DeviceRows<E>) -> DeviceRows<E> {
        let width = norm.weight.cols();
        let out = self.rows_with_waiting([x.rows(), x.cols()], |pass, out| {
            let norm = pass.row_norm(norm)?;
            pass.wait_with_norm(norm, x, out, width)
        });
        for (rows, change) in changes_of(&self.changes, norm.name(), "weight") {
            if let TensorOverlay::Vector(scale) = change {
                self.attempt((), |pass| {
                    let norm = RowNorm {
                        scale: Memory::of(pass.device(), scale)?,
                        ..pass.row_norm(norm)?
                    };
                    let (x, out) = (x.view(rows.clone()), out.view(rows));
                    pass.wait_with_norm(norm, &x, &out, width)
                });
            }
        }
        out
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
        self.rows([x.rows(), x.cols()], |pass, out| {
            let preparation = Preparation {
                norms: None,
                rotation: pass.rotation(attention)?,
            };
            let shape = HeadShape {
                heads: x.cols() / attention.form.head_dim,
                ..HeadShape::of(&attention.form)
            };
            pass.device()
                .heads(&preparation, Some([&x, out]), None, shape)
        })
    }

    fn attend_projected(
        &mut self,
        attention: &Attention,
        qkv: [DeviceRows<E>; 3],
    ) -> DeviceRows<E> {
        match self.attempt(None, |pass| pass.preparation(attention)) {
            Some(preparation) => {
                self.attend_sequences(attention, qkv.each_ref(), Some(&preparation))
            }
            None => attention.attend_projected(self, qkv),
        }
    }

    fn attend(
        &mut self,
        attention: &Attention,
        q: &DeviceRows<E>,
        k: &DeviceRows<E>,
        v: &DeviceRows<E>,
    ) -> DeviceRows<E> {
        self.attend_sequences(attention, [q, k, v], None)
    }

    fn activate(&mut self, activation: Activation, x: DeviceRows<E>) -> DeviceRows<E> {
        match cuda::activation(activation, E::DTYPE) {
            Some(kernel) => self.rows_with_waiting([x.rows(), x.cols()], |pass, out| {
                pass.wait_with_activation(kernel, &x, out)
            }),
            None => self.attempt(DeviceRows::absent(x.rows(), x.cols()), |pass| {
                let mut x = x.download(pass.device())?;
                activation.update(pass.run.level, x.as_mut_slice());
                DeviceRows::upload(pass.device(), &x)
            }),
        }
    }

    fn multiply(&mut self, x: &DeviceRows<E>, y: &DeviceRows<E>) -> DeviceRows<E> {
        self.rows_with_waiting([x.rows(), x.cols()], |pass, out| {
            pass.multiply_with_waiting([x, y], out)
        })
    }

    fn add(&mut self, x: &DeviceRows<E>, y: &DeviceRows<E>) -> DeviceRows<E> {
        self.rows_with_waiting([x.rows(), x.cols()], |pass, out| {
            pass.wait_with_sum([x, y], out)
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
        mut check: impl FnMut(usize, &Matrix<E>) -> super::Result<()>,
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
            check(first.unwrap_or(0), &x)?;
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

//! A model's forward pass on a device.

use std::sync::Arc;

use super::kernels::Into;
use super::memory::DeviceRows;
use super::pass::DevicePass;
use super::weights::OnDevice;
use crate::kernels::{Backend, Level, Rows};
use crate::model::{ForwardRun, Model, OverlaidRows, Result, Sequence};
use crate::tensor::{Element, Matrix, Tensor};

impl OnDevice {
    /// The last block's output for every row of x, as [`Model::blocks`].
    pub(crate) fn blocks<'c, E: Element>(
        self: &Arc<Self>,
        model: &Model,
        run: &mut ForwardRun<'_>,
        x: &Matrix<E>,
        sequences: &mut [Sequence<'_, E>],
        changes: impl Fn(usize) -> Vec<OverlaidRows<'c, E>>,
    ) -> Result<Matrix<E>> {
        let mut pass = DevicePass::new(self.clone(), run, sequences);
        let flags = pass.flags(model.layers().len());
        let mut x = pass.upload(x);
        for (layer, block) in model.layers().iter().enumerate() {
            pass.run.enter(layer)?;
            pass.changes = changes(layer);
            x = block.forward(&mut pass, x);
            pass.look_for_infinities(&x, &flags, layer);
        }
        let x = pass.download(&x)?;
        if !x.is_finite() {
            let flags = flags.download(self.device())?;
            let first = flags.as_slice().iter().position(|flag| flag.to_bits() != 0);
            model.check_layer(first.unwrap_or(0), &x)?;
        }
        Ok(x)
    }

    /// The logits of every row of the last block's output.
    pub(crate) fn logits<E: Element>(
        self: &Arc<Self>,
        model: &Model,
        run: &mut ForwardRun<'_>,
        x: &Matrix<E>,
    ) -> Result<Matrix<E>> {
        let mut pass = DevicePass::new(self.clone(), run, &mut []);
        let x = pass.upload(x);
        let logits = model.decoder().logits(&mut pass, &x);
        Ok(pass.download(&logits)?)
    }

    /// W x, as [`Backend::matmul`]: a stored W is on the device. Where the device fails the numbers are NaN, and
    /// [`check`](Self::check) says why.
    pub(crate) fn matmul<E: Element>(
        &self,
        level: Level,
        x: &Matrix<E>,
        w: Rows<'_, E>,
    ) -> Matrix<E::Acc> {
        let Rows::Stored(w) = w else {
            return Backend::Native.matmul(level, x, w);
        };
        self.product(x, w).unwrap_or_else(|error| {
            self.fail(error);
            not_a_number(x.rows(), w.rows())
        })
    }

    fn product<E: Element>(&self, x: &Matrix<E>, w: &Tensor) -> super::Result<Matrix<E::Acc>> {
        let device = self.device();
        let x = DeviceRows::upload(device, x)?;
        let w = self.weights::<E>(w)?;
        let sums = DeviceRows::new(device, x.rows(), w.rows)?;
        device.multiply(&x, &w, Into::Sums(&sums))?;
        sums.download(device)
    }
}

/// What stands for numbers that a device failed to give.
pub(super) fn not_a_number<E: Element>(rows: usize, cols: usize) -> Matrix<E> {
    Matrix::from_vec(cols, vec![E::from_f64(f64::NAN); rows * cols])
}

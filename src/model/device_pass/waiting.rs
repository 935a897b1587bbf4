//! Kernels that wait for what comes next, because it may go with them.
//!
//! Decoding launches small kernels by the hundred, each of which takes longer to begin than to run. So a norm, a sum or an activation is
//! not launched at once: if the next operation works on what it gives, both become one kernel. Every operation's output is written all
//! the same, so nobody else has to know.

use super::DevicePass;
use crate::cuda::{DeviceRows, NormAddNorm, Result, RowNorm};
use crate::tensor::Element;

/// A kernel that is not launched yet. Whatever else happens on the device, it happens before.
#[derive(Debug)]
pub(super) enum Waiting<E> {
    NormAddNorm(NormAddNorm<E>),
    Activation(Activated<E>),
}

/// An activation function by its kernel, of x, and what its outcome multiplies.
#[derive(Debug)]
pub(super) struct Activated<E> {
    pub(super) kernel: &'static str,
    pub(super) x: DeviceRows<E>,
    pub(super) out: DeviceRows<E>,
    /// `[up, product]`
    pub(super) product: Option<[DeviceRows<E>; 2]>,
}

impl<E: Element> DevicePass<'_, '_, '_, '_, E> {
    /// Launches the kernel that waits.
    pub(super) fn launch_waiting(&mut self) -> Result<()> {
        match self.waiting.take() {
            None => Ok(()),
            Some(Waiting::NormAddNorm(run)) => self.device().norm_add_norm(&run),
            Some(Waiting::Activation(run)) => {
                let product = run.product.as_ref().map(|product| product.each_ref());
                let rows = [&run.x, &run.out];
                self.device().activate(run.kernel, rows, product)
            }
        }
    }

    /// Has a kernel wait.
    fn wait(&mut self, waiting: Waiting<E>) -> Result<()> {
        self.launch_waiting()?;
        self.waiting = Some(waiting);
        Ok(())
    }

    /// out = N(x), of stretches of `width` numbers.
    pub(super) fn wait_with_norm(
        &mut self,
        norm: RowNorm,
        x: &DeviceRows<E>,
        out: &DeviceRows<E>,
        width: usize,
    ) -> Result<()> {
        if let Some(Waiting::NormAddNorm(run)) = &mut self.waiting
            && let Some([_, v]) = &run.sum
            && v.is(x)
            && run.second.is_none()
            && run.width == width
        {
            run.second = Some((norm, out.clone()));
            return Ok(());
        }
        self.wait(Waiting::NormAddNorm(NormAddNorm {
            first: Some((norm, x.clone())),
            p: out.clone(),
            sum: None,
            flag: 0,
            second: None,
            width,
        }))
    }

    /// out = x + y.
    pub(super) fn wait_with_sum(
        &mut self,
        [x, y]: [&DeviceRows<E>; 2],
        out: &DeviceRows<E>,
    ) -> Result<()> {
        if let Some(Waiting::NormAddNorm(run)) = &mut self.waiting
            && run.sum.is_none()
            && run.width == out.cols()
            && let Some(other) = [(x, y), (y, x)]
                .into_iter()
                .find_map(|(p, other)| run.p.is(p).then_some(other))
        {
            run.sum = Some([other.clone(), out.clone()]);
            return Ok(());
        }
        self.wait(Waiting::NormAddNorm(NormAddNorm {
            first: None,
            p: y.clone(),
            sum: Some([x.clone(), out.clone()]),
            flag: 0,
            second: None,
            width: out.cols(),
        }))
    }

    /// Sets a flag, by its address, where any number of x is not finite.
    pub(super) fn wait_with_flag(&mut self, x: &DeviceRows<E>, flag: u64) -> Result<()> {
        if let Some(Waiting::NormAddNorm(run)) = &mut self.waiting
            && let Some([_, v]) = &run.sum
            && v.is(x)
            && run.flag == 0
        {
            run.flag = flag;
            return Ok(());
        }
        self.launch_waiting()?;
        self.device().look_for_infinities(x, flag)
    }

    /// out = the activation function of x that `kernel` computes.
    pub(super) fn wait_with_activation(
        &mut self,
        kernel: &'static str,
        x: &DeviceRows<E>,
        out: &DeviceRows<E>,
    ) -> Result<()> {
        self.wait(Waiting::Activation(Activated {
            kernel,
            x: x.clone(),
            out: out.clone(),
            product: None,
        }))
    }

    /// out = x ⊙ y. Nothing goes with it any more.
    pub(super) fn multiply_with_waiting(
        &mut self,
        [x, y]: [&DeviceRows<E>; 2],
        out: &DeviceRows<E>,
    ) -> Result<()> {
        if let Some(Waiting::Activation(run)) = &mut self.waiting
            && run.out.is(x)
        {
            run.product = Some([y.clone(), out.clone()]);
            return self.launch_waiting();
        }
        self.launch_waiting()?;
        self.device().of_pairs("multiply", [x, y, out])
    }
}

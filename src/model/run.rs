//! The state of a forward pass: how it computes, and who records it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use super::Model;
use super::disturbance::Disturbance;
use super::error::{Error, Result};
use crate::checkpoint::VisionConfig;
#[cfg(feature = "cuda")]
use crate::cuda::OnDevice;
use crate::kernels::{Backend, CosSin, Level, Map, Rotation, Rows, elementwise};
use crate::tensor::{Element, Matrix};

/// Receives the intermediates of a forward pass.
///
/// A tensor has the name of the Hugging Face module that outputs it; [`trace`](crate::trace) lists the names of those that no
/// module outputs.
pub trait Recorder {
    /// Whether the tensor of this name is to be recorded.
    fn wants(&self, name: &str) -> bool;

    /// Records the next rows of a tensor, `[tokens, width]`, widened exactly.
    fn record(&mut self, name: &str, rows: &Matrix<f64>);
}

/// A forward pass on its way through the layers.
pub(crate) struct ForwardRun<'a> {
    pub(crate) level: Level,
    backend: Backend,
    disturbance: Option<Disturbance>,
    /// The path of the layers: `model.layers`.
    layers: &'static str,
    /// The layer the pass is in.
    pub(crate) layer: usize,
    recorder: Option<&'a mut dyn Recorder>,
    cancel: Option<Arc<AtomicBool>>,
    /// The device that the model is on.
    #[cfg(feature = "cuda")]
    pub(crate) device: Option<Arc<OnDevice>>,
    /// cos and sin of the rotations met so far, by position: all layers of a kind rotate alike.
    cos_sin: Vec<(Rotation, HashMap<usize, CosSin<f64>>)>,
}

impl<'a> ForwardRun<'a> {
    pub(crate) fn new(
        model: &Model,
        recorder: Option<&'a mut dyn Recorder>,
        cancel: Option<Arc<AtomicBool>>,
    ) -> Self {
        Self {
            layers: model.config().decoder.layers,
            recorder,
            cancel,
            #[cfg(feature = "cuda")]
            device: model.device().cloned(),
            ..Self::on(model.level(), model.backend())
        }
    }

    /// A pass through a model's vision part, which runs on the CPU.
    pub(super) fn of_vision(
        model: &Model,
        recorder: Option<&'a mut dyn Recorder>,
        cancel: Option<Arc<AtomicBool>>,
    ) -> Self {
        Self {
            layers: VisionConfig::LAYERS,
            recorder,
            cancel,
            ..Self::on(model.level(), model.backend())
        }
    }

    /// A pass through a block of no model, which nobody records.
    pub(crate) fn on(level: Level, backend: Backend) -> Self {
        Self {
            level,
            backend,
            disturbance: None,
            layers: "",
            layer: 0,
            recorder: None,
            cancel: None,
            #[cfg(feature = "cuda")]
            device: None,
            cos_sin: Vec::new(),
        }
    }

    /// Makes matrix products deviate at random, as much as another platform's may.
    pub(crate) fn disturbed(mut self, seed: u64) -> Self {
        self.disturbance = Some(Disturbance::new(seed));
        self
    }

    /// W x for every row of `x` `[tokens, in]`: `[tokens, out]`, not yet rounded to the compute type.
    pub(crate) fn matmul<'w, E: Element>(
        &mut self,
        x: &Matrix<E>,
        w: impl Into<Rows<'w, E>>,
    ) -> Matrix<E::Acc> {
        let [y] = self.matmuls(x, [w.into()]);
        y
    }

    /// [`matmul`](Self::matmul) with several W.
    pub(crate) fn matmuls<E: Element, const N: usize>(
        &mut self,
        x: &Matrix<E>,
        ws: [Rows<'_, E>; N],
    ) -> [Matrix<E::Acc>; N] {
        let level = self.level;
        match self.disturbance.take() {
            None => self.multiply(x, ws),
            Some(mut disturbance) => {
                let off = ws.map(|w| {
                    let [off] = self.multiply(&disturbance.error(level, x), [w]);
                    off
                });
                self.disturbance = Some(disturbance);
                let mut off = off.into_iter();
                self.multiply(x, ws).map(|y| match off.next() {
                    Some(off) => elementwise::add(level, &y, &off),
                    None => y,
                })
            }
        }
    }

    /// W x + b in the compute type, for several maps and every row of `x` `[tokens, in]`.
    pub(crate) fn linears<E: Element, const N: usize>(
        &mut self,
        x: &Matrix<E>,
        maps: [Map<'_, E>; N],
    ) -> [Matrix<E>; N] {
        if self.is_plain() {
            return self.backend.linears(self.level, x, maps);
        }
        let mut sums = self.matmuls(x, maps.map(|map| map.weight)).into_iter();
        maps.map(|map| match sums.next() {
            Some(sums) => map.finish(self.level, sums),
            None => Matrix::zeros(0, 1),
        })
    }

    /// Whether products are the backend's, neither disturbed nor sent to a device one by one.
    fn is_plain(&self) -> bool {
        #[cfg(feature = "cuda")]
        if self.device.is_some() {
            return false;
        }
        self.disturbance.is_none()
    }

    /// The products themselves.
    fn multiply<E: Element, const N: usize>(
        &self,
        x: &Matrix<E>,
        ws: [Rows<'_, E>; N],
    ) -> [Matrix<E::Acc>; N] {
        #[cfg(feature = "cuda")]
        if let Some(device) = &self.device {
            return ws.map(|w| device.matmul(self.level, x, w));
        }
        self.backend.matmuls(self.level, x, ws)
    }

    /// The device that a whole pass runs on: one that is disturbed runs on the CPU, product by product.
    #[cfg(feature = "cuda")]
    pub(crate) fn whole_pass_device(&self) -> Option<Arc<OnDevice>> {
        self.device.clone().filter(|_| self.disturbance.is_none())
    }

    /// cos and sin of a layer's `rotation` at some positions, computed once in a pass.
    pub(crate) fn cos_sin(
        &mut self,
        rotation: &Rotation,
        positions: &[usize],
    ) -> Vec<&CosSin<f64>> {
        let known = self.cos_sin.iter().position(|(known, _)| known == rotation);
        let index = known.unwrap_or_else(|| {
            self.cos_sin.push((rotation.clone(), HashMap::new()));
            self.cos_sin.len() - 1
        });
        let (_, known) = &mut self.cos_sin[index];
        let new = positions
            .iter()
            .filter(|&position| !known.contains_key(position));
        let new: BTreeSet<usize> = new.copied().collect();
        let new = new
            .into_par_iter()
            .map(|position| (position, rotation.at(position)));
        known.par_extend(new);
        positions.iter().map(|position| &known[position]).collect()
    }

    /// Drops the cos and sin of positions that the pass has left behind.
    pub(crate) fn clear_cos_sin(&mut self) {
        self.cos_sin.clear();
    }

    /// Enters a layer, unless the pass is cancelled or its device failed.
    pub(crate) fn enter(&mut self, layer: usize) -> Result<()> {
        self.layer = layer;
        self.check_device()?;
        match &self.cancel {
            Some(cancel) if cancel.load(Ordering::Relaxed) => Err(Error::Cancelled),
            _ => Ok(()),
        }
    }

    /// Refuses to go on after a failure of the device.
    ///
    /// # Errors
    ///
    /// That failure.
    pub(crate) fn check_device(&self) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(device) = &self.device {
            device.check()?;
        }
        Ok(())
    }

    /// The whole name of a tensor of the current layer, which is relative to it, and empty for its output.
    fn whole(&self, name: &str) -> String {
        let dot = if name.is_empty() { "" } else { "." };
        format!("{}.{}{dot}{name}", self.layers, self.layer)
    }

    /// Offers a tensor of the current layer; `name` is relative to it, and empty for its output.
    pub(crate) fn record<E: Element>(&mut self, name: &str, values: &Matrix<E>) {
        if self.recorder.is_some() {
            self.record_global(&self.whole(name), values);
        }
    }

    /// Whether a tensor of the current layer would be recorded.
    #[cfg(feature = "cuda")]
    pub(crate) fn records(&self, name: &str) -> bool {
        self.recorder.is_some() && self.records_global(&self.whole(name))
    }

    /// Whether a tensor would be recorded, by its whole name.
    #[cfg(feature = "cuda")]
    pub(crate) fn records_global(&self, name: &str) -> bool {
        let recorder = self.recorder.as_ref();
        recorder.is_some_and(|recorder| recorder.wants(name))
    }

    /// Offers a tensor outside the layers, under its whole name.
    pub(crate) fn record_global<E: Element>(&mut self, name: &str, values: &Matrix<E>) {
        if let Some(recorder) = &mut self.recorder
            && recorder.wants(name)
        {
            recorder.record(name, &elementwise::map(self.level, values, E::to_f64));
        }
    }
}

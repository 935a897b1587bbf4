//! What goes along with a forward pass: how it computes, and who listens.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Model;
use super::disturbance::Disturbance;
use super::error::{Error, Result};
use crate::kernels::{Backend, Level, Rotation, Rows, Turn};
use crate::tensor::{Element, Matrix};

/// Someone who listens to a forward pass.
///
/// Names are those of the Hugging Face modules whose output a tensor is; points that no module outputs
/// have the names [`trace`](crate::trace) lists.
pub trait Recorder {
    /// Whether the tensor of this name is wanted.
    fn wants(&self, name: &str) -> bool;

    /// Takes the next rows of a wanted tensor, `[tokens, width]`, widened exactly.
    fn record(&mut self, name: &str, rows: &Matrix<f64>);
}

/// A pass on its way through the layers.
pub(crate) struct Run<'a> {
    pub(crate) level: Level,
    backend: Backend,
    disturbance: Option<Disturbance>,
    /// The layer the pass is in.
    pub(crate) layer: usize,
    recorder: Option<&'a mut dyn Recorder>,
    cancel: Option<Arc<AtomicBool>>,
    /// By whether the layer is a sliding one, and the position: all layers of a kind turn alike.
    turns: HashMap<(bool, usize), Turn<f64>>,
}

impl<'a> Run<'a> {
    pub(crate) fn new(
        model: &Model,
        recorder: Option<&'a mut dyn Recorder>,
        cancel: Option<Arc<AtomicBool>>,
    ) -> Self {
        Self {
            level: model.level(),
            backend: model.backend(),
            disturbance: None,
            layer: 0,
            recorder,
            cancel,
            turns: HashMap::new(),
        }
    }

    /// The same pass, whose matrix products are off as another platform's may be, at random.
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
        let (backend, level) = (self.backend, self.level);
        match &mut self.disturbance {
            None => backend.matmuls(level, x, ws),
            Some(disturbance) => ws.map(|w| {
                let y = backend.matmul(level, x, w);
                let off = backend.matmul(level, &disturbance.of(x), w);
                y.zip_map(&off, |y, off| y + off)
            }),
        }
    }

    /// The turn of a layer's `rotation` at a position, which is worked out once in a pass.
    pub(crate) fn turn<E: Element>(
        &mut self,
        rotation: &Rotation,
        sliding: bool,
        position: usize,
    ) -> Turn<E> {
        let turn = self.turns.entry((sliding, position));
        let (cos, sin) = turn.or_insert_with(|| rotation.at(position));
        let rounded = |x: &[f64]| x.iter().map(|&x| E::from_f64(x)).collect();
        (rounded(cos), rounded(sin))
    }

    /// Forgets the turns, which are those of positions that a pass has left.
    pub(crate) fn forget_turns(&mut self) {
        self.turns.clear();
    }

    /// Goes on to a layer, unless the pass is cancelled.
    pub(crate) fn enter(&mut self, layer: usize) -> Result<()> {
        self.layer = layer;
        match &self.cancel {
            Some(cancel) if cancel.load(Ordering::Relaxed) => Err(Error::Cancelled),
            _ => Ok(()),
        }
    }

    /// Offers a tensor of the current layer; `name` is relative to it, and empty for its output.
    pub(crate) fn record<E: Element>(&mut self, name: &str, values: &Matrix<E>) {
        if self.recorder.is_some() {
            let dot = if name.is_empty() { "" } else { "." };
            let name = format!("model.layers.{}{dot}{name}", self.layer);
            self.record_global(&name, values);
        }
    }

    /// Offers a tensor outside the layers, under its whole name.
    pub(crate) fn record_global<E: Element>(&mut self, name: &str, values: &Matrix<E>) {
        if let Some(recorder) = &mut self.recorder
            && recorder.wants(name)
        {
            recorder.record(name, &values.map(E::to_f64));
        }
    }
}

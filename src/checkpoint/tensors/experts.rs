//! Experts whose maps are stored in one tensor for all, under the names that each has in published checkpoints.

use super::{Entry, Tensors};
use crate::checkpoint::config::Config;
use crate::checkpoint::error::Result;
use crate::checkpoint::form::{LinearForm, MapsForm};

impl Tensors {
    /// Puts each expert's maps in the place of what holds those of all; they share its bytes.
    ///
    /// # Errors
    ///
    /// [`TensorShape`](crate::checkpoint::Error::TensorShape) and
    /// [`UnsupportedDtype`](crate::checkpoint::Error::UnsupportedDtype).
    pub(in crate::checkpoint) fn separate_experts(&mut self, config: &Config) -> Result<()> {
        for (layer, block) in config.blocks.iter().enumerate() {
            let MapsForm::Experts(form) = &block.inner.maps else {
                continue;
            };
            let name = |path: &str| format!("{}.{layer}.{path}", config.decoder.layers);
            let weight = |map: &LinearForm| name(&format!("{}.weight", map.name));
            let experts = form.experts.len();
            let (hidden, width) = (config.hidden_size, block.inner.width);
            let fused = name(form.fused.router);
            let router = [weight(&form.router)];
            self.separate(&fused, &[experts, hidden], &[experts, hidden], router)?;
            let fused = name(form.fused.gate_up);
            let gates_and_ups = form.experts.iter().flatten().map(weight);
            let shape = [experts, 2 * width, hidden];
            self.separate(&fused, &shape, &[width, hidden], gates_and_ups)?;
            let fused = name(form.fused.down);
            let downs = block.outer.down.iter().map(weight);
            let shape = [experts, hidden, width];
            self.separate(&fused, &shape, &[hidden, width], downs)?;
        }
        Ok(())
    }

    /// Puts `names`, each of the shape `part`, in the place of the tensor `fused`, if there is one. What is stored under such a
    /// name itself stays.
    fn separate(
        &mut self,
        fused: &str,
        shape: &[usize],
        part: &[usize],
        names: impl IntoIterator<Item = String>,
    ) -> Result<()> {
        let Some(entry) = self.map.get(fused) else {
            return Ok(());
        };
        let file = entry.file.clone();
        let whole = self.get(fused, shape)?;
        self.map.remove(fused);
        self.hash.take();
        for (name, tensor) in names.into_iter().zip(whole.parts(part)) {
            self.map.entry(name.clone()).or_insert(Entry {
                tensor: Ok(tensor),
                file: file.clone(),
                stored: name,
            });
        }
        Ok(())
    }
}

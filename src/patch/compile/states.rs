//! What the model says of samples, layer by layer, kept in a folder so that it is computed once.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use super::kept::kept_of;
use super::{Lesson, Sample, samples_hash};
use crate::checkpoint::{Access, TensorData, Tensors, write_safetensors};
use crate::model::{Model, consecutive};
use crate::patch::{Error, Result};
use crate::tensor::{Element, Matrix, Storage, encoded};

/// The layers' outputs of samples with the prompt: a safetensors file for those of each [`Role`](super::Role), named by the model, the
/// compute type and the samples. The lessons are the same whatever is kept.
#[derive(Clone, Copy, Debug)]
pub struct States<'m> {
    dir: &'m Path,
    model: &'m Model,
}

impl<'m> States<'m> {
    /// Those of a model that a folder has, or will have.
    pub fn new(dir: &'m Path, model: &'m Model) -> Self {
        Self { dir, model }
    }

    /// [`Lesson::all`], each file of which is read where it is there, and written where it is not.
    ///
    /// # Errors
    ///
    /// Those of [`Lesson::all`]; [`Error::Io`], and [`Error::KeptStates`] for a file that has no such outputs.
    pub fn lessons<E: Element>(
        &self,
        samples: &[Sample],
        mut on_sample: impl FnMut(),
    ) -> Result<Vec<Lesson<E>>> {
        let name = kept_of::<E>("states", self.model);
        let mut lessons = Vec::with_capacity(samples.len());
        for alike in samples.chunk_by(|a, b| a.role == b.role) {
            let file = format!("{name}-{:.16}.safetensors", samples_hash(alike));
            let file = self.dir.join(file);
            if file.exists() {
                lessons.extend(self.read(&file, alike)?);
                alike.iter().for_each(|_| on_sample());
            } else {
                let now = Lesson::all(self.model, alike, &mut on_sample)?;
                write(&file, &now)?;
                lessons.extend(now);
            }
        }
        Ok(lessons)
    }

    fn read<E: Element>(&self, file: &Path, samples: &[Sample]) -> Result<Vec<Lesson<E>>> {
        let hidden = self.model.config().hidden_size;
        let rows: Vec<_> = consecutive(samples.iter().map(Sample::rows)).collect();
        let all = rows.last().map_or(0, |last| last.end);
        let tensors = Tensors::open_file(file, Access::Read)?;
        let layers = (0..self.model.layers().len()).map(|layer| {
            let tensor = tensors.get(&layer_name(layer), &[all, hidden]);
            let tensor = tensor.ok().filter(|t| t.storage() == E::DTYPE.into());
            Some(Matrix::from_vec(hidden, tensor?.to_vec()))
        });
        let layers: Option<Vec<Matrix<E>>> = layers.collect();
        let layers = layers.ok_or_else(|| Error::KeptStates { path: file.into() })?;
        let lessons = samples.iter().zip(rows).map(|(sample, rows)| Lesson {
            sample: sample.clone(),
            targets: layers.iter().map(|x| x.slice_rows(rows.clone())).collect(),
        });
        Ok(lessons.collect())
    }
}

fn write<E: Element>(file: &Path, lessons: &[Lesson<E>]) -> Result<()> {
    let storage = Storage::from(E::DTYPE);
    let layers = lessons.first().map_or(0, |lesson| lesson.targets.len());
    let tensors = (0..layers).map(|layer| {
        let parts = || lessons.iter().map(|lesson| &lesson.targets[layer]);
        let shape = vec![
            parts().map(Matrix::rows).sum(),
            lessons[0].targets[layer].cols(),
        ];
        let numbers = parts().flat_map(|part| part.as_slice());
        let numbers: Vec<_> = numbers.map(|x| x.to_f64()).collect();
        let bytes = Cow::Owned(encoded(storage, &numbers));
        let tensor = TensorData {
            storage,
            shape,
            bytes,
        };
        (layer_name(layer), tensor)
    });
    let tensors: BTreeMap<_, _> = tensors.collect();
    Ok(write_safetensors(file, &BTreeMap::new(), &tensors)?)
}

fn layer_name(layer: usize) -> String {
    format!("states.{layer}")
}

//! The condition of a pass: what rounding may do to its logits.
//!
//! No bound for all cases says anything about eighteen layers: one that takes every rounding at its worst grows by a
//! factor with each. So the condition is measured. A sum of n products may be off, whatever its order, by √n roundings
//! of each term; the pass is run again with errors of just this size at random, in every product W x, and
//! how far that takes the logits is what rounding may do. Eight runs and the worst of them, because a patch that divides
//! by a small number has one error that outweighs the others, and one draw of it may be small.

use super::error::Result;
use crate::model::{Cache, ForwardRun, Model, Sequence};
use crate::patch::Overlay;
use crate::tensor::{Element, Matrix};

const RUNS: usize = 8;

/// Tokens that go through the layers together, in each of the runs.
const CHUNK: usize = 64;

/// A sequence in several runs side by side, each disturbed by other random numbers.
pub(super) struct Disturbed<'m, E: Element> {
    model: &'m Model,
    overlay: Option<&'m Overlay<E>>,
    run: ForwardRun<'static>,
    caches: Vec<Cache<E>>,
}

impl<'m, E: Element> Disturbed<'m, E> {
    /// An empty sequence, under a patch or without one.
    pub(super) fn new(model: &'m Model, overlay: Option<&'m Overlay<E>>, seed: u64) -> Self {
        Self {
            model,
            overlay,
            run: ForwardRun::new(model, None, None).disturbed(seed),
            caches: (0..RUNS).map(|_| model.new_cache()).collect(),
        }
    }

    /// Runs `tokens`. For the last of them, whose undisturbed logits are `want` `[last, vocab]`, returns how far the worst run
    /// is from these.
    ///
    /// # Errors
    ///
    /// Those of [`Session::forward`](crate::Session::forward).
    pub(super) fn forward(
        &mut self,
        tokens: &[u32],
        positions: &[usize],
        want: &Matrix<E>,
    ) -> Result<Vec<f64>> {
        let silent = tokens.len() - want.rows();
        let mut worst = Vec::new();
        let chunks = tokens.chunks(CHUNK).zip(positions.chunks(CHUNK));
        for (i, (tokens, positions)) in chunks.enumerate() {
            let x = self.blocks(tokens, positions)?;
            for token in silent.saturating_sub(i * CHUNK)..tokens.len() {
                let rows = (0..RUNS).flat_map(|run| x.row(run * tokens.len() + token));
                let x = Matrix::from_vec(x.cols(), rows.copied().collect());
                let logits = self.model.logits(&mut self.run, &x)?;
                let want = want.row(worst.len());
                let off = logits.iter_rows().map(|got| linf(got, want));
                worst.push(off.fold(0.0, f64::max));
            }
        }
        Ok(worst)
    }

    /// The last block's output for some tokens, one run after the other.
    fn blocks(&mut self, tokens: &[u32], positions: &[usize]) -> Result<Matrix<E>> {
        let Self {
            model,
            overlay,
            run,
            caches,
        } = self;
        run.clear_cos_sin();
        let x = model.embed(run, &tokens.repeat(RUNS), &positions.repeat(RUNS));
        let sequences = caches.iter_mut().enumerate();
        let mut sequences: Vec<_> = sequences
            .map(|(i, cache)| Sequence {
                rows: i * tokens.len()..(i + 1) * tokens.len(),
                positions,
                cache,
            })
            .collect();
        let all = 0..x.rows();
        Ok(model.blocks(run, x, &mut sequences, |layer| {
            let change = overlay.map(|overlay| (all.clone(), overlay.layer(layer)));
            change.into_iter().collect()
        })?)
    }
}

/// max |difference|, of numbers that are all finite.
fn linf<E: Element>(got: &[E], want: &[E]) -> f64 {
    let pairs = got.iter().zip(want);
    pairs.fold(0.0, |max, (got, want)| {
        (got.to_f64() - want.to_f64()).abs().max(max)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Session;
    use crate::kernels::Backend;
    use crate::model::{EmbeddingScale, ModelOptions};

    /// How far another model's logits are from a model's for forty tokens, in units of what rounding may do to those: the
    /// worst token's.
    fn apart<E: Element>(model: &Model, other: &Model) -> f64 {
        let vocabulary = model.config().vocab_size as u32;
        let ids: Vec<_> = (0..40).map(|i| (i * i * 7 + 3) % vocabulary).collect();
        let positions: Vec<_> = (0..ids.len()).collect();
        let logits = |model| Session::<E>::new(model).forward(&ids, ids.len()).unwrap();
        let (want, got) = (logits(model), logits(other));
        let mut disturbed = Disturbed::new(model, None, 0);
        let allowed = disturbed.forward(&ids, &positions, &want).unwrap();
        let rows = want.iter_rows().zip(got.iter_rows()).zip(allowed);
        rows.map(|((want, got), allowed)| linf(got, want) / allowed)
            .fold(0.0, f64::max)
    }

    fn backends_differ_by_rounding<E: Element>(dir: &str) {
        let native = Model::open(dir).unwrap();
        let gemm = native.clone().on(Backend::Gemm).unwrap();
        for (model, other) in [(&native, &gemm), (&gemm, &native)] {
            let apart = apart::<E>(model, other);
            // Both are off.
            assert!(apart > 0.0 && apart <= 2.0, "{dir} {}: {apart}", E::DTYPE);
        }
        // The control: one number of the computation is rounded to bf16.
        let options = ModelOptions {
            embedding_scale: EmbeddingScale::Bf16,
            ..ModelOptions::default()
        };
        let coarse = Model::open_with(dir, options).unwrap();
        let apart = apart::<E>(&native, &coarse);
        assert!(apart > 20.0, "{dir} {}: {apart} coarse", E::DTYPE);
    }

    #[test]
    fn two_backends_are_no_further_apart_than_rounding_may_take_them() {
        for name in ["odd-sizes", "grouped-queries", "untied-head", "window-3"] {
            let dir = format!("reference/checkpoints/{name}");
            backends_differ_by_rounding::<f64>(&dir);
            backends_differ_by_rounding::<f32>(&dir);
        }
    }

    /// In pieces or at once, the same tokens are the same sequence: what the condition is of has not changed.
    #[test]
    fn chunks_go_on_where_the_last_one_ended() {
        let model = Model::open("reference/tiny").unwrap();
        let ids: Vec<_> = (0..CHUNK as u32 + 9).map(|i| 20 + i % 70).collect();
        let positions: Vec<_> = (0..ids.len()).collect();
        let last = Session::<f64>::new(&model).forward(&ids, 5).unwrap();
        let off = Disturbed::new(&model, None, 0)
            .forward(&ids, &positions, &last)
            .unwrap();
        assert_eq!(off.len(), 5);
        // A token lost between two chunks, or at another place, would be off by as much as logits are.
        assert!(off.iter().all(|off| *off > 0.0 && *off < 1e-9), "{off:?}");
    }
}

//! A receipt run again.

use std::path::Path;

use half::bf16;

use super::same::{of_hash, of_model, of_pictures, other, pixel_values, slices};
use super::sealed::as_json;
use super::{Difference, Ending, Error, PatchUsed, Receipt, Result, Text, What, chained};
use crate::model::generate::{Generation, Sampler, Step, Stop};
use crate::model::{Inputs, Model, Session};
use crate::patch::{Overlay, SavedPatch};
use crate::tensor::{Dtype, Element};
use crate::vision::Picture;

impl Receipt {
    /// Runs it again on `model`, opened with the receipt's [`embedding_scale`](Self::embedding_scale), with the pictures that its
    /// prompt had, and under the patch in `patch` if it had one. `None` where everything is the same.
    ///
    /// # Errors
    ///
    /// [`Error::Backend`], and those of [`SavedPatch::load`] and of [`Session::take_in`].
    pub fn check(
        &self,
        model: &Model,
        patch: Option<&Path>,
        pictures: &[Picture],
    ) -> Result<Option<Difference>> {
        if !model.backend().is_exact() {
            return Err(Error::Backend(model.backend()));
        }
        let used = self.patch.as_ref().zip(patch);
        let used = used.map(|(used, file)| PatchUsed::new(file, used.apply));
        let used = used.transpose()?;
        let of_patch = |patch: Option<&PatchUsed>| {
            patch.map_or_else(|| "none".to_owned(), |patch| patch.hash.clone())
        };
        let (theirs, here) = (of_patch(self.patch.as_ref()), of_patch(used.as_ref()));
        let different = of_model(model, &self.weights, &self.config, &self.tokenizer)?
            .or_else(|| of_hash("patch", &theirs, &here))
            .or_else(|| of_pictures(&self.images, pictures));
        if different.is_some() {
            return Ok(different);
        }
        let patch = patch.filter(|_| used.is_some()).map(SavedPatch::load);
        let patch = patch.transpose()?;
        if let Some(patch) = &patch {
            patch.check(model)?;
        }
        let values = pixel_values(model, &self.prompt, pictures, self.pan_and_scan)?;
        let inputs = Inputs {
            ids: &self.prompt,
            pixel_values: &slices(&values),
        };
        match self.dtype {
            Dtype::F64 => self.run::<f64>(model, patch.as_ref(), inputs),
            Dtype::F32 => self.run::<f32>(model, patch.as_ref(), inputs),
            Dtype::Bf16 => self.run::<bf16>(model, patch.as_ref(), inputs),
        }
    }

    /// Every draw again.
    fn run<E: Element>(
        &self,
        model: &Model,
        patch: Option<&SavedPatch>,
        inputs: Inputs<'_>,
    ) -> Result<Option<Difference>> {
        let overlay = self.patch.as_ref().zip(patch);
        let overlay =
            overlay.map(|(used, patch)| Overlay::<E>::new(model, &patch.patch, used.apply));
        let mut session = Session::new(model);
        if let Some(overlay) = &overlay {
            session = session.with_overlay(overlay);
        }
        let query = session.take_in(inputs, &self.positions)?;
        let mut generation = Generation::new(&[query], self.max_tokens);
        let mut sampler = Sampler::new(self.sampling.clone());
        let (mut hash, mut ended) = (None, false);
        for (i, want) in self.steps.iter().enumerate() {
            let next = generation.step_by(&mut session, |logits| {
                hash = Some(chained(hash.as_ref(), logits));
                sampler.next(logits)
            });
            let here = match next? {
                _ if ended => return Ok(Some(self.too_many_steps(i))),
                Step::Token(token) => Some(token),
                Step::Stop(Stop::End) => None,
                Step::Stop(_) => return Ok(Some(self.too_many_steps(i))),
            };
            let step = i + 1;
            if hash.as_ref() != Some(want) {
                let (field, what) = ("steps", What::Logits { step });
                return Ok(Some(Difference { field, what }));
            }
            let receipt = self.written.get(i).copied();
            if receipt != here {
                let what = What::Token {
                    step,
                    receipt,
                    here,
                };
                let field = "written";
                return Ok(Some(Difference { field, what }));
            }
            ended = here.is_none();
        }
        let stop = match self.stop {
            _ if ended => Some(Ending::End),
            // Whether it has is seen where the text is.
            Ending::Text => Some(Ending::Text),
            _ if generation.is_done() => Some(Ending::Length),
            // Someone may end it at any step.
            Ending::Cancelled => Some(Ending::Cancelled),
            Ending::End | Ending::Length => None,
        };
        self.ending(model, stop)
    }

    fn too_many_steps(&self, there: usize) -> Difference {
        other("steps", self.steps.len().to_string(), there.to_string())
    }

    /// What is left after the last draw: why there are no more, none where there are, and what the text says.
    fn ending(&self, model: &Model, stop: Option<Ending>) -> Result<Option<Difference>> {
        if stop != Some(self.stop) {
            let here = stop.map_or_else(|| "not yet".to_owned(), |stop| as_json(&stop));
            return Ok(Some(other("stop", as_json(&self.stop), here)));
        }
        let written = self.steps.len() - usize::from(stop == Some(Ending::End));
        if written != self.written.len() {
            let receipt = format!("{} tokens", self.written.len());
            return Ok(Some(other("written", receipt, written.to_string())));
        }
        let text = Text::of(&model.checkpoint().tokenizer()?, &self.written)?;
        if text.whole != self.text {
            let (receipt, here) = (as_json(&self.text), as_json(&text.whole));
            return Ok(Some(other("text", receipt, here)));
        }
        let has_stop_text = |text: &str| self.stop_texts.iter().any(|stop| text.contains(stop));
        let all = match stop {
            // An end token was drawn before the text came to its end.
            Some(Ending::End) => &text.whole[..text.last.end],
            _ => &text.whole,
        };
        let by_text = has_stop_text(all);
        let earlier = has_stop_text(&text.whole[..text.last.start]);
        if earlier || by_text != (self.stop == Ending::Text) {
            let here = match (earlier, by_text) {
                (true, _) => "a stop text ends it earlier",
                (false, true) => "a stop text ends it",
                (false, false) => "no stop text ends it",
            };
            return Ok(Some(other("stop", as_json(&self.stop), here.into())));
        }
        Ok(None)
    }
}

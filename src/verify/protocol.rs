//! Theory section 5: greedy decoding, every token's layers freshly patched.

use rayon::prelude::*;

use super::bounds::Bounds;
use super::error::Result;
use super::metrics::{LogitsDistance, margin};
use super::step::{Control, Step, logits_hash};
use super::{Keep, span};
use crate::model::generate::greedy;
use crate::model::{Images, Inputs, Model, Session, Tokens};
use crate::patch::{
    self, Method, Overlay, Positions, Query, Solution, Solver, SolverReport, Split, Variant,
    refuse_kept_images, solve_batch, span as span_solver,
};
use crate::tensor::Element;

/// A prompt of which some steps may be done.
#[derive(Clone, Debug)]
pub struct Begun<'a> {
    /// Which prompt, from 0.
    pub prompt: usize,
    /// Its tokens, and the images among them.
    pub inputs: Inputs<'a>,
    /// The tokens that the model wrote after it in steps that are done.
    pub written: Vec<u32>,
}

/// A prompt whose tokens are being verified.
struct Decoding<'m, E: Element> {
    prompt: usize,
    contextual: Session<'m, E>,
    kept: Vec<(u32, usize)>,
    /// The next step, and its token.
    step: usize,
    token: u32,
}

impl<E: Element> Decoding<'_, E> {
    /// Records the solution of the next step, and goes on to the one after it.
    fn solved(&mut self, position: usize, solution: Solution<E>) -> Solved<E> {
        let next = greedy(&solution.contextual);
        let solved = Solved {
            prompt: self.prompt,
            step: self.step,
            token: self.token,
            position,
            next,
            solution,
        };
        (self.step, self.token) = (self.step + 1, next);
        solved
    }
}

/// A token whose passes have been run.
struct Solved<E: Element> {
    prompt: usize,
    step: usize,
    token: u32,
    position: usize,
    next: u32,
    solution: Solution<E>,
}

impl<E: Element> Solved<E> {
    /// The reduced passes held against the contextual one.
    fn step(self, bounds: &Bounds, variants: &[Variant]) -> Step {
        let want = &self.solution.contextual;
        let reduced = LogitsDistance::each(&self.solution.reduced, want);
        let controls = variants.iter().zip(&reduced[1..]);
        let controls = controls.map(|(&variant, &reduced)| Control { variant, reduced });
        Step {
            prompt: self.prompt,
            step: self.step,
            token: self.token,
            position: self.position,
            next: self.next,
            logits: logits_hash(want, self.solution.reduced.row(0)),
            margin: margin(want),
            bound: bounds.logits(want, self.solution.report.last_branch()),
            patched: reduced[0],
            controls: controls.collect(),
            report: Some(self.solution.report),
        }
    }
}

/// The protocol on one model: how many tokens of each prompt, and how patches are solved.
#[derive(Clone, Copy, Debug)]
pub struct Verification<'m> {
    /// The model.
    pub model: &'m Model,
    /// Tokens to verify of each prompt.
    pub tokens: usize,
    /// How patches are solved and applied.
    pub method: Method,
    /// What of the context stays.
    pub keep: Keep,
    /// The positions of the reduced pass.
    pub positions: Positions,
}

impl Verification<'_> {
    /// Whether a prompt can be verified: it has a context, in which its images are and nothing of them stays, and room for the
    /// tokens.
    ///
    /// # Errors
    ///
    /// [`patch::Error::NoContext`], [`patch::Error::KeptImage`], and [`model::Error`](crate::model::Error)'s `EmptyPrompt`,
    /// `TokenId`, `PromptTooLong`, `ImageTokens` and `ImageCut`.
    pub fn check<'i>(&self, inputs: impl Into<Inputs<'i>>) -> Result<()> {
        let inputs = inputs.into();
        let (ids, spans) = (inputs.ids, inputs.spans(self.model)?);
        self.model.check_with_images(ids, &spans, 0)?;
        if ids.len() == 1 {
            return Err(patch::Error::NoContext.into());
        }
        let context = &ids[..ids.len() - 1];
        self.model.check_with_images(context, &spans, 0)?;
        refuse_kept_images(&self.keep.indices(context.len()), &spans)?;
        let positions = (ids.len() - 1).saturating_add(self.tokens);
        Ok(self.model.check_length(positions)?)
    }

    /// Runs the protocol on one prompt in compute type `E`; `on_step` gets each token as it is done.
    ///
    /// Both passes share one decode with a cache: the prompt goes through the model once, and each token
    /// costs one step of the contextual pass with the reduced passes beside it.
    ///
    /// # Errors
    ///
    /// Those of [`check`](Self::check), of [`solve`](crate::patch::solve) and of `on_step`.
    pub fn prompt<'i, E: Element>(
        &self,
        prompt: usize,
        inputs: impl Into<Inputs<'i>>,
        on_step: impl FnMut(Step) -> Result<()>,
    ) -> Result<()> {
        self.resume::<E>(prompt, inputs, &[], on_step)
    }

    /// Goes on with a prompt after which the model has written some tokens already, as [`batch`](Self::batch) does with
    /// several.
    ///
    /// # Errors
    ///
    /// Those of [`prompt`](Self::prompt), and [`model::Error::TokenId`](crate::model::Error::TokenId) for `written`.
    pub fn resume<'i, E: Element>(
        &self,
        prompt: usize,
        inputs: impl Into<Inputs<'i>>,
        written: &[u32],
        on_step: impl FnMut(Step) -> Result<()>,
    ) -> Result<()> {
        let written = written.to_vec();
        let begun = Begun {
            prompt,
            inputs: inputs.into(),
            written,
        };
        let done = self.batch::<E>(&[begun], on_step)?;
        done.into_iter().collect()
    }

    /// Goes on with some prompts whose tokens go through the layers together, so that each weight is read once for all;
    /// `on_step` gets the next token of each prompt, then the one after it. Every figure is that of the prompt alone, if the
    /// model's backend is the native one. Says for each prompt whether it was solved: one that cannot be does not stop the
    /// others.
    ///
    /// The tokens that are [written](Begun::written) are taken in with their prompt at once, and the first step is the one
    /// after them; prompts that are behind the others come first. Except where that would change what is computed: the tokens
    /// of a span are solved together, and the bits of other backends than the native one depend on what is taken in at once.
    /// There what is written is not used, and the steps before come again.
    ///
    /// # Errors
    ///
    /// Those of `on_step`, at once. For each prompt those of [`prompt`](Self::prompt), and
    /// [`model::Error::TokenId`](crate::model::Error::TokenId) for what is written.
    pub fn batch<E: Element>(
        &self,
        prompts: &[Begun<'_>],
        mut on_step: impl FnMut(Step) -> Result<()>,
    ) -> Result<Vec<Result<()>>> {
        if self.method.solver == Solver::Span {
            let each = prompts.iter().map(|begun| {
                match self
                    .check(begun.inputs)
                    .and_then(|()| self.span::<E>(begun))
                {
                    Ok(steps) => steps.into_iter().try_for_each(&mut on_step).map(Ok),
                    Err(error) => Ok(Err(error)),
                }
            });
            return each.collect();
        }
        let each = prompts.iter().map(|begun| self.decoding::<E>(begun));
        self.decode(each.collect(), on_step)
    }

    /// All steps of some prompts.
    fn decode<E: Element>(
        &self,
        mut each: Vec<Result<Decoding<'_, E>>>,
        mut on_step: impl FnMut(Step) -> Result<()>,
    ) -> Result<Vec<Result<()>>> {
        let bounds = Bounds::new(E::DTYPE, self.model);
        let variants = Variant::controls(self.method.solver, self.model);
        // A step is looked at while the next one is solved, which leaves threads waiting for memory now and then.
        let mut solved: Vec<Solved<E>> = Vec::new();
        loop {
            let done = std::mem::take(&mut solved).into_par_iter();
            let done = done.map(|solved| solved.step(&bounds, &variants));
            let (next, steps) = rayon::join(
                || self.solve(&mut each, &variants),
                || done.collect::<Vec<_>>(),
            );
            steps.into_iter().try_for_each(&mut on_step)?;
            match next {
                Some(next) => solved = next,
                None => return Ok(each.into_iter().map(|seq| seq.map(drop)).collect()),
            }
        }
    }

    /// A prompt that is taken in, but for the token that is next.
    fn decoding<E: Element>(&self, begun: &Begun<'_>) -> Result<Decoding<'_, E>> {
        self.check(begun.inputs)?;
        let ids = begun.inputs.ids;
        let written = match self.model.backend().is_exact() {
            true => &begun.written[..],
            false => &[],
        };
        let tokens = [ids, written].concat();
        let (context, token) = (&tokens[..tokens.len() - 1], tokens[tokens.len() - 1]);
        let images = Images::of(self.model, begun.inputs)?;
        let mut contextual = Session::new(self.model);
        contextual.forward(Tokens::new(context, images.as_ref()), 0)?;
        Ok(Decoding {
            prompt: begun.prompt,
            contextual,
            kept: self.kept(ids),
            step: written.len(),
            token,
        })
    }

    /// The next step of the prompts that are furthest behind, or nothing where all are done. A prompt that fails becomes its
    /// error.
    fn solve<E: Element>(
        &self,
        each: &mut [Result<Decoding<'_, E>>],
        variants: &[Variant],
    ) -> Option<Vec<Solved<E>>> {
        let steps = each.iter().flatten().map(|seq| seq.step);
        let step = steps.min().filter(|step| *step < self.tokens)?;
        let is_next =
            |seq: &Result<Decoding<'_, E>>| seq.as_ref().is_ok_and(|seq| seq.step == step);
        let mut behind: Vec<_> = each.iter_mut().filter(|seq| is_next(seq)).collect();
        let active = behind.iter_mut().flat_map(|seq| seq.as_mut().ok());
        let (positions, queries): (Vec<_>, Vec<_>) = active
            .map(|seq| {
                let query = self.query(seq.token, &seq.kept);
                let position = query.position.unwrap_or(seq.contextual.position());
                (position, (&mut seq.contextual, query))
            })
            .unzip();
        let solutions = solve_batch(queries, &self.method, variants);
        let mut solved = Vec::new();
        for ((seq, position), solution) in behind.into_iter().zip(positions).zip(solutions) {
            match (seq.as_mut(), solution) {
                (Ok(seq), Ok(solution)) => solved.push(seq.solved(position, solution)),
                (_, Err(error)) => *seq = Err(error.into()),
                (Err(_), _) => {}
            }
        }
        Some(solved)
    }

    /// The tokens of a prompt that stay, with their positions in the reduced pass. They are the first ones, so that
    /// there are no gaps to close between them.
    pub(super) fn kept(&self, ids: &[u32]) -> Vec<(u32, usize)> {
        let kept = self.keep.indices(ids.len() - 1).into_iter();
        kept.map(|i| (ids[i], i)).collect()
    }

    /// A token behind the ones that stay.
    pub(super) fn query<'k>(&self, token: u32, kept: &'k [(u32, usize)]) -> Query<'k> {
        let position = match self.positions {
            Positions::Absolute => None,
            Positions::Natural => Some(kept.len()),
        };
        Query {
            token,
            position,
            kept,
        }
    }

    /// The prompt's last token and the tokens that the model writes after it, all served by one patch.
    fn span<E: Element>(&self, begun: &Begun<'_>) -> Result<Vec<Step>> {
        let images = Images::of(self.model, begun.inputs)?;
        let images = images.as_ref();
        let (split, overlay, report) = self.solved_span::<E>(begun.inputs.ids, images)?;
        let report = Some(report);
        span::check(self.model, &split, images, &overlay, begun.prompt, report)
    }

    /// The patch of a span, and what it is of.
    pub(super) fn solved_span<E: Element>(
        &self,
        ids: &[u32],
        images: Option<&Images<E>>,
    ) -> Result<(Split, Overlay<E>, SolverReport)> {
        let mut tokens = ids.to_vec();
        let mut session = Session::new(self.model);
        let mut logits = session.forward(Tokens::new(ids, images), 1)?;
        for _ in 0..self.tokens {
            let next = greedy(logits.row(0));
            tokens.push(next);
            logits = session.forward(&[next], 1)?;
        }
        let kept = self.keep.indices(ids.len() - 1);
        let split = Split::new(tokens, kept, self.tokens + 1, self.positions)?;
        let split = split.with_answer(self.tokens)?;
        let (patch, report) = span_solver::solve(self.model, &split, images, &self.method, |_| {})?;
        let overlay = Overlay::<E>::new(self.model, &patch, self.method.form);
        Ok((split, overlay, report))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::*;

    /// One that fails alone in its round, while the others are ahead and wait for it.
    #[test]
    fn a_prompt_that_fails_on_its_way_does_not_stop_the_others() {
        let model = Model::open("reference/tiny").unwrap();
        let verification = Verification {
            model: &model,
            tokens: 3,
            method: Method::new(Solver::ClosedForm),
            keep: Keep::Nothing,
            positions: Positions::Absolute,
        };
        let begun = |prompt, written: &[u32]| Begun {
            prompt,
            inputs: Inputs::text(&[2, 20, 21]),
            written: written.to_vec(),
        };
        let failing = |prompt: Option<usize>| {
            let mut each = [begun(0, &[]), begun(1, &[30])]
                .map(|begun| verification.decoding::<f32>(&begun).unwrap());
            if let Some(prompt) = prompt {
                let seq: &mut Decoding<'_, f32> = &mut each[prompt];
                let cancelled = Arc::new(AtomicBool::new(true));
                seq.contextual = seq.contextual.clone().with_cancel(cancelled);
            }
            let mut steps = Vec::new();
            let on_step = |step: Step| {
                steps.push((step.prompt, step.step));
                Ok(())
            };
            let done = verification.decode(each.map(Ok).into(), on_step).unwrap();
            (steps, [done[0].is_ok(), done[1].is_ok()])
        };
        let all = vec![(0, 0), (0, 1), (1, 1), (0, 2), (1, 2)];
        assert_eq!(failing(None), (all, [true, true]));
        assert_eq!(failing(Some(0)), (vec![(1, 1), (1, 2)], [false, true]));
        let first = vec![(0, 0), (0, 1), (0, 2)];
        assert_eq!(failing(Some(1)), (first, [true, false]));
    }
}

//! Patches solved on one platform and applied on another.

use super::condition::Disturbed;
use super::error::{Error, Result};
use super::metrics::{LogitsDistance, margin};
use super::protocol::Verification;
use super::step::{Control, Step, logits_hash};
use super::{Bounds, span};
use crate::kernels::Backend;
use crate::model::generate::greedy;
use crate::model::{Inputs, Model, Session};
use crate::patch::{Overlay, Patch, Query, Solver, Variant, solve};
use crate::tensor::{Element, Matrix};

/// Where the random numbers of the contextual pass start; those of the reduced ones start after it.
const SEED: u64 = 0;

/// The protocol over two platforms.
#[derive(Clone, Copy, Debug)]
pub struct Crossing<'m> {
    /// How patches are solved, and in which model.
    pub solved: Verification<'m>,
    /// The model on another backend, which runs under the patches. It is held against its own contextual pass.
    pub applied: &'m Model,
}

/// The reduced pass on the other platform: a token at its place, without what was before it but for the tokens that stay.
struct AppliedPass<'a> {
    crossing: Crossing<'a>,
    query: Query<'a>,
    /// The ones that stay and the query.
    tokens: Vec<u32>,
    /// Of each.
    positions: Vec<usize>,
}

impl<'a> AppliedPass<'a> {
    /// `position` is the query's in the contextual pass.
    fn new(crossing: Crossing<'a>, query: Query<'a>, position: usize) -> Self {
        let (mut tokens, mut positions): (Vec<_>, Vec<_>) = query.kept.iter().copied().unzip();
        tokens.push(query.token);
        positions.push(query.position.unwrap_or(position));
        Self {
            crossing,
            query,
            tokens,
            positions,
        }
    }

    fn overlay<E: Element>(&self, patch: &Patch) -> Overlay<E> {
        Overlay::new(
            self.crossing.applied,
            patch,
            self.crossing.solved.method.form,
        )
    }

    /// The logits, `[1, vocab]`.
    fn logits<E: Element>(&self, overlay: &Overlay<E>) -> Result<Matrix<E>> {
        let session = Session::new(self.crossing.applied);
        let mut session = session.with_overlay(overlay);
        Ok(session.forward_at(&self.tokens, &self.positions, 1)?)
    }
}

impl Crossing<'_> {
    /// Runs the protocol on one prompt in compute type `E`; `on_step` gets each token as it is done. The tokens are
    /// those that the other platform's contextual pass writes.
    ///
    /// # Errors
    ///
    /// Those of [`Verification::prompt`], and [`Error::CrossingImages`].
    pub fn prompt<'i, E: Element>(
        &self,
        prompt: usize,
        inputs: impl Into<Inputs<'i>>,
        mut on_step: impl FnMut(Step) -> Result<()>,
    ) -> Result<()> {
        let inputs = inputs.into();
        self.solved.check(inputs)?;
        if !inputs.pixel_values.is_empty() {
            return Err(Error::CrossingImages);
        }
        let ids = inputs.ids;
        if self.solved.method.solver == Solver::Span {
            let steps = self.span::<E>(prompt, ids)?;
            return steps.into_iter().try_for_each(on_step);
        }
        let (context, mut token) = (&ids[..ids.len() - 1], ids[ids.len() - 1]);
        let mut solving = Session::<E>::new(self.solved.model);
        let mut contextual = Session::<E>::new(self.applied);
        let mut disturbed = self.disturbed(None, SEED);
        solving.forward(context, 0)?;
        let nothing = contextual.forward(context, 0)?;
        let positions: Vec<_> = (0..context.len()).collect();
        off(&mut disturbed, context, &positions, &nothing)?;
        let kept = self.solved.kept(ids);
        for step in 0..self.solved.tokens {
            let position = contextual.position();
            let want = contextual.forward(&[token], 1)?;
            let off = off(&mut disturbed, &[token], &[position], &want)?[0];
            let query = self.solved.query(token, &kept);
            let reduced = AppliedPass::new(*self, query, position);
            let step = self.step(prompt, step, &mut solving, &reduced, want.row(0), off)?;
            token = step.next;
            on_step(step)?;
        }
        Ok(())
    }

    /// The other platform's disturbed passes, unless it has the bits of the one where patches are solved: there nothing is off.
    fn disturbed<'o, E: Element>(
        &self,
        overlay: Option<&'o Overlay<E>>,
        seed: u64,
    ) -> Option<Disturbed<'o, E>>
    where
        Self: 'o,
    {
        let backends = [self.solved.model, self.applied].map(Model::backend);
        let exact = backends.into_iter().all(Backend::is_exact);
        (!exact).then(|| Disturbed::new(self.applied, overlay, seed))
    }

    /// One token: `want` are the logits of the other platform's contextual pass, and `off` is what rounding may
    /// do to them.
    fn step<E: Element>(
        &self,
        prompt: usize,
        step: usize,
        solving: &mut Session<'_, E>,
        reduced: &AppliedPass<'_>,
        want: &[E],
        off: f64,
    ) -> Result<Step> {
        let method = &self.solved.method;
        let solution = solve(solving, reduced.query, method, &[])?;
        let overlay = reduced.overlay(&solution.patch);
        let patched = reduced.logits(&overlay)?;
        let mut disturbed = self.disturbed(Some(&overlay), SEED + 1 + step as u64);
        let (tokens, positions) = (&reduced.tokens, &reduced.positions);
        let patched_off = self::off(&mut disturbed, tokens, positions, &patched)?[0];
        let controls = Variant::controls(method.solver, self.applied).into_iter();
        let controls = controls.map(|variant| {
            let overlay = reduced.overlay(&variant.apply_to(self.applied, &solution.patch));
            let reduced = LogitsDistance::new(reduced.logits::<E>(&overlay)?.row(0), want);
            Ok(Control { variant, reduced })
        });
        let home = Bounds::new(E::DTYPE, self.solved.model);
        let home = home.logits(want, solution.report.last_branch());
        Ok(Step {
            prompt,
            step,
            token: reduced.query.token,
            position: reduced.positions[reduced.positions.len() - 1],
            next: greedy(want),
            logits: logits_hash(want, patched.row(0)),
            margin: margin(want),
            bound: Bounds::crossing(home, off, patched_off),
            patched: LogitsDistance::new(patched.row(0), want),
            controls: controls.collect::<Result<_>>()?,
            report: Some(solution.report),
        })
    }

    /// The prompt's last token and the tokens that the home platform writes after it, all served by one patch.
    fn span<E: Element>(&self, prompt: usize, ids: &[u32]) -> Result<Vec<Step>> {
        let (split, overlay, report) = self.solved.solved_span::<E>(ids, None)?;
        let bounds = Bounds::new(E::DTYPE, self.solved.model);
        let mut steps = span::check_within(
            bounds,
            self.applied,
            &split,
            None,
            &overlay,
            prompt,
            Some(report),
        )?;

        let want = Session::<E>::new(self.applied).forward(split.tokens(), steps.len())?;
        let positions: Vec<_> = (0..split.tokens().len()).collect();
        let mut disturbed = self.disturbed::<E>(None, SEED);
        let contextual = off(&mut disturbed, split.tokens(), &positions, &want)?;

        let got = span::reduced(self.applied, &split, Some(&overlay))?;
        let (tokens, positions) = (split.reduced_tokens(), split.reduced_positions());
        let mut disturbed = self.disturbed(Some(&overlay), SEED + 1);
        let reduced = off(&mut disturbed, &tokens, &positions, &got)?;
        for (i, step) in steps.iter_mut().enumerate() {
            step.bound = Bounds::crossing(step.bound, contextual[i], reduced[i]);
        }
        Ok(steps)
    }
}

/// How far rounding may take the logits of some tokens.
fn off<E: Element>(
    disturbed: &mut Option<Disturbed<'_, E>>,
    tokens: &[u32],
    positions: &[usize],
    want: &Matrix<E>,
) -> Result<Vec<f64>> {
    match disturbed {
        Some(disturbed) => disturbed.forward(tokens, positions, want),
        None => Ok(vec![0.0; want.rows().max(1)]),
    }
}

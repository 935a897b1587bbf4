//! Generation: which token comes next, and when to stop.

mod likeliest;
mod sampler;

pub use likeliest::{greedy, likeliest};
pub use sampler::{Sampler, Sampling};
use serde::{Deserialize, Serialize};

use super::Session;
use super::error::{Error, Result};
use crate::tensor::Element;

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stop {
    /// The model wrote an end token.
    End,
    /// As many tokens as were asked for, or as there is [room](Session::check_room) for.
    Length,
    /// The cancel flag.
    Cancelled,
}

/// What a step of a generation gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The next token.
    Token(u32),
    /// The end: there is no further step.
    Stop(Stop),
}

/// A generation between two tokens, for a caller that has other things to do there; [`generate`] is its loop.
#[derive(Clone, Debug)]
pub struct Generation {
    /// What the session takes in next.
    next: Vec<u32>,
    /// Tokens that may still be written.
    left: usize,
}

impl Generation {
    /// A generation that takes in `prompt` and writes up to `max_tokens` tokens.
    pub fn new(prompt: &[u32], max_tokens: usize) -> Self {
        Self {
            next: prompt.to_vec(),
            left: max_tokens,
        }
    }

    /// The next token: the first step takes in the prompt, the others the token before.
    ///
    /// # Errors
    ///
    /// Those of [`Session::forward`] but for [`Error::Cancelled`].
    pub fn step<E: Element>(
        &mut self,
        session: &mut Session<'_, E>,
        sampler: &mut Sampler,
    ) -> Result<Step> {
        self.step_by(session, |logits| sampler.next(logits))
    }

    /// [`step`](Self::step) with another choice of the next token than a sampler's, from the logits.
    ///
    /// # Errors
    ///
    /// Those of [`step`](Self::step).
    pub fn step_by<E: Element>(
        &mut self,
        session: &mut Session<'_, E>,
        choose: impl FnOnce(&[E]) -> u32,
    ) -> Result<Step> {
        if self.left == 0 {
            return Ok(Step::Stop(Stop::Length));
        }
        let logits = match session.forward(&self.next, 1) {
            Err(Error::Cancelled) => return Ok(Step::Stop(Stop::Cancelled)),
            logits => logits?,
        };
        let token = choose(logits.row(0));
        if session
            .model()
            .checkpoint()
            .eos_token_ids()
            .contains(&token)
        {
            return Ok(Step::Stop(Stop::End));
        }
        self.next = vec![token];
        // A token that cannot be taken in can still be written.
        let more = session.check_room(1).is_ok();
        self.left = if more { self.left - 1 } else { 0 };
        Ok(Step::Token(token))
    }

    /// Whether as many tokens are written as may be.
    pub fn is_done(&self) -> bool {
        self.left == 0
    }
}

/// Takes in `prompt` and writes up to `max_tokens` tokens, each handed to `on_token`; an end token is not.
/// A [cancelled](Session::with_cancel) session ends it without an error.
///
/// # Errors
///
/// Those of [`Session::forward`] but for [`Error::Cancelled`], and those of `on_token`.
pub fn generate<E: Element, F: From<Error>>(
    session: &mut Session<'_, E>,
    prompt: &[u32],
    max_tokens: usize,
    sampler: &mut Sampler,
    on_token: impl FnMut(u32) -> Result<(), F>,
) -> Result<Stop, F> {
    let choose = |logits: &[E]| sampler.next(logits);
    generate_by(session, prompt, max_tokens, choose, on_token)
}

/// [`generate`] with another choice of each token than a sampler's, from the logits.
///
/// # Errors
///
/// Those of [`generate`].
pub fn generate_by<E: Element, F: From<Error>>(
    session: &mut Session<'_, E>,
    prompt: &[u32],
    max_tokens: usize,
    mut choose: impl FnMut(&[E]) -> u32,
    mut on_token: impl FnMut(u32) -> Result<(), F>,
) -> Result<Stop, F> {
    let mut generation = Generation::new(prompt, max_tokens);
    loop {
        match generation.step_by(session, &mut choose)? {
            Step::Token(token) => on_token(token)?,
            Step::Stop(stop) => return Ok(stop),
        }
    }
}

//! Generation: which token comes next, and when to stop.

use std::collections::BTreeMap;

use rand_core::Rng;
use rand_pcg::Pcg64;
use serde::{Deserialize, Serialize};

use super::Session;
use super::error::{Error, Result};
use crate::kernels::{Level, softmax};
use crate::tensor::{Element, Float};

/// The token with the largest logit, the lowest id of several.
pub fn greedy<E: Element>(logits: &[E]) -> u32 {
    // The largest of each piece first, which is a few instructions for many logits.
    const PIECE: usize = 256;
    let larger = |a: E::Acc, b: &E| if b.acc() > a { b.acc() } else { a };
    let largest = |piece: &[E]| piece.iter().fold(E::Acc::NEG_INFINITY, larger);
    let (mut at, mut most) = (0, E::Acc::NEG_INFINITY);
    for (i, piece) in logits.chunks(PIECE).enumerate() {
        let largest = largest(piece);
        if largest > most {
            (at, most) = (i * PIECE, largest);
        }
    }
    let piece = logits[at..]
        .iter()
        .position(|logit| Element::acc(*logit) == most);
    (at + piece.unwrap_or_default()) as u32
}

/// How the next token is drawn. The default is the token with the largest logit.
///
/// The order is: [`logit_bias`](Self::logit_bias) is added to the logits, then the penalties are taken from those of tokens drawn
/// before; they are divided by [`temperature`](Self::temperature); [`top_k`](Self::top_k), [`top_p`](Self::top_p) and
/// [`min_p`](Self::min_p) each leave some of the likeliest; and of those one is drawn. All in f64.
#[derive(Clone, Debug)]
pub struct Sampler {
    /// Logits are divided by it; 0 takes the largest logit and uses no setting below but the bias and the penalties.
    pub temperature: f64,
    /// Draw from this many tokens with the largest logits; 0 is all.
    pub top_k: usize,
    /// Draw from the fewest likeliest tokens whose probabilities reach this.
    pub top_p: f64,
    /// Draw from tokens at least this many times as likely as the likeliest; 0 is all.
    pub min_p: f64,
    /// Taken from the logit of every token drawn before.
    pub presence_penalty: f64,
    /// Taken from the logit of a token as many times as it was drawn before.
    pub frequency_penalty: f64,
    /// Added to the logits of these tokens; those outside the vocabulary are left out.
    pub logit_bias: Vec<(u32, f64)>,
    random: Pcg64,
    /// How often each token was drawn.
    drawn: BTreeMap<u32, u32>,
}

impl Default for Sampler {
    fn default() -> Self {
        Self::new(0.0, 0, 1.0, 0)
    }
}

impl Sampler {
    /// A sampler whose draws depend on `seed` alone, on every machine.
    pub fn new(temperature: f64, top_k: usize, top_p: f64, seed: u64) -> Self {
        Self {
            temperature,
            top_k,
            top_p,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            random: Pcg64::new(u128::from(seed), 0),
            drawn: BTreeMap::new(),
        }
    }

    /// The same sampler with the random numbers of another of the seed's independent streams; the first is 0.
    #[must_use]
    pub fn with_stream(mut self, seed: u64, stream: u64) -> Self {
        self.random = Pcg64::new(u128::from(seed), u128::from(stream));
        self
    }

    /// The next token.
    pub fn next<E: Element>(&mut self, logits: &[E]) -> u32 {
        let penalised = self.presence_penalty != 0.0 || self.frequency_penalty != 0.0;
        let token = if self.logit_bias.is_empty() && self.drawn.is_empty() {
            self.draw(logits)
        } else {
            let adjusted = self.adjusted(logits);
            self.draw(&adjusted)
        };
        if penalised {
            *self.drawn.entry(token).or_default() += 1;
        }
        token
    }

    /// The logits with the bias and the penalties.
    fn adjusted<E: Element>(&self, logits: &[E]) -> Vec<f64> {
        let mut logits: Vec<f64> = logits.iter().map(|logit| logit.to_f64()).collect();
        for (id, bias) in &self.logit_bias {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit += bias;
            }
        }
        for (id, times) in &self.drawn {
            let penalty = self.presence_penalty + self.frequency_penalty * f64::from(*times);
            logits[*id as usize] -= penalty;
        }
        logits
    }

    fn draw<E: Element>(&mut self, logits: &[E]) -> u32 {
        if self.temperature == 0.0 {
            return greedy(logits);
        }
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        let logit = |id: u32| logits[id as usize].to_f64();
        // Likeliest first; of equals the lowest id, so that the order is one.
        let likelier = |a: &u32, b: &u32| logit(*b).total_cmp(&logit(*a)).then(a.cmp(b));
        if self.top_k > 0 && self.top_k < ids.len() {
            ids.select_nth_unstable_by(self.top_k, likelier);
            ids.truncate(self.top_k);
        }
        ids.sort_unstable_by(likelier);
        // From the largest, so that no temperature makes two infinities of them.
        let largest = logit(ids[0]);
        let scaled = ids
            .iter()
            .map(|&id| (logit(id) - largest) / self.temperature);
        let mut p: Vec<f64> = scaled.collect();
        softmax(Level::best(), &mut p);
        let kept = self.kept(&p);
        let total: f64 = p[..kept].iter().sum();
        // 53 random bits: a number from 0 up to, and not, 1.
        let mut left = (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * total;
        for (&id, p) in ids.iter().zip(&p[..kept]) {
            left -= p;
            if left < 0.0 {
                return id;
            }
        }
        ids[kept - 1]
    }

    /// Of how many of the tokens with these falling probabilities one is drawn.
    fn kept(&self, p: &[f64]) -> usize {
        let mut reached = 0.0;
        let last = p.iter().position(|p| {
            reached += p;
            reached >= self.top_p
        });
        let by_top_p = last.map_or(p.len(), |last| last + 1);
        let by_min_p = p.partition_point(|each| *each >= self.min_p * p[0]);
        by_top_p.min(by_min_p)
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [0.0, 2.0, -1.0, 2.0, 1.0];

    fn shares(sampler: &mut Sampler, draws: usize) -> [f64; 5] {
        let mut counts = [0.0; 5];
        for _ in 0..draws {
            counts[sampler.next(&LOGITS) as usize] += 1.0 / draws as f64;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals() {
        assert_eq!(greedy(&LOGITS), 1);
        assert_eq!(Sampler::default().next(&LOGITS), 1);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let mut p = LOGITS.map(f64::from);
        softmax(Level::best(), &mut p);
        let shares = shares(&mut Sampler::new(1.0, 0, 1.0, 7), 20_000);
        for (share, p) in shares.iter().zip(p) {
            // Five standard deviations.
            assert!(
                (share - p).abs() < 5.0 * (p * (1.0 - p) / 20_000.0).sqrt(),
                "{share} {p}"
            );
        }
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let shares_k = shares(&mut Sampler::new(1.0, 2, 1.0, 7), 500);
        assert!(shares_k[0] + shares_k[2] + shares_k[4] == 0.0 && shares_k[3] > 0.3);
        let shares_p = shares(&mut Sampler::new(1.0, 0, 0.5, 7), 500);
        assert!(shares_p[0] + shares_p[2] + shares_p[4] == 0.0 && shares_p[1] > 0.3);
    }

    #[test]
    fn min_p_cuts_what_is_much_less_likely() {
        let mut sampler = Sampler::new(1.0, 0, 1.0, 7);
        // e^-1 of the likeliest is 0.37 of it.
        sampler.min_p = 0.36;
        let shares_kept = shares(&mut sampler, 500);
        assert!(shares_kept[4] > 0.1 && shares_kept[0] + shares_kept[2] == 0.0);
        sampler.min_p = 0.37;
        assert_eq!(shares(&mut sampler, 500)[4], 0.0);
    }

    #[test]
    fn a_bias_is_added_and_tokens_that_are_none_are_left_out() {
        let mut sampler = Sampler {
            logit_bias: vec![(4, 1.5), (u32::MAX, 100.0)],
            ..Sampler::default()
        };
        assert_eq!(sampler.next(&LOGITS), 4);
        sampler.logit_bias = vec![(1, -100.0)];
        assert_eq!(sampler.next(&LOGITS), 3);
    }

    #[test]
    fn penalties_count_what_was_drawn() {
        let drawn = |presence, frequency| {
            let mut sampler = Sampler {
                presence_penalty: presence,
                frequency_penalty: frequency,
                ..Sampler::default()
            };
            [(); 6].map(|()| sampler.next(&LOGITS))
        };
        assert_eq!(drawn(0.0, 0.0), [1; 6]);
        // Once: 2, 2, 1 become 1.5, 1.5, 1, and stay so.
        assert_eq!(drawn(0.5, 0.0), [1, 3, 1, 1, 1, 1]);
        // 2, 2, 1 become 1.4, 1.4, 1 and then 0.8 and 0.8.
        assert_eq!(drawn(0.0, 0.6), [1, 3, 1, 3, 4, 1]);
        assert_eq!(drawn(-0.5, 0.0), [1; 6]);
    }

    #[test]
    fn streams_of_a_seed_differ_and_the_first_is_the_seeds_own() {
        let draw = |stream| {
            let mut sampler = Sampler::new(1.5, 0, 1.0, 3).with_stream(3, stream);
            [(); 12].map(|()| sampler.next(&LOGITS))
        };
        let mut own = Sampler::new(1.5, 0, 1.0, 3);
        assert_eq!(draw(0), [(); 12].map(|()| own.next(&LOGITS)));
        assert_ne!(draw(0), draw(1));
    }

    #[test]
    fn the_smallest_temperature_takes_the_likeliest() {
        assert_eq!(Sampler::new(1e-310, 0, 0.5, 3).next(&[1.0f32, 5.0, 2.0]), 1);
    }

    #[test]
    fn a_seed_fixes_the_draws() {
        let draw = |seed| {
            let mut sampler = Sampler::new(1.5, 0, 1.0, seed);
            (0..12).map(|_| sampler.next(&LOGITS)).collect::<Vec<_>>()
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
        // Pinned: these must be the same on every machine and in every version.
        insta::assert_debug_snapshot!(draw(3));
    }
}

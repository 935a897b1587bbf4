//! Which token comes next.

use std::collections::BTreeMap;

use rand_core::Rng;
use rand_pcg::Pcg64;
use serde::{Deserialize, Serialize};

use super::{greedy, likeliest};
use crate::kernels::{Level, softmax};
use crate::tensor::Element;

/// How tokens are drawn. The default is the token with the largest logit.
///
/// The order is: [`logit_bias`](Self::logit_bias) is added to the logits, then the penalties are taken from those of tokens drawn
/// before; they are divided by [`temperature`](Self::temperature); [`top_k`](Self::top_k), [`top_p`](Self::top_p) and
/// [`min_p`](Self::min_p) each leave some of the likeliest; and of those one is drawn, in the order of their ids. All in f64.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
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
    /// What the draws depend on, on every machine.
    pub seed: u64,
    /// Which of the seed's independent streams of random numbers.
    pub stream: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            stream: 0,
        }
    }
}

impl Sampling {
    /// What is wrong with it, where nothing can be drawn so.
    pub(crate) fn wrong(&self) -> Option<&'static str> {
        let probability = |p: f64| (0.0..=1.0).contains(&p);
        if !(self.temperature >= 0.0 && probability(self.top_p) && probability(self.min_p)) {
            return Some("its temperature is below 0, or top_p or min_p is no probability");
        }
        None
    }
}

/// Draws one token after the other.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: Pcg64,
    /// How often each token was drawn.
    drawn: BTreeMap<u32, u32>,
}

impl Default for Sampler {
    fn default() -> Self {
        Self::new(Sampling::default())
    }
}

impl Sampler {
    /// A sampler that has drawn nothing.
    pub fn new(sampling: Sampling) -> Self {
        let random = Pcg64::new(sampling.seed.into(), sampling.stream.into());
        Self {
            sampling,
            random,
            drawn: BTreeMap::new(),
        }
    }

    /// The next token.
    pub fn next<E: Element>(&mut self, logits: &[E]) -> u32 {
        let token = if self.sampling.logit_bias.is_empty() && self.drawn.is_empty() {
            self.draw(logits)
        } else {
            let adjusted = self.adjusted(logits);
            self.draw(&adjusted)
        };
        self.count(token);
        token
    }

    /// Goes on as if `token` had been drawn.
    pub fn skip(&mut self, token: u32) {
        if self.sampling.temperature != 0.0 {
            self.random.next_u64();
        }
        self.count(token);
    }

    fn count(&mut self, token: u32) {
        if self.sampling.presence_penalty != 0.0 || self.sampling.frequency_penalty != 0.0 {
            *self.drawn.entry(token).or_default() += 1;
        }
    }

    /// The logits with the bias and the penalties.
    fn adjusted<E: Element>(&self, logits: &[E]) -> Vec<f64> {
        let mut logits: Vec<f64> = logits.iter().map(|logit| logit.to_f64()).collect();
        let sampling = &self.sampling;
        for (id, bias) in &sampling.logit_bias {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit += bias;
            }
        }
        for (id, times) in &self.drawn {
            let penalty =
                sampling.presence_penalty + sampling.frequency_penalty * f64::from(*times);
            logits[*id as usize] -= penalty;
        }
        logits
    }

    fn draw<E: Element>(&mut self, logits: &[E]) -> u32 {
        if self.sampling.temperature == 0.0 {
            return greedy(logits);
        }
        let largest = greedy(logits);
        let p = self.probabilities(logits, largest);
        // 53 random bits: a number from 0 up to, and not, 1.
        let random = (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut left = random * p.iter().sum::<f64>();
        for (id, p) in p.into_iter().enumerate() {
            left -= p;
            if left < 0.0 {
                return id as u32;
            }
        }
        // The sum was rounded up.
        largest
    }

    /// How likely each token is, 0 for those that are left out.
    fn probabilities<E: Element>(&self, logits: &[E], largest: u32) -> Vec<f64> {
        let sampling = &self.sampling;
        let most = logits[largest as usize].to_f64();
        // From the largest, so that no temperature makes two infinities of them.
        let scaled = |logit: &E| (logit.to_f64() - most) / sampling.temperature;
        let mut p: Vec<f64> = logits.iter().map(scaled).collect();
        if sampling.top_k > 0 {
            p = only(&p, &likeliest(logits, sampling.top_k), f64::NEG_INFINITY);
        }
        softmax(Level::best(), &mut p);
        let least = sampling.min_p * p[largest as usize];
        if sampling.top_p < 1.0 {
            p = only(&p, &reaching(&p, sampling.top_p), 0.0);
        }
        if least > 0.0 {
            p.iter_mut().filter(|p| **p < least).for_each(|p| *p = 0.0);
        }
        p
    }
}

/// The numbers of some tokens, and `rest` for all others.
fn only(numbers: &[f64], ids: &[u32], rest: f64) -> Vec<f64> {
    let mut kept = vec![rest; numbers.len()];
    for &id in ids {
        kept[id as usize] = numbers[id as usize];
    }
    kept
}

/// The fewest likeliest tokens whose probabilities, from the largest on, reach `share`; all if they do not.
fn reaching(p: &[f64], share: f64) -> Vec<u32> {
    // Few tokens have nearly all of it: those that are not needed are not sorted.
    let mut count = 64;
    loop {
        let mut ids = likeliest(p, count);
        let mut sum = 0.0;
        let last = ids.iter().position(|&id| {
            sum += p[id as usize];
            sum >= share
        });
        if last.is_some() || ids.len() == p.len() {
            ids.truncate(last.map_or(p.len(), |last| last + 1));
            return ids;
        }
        count *= 8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [0.0, 2.0, -1.0, 2.0, 1.0];

    /// All tokens at a temperature of 1, from a seed.
    fn all() -> Sampling {
        Sampling {
            temperature: 1.0,
            seed: 7,
            ..Sampling::default()
        }
    }

    fn draws<const N: usize>(sampling: Sampling) -> [u32; N] {
        let mut sampler = Sampler::new(sampling);
        [(); N].map(|()| sampler.next(&LOGITS))
    }

    fn shares(sampling: Sampling, draws: usize) -> [f64; 5] {
        let mut sampler = Sampler::new(sampling);
        let mut counts = [0.0; 5];
        for _ in 0..draws {
            counts[sampler.next(&LOGITS) as usize] += 1.0 / draws as f64;
        }
        counts
    }

    #[test]
    fn the_default_takes_the_likeliest() {
        assert_eq!(draws(Sampling::default()), [1, 1]);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let mut p = LOGITS.map(f64::from);
        softmax(Level::best(), &mut p);
        let shares = shares(all(), 20_000);
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
        let shares_k = shares(Sampling { top_k: 2, ..all() }, 500);
        assert!(shares_k[0] + shares_k[2] + shares_k[4] == 0.0 && shares_k[3] > 0.3);
        let shares_p = shares(
            Sampling {
                top_p: 0.5,
                ..all()
            },
            500,
        );
        assert!(shares_p[0] + shares_p[2] + shares_p[4] == 0.0 && shares_p[1] > 0.3);
    }

    #[test]
    fn top_p_of_many_tokens_takes_the_fewest() {
        // Falling, and with twins; the sum of all is about 1.
        let p: Vec<f64> = (0..1000)
            .map(|i| f64::from(1 + i % 500) / 250_500.0)
            .collect();
        for share in [0.0, 0.01, 0.3, 0.9, 0.999_999, 2.0] {
            let mut sorted: Vec<u32> = (0..1000).collect();
            sorted.sort_by(|&a, &b| p[b as usize].total_cmp(&p[a as usize]));
            let mut sum = 0.0;
            let fewest = sorted.iter().position(|&i| {
                sum += p[i as usize];
                sum >= share
            });
            sorted.truncate(fewest.map_or(1000, |last| last + 1));
            assert_eq!(reaching(&p, share), sorted, "{share}");
        }
    }

    #[test]
    fn min_p_cuts_what_is_much_less_likely() {
        // e^-1 of the likeliest is 0.37 of it.
        let min_p = |min_p| shares(Sampling { min_p, ..all() }, 500);
        assert!(min_p(0.36)[4] > 0.1 && min_p(0.36)[0] + min_p(0.36)[2] == 0.0);
        assert_eq!(min_p(0.37)[4], 0.0);
    }

    #[test]
    fn a_bias_is_added_and_tokens_that_are_none_are_left_out() {
        let biased = |logit_bias: &[(u32, f64)]| {
            draws(Sampling {
                logit_bias: logit_bias.to_vec(),
                ..Sampling::default()
            })
        };
        assert_eq!(biased(&[(4, 1.5), (u32::MAX, 100.0)]), [4]);
        assert_eq!(biased(&[(1, -100.0)]), [3]);
    }

    #[test]
    fn penalties_count_what_was_drawn() {
        let drawn = |presence_penalty, frequency_penalty| {
            draws(Sampling {
                presence_penalty,
                frequency_penalty,
                ..Sampling::default()
            })
        };
        assert_eq!(drawn(0.0, 0.0), [1; 6]);
        // Once: 2, 2, 1 become 1.5, 1.5, 1, and stay so.
        assert_eq!(drawn(0.5, 0.0), [1, 3, 1, 1, 1, 1]);
        // 2, 2, 1 become 1.4, 1.4, 1 and then 0.8 and 0.8.
        assert_eq!(drawn(0.0, 0.6), [1, 3, 1, 3, 4, 1]);
        assert_eq!(drawn(-0.5, 0.0), [1; 6]);
    }

    #[test]
    fn streams_of_a_seed_differ() {
        let draw = |stream| draws::<12>(Sampling { stream, ..all() });
        assert_eq!(draw(0), draw(0));
        assert_ne!(draw(0), draw(1));
    }

    #[test]
    fn skipping_goes_on_as_after_a_draw() {
        for temperature in [0.0, 1.5] {
            let sampling = Sampling {
                temperature,
                frequency_penalty: 0.3,
                ..all()
            };
            let all: [u32; 8] = draws(sampling.clone());
            let mut sampler = Sampler::new(sampling);
            all[..5].iter().for_each(|&token| sampler.skip(token));
            assert_eq!([(); 3].map(|()| sampler.next(&LOGITS)), all[5..]);
        }
    }

    #[test]
    fn the_smallest_temperature_takes_the_likeliest() {
        let temperature = 1e-310;
        let sampling = Sampling {
            temperature,
            top_p: 0.5,
            ..all()
        };
        assert_eq!(Sampler::new(sampling).next(&[1.0f32, 5.0, 2.0]), 1);
    }

    #[test]
    fn a_seed_fixes_the_draws() {
        let draw = |seed| {
            draws::<12>(Sampling {
                temperature: 1.5,
                seed,
                ..Sampling::default()
            })
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
        // Pinned: these must be the same on every machine and in every version.
        insta::assert_debug_snapshot!(draw(3));
    }
}

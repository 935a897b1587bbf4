//! How tokens were drawn, as a receipt has it.

use serde::{Deserialize, Serialize};

use crate::model::generate::Sampler;

/// The settings of a [`Sampler`], whose words they are, and where its random numbers begin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// [`Sampler::temperature`].
    pub temperature: f64,
    /// [`Sampler::top_k`].
    pub top_k: usize,
    /// [`Sampler::top_p`].
    pub top_p: f64,
    /// [`Sampler::min_p`].
    pub min_p: f64,
    /// [`Sampler::presence_penalty`].
    pub presence_penalty: f64,
    /// [`Sampler::frequency_penalty`].
    pub frequency_penalty: f64,
    /// [`Sampler::logit_bias`].
    pub logit_bias: Vec<(u32, f64)>,
    /// The seed.
    pub seed: u64,
    /// Which of the seed's independent streams.
    pub stream: u64,
}

impl Default for Sampling {
    /// The likeliest token.
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
    /// What no sampler takes.
    pub(super) fn wrong(&self) -> Option<&'static str> {
        let probability = |p: f64| (0.0..=1.0).contains(&p);
        if !(self.temperature >= 0.0 && probability(self.top_p) && probability(self.min_p)) {
            return Some("its temperature is below 0, or top_p or min_p is no probability");
        }
        None
    }

    /// A sampler at its beginning.
    pub fn sampler(&self) -> Sampler {
        let sampler = Sampler::new(self.temperature, self.top_k, self.top_p, self.seed);
        let mut sampler = sampler.with_stream(self.seed, self.stream);
        sampler.min_p = self.min_p;
        sampler.presence_penalty = self.presence_penalty;
        sampler.frequency_penalty = self.frequency_penalty;
        sampler.logit_bias.clone_from(&self.logit_bias);
        sampler
    }
}

//! `rope_freqs.weight`: what each angle is divided by, where Hugging Face's config says how those numbers come about.

use serde_json::{Value, json};

use super::super::error::{Error, Result};
use super::Gguf;

const NAME: &str = "rope_freqs.weight";

/// The parameters of `llama3`.
pub(super) struct Llama3 {
    pub(super) factor: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) original: f64,
}

/// What all Llama 3.1, 3.2 and 3.3 have in common, beside their factor.
const COMMON: Llama3 = Llama3 {
    factor: 1.0,
    low: 1.0,
    high: 4.0,
    original: 8192.0,
};

impl Llama3 {
    /// Whether it is that of a published Llama 3, which is all that divisors can be recognised as.
    pub(super) fn is_common(&self) -> bool {
        [self.low, self.high, self.original] == [COMMON.low, COMMON.high, COMMON.original]
    }
}

/// How far a divisor may be from the formula's: it was computed in f32, by steps that nobody has written down.
const TOLERANCE: f64 = 1e-5;

/// `rope_scaling` of the kind `llama3` whose divisors the file has, or `None` where it has none.
///
/// # Errors
///
/// [`Error::NotGguf`] where the divisors follow no such formula.
pub(super) fn scaling(gguf: &Gguf) -> Result<Option<Value>> {
    let Some((_, tensor)) = gguf.tensors().find(|(name, _)| *name == NAME) else {
        return Ok(None);
    };
    let divisors: Vec<f64> = tensor.to_vec();
    let scaling = Llama3 {
        factor: divisors.iter().copied().fold(1.0, f64::max),
        ..COMMON
    };
    let key = gguf.architecture.key("rope.freq_base");
    let theta = gguf.metadata.number(&key)?.unwrap_or(1e4);
    let dims = 2 * divisors.len();
    let follows = divisors.iter().enumerate().all(|(pair, &divisor)| {
        let expected = divisor_of(pair, dims, theta, &scaling);
        (divisor - expected).abs() <= TOLERANCE * expected
    });
    if !follows || !scaling.factor.is_finite() {
        return Err(Error::NotGguf {
            path: gguf.metadata.path().into(),
            reason: format!("{NAME} has other divisors than Llama 3's, which alone are known here"),
        });
    }
    Ok(Some(json!({
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low,
        "high_freq_factor": scaling.high,
        "original_max_position_embeddings": scaling.original as u64,
    })))
}

/// What the angle of a pair of `dims` numbers is divided by: the factor for waves longer than `original / low`, 1 for those shorter
/// than `original / high`, and between the two a blend.
pub(super) fn divisor_of(pair: usize, dims: usize, theta: f64, scaling: &Llama3) -> f64 {
    let wave = std::f64::consts::TAU * libm::pow(theta, 2.0 * pair as f64 / dims as f64);
    let turns = scaling.original / wave;
    let kept = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0.0, 1.0);
    1.0 / ((1.0 - kept) / scaling.factor + kept)
}

//! From a config's rotary parameters to angles.

use std::f64::consts::TAU;

use crate::checkpoint::form::RopeForm;
use crate::checkpoint::{Rope, RopeScaling};
use crate::kernels::Rotation;

/// The rotation of a layer.
pub(crate) fn rotation(form: &RopeForm) -> Rotation {
    let (Rope { theta, scaling }, dims) = (form.rope, form.dims);
    let frequency = |i: usize| libm::pow(theta, -((2 * i) as f64) / dims as f64);
    let all = (0..dims / 2).map(frequency);
    match scaling {
        RopeScaling::Linear { factor } => Rotation::new(dims, theta, factor),
        RopeScaling::Llama3 {
            factor,
            low,
            high,
            original,
        } => {
            let scaled = all.map(|f| {
                // How often the pair turns in the original length.
                let turns = original * f / TAU;
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 - kept) * f / factor + kept * f
            });
            Rotation::from_frequencies(scaled.collect(), 1.0)
        }
        RopeScaling::Yarn {
            factor,
            fast,
            slow,
            truncate,
            attention,
            original,
        } => {
            let pair = |turns: f64| {
                dims as f64 * libm::log(original / (turns * TAU)) / (2.0 * libm::log(theta))
            };
            let (mut first, mut last) = (pair(fast), pair(slow));
            if truncate {
                (first, last) = (first.floor(), last.ceil());
            }
            (first, last) = (first.max(0.0), last.min(dims as f64 - 1.0));
            if first == last {
                // As in Hugging Face, so that nothing is divided by zero.
                last += 0.001;
            }
            let scaled = all.enumerate().map(|(i, f)| {
                let divided = ((i as f64 - first) / (last - first)).clamp(0.0, 1.0);
                f / factor * divided + f * (1.0 - divided)
            });
            Rotation::from_frequencies(scaled.collect(), attention)
        }
    }
}

//! What a verification comes to.

use serde::Serialize;

use super::Step;
use crate::patch::lemmas::median;
use crate::patch::{LayerReport, Variant};

/// The figures of all steps of one compute type and form.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// How many tokens were verified.
    pub tokens: usize,
    /// How many had the same likeliest token.
    pub matching: usize,
    /// The worst L∞ of the logits.
    pub worst_linf: f64,
    /// The median L∞ of the logits (of two in the middle the larger).
    pub median_linf: f64,
    /// The worst share of the allowed difference that was used up; above 1 the bound is broken.
    pub worst_share_of_bound: f64,
    /// The worst total variation distance.
    pub worst_tvd: f64,
    /// The worst relative error of a hidden state, max |T − T_C| / max |T_C|.
    pub worst_hidden_error: f64,
    /// The largest |Δm|.
    pub largest_delta_m: f64,
    /// The controls.
    pub controls: Vec<ControlSummary>,
    /// Whether every step [`holds`](Step::holds).
    pub holds: bool,
    /// Whether the controls are off: without a patch by far, the median L∞ above ten times the largest bound; without
    /// one part of it, which may be a small correction, above twice the largest bound. Where they are not, the
    /// context hardly matters to the model, and that the patch holds says little.
    pub controls_fail: bool,
}

/// The figures of a negative control.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ControlSummary {
    /// What was left out of the patch.
    pub variant: Variant,
    /// How many tokens had the same likeliest token all the same.
    pub matching: usize,
    /// The smallest L∞ of the logits.
    pub smallest_linf: f64,
    /// The median L∞ of the logits.
    pub median_linf: f64,
}

impl ControlSummary {
    fn new(steps: &[Step], variant: Variant) -> Self {
        let controls = || steps.iter().flat_map(|step| &step.controls);
        let each = || {
            controls()
                .filter(|control| control.variant == variant)
                .map(|control| control.reduced)
        };
        Self {
            variant,
            matching: each().filter(|control| control.same_top).count(),
            smallest_linf: each()
                .map(|control| control.linf)
                .reduce(f64::min)
                .unwrap_or(0.0),
            median_linf: median(each().map(|control| control.linf)),
        }
    }
}

impl Summary {
    /// The figures of `steps`; all zero for none.
    pub fn new(steps: &[Step]) -> Self {
        let worst = |figure: fn(&Step) -> f64| steps.iter().map(figure).fold(0.0, worse);
        let layers = |figure: fn(&LayerReport) -> f64| {
            steps
                .iter()
                .flat_map(|step| &step.report)
                .flat_map(|report| &report.layers)
                .map(figure)
                .fold(0.0, worse)
        };
        let variants = steps.iter().take(1).flat_map(|step| &step.controls);
        let controls: Vec<_> = variants
            .map(|control| ControlSummary::new(steps, control.variant))
            .collect();
        Self {
            tokens: steps.len(),
            matching: steps.iter().filter(|step| step.patched.same_top).count(),
            worst_linf: worst(|step| step.patched.linf),
            median_linf: median(steps.iter().map(|step| step.patched.linf)),
            worst_share_of_bound: worst(|step| step.patched.linf / step.bound),
            worst_tvd: worst(|step| step.patched.tvd),
            worst_hidden_error: layers(|layer| layer.hidden_error),
            largest_delta_m: layers(|layer| layer.largest_delta_m),
            controls_fail: controls.iter().all(|control| {
                let far = match control.variant {
                    Variant::NoPatch => 10.0,
                    _ => 2.0,
                };
                control.median_linf > far * worst(|step| step.bound)
            }),
            controls,
            holds: steps.iter().all(Step::holds),
        }
    }
}

/// The larger of two, NaN being the worst.
pub(crate) fn worse(a: f64, b: f64) -> f64 {
    if b > a || b.is_nan() { b } else { a }
}

//! What the figures are drawn from.

use serde::Serialize;

use super::chart::Look;
use super::texts::Text;
use crate::patch::lemmas::median;
use crate::patch::{ApplyMode, LayerReport, Solver};
use crate::tensor::Dtype;
use crate::verify::{Kind, Record, Run, Step, worse};

/// The data of all figures: `figures.json`.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    pub(super) panels: Vec<Panel>,
    pub(super) texts: Vec<Text>,
}

/// What shares a panel.
#[derive(Debug, Serialize)]
pub(super) struct Panel {
    /// Where patches are applied, and where solved if elsewhere, such as `native→gemm`.
    pub(super) platform: String,
    pub(super) dtype: Dtype,
    /// Where on the axis of steps each prompt begins.
    pub(super) prompts: Vec<usize>,
    pub(super) series: Vec<Series>,
}

/// One kind.
#[derive(Debug, Serialize)]
pub(super) struct Series {
    pub(super) solver: Solver,
    #[serde(rename = "apply")]
    pub(super) form: ApplyMode,
    /// Tokens verified.
    pub(super) tokens: usize,
    /// Those with the same likeliest token.
    pub(super) matching: usize,
    pub(super) points: Vec<Point>,
    /// Of L∞, patched.
    pub(super) patched: Histogram,
    /// Of L∞, without a patch.
    pub(super) no_patch: Histogram,
    pub(super) layers: Vec<Layer>,
}

/// One step.
#[derive(Debug, Serialize)]
pub(super) struct Point {
    /// Its place on the axis of steps.
    pub(super) at: usize,
    pub(super) prompt: usize,
    pub(super) step: usize,
    pub(super) linf: f64,
    pub(super) tvd: f64,
    pub(super) same_top: bool,
    pub(super) bound: f64,
    /// Without a patch.
    pub(super) no_patch_linf: Option<f64>,
    pub(super) no_patch_tvd: Option<f64>,
}

/// How many tokens are in which quarter of a decade.
#[derive(Debug, Default, Serialize)]
pub(super) struct Histogram {
    /// Exactly 0.
    pub(super) zero: usize,
    pub(super) not_finite: usize,
    /// The quarter (−22 is 10^−5.5 to 10^−5.25) and how many.
    pub(super) quarters: Vec<(i32, usize)>,
}

/// One layer over all steps that have a report.
#[derive(Debug, Serialize)]
pub(super) struct Layer {
    pub(super) layer: usize,
    pub(super) hidden_error: Spread,
    pub(super) delta_gate: Spread,
    pub(super) delta_up: Spread,
    pub(super) delta_down: Spread,
    pub(super) largest_delta_m: Spread,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) worst: f64,
}

impl Figures {
    /// `token` gives a token's text, where it is known.
    pub(super) fn new(record: &Record, token: &dyn Fn(u32) -> Option<String>) -> Self {
        let prompts = 0..record.setting.prompts.len();
        Self {
            panels: panels(record),
            texts: prompts
                .map(|prompt| Text::new(record, prompt, token))
                .collect(),
        }
    }

    /// The platforms in order, each once, with their panels.
    pub(super) fn platforms(&self) -> Vec<(&str, Vec<&Panel>)> {
        let mut platforms: Vec<(&str, Vec<&Panel>)> = Vec::new();
        for panel in &self.panels {
            match platforms
                .iter_mut()
                .find(|(name, _)| *name == panel.platform)
            {
                Some((_, panels)) => panels.push(panel),
                None => platforms.push((&panel.platform, vec![panel])),
            }
        }
        platforms
    }
}

/// One for each platform and compute type that has steps.
fn panels(record: &Record) -> Vec<Panel> {
    let steps = record.runs.iter().flat_map(|run| &run.steps);
    let longest = steps.map(|step| step.step + 1).max().unwrap_or(0);
    let mut panels: Vec<Panel> = Vec::new();
    for run in record.runs.iter().filter(|run| !run.steps.is_empty()) {
        let (platform, dtype) = (platform(run.kind), run.kind.dtype);
        let series = Series::new(run, longest);
        let there = panels
            .iter_mut()
            .find(|panel| panel.platform == platform && panel.dtype == dtype);
        match there {
            Some(panel) => panel.series.push(series),
            None => panels.push(Panel {
                platform,
                dtype,
                prompts: (0..record.setting.prompts.len())
                    .map(|prompt| prompt * longest)
                    .collect(),
                series: vec![series],
            }),
        }
    }
    panels
}

fn platform(kind: Kind) -> String {
    if kind.crosses() {
        format!("{}→{}", kind.solved_on, kind.applied_on)
    } else {
        kind.applied_on.to_string()
    }
}

impl Series {
    /// How it is drawn.
    pub(super) fn look(&self) -> Look {
        Look::of(self.solver, self.form)
    }

    /// `longest` is how many steps a prompt has at most.
    fn new(run: &Run, longest: usize) -> Self {
        let steps = &run.steps;
        let no_patch = steps.iter().filter_map(Step::no_patch);
        Self {
            solver: run.kind.solver,
            form: run.kind.form,
            tokens: steps.len(),
            matching: steps.iter().filter(|step| step.patched.same_top).count(),
            points: steps.iter().map(|step| Point::new(step, longest)).collect(),
            patched: Histogram::new(steps.iter().map(|step| step.patched.linf)),
            no_patch: Histogram::new(no_patch.map(|reduced| reduced.linf)),
            layers: layers(steps),
        }
    }
}

impl Point {
    fn new(step: &Step, longest: usize) -> Self {
        Self {
            at: step.prompt * longest + step.step,
            prompt: step.prompt,
            step: step.step,
            linf: step.patched.linf,
            tvd: step.patched.tvd,
            same_top: step.patched.same_top,
            bound: step.bound,
            no_patch_linf: step.no_patch().map(|reduced| reduced.linf),
            no_patch_tvd: step.no_patch().map(|reduced| reduced.tvd),
        }
    }
}

impl Histogram {
    fn new(values: impl Iterator<Item = f64>) -> Self {
        let mut all = Self::default();
        for value in values {
            if value == 0.0 {
                all.zero += 1;
            } else if !value.is_finite() {
                all.not_finite += 1;
            } else {
                let quarter = (4.0 * libm::log10(value)).floor() as i32;
                match all.quarters.binary_search_by_key(&quarter, |&(q, _)| q) {
                    Ok(i) => all.quarters[i].1 += 1,
                    Err(i) => all.quarters.insert(i, (quarter, 1)),
                }
            }
        }
        all
    }
}

fn layers(steps: &[Step]) -> Vec<Layer> {
    let reports: Vec<_> = steps.iter().flat_map(|step| &step.report).collect();
    let count = reports.iter().map(|report| report.layers.len()).max();
    let layer = |layer| {
        let spread = |figure: fn(&LayerReport) -> f64| {
            let layers = || reports.iter().filter_map(|report| report.layers.get(layer));
            Spread {
                median: median(layers().map(figure)),
                worst: layers().map(figure).fold(0.0, worse),
            }
        };
        Layer {
            layer,
            hidden_error: spread(|layer| layer.hidden_error),
            delta_gate: spread(|layer| layer.delta_gate),
            delta_up: spread(|layer| layer.delta_up),
            delta_down: spread(|layer| layer.delta_down),
            largest_delta_m: spread(|layer| layer.largest_delta_m),
        }
    };
    (0..count.unwrap_or(0)).map(layer).collect()
}

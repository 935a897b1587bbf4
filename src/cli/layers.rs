//! A solver's report as a table.

use context_patch::patch::{Case, LayerReport, SolverReport};

use super::table::table;
use super::words::{counted, figure, paragraph, percent};

/// A column: its name, and what is in it of a layer.
type Column = (&'static str, fn(&LayerReport) -> String);

/// In the order of the table. Those that say nothing of any layer are left out of it.
const COLUMNS: [Column; 8] = [
    ("rank", |layer| layer.rank.to_string()),
    ("ΔW_gate", |layer| share(layer.delta_gate)),
    ("ΔW_up", |layer| share(layer.delta_up)),
    ("ΔW_down", |layer| share(layer.delta_down)),
    ("max |Δm|", |layer| or_dash(layer.largest_delta_m, figure)),
    ("condition", |layer| or_dash(layer.condition, figure)),
    ("error", |layer| figure(layer.hidden_error)),
    ("case", |layer| match layer.case {
        // What most layers are, and how every span ends.
        Case::Regular | Case::Last => DASH.into(),
        case => case.to_string(),
    }),
];

/// What they mean.
const LEGEND: &str = "ΔW: how large the change is beside the weight, ‖ΔW‖ / ‖W‖; Δm: the change of the last norm's scale; condition: of \
                      what was inverted; error: of the layer's output, relative to its largest number.";

const DASH: &str = "–";

fn or_dash(x: f64, shown: fn(f64) -> String) -> String {
    match x {
        0.0 => DASH.into(),
        _ => shown(x),
    }
}

/// ‖ΔW‖ / ‖W‖.
fn share(delta: f64) -> String {
    or_dash(delta, percent)
}

/// A line for each layer that is changed.
pub(super) fn layers(report: &SolverReport) -> String {
    let layers = report.layers.iter().enumerate();
    let layers = layers.filter(|(_, layer)| layer.case != Case::Untouched);
    let layers: Vec<_> = layers.collect();
    let says = |(_, cell): &Column| layers.iter().any(|(_, layer)| cell(layer) != DASH);
    let columns: Vec<_> = COLUMNS.into_iter().filter(says).collect();
    let header: Vec<_> = std::iter::once("layer")
        .chain(columns.iter().map(|(name, _)| *name))
        .collect();
    let rows = layers.iter().map(|(i, layer)| {
        let cells = columns.iter().map(|(_, cell)| cell(layer));
        std::iter::once(i.to_string()).chain(cells).collect()
    });
    let mut text = table(1, &header, &rows.collect::<Vec<_>>());
    text.push('\n');
    text += &paragraph(LEGEND);
    if let Some(least) = report.passes.iter().copied().reduce(f64::min) {
        text.push('\n');
        text += &paragraph(&format!(
            "The last layers were solved {} over; the least error of the last hidden state was {}.",
            counted(report.passes.len(), "time"),
            figure(least),
        ));
    }
    text
}

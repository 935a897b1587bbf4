//! A solver's report as a table.

use context_patch::patch::{Case, LayerReport, SolverReport};

use super::table::table;

/// A line for each layer that is changed.
pub(super) fn layers(report: &SolverReport) -> String {
    let header = [
        "layer",
        "case",
        "rank",
        "‖ΔW_gate‖",
        "‖ΔW_up‖",
        "‖ΔW_down‖",
        "max |Δm|",
        "changed",
        "unserved",
        "least divisor",
        "condition",
        "residual",
        "hidden error",
        "ulps",
        "off",
    ];
    let changed = report.layers.iter().enumerate();
    let changed = changed.filter(|(_, layer)| layer.case != Case::Untouched);
    let rows: Vec<_> = changed.map(|(i, layer)| row(i, layer)).collect();
    let mut text = table(&header, &rows);
    if let Some(least) = report.passes.iter().copied().reduce(f64::min) {
        let passes = report.passes.len();
        text += &format!(
            "\nThe last layers were solved {passes} times over; the least error of the last hidden state was {least:.1e}.\n"
        );
    }
    text
}

fn row(i: usize, layer: &LayerReport) -> Vec<String> {
    let percent = |share: f64| match share == 0.0 {
        true => "–".to_owned(),
        false => format!("{:.2} %", 100.0 * share),
    };
    vec![
        i.to_string(),
        layer.case.to_string(),
        layer.rank.to_string(),
        percent(layer.delta_gate),
        percent(layer.delta_up),
        percent(layer.delta_down),
        format!("{:.1}", layer.largest_delta_m),
        layer.scale_entries_changed.to_string(),
        layer.unserved.to_string(),
        format!("{:.1e}", layer.smallest_divisor),
        format!("{:.1e}", layer.condition),
        format!("{:.1e}", layer.residual),
        format!("{:.1e}", layer.hidden_error),
        format!("{:.1}", layer.hidden_ulps),
        layer.hidden_off.to_string(),
    ]
}

//! What a verification came to, for people: two tables and a verdict.

use super::{Record, Run, Summary};

/// Lines of cells under a header, which has a cell for each column. The first column names the line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The names of the columns.
    pub header: Vec<&'static str>,
    /// The lines.
    pub rows: Vec<Vec<String>>,
}

impl Record {
    /// The kinds that have steps.
    fn begun(&self) -> impl Iterator<Item = (&Run, Summary)> {
        let runs = self.runs.iter().filter(|run| !run.steps.is_empty());
        runs.map(|run| (run, Summary::new(&run.steps)))
    }

    /// A line of figures for each kind that has steps.
    pub fn figures(&self) -> Table {
        let row = |(run, s): (&Run, Summary)| {
            vec![
                run.kind.to_string(),
                format!("{}/{}", s.matching, s.tokens),
                format!("{:.1e}", s.worst_linf),
                format!("{:.1e}", s.median_linf),
                format!("{:.0} %", 100.0 * s.worst_share_of_bound),
                format!("{:.1e}", s.worst_tvd),
                format!("{:.1e}", s.worst_hidden_error),
                format!("{:.1e}", s.largest_delta_m),
            ]
        };
        Table {
            header: vec![
                "",
                "tokens",
                "worst L∞",
                "median L∞",
                "of bound",
                "worst TVD",
                "hidden error",
                "max |Δm|",
            ],
            rows: self.begun().map(row).collect(),
        }
    }

    /// A line for each control of each kind that has steps.
    pub fn controls(&self) -> Table {
        let rows = |(run, summary): (&Run, Summary)| {
            let row = |control: &super::ControlSummary| {
                vec![
                    format!("{}: {}", run.kind, control.variant),
                    format!("{}/{}", control.matching, summary.tokens),
                    format!("{:.1}", control.smallest_linf),
                    format!("{:.1}", control.median_linf),
                ]
            };
            summary.controls.iter().map(row).collect::<Vec<_>>()
        };
        Table {
            header: vec!["", "tokens", "least L∞", "median L∞"],
            rows: self.begun().flat_map(rows).collect(),
        }
    }

    /// What does not hold, a line each: bounds that are broken, and controls that are not off.
    pub fn findings(&self) -> Vec<String> {
        let mut findings = Vec::new();
        for (run, summary) in self.begun() {
            let name = run.kind;
            if let Some(step) = run.steps.iter().find(|step| !step.holds()) {
                findings.push(format!(
                    "BROKEN: {name}, first at prompt {} token {}: L∞ {:.1e}, bound {:.1e}, {} token",
                    step.prompt + 1,
                    step.step + 1,
                    step.patched.linf,
                    step.bound,
                    if step.patched.same_top {
                        "the same"
                    } else {
                        "another"
                    },
                ));
            }
            if !summary.controls_fail {
                let why = if name.crosses() {
                    "the other platform's rounding may matter as much to the patch"
                } else {
                    "these prompts matter little to the model"
                };
                findings.push(format!("NO POWER: {name}, a control is hardly off: {why}"));
            }
        }
        findings
    }

    /// The [`findings`](Self::findings), or one line that says that there are none.
    pub fn verdict(&self) -> String {
        let findings = self.findings();
        if self.begun().next().is_none() {
            return "No step is done.".into();
        }
        if findings.is_empty() {
            "Every bound holds, and every control fails.".into()
        } else {
            findings.join("\n")
        }
    }
}

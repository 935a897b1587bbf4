//! What a verification came to: tables, a verdict, files.

use std::io::Write;
use std::path::Path;

use context_patch::Result;
use context_patch::output::write_file;
use context_patch::verify::{Record, Run, Summary};

use super::table::table;
use super::{BROKEN, OK, is_closed_output, print};

/// Prints the tables and the verdict, and gives the exit code.
pub(super) fn conclude(record: &Record) -> Result<u8> {
    let runs = record.runs.iter().filter(|run| !run.steps.is_empty());
    let rows: Vec<_> = runs.map(Row::new).collect();
    // The verdict does not depend on whether anyone reads the table.
    match print(&format!("{}{}", tables(&rows), verdict(&rows))) {
        Err(error) if !is_closed_output(&error) => return Err(error),
        _ => {}
    }
    let good = |row: &Row| row.summary.holds && row.summary.controls_fail;
    Ok(if rows.iter().all(good) { OK } else { BROKEN })
}

/// Every figure of every step.
pub(super) fn write_json(file: &Path, record: &Record) -> Result<()> {
    write_file(file, |out| {
        serde_json::to_writer(&mut *out, record)?;
        writeln!(out)
    })
}

struct Row<'a> {
    run: &'a Run,
    name: String,
    summary: Summary,
}

impl<'a> Row<'a> {
    fn new(run: &'a Run) -> Self {
        Self {
            run,
            name: run.kind.to_string(),
            summary: Summary::new(&run.steps),
        }
    }
}

fn tables(rows: &[Row]) -> String {
    let header = [
        "",
        "tokens",
        "worst L∞",
        "median L∞",
        "of bound",
        "worst TVD",
        "hidden error",
        "max |Δm|",
    ];
    let figures = rows.iter().map(|row| {
        let s = &row.summary;
        vec![
            row.name.clone(),
            format!("{}/{}", s.matching, s.tokens),
            format!("{:.1e}", s.worst_linf),
            format!("{:.1e}", s.median_linf),
            format!("{:.0} %", 100.0 * s.worst_share_of_bound),
            format!("{:.1e}", s.worst_tvd),
            format!("{:.1e}", s.worst_hidden_error),
            format!("{:.1e}", s.largest_delta_m),
        ]
    });
    let controls = rows.iter().flat_map(|row| {
        row.summary.controls.iter().map(|control| {
            vec![
                format!("{}: {}", row.name, control.variant),
                format!("{}/{}", control.matching, row.summary.tokens),
                format!("{:.1}", control.smallest_linf),
                format!("{:.1}", control.median_linf),
            ]
        })
    });
    format!(
        "{}\nControls, which must fail:\n{}\n",
        table(&header, &figures.collect::<Vec<_>>()),
        table(
            &["", "tokens", "least L∞", "median L∞"],
            &controls.collect::<Vec<_>>()
        ),
    )
}

fn verdict(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "No step is done.\n".into();
    }
    let mut text = String::new();
    for Row { run, name, summary } in rows {
        if let Some(step) = run.steps.iter().find(|step| !step.holds()) {
            text += &format!(
                "BROKEN: {name}, first at prompt {} token {}: L∞ {:.1e}, bound {:.1e}, {} token\n",
                step.prompt + 1,
                step.step + 1,
                step.patched.linf,
                step.bound,
                if step.patched.same_top {
                    "the same"
                } else {
                    "another"
                },
            );
        }
        if !summary.controls_fail {
            let why = match run.kind.crosses() {
                false => "these prompts matter little to the model",
                true => "the other platform's rounding may matter as much to the patch",
            };
            text += &format!("NO POWER: {name}, a control is hardly off: {why}\n");
        }
    }
    match text.is_empty() {
        true => "Every bound holds, and every control fails.\n".into(),
        false => text,
    }
}

//! What a verification came to: tables, a verdict, files.

use std::io::Write;
use std::path::Path;

use context_patch::output::write_file;
use context_patch::report;
use context_patch::verify::{Record, Run, Summary};
use context_patch::vision::Picture;
use context_patch::{Checkpoint, Result};

use super::table::table;
use super::words::{figure, paragraph, percent};
use super::{BROKEN, OK, is_closed_output, print};

/// What the columns mean.
const LEGEND: &str = "tokens: likeliest next tokens that are the same as with the prompt; worst L∞: the largest difference of any logit; \
                      of bound: how much of the allowed difference that is; without: the median L∞ without the patch.";

/// Prints a line for each kind and the verdict, and gives the exit code.
pub(super) fn conclude(record: &Record) -> Result<u8> {
    let header = ["", "tokens", "worst L∞", "of bound", "without"];
    let verdict = record.verdict();
    let text = format!(
        "{}\n{}\n{}",
        table(1, &header, &figures(record)),
        paragraph(LEGEND),
        verdict.lines().map(paragraph).collect::<String>(),
    );
    // The verdict does not depend on whether anyone reads the table.
    match print(&text) {
        Err(error) if !is_closed_output(&error) => return Err(error),
        _ => {}
    }
    Ok(if record.findings().is_empty() {
        OK
    } else {
        BROKEN
    })
}

/// A line for each kind that has steps.
fn figures(record: &Record) -> Vec<Vec<String>> {
    let begun = record.runs.iter().filter(|run| !run.steps.is_empty());
    let line = |run: &Run| {
        let summary = Summary::new(&run.steps);
        let without = summary.controls.first().map(|control| control.median_linf);
        vec![
            run.kind.to_string(),
            format!("{}/{}", summary.matching, summary.tokens),
            figure(summary.worst_linf),
            percent(summary.worst_share_of_bound),
            without.map_or_else(String::new, figure),
        ]
    };
    begun.map(line).collect()
}

/// Every figure of every step.
pub(super) fn write_json(file: &Path, record: &Record) -> Result<()> {
    write_file(file, |out| {
        serde_json::to_writer(&mut *out, record)?;
        writeln!(out)
    })?;
    Ok(())
}

/// A page with figures, in a folder of its own; `checkpoint` has the tokenizer, `pictures` are those of the prompts where they are at hand.
pub(super) fn write_report(
    dir: &Path,
    record: &Record,
    pictures: &[Picture],
    checkpoint: &Checkpoint,
) -> Result<()> {
    let tokenizer = checkpoint.tokenizer()?;
    Ok(report::write(
        record,
        pictures,
        |id| tokenizer.token_text(id),
        dir,
    )?)
}

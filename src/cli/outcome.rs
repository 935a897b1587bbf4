//! What a verification came to: tables, a verdict, files.

use std::io::Write;
use std::path::Path;

use context_patch::output::write_file;
use context_patch::report;
use context_patch::verify::{Record, Table};
use context_patch::{Checkpoint, Result};

use super::table::table;
use super::{BROKEN, OK, is_closed_output, print};

/// Prints the tables and the verdict, and gives the exit code.
pub(super) fn conclude(record: &Record) -> Result<u8> {
    let lines = |Table { header, rows }| table(&header, &rows);
    let text = format!(
        "{}\nControls, which must fail:\n{}\n{}\n",
        lines(record.figures()),
        lines(record.controls()),
        record.verdict(),
    );
    // The verdict does not depend on whether anyone reads the table.
    match print(&text) {
        Err(error) if !is_closed_output(&error) => return Err(error),
        _ => {}
    }
    Ok(match record.findings().is_empty() {
        true => OK,
        false => BROKEN,
    })
}

/// Every figure of every step.
pub(super) fn write_json(file: &Path, record: &Record) -> Result<()> {
    write_file(file, |out| {
        serde_json::to_writer(&mut *out, record)?;
        writeln!(out)
    })?;
    Ok(())
}

/// A page with figures, in a folder of its own; `checkpoint` has the tokenizer.
pub(super) fn write_report(dir: &Path, record: &Record, checkpoint: &Checkpoint) -> Result<()> {
    let tokenizer = checkpoint.tokenizer()?;
    Ok(report::write(record, |id| tokenizer.token_text(id), dir)?)
}

//! `context-patch conformance`.

use std::io::Write;
use std::path::PathBuf;

use clap::{ArgGroup, Args};
use context_patch::Result;
use context_patch::compare::Rules;
use context_patch::conformance::{CASES, Outcome, Score, check, write};
use context_patch::output::{check_new_dir, check_writable, write_file};

use super::table::table;
use super::{BROKEN, OK, is_closed_output, print, tensors_bar};

/// Write a kit that another engine is held against, or score its results
///
/// The kit is nine small checkpoints, each for one thing that engines get wrong, with token ids and what every tensor of
/// a pass is in f64, f32 and bf16. An engine runs the checkpoints and records what it can; --check says for each where it
/// parts from ours, and why where it is a known bug. Exit code 0 when it does nowhere, 1 when it does.
#[derive(Args)]
#[command(group(ArgGroup::new("what").required(true)))]
pub(super) struct Conformance {
    /// The new folder to write the kit to
    #[arg(long, value_name = "DIR", group = "what")]
    output: Option<PathBuf>,

    /// The folder with an engine's results: CASE/f32.safetensors or CASE/bf16.safetensors (or .npz, or a folder)
    #[arg(long, value_name = "RESULTS", group = "what")]
    check: Option<PathBuf>,

    /// What names and layouts in the results mean, as for `compare`
    #[arg(long, value_name = "FILE", requires = "check")]
    map: Option<PathBuf>,

    /// Write the scores here
    #[arg(long, value_name = "FILE", requires = "check")]
    json: Option<PathBuf>,
}

impl Conformance {
    pub(super) fn run(&self) -> Result<u8> {
        let bar = tensors_bar("cases", CASES.len());
        if let Some(dir) = &self.output {
            check_new_dir(dir)?;
            write(dir, || bar.inc(1))?;
            bar.finish_and_clear();
            let text = format!("{}: cases: {}\n", dir.display(), CASES.len());
            print(&text)?;
            return Ok(OK);
        }
        if let Some(file) = &self.json {
            check_writable(file)?;
        }
        let rules = match &self.map {
            Some(file) => Rules::read(file)?,
            None => Rules::default(),
        };
        let results = self.check.as_deref().unwrap_or(std::path::Path::new("."));
        let scores = check(results, &rules, || bar.inc(1))?;
        bar.finish_and_clear();
        if let Some(file) = &self.json {
            write_file(file, |out| {
                serde_json::to_writer(&mut *out, &scores)?;
                writeln!(out)
            })?;
        }
        match print(&card(&scores)) {
            Err(error) if !is_closed_output(&error) => return Err(error),
            _ => {}
        }
        let good = |score: &Score| matches!(score.outcome, Outcome::Absent | Outcome::Within(_));
        Ok(if scores.iter().all(good) { OK } else { BROKEN })
    }
}

/// A row for each case that has results, in each compute type.
fn card(scores: &[Score]) -> String {
    let mut rows = Vec::new();
    let mut notes = String::new();
    let mut absent = Vec::new();
    for score in scores {
        let outcome = match &score.outcome {
            Outcome::Absent => {
                absent.push(format!("{} {}", score.case, score.dtype));
                continue;
            }
            Outcome::Unusable(why) => {
                notes += &format!("{} {}: {why}\n", score.case, score.dtype);
                "not comparable".into()
            }
            Outcome::Within(tensors) => format!("ok, tensors: {tensors}"),
            Outcome::Beyond(finding) => {
                let causes: Vec<_> = finding.causes.iter().map(|cause| cause.name).collect();
                let causes = match causes.is_empty() {
                    true => "unknown".to_owned(),
                    false => causes.join(" or "),
                };
                format!("WRONG at {}: {causes}", finding.tensor)
            }
        };
        rows.push((score.feature, score.case, &score.dtype, outcome));
    }
    // The outcome is a text, which the table's last column would put to the right.
    let outcomes: Vec<_> = rows.iter().map(|(.., outcome)| outcome.clone()).collect();
    let cells = rows
        .iter()
        .map(|(feature, case, dtype, _)| vec![format!("{case:<16} {feature}"), (*dtype).clone()]);
    let cells: Vec<_> = cells.collect();
    let text = table(&["case", "type"], &cells);
    let mut lines = text.lines();
    let mut card = format!("{}  outcome\n", lines.next().unwrap_or_default());
    for (line, outcome) in lines.zip(outcomes) {
        card += &format!("{line}  {outcome}\n");
    }
    card += &notes;
    if !absent.is_empty() {
        card += &format!("no results: {}\n", absent.join(", "));
    }
    card
}

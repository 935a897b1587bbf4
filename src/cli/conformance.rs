//! `context-patch conformance`.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args};
use context_patch::Result;
use context_patch::compare::Rules;
use context_patch::conformance::{CASES, Outcome, Score, check, write};
use context_patch::output::{check_new_dir, check_writable, write_file};

use super::progress::counting;
use super::table::table;
use super::words::{commands, counted, rows, size_of};
use super::{BROKEN, OK, is_closed_output, print, program};

/// Write a kit that another engine is held against, or score its results
///
/// The kit is 27 small checkpoints, each for one thing that engines get wrong, with token ids and what every tensor of
/// a pass is in f64, f32 and bf16. An engine runs the checkpoints and records what it can; --check says for each where it
/// parts from ours, and why where it is a known bug. Exit code 0 when it does nowhere, 1 when it does.
#[derive(Args)]
#[command(before_help = "\
Example; the kit's own recordings are right:
  context-patch conformance --output kit
  context-patch conformance --check kit")]
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
        let bar = counting("cases", CASES.len());
        if let Some(dir) = &self.output {
            check_new_dir(dir)?;
            write(dir, || bar.inc(1))?;
            bar.finish_and_clear();
            print(&written(dir))?;
            return Ok(OK);
        }
        if let Some(file) = &self.json {
            check_writable(file)?;
        }
        let rules = match &self.map {
            Some(file) => Rules::read(file)?,
            None => Rules::default(),
        };
        let results = self.check.as_deref().unwrap_or(Path::new("."));
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

/// What was written, and what to do with it.
fn written(dir: &Path) -> String {
    let size = size_of(dir).unwrap_or_default();
    let cases = counted(CASES.len(), "case");
    let todo = "run each CASE/model on CASE/ids.json with your engine, record what you can as RESULTS/CASE/f32.safetensors or \
                bf16.safetensors (README.md there says how), and hold it against the kit";
    rows([
        ("Written", format!("{}: {cases}, {size}", dir.display())),
        ("Now", todo.into()),
    ]) + &commands(&[format!("{} conformance --check RESULTS", program())])
}

/// A row for each case that has results, a column for each compute type, and what is to be said of what is not right.
fn card(scores: &[Score]) -> String {
    let mut dtypes: Vec<_> = scores.iter().map(|score| score.dtype.as_str()).collect();
    dtypes.sort_unstable_by(|a, b| b.cmp(a));
    dtypes.dedup();
    let of = |case, dtype: &str| {
        let mut scores = scores.iter();
        scores.find(|score| score.case == case && score.dtype == dtype)
    };
    let there = |score: &&Score| !matches!(score.outcome, Outcome::Absent);
    let mut cases: Vec<_> = scores
        .iter()
        .filter(there)
        .map(|score| score.case)
        .collect();
    cases.dedup();
    let rows = cases.iter().map(|case| {
        let outcomes = dtypes
            .iter()
            .map(|dtype| of(*case, dtype).map_or("–", mark));
        let cells = std::iter::once(*case).chain(outcomes);
        cells.map(str::to_owned).collect::<Vec<_>>()
    });
    let header: Vec<_> = std::iter::once("case")
        .chain(dtypes.iter().copied())
        .collect();
    let mut card = table(1, &header, &rows.collect::<Vec<_>>());
    card.push('\n');
    card.extend(scores.iter().filter_map(note));
    let count = |outcome: fn(&Outcome) -> bool| {
        scores
            .iter()
            .filter(|score| outcome(&score.outcome))
            .count()
    };
    card + &format!(
        "{} right, {} wrong, {} not comparable, {} without results.\n",
        count(|outcome| matches!(outcome, Outcome::Within(_))),
        count(|outcome| matches!(outcome, Outcome::Beyond(_))),
        count(|outcome| matches!(outcome, Outcome::Unusable(_))),
        count(|outcome| matches!(outcome, Outcome::Absent)),
    )
}

/// An outcome in a table.
fn mark(score: &Score) -> &'static str {
    match score.outcome {
        Outcome::Absent => "–",
        Outcome::Unusable(_) => "?",
        Outcome::Within(_) => "ok",
        Outcome::Beyond(_) => "WRONG",
    }
}

/// What there is to say of a result that is not right.
fn note(score: &Score) -> Option<String> {
    let Score {
        case,
        feature,
        dtype,
        outcome,
    } = score;
    match outcome {
        Outcome::Absent | Outcome::Within(_) => None,
        Outcome::Unusable(why) => Some(format!("{case} {dtype}: not comparable\n  {why}\n")),
        Outcome::Beyond(finding) => {
            let mut note = format!(
                "{case} {dtype} ({feature}): WRONG first at\n  {}\n",
                finding.tensor
            );
            for cause in &finding.causes {
                note += &format!("  likely cause: {}: {}\n", cause.name, cause.meaning);
            }
            if finding.causes.is_empty() {
                note += "  likely cause: none of the known bugs\n";
            }
            Some(note)
        }
    }
}

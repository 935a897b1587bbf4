//! `context-patch compare`.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use context_patch::Result;
use context_patch::compare::{self, Comparison, Recording, Report, Row, Rules, model_of};
use context_patch::kernels::Level;
use context_patch::model::{Model, ModelOptions};
use context_patch::output::{check_writable, write_file};
use context_patch::tensor::Dtype;

use super::table::table;
use super::{BROKEN, OK, is_closed_output, print, tensors_bar};

/// Find where another engine's recording parts from ours, and why
///
/// REFERENCE is a recording by `context-patch trace`. OTHER is one of the same tokens by another engine: a safetensors file, a
/// .npz or a folder of .npy files, with the names of Hugging Face, llama.cpp, candle or TransformerLens, or what --map says.
/// Every operation is done again on what OTHER recorded of its inputs. What that is off from REFERENCE is inherited, and
/// what OTHER is off from that is added there; numbers that no rounding explains are beyond, and the first tensor that
/// has some is the finding, named with its cause where it is a known bug. Exit code 0 when there is none, 1 when there is one,
/// 2 when a file cannot be used.
#[derive(Args)]
pub(super) struct Compare {
    /// A recording by `context-patch trace`
    reference: PathBuf,

    /// The recording to look at
    other: PathBuf,

    /// What names and layouts in OTHER mean, one rule a line: THEIRS = OURS [layout]
    #[arg(long, value_name = "FILE")]
    map: Option<PathBuf>,

    /// The model [default: the one that REFERENCE names]
    #[arg(long, value_name = "DIR|ID")]
    model: Option<String>,

    /// The compute type of OTHER: f64, f32 or bf16 [default: what it says, or what its numbers are]
    #[arg(long)]
    dtype: Option<Dtype>,

    /// Compare what is there, also where OTHER lacks tensors
    #[arg(long)]
    partial: bool,

    /// Write every figure here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Compare {
    pub(super) fn run(&self, level: Option<Level>) -> Result<u8> {
        if let Some(file) = &self.json {
            check_writable(file)?;
        }
        let model = self.open(level)?;
        let rules = match &self.map {
            Some(file) => Rules::read(file)?,
            None => Rules::default(),
        };
        let reference = Recording::open(&self.reference, model.config(), &Rules::default())?;
        let other = Recording::open(&self.other, model.config(), &rules)?;
        let comparison = Comparison::new(&model, &reference, &other, self.dtype, self.partial)?;
        let bar = tensors_bar("tensors", comparison.tensors());
        let report = comparison.run(|| bar.inc(1))?;
        bar.finish_and_clear();
        if let Some(file) = &self.json {
            write_file(file, |out| {
                serde_json::to_writer(&mut *out, &report)?;
                writeln!(out)
            })?;
        }
        match print(&format!("{}{}", rows(&report), verdict(&report))) {
            Err(error) if !is_closed_output(&error) => return Err(error),
            _ => {}
        }
        Ok(if report.finding.is_none() { OK } else { BROKEN })
    }

    fn open(&self, level: Option<Level>) -> Result<Model> {
        let model = match &self.model {
            Some(model) => model.clone(),
            None => named(&self.reference)?,
        };
        let options = ModelOptions {
            level,
            ..ModelOptions::default()
        };
        Ok(Model::open_with(&model, options)?)
    }
}

/// The model that a reference names: a folder beside it where there is one, as in a conformance kit.
fn named(reference: &Path) -> Result<String> {
    let name = model_of(reference)?.ok_or_else(|| compare::Error::NotAReference {
        path: reference.into(),
    })?;
    let beside = reference.with_file_name(&name);
    Ok(match Path::new(&name).is_dir() {
        false if beside.is_dir() => beside.display().to_string(),
        _ => name,
    })
}

/// What is left out of names in the table.
const LAYERS: &str = "model.layers.";

fn rows(report: &Report) -> String {
    // With what stands before most names as its header, a line of a model with two digits of layers fits 100 columns.
    let header = [
        LAYERS,
        "L∞",
        "rel.",
        "1−cos",
        "ulps",
        "floor",
        "inherited",
        "added",
        "beyond",
    ];
    let rows: Vec<_> = report
        .rows
        .iter()
        .map(|row| cells(row, &report.dtype))
        .collect();
    match rows.is_empty() {
        true => String::new(),
        false => table(&header, &rows),
    }
}

fn cells(row: &Row, dtype: &str) -> Vec<String> {
    let figure = |x: f64| match x {
        0.0 => "0".to_owned(),
        _ => format!("{x:.1e}"),
    };
    let floor = match dtype {
        "bf16" => row.floor.bf16,
        _ => row.floor.f32,
    };
    vec![
        row.name.strip_prefix(LAYERS).unwrap_or(&row.name).into(),
        figure(row.distance.linf),
        figure(row.distance.relative),
        figure(row.distance.one_minus_cosine.max(0.0)),
        match row.distance.ulps {
            ulps if ulps < 1e4 => format!("{ulps:.1}"),
            ulps => figure(ulps),
        },
        figure(floor),
        figure(row.inherited),
        figure(row.added),
        match &row.beyond {
            None => "–".into(),
            Some(beyond) => share(beyond.numbers, row.numbers),
        },
    ]
}

/// A part of all numbers, never shown as none or all unless it is.
fn share(part: usize, all: usize) -> String {
    match 100.0 * part as f64 / all as f64 {
        percent if percent < 1.0 => "< 1 %".into(),
        percent => format!("{:.0} %", percent.floor()),
    }
}

fn verdict(report: &Report) -> String {
    let mut text = String::new();
    if !report.missing.is_empty() {
        let (count, first) = (report.missing.len(), &report.missing[0]);
        text += &format!("not recorded: tensors {count}, {first} first\n");
    }
    let Some(finding) = &report.finding else {
        let rows = report.rows.len();
        return text
            + &format!(
                "Within rounding of {} at all tensors, {rows}.\n",
                report.dtype
            );
    };
    text += &format!("BEYOND ROUNDING first at {}", finding.tensor);
    let row = report.rows.iter().find(|row| row.name == finding.tensor);
    if let Some((row, beyond)) = row.and_then(|row| row.beyond.as_ref().map(|b| (row, b))) {
        text += &format!(
            ": {} of {} numbers\nfurthest: row {} column {} has {:e}, should have {:e} ± {:.1e}",
            beyond.numbers,
            row.numbers,
            beyond.row,
            beyond.column,
            beyond.got,
            beyond.want,
            beyond.allowed,
        );
    }
    text.push('\n');
    for cause in &finding.causes {
        text += &format!("likely cause: {}: {}\n", cause.name, cause.meaning);
    }
    if finding.causes.is_empty() {
        text += "likely cause: none of the known bugs\n";
    }
    text
}

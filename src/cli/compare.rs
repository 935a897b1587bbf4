//! `context-patch compare`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use context_patch::Result;
use context_patch::compare::{
    self, Aside, Comparison, Precision, Recording, Report, Row, Rules, model_of,
};
use context_patch::kernels::Level;
use context_patch::model::{Model, ModelOptions};
use context_patch::output::{check_writable, write_file};

use super::progress::{counting, waiting};
use super::table::table;
use super::text::read_input;
use super::words::{counted, figure, paragraph};
use super::{BROKEN, OK, builtin, is_closed_output, one_line, print};

/// Find where another engine's recording parts from ours, and why
///
/// REFERENCE is a recording by `context-patch trace`. OTHER is one of the same tokens by another engine: a safetensors file, a
/// .npz or a folder of .npy files, with the names of Hugging Face, llama.cpp, candle or TransformerLens, or what --map says.
/// Every operation is done again on what OTHER recorded of its inputs. What that is off from REFERENCE is inherited, and
/// what OTHER is off from that is added there; numbers that no rounding explains are beyond, and the first tensor that
/// has some is the finding, named with its cause where it is a known bug. A product that is as ggml has it, with activations in
/// 8 bits where the weight is quantised, is called activations-q8 and is no finding. Exit code 0 when there is none, 1 when
/// there is one, 2 when a file cannot be used.
#[derive(Args)]
#[command(before_help = "\
Example, with the small model that is built in, and a copy of it that is wrong:
  context-patch trace --model tiny --prompt 'Bob likes figs.' --dtype f64 \\
      --output reference.safetensors
  context-patch trace --model tiny --prompt 'Bob likes figs.' --mutate silu \\
      --output theirs.safetensors
  context-patch compare reference.safetensors theirs.safetensors")]
pub(super) struct Compare {
    /// A recording by `context-patch trace`
    reference: PathBuf,

    /// The recording to look at
    other: PathBuf,

    /// What names and layouts in OTHER mean, one rule a line: THEIRS = OURS [layout]; - is standard
    /// input
    #[arg(long, value_name = "FILE")]
    map: Option<PathBuf>,

    /// The model [default: the one that REFERENCE names]
    #[arg(long, value_name = "DIR|ID")]
    model: Option<String>,

    /// The compute type of OTHER: f64, f32, f16 or bf16 [default: what it says, or what its numbers are]. Numbers that
    /// were recorded in a coarser type stand for all that round to them
    #[arg(long)]
    dtype: Option<Precision>,

    /// Compare what is there, also where OTHER lacks tensors
    #[arg(long)]
    partial: bool,

    /// Exit with code 1 also where the activations of products were rounded to 8 bits, as ggml rounds them
    #[arg(long)]
    exact_activations: bool,

    /// Print a line for every tensor, and not only for those that are beyond rounding
    #[arg(long)]
    all: bool,

    /// Write every figure here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Compare {
    pub(super) fn run(&self, level: Option<Level>) -> Result<u8> {
        if let Some(file) = &self.json {
            check_writable(file)?;
        }
        let model = waiting("Reading the model", || self.open(level))?;
        let rules = match &self.map {
            Some(file) => Rules::parse(file, &read_input(file)?)?,
            None => Rules::default(),
        };
        let reference = Recording::open(&self.reference, &model, &Rules::default())?;
        let other = Recording::open(&self.other, &model, &rules)?;
        let comparison = Comparison::new(&model, &reference, &other, self.dtype, self.partial)?;
        let bar = counting("tensors", comparison.tensors());
        let report = comparison.run(|| bar.inc(1))?;
        bar.finish_and_clear();
        if let Some(file) = &self.json {
            write_file(file, |out| {
                serde_json::to_writer(&mut *out, &report)?;
                writeln!(out)
            })?;
        }
        let text = lines(&report, self.all) + &verdict(&report);
        match print(&text) {
            Err(error) if !is_closed_output(&error) => return Err(error),
            _ => {}
        }
        let refused = self.exact_activations && rounded(&report).next().is_some();
        Ok(match report.finding {
            None if !refused => OK,
            _ => BROKEN,
        })
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
        builtin::open(&model, None, options)
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

/// What the names of the vision part, which are long, begin with in the table.
const VISION: [(&str, &str); 4] = [
    ("model.vision_tower.encoder.layers.", "tower."),
    ("model.vision_tower.embeddings.", "tower."),
    ("model.vision_tower.", "tower."),
    ("model.multi_modal_projector.", "projector."),
];

/// What the columns mean.
const LEGEND: &str = "L∞: the largest difference from the reference; floor: that of our own pass in this type; inherited: what came in with the \
                      inputs; added: what the operation did; beyond: numbers that no rounding explains.";

/// How many tensors that are beyond rounding are listed.
const LISTED: usize = 8;

/// A table of the tensors that are beyond rounding, or of all, and a blank line; nothing where there is none.
fn lines(report: &Report, all: bool) -> String {
    let rows = report.rows.iter().filter(|row| all || row.beyond.is_some());
    let rows: Vec<_> = rows.collect();
    let most = if all { rows.len() } else { LISTED };
    // With what stands before most names as its header, a line of a model with two digits of layers fits.
    let header = [
        LAYERS,
        "L∞",
        "ulps",
        "floor",
        "inherited",
        "added",
        "beyond",
    ];
    let cells = rows.iter().take(most).map(|row| cells(row, &report.dtype));
    let cells: Vec<_> = cells.collect();
    if cells.is_empty() {
        return String::new();
    }
    let more = match rows.len() - cells.len() {
        0 => String::new(),
        more => format!("… and {more} more; --all lists every tensor\n"),
    };
    let (table, legend) = (table(1, &header, &cells), paragraph(LEGEND));
    format!("{table}{more}\n{legend}\n")
}

/// A name as it is in the table.
fn short(name: &str) -> String {
    if let Some(name) = name.strip_prefix(LAYERS) {
        return name.into();
    }
    let mut vision = VISION.iter().filter_map(|(path, short)| {
        let rest = name.strip_prefix(path)?;
        Some(format!("{short}{rest}"))
    });
    vision.next().unwrap_or_else(|| name.into())
}

fn cells(row: &Row, dtype: &str) -> Vec<String> {
    let floor = match dtype {
        "bf16" => row.floor.bf16,
        _ => row.floor.f32,
    };
    vec![
        short(&row.name),
        figure(row.distance.linf),
        figure(row.distance.ulps),
        figure(floor),
        figure(row.inherited),
        figure(row.added),
        match (&row.beyond, row.activations) {
            (None, None) => "–".into(),
            (None, Some(activations)) => activations.to_string(),
            (Some(beyond), _) => share(beyond.numbers, row.numbers),
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
    if let Some(first) = report.missing.first() {
        let missing = counted(report.missing.len(), "tensor");
        text += &format!("not recorded: {missing}, {first} first\n");
    }
    text += &aside(&report.aside);
    text += &stored(report);
    text += &activations(report);
    let Some(finding) = &report.finding else {
        return text + &within(report);
    };
    text += &format!("BEYOND ROUNDING first at {}", finding.tensor);
    let row = report.rows.iter().find(|row| row.name == finding.tensor);
    if let Some((row, beyond)) = row.and_then(|row| row.beyond.as_ref().map(|b| (row, b))) {
        let number = |x: f64| number(x, &report.dtype);
        text += &format!(
            ": {} of {} numbers\nfurthest: row {} column {} has {}, should have {} ± {}",
            beyond.numbers,
            row.numbers,
            beyond.row,
            beyond.column,
            number(beyond.got),
            number(beyond.want),
            figure(beyond.allowed),
        );
    }
    text.push('\n');
    for cause in &finding.causes {
        text += &format!("likely cause: {}: {}\n", cause.name, cause.meaning);
    }
    if finding.causes.is_empty() {
        text += "likely cause: none of the known bugs\n";
    }
    if report.guessed && report.rows.iter().all(|row| row.stored == "bf16") {
        text += "OTHER is taken for computed in bf16; if it was f32, rounded for the file, add --dtype f32\n";
    }
    text
}

/// How many lines the list of what is set aside has.
const ASIDE_LISTED: usize = 5;

/// The names that were set aside, those of all layers in one line, and what they may have been meant to be.
fn aside(aside: &[Aside]) -> String {
    if aside.is_empty() {
        return String::new();
    }
    let form = |aside: &Aside| aside.name.replace(|c: char| c.is_ascii_digit(), "");
    let mut groups: Vec<(&Aside, usize)> = Vec::new();
    for aside in aside {
        let mut same = groups.iter_mut();
        match same.find(|(first, _)| form(first) == form(aside) && first.reason == aside.reason) {
            Some((_, more)) => *more += 1,
            None => groups.push((aside, 0)),
        }
    }
    // First what may be a mistake.
    groups.sort_by_key(|(aside, _)| (aside.spare, aside.nearest.is_none()));
    let mut text = format!("not compared: tensors {}\n", aside.len());
    for (aside, more) in groups.iter().take(ASIDE_LISTED) {
        text += &format!("  {}", one_line(&aside.name));
        if *more > 0 {
            text += &format!(" and {more} like it");
        }
        text += &format!(": {}", one_line(&aside.reason));
        if let Some(nearest) = &aside.nearest {
            text += &format!(", nearest is {}", one_line(nearest));
        }
        text.push('\n');
    }
    if groups.len() > ASIDE_LISTED {
        let left = groups[ASIDE_LISTED..].iter().map(|(_, more)| more + 1);
        text += &format!("  and {} more; --json FILE has all\n", left.sum::<usize>());
    }
    text
}

/// What was lost when the numbers were recorded.
fn stored(report: &Report) -> String {
    let mut text = String::new();
    for kind in ["f16", "bf16", "f32"] {
        let rows = report.rows.iter().filter(|row| row.stored == kind);
        let coarse = rows.filter(|row| row.coarse).count();
        if coarse > 0 {
            text += &format!(
                "recorded in {kind}: tensors {coarse}; each number stands for all that round to it\n"
            );
        }
    }
    let overflowed: usize = report.rows.iter().map(|row| row.overflowed).sum();
    if overflowed > 0 {
        text += &format!(
            "too large for f16: numbers {overflowed}, above 65504; what comes from them is not checked\n"
        );
    }
    text
}

/// The products whose activations were rounded to 8 bits.
fn rounded(report: &Report) -> impl Iterator<Item = &Row> {
    let rows = report.rows.iter();
    rows.filter(|row| row.activations.is_some())
}

/// How many these are, and what that means.
fn activations(report: &Report) -> String {
    let Some(first) = rounded(report).next() else {
        return String::new();
    };
    let mut kinds = BTreeMap::new();
    for kind in rounded(report).filter_map(|row| row.activations) {
        *kinds.entry(kind).or_insert(0) += 1;
    }
    let kinds = kinds.iter().map(|(kind, count)| format!("{kind} {count}"));
    paragraph(&format!(
        "activations-q8: in {}, {} first, activations are rounded to 8 bits ({}), as in ggml; apart from that these products are right",
        counted(rounded(report).count(), "product"),
        first.name,
        kinds.collect::<Vec<_>>().join(", "),
    ))
}

/// That nothing is beyond, and how far off the last tensor is.
fn within(report: &Report) -> String {
    let (rows, rounded) = (report.rows.len(), rounded(report).count());
    let mut text = format!(
        "Within rounding of {}: {} of {}",
        report.dtype,
        rows - rounded,
        counted(rows, "tensor")
    );
    text += &match rounded {
        0 => ".\n".into(),
        more => format!(", and with activations in 8 bits {more}.\n"),
    };
    if let Some(last) = report.rows.last() {
        text += &paragraph(&format!(
            "{} is off by {} at most, of which {} came in with its inputs; our own pass is off by {} in f32, {} in bf16.",
            last.name,
            figure(last.distance.linf),
            figure(last.inherited),
            figure(last.floor.f32),
            figure(last.floor.bf16),
        ));
    }
    text
}

/// A recorded number with the digits that its type has.
fn number(x: f64, dtype: &str) -> String {
    match dtype {
        "f64" => format!("{x:?}"),
        _ => format!("{:?}", x as f32),
    }
}

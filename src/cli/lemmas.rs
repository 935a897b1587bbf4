//! `context-patch lemmas`.

use std::num::NonZeroU64;

use clap::Args;
use context_patch::Result;
use context_patch::forms::{CONTROL, Form, Refusal, Summary, refusals};
use context_patch::kernels::Level;
use context_patch::patch::Precondition;
use context_patch::tensor::{Dtype, Element};
use half::bf16;
use serde_json::{Value, json};

use super::progress::counting;
use super::table::table;
use super::words::{figure, paragraph, percent};
use super::{BROKEN, OK, is_closed_output, print};

/// Check Theorem 5 on small random blocks of every family
///
/// Each block is patched by the lemmas that fit its parts, so that it says without a part of its context what it
/// says with all of it, T(C, x). An error is the largest difference from that, over the largest number
/// of T(C, x); shown is the worst over all seeds. The bound is derived from the roundings that
/// happen (docs/numerics.md). Controls leave out the patch, or half of it, and must be off by 0.1
/// or more. Then every precondition is made to fail, and must be refused by name. Exit code 1 when a
/// bound is broken, a control is not off, or a block that has no patch gets one.
#[derive(Args)]
#[command(before_help = "\
Example; it needs no model:
  context-patch lemmas")]
pub(super) struct Lemmas {
    /// Random blocks of each form; among thousands one may be hardly off without its patch
    #[arg(long, value_name = "N", default_value = "5")]
    seeds: NonZeroU64,

    /// Compute types: f64, f32, bf16
    #[arg(long, value_delimiter = ',', default_values_t = [Dtype::F64, Dtype::F32])]
    dtype: Vec<Dtype>,

    /// Print one JSON object instead of the tables
    #[arg(long)]
    json: bool,
}

/// All that is tried in one compute type.
struct Run {
    dtype: Dtype,
    forms: Vec<(&'static str, Result<Summary, Precondition>)>,
    refusals: Vec<Refusal>,
}

impl Run {
    /// `on_form` is called after each form.
    fn new<E: Element>(
        level: Level,
        forms: &[Form],
        seeds: NonZeroU64,
        on_form: impl Fn(),
    ) -> Self {
        let summaries = forms.iter().map(|form| {
            let summary = Summary::new::<E>(level, form, seeds);
            on_form();
            (form.name, summary)
        });
        Self {
            dtype: E::DTYPE,
            forms: summaries.collect(),
            refusals: refusals::<E>(level, forms),
        }
    }

    fn summaries(&self) -> impl Iterator<Item = &Summary> {
        self.forms.iter().filter_map(|(_, form)| form.as_ref().ok())
    }
}

impl Lemmas {
    pub(super) fn run(&self, level: Option<Level>) -> Result<u8> {
        let level = level.unwrap_or_else(Level::best);
        let forms = Form::all()?;
        let bar = counting("forms", self.dtype.len() * forms.len());
        let runs = self.dtype.iter().map(|dtype| match dtype {
            Dtype::F64 => Run::new::<f64>(level, &forms, self.seeds, || bar.inc(1)),
            Dtype::F32 => Run::new::<f32>(level, &forms, self.seeds, || bar.inc(1)),
            Dtype::Bf16 => Run::new::<bf16>(level, &forms, self.seeds, || bar.inc(1)),
        });
        let runs: Vec<_> = runs.collect();
        let broken: Vec<_> = runs.iter().flat_map(broken).collect();
        bar.finish_and_clear();
        let text = if self.json {
            format!("{}\n", report(&runs, self.seeds, &broken))
        } else {
            let tables: String = runs.iter().map(tables).collect();
            format!("{tables}{}\n{}", paragraph(LEGEND), verdict(&broken))
        };
        // The verdict does not depend on whether anyone reads the table.
        match print(&text) {
            Err(error) if !is_closed_output(&error) => return Err(error),
            _ => {}
        }
        Ok(if broken.is_empty() { OK } else { BROKEN })
    }
}

/// What the columns mean.
const LEGEND: &str = "error: the largest difference from the block that sees its context, relative to its largest number; of bound: how \
                      much of the derived tolerance is used; no patch: the least error without one.";

fn tables(run: &Run) -> String {
    let figures = run.summaries().map(|form| {
        let shares = form.inner.iter().chain([&form.block]).map(|d| d.share);
        vec![
            form.form.to_owned(),
            form.patch.clone(),
            figure(form.block.relative),
            percent(shares.fold(0.0, f64::max)),
            figure(form.controls.no_patch),
        ]
    });
    let dtype = run.dtype.to_string();
    let header = [&dtype, "lemmas", "error", "of bound", "no patch"];
    let refused = run.refusals.iter().filter(|case| case.refused.is_some());
    let cases: Vec<_> = run
        .refusals
        .iter()
        .map(|case| format!("{} ({})", case.what, case.form))
        .collect();
    let refused = format!(
        "Refused, as there is no patch: {} of {}: {}.",
        refused.count(),
        cases.len(),
        cases.join(", "),
    );
    format!(
        "{}\n{}\n",
        table(2, &header, &figures.collect::<Vec<_>>()),
        paragraph(&refused)
    )
}

fn cause(refused: &Precondition) -> String {
    format!("{} = {:?}", refused.quantity, refused.value)
}

/// What does not hold, a line each.
fn broken(run: &Run) -> Vec<String> {
    let dtype = run.dtype;
    let forms = run.forms.iter().filter_map(|(name, form)| match form {
        Err(refused) => Some(format!("BROKEN: {dtype} {name}: {}", cause(refused))),
        Ok(form) if !form.holds() => Some(format!("BROKEN: {dtype} {name} is out of its bound")),
        Ok(form) if !form.controls_fail() => {
            Some(format!("NO POWER: {dtype} {name}, a control is hardly off"))
        }
        Ok(_) => None,
    });
    let patched = run.refusals.iter().filter(|case| case.refused.is_none());
    let patched =
        patched.map(|case| format!("BROKEN: {dtype} {}, {}: not refused", case.form, case.what));
    forms.chain(patched).collect()
}

fn verdict(broken: &[String]) -> String {
    match broken {
        [] => paragraph(
            "Every bound holds, every control fails, and every failing precondition is refused.",
        ),
        broken => broken.iter().map(|line| format!("{line}\n")).collect(),
    }
}

fn report(runs: &[Run], seeds: NonZeroU64, broken: &[String]) -> Value {
    let runs = runs.iter().map(|run| {
        let forms = run.summaries().map(|form| {
            json!({
                "form": form.form,
                "patch": form.patch,
                "rank": form.rank,
                "inside": form.inner,
                "block": form.block,
                "controls": form.controls,
            })
        });
        let refusals = run.refusals.iter().map(|case| {
            let refused = case.refused.as_ref();
            json!({
                "what": case.what,
                "form": case.form,
                "quantity": refused.map(|refused| &refused.quantity),
                "value": refused.map(|refused| refused.value),
            })
        });
        json!({
            "dtype": run.dtype.to_string(),
            "forms": forms.collect::<Vec<_>>(),
            "refusals": refusals.collect::<Vec<_>>(),
        })
    });
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "seeds": seeds,
        "least_control": CONTROL,
        "runs": runs.collect::<Vec<_>>(),
        "broken": broken,
    })
}

//! `context-patch lemmas`.

use std::num::NonZeroU64;

use clap::Args;
use context_patch::Result;
use context_patch::forms::{CONTROL, FORMS, Refusal, Summary, refusals};
use context_patch::kernels::Level;
use context_patch::patch::Precondition;
use context_patch::tensor::{Dtype, Float};
use serde_json::{Value, json};

use super::table::table;
use super::{BROKEN, OK, is_closed_output, print};

/// Check Theorem 5 on small random blocks of every family that the paper names
///
/// Each block is patched by the lemmas that fit its parts, so that it says without a part of its context what it
/// says with all of it, T(C, x). An error is the largest difference from that, over the largest number
/// of T(C, x); shown is the worst over all seeds. The bound is derived from the roundings that
/// happen (docs/numerics.md). Controls leave out the patch, or half of it, and must be off by 0.1
/// or more. Then every precondition is made to fail, and must be refused by name. Exit code 1 when a
/// bound is broken, a control is not off, or a block that has no patch gets one.
#[derive(Args)]
pub(super) struct Lemmas {
    /// Random blocks of each form; among thousands one may be hardly off without its patch
    #[arg(long, value_name = "N", default_value = "5")]
    seeds: NonZeroU64,

    /// Compute types: f64, f32
    #[arg(long, value_delimiter = ',', value_parser = float, default_values_t = [Dtype::F64, Dtype::F32])]
    dtype: Vec<Dtype>,

    /// Print one JSON object instead of the tables
    #[arg(long)]
    json: bool,
}

fn float(text: &str) -> Result<Dtype, String> {
    match text.parse()? {
        Dtype::Bf16 => Err("the bounds are derived for f64 and f32 alone".into()),
        dtype => Ok(dtype),
    }
}

/// All that is tried in one compute type.
struct Run {
    dtype: Dtype,
    forms: Vec<(&'static str, Result<Summary, Precondition>)>,
    refusals: Vec<Refusal>,
}

impl Run {
    fn new<A: Float>(level: Level, seeds: NonZeroU64) -> Self {
        let forms = FORMS.iter();
        Self {
            dtype: A::DTYPE,
            forms: forms
                .map(|form| (form.name, Summary::new::<A>(level, form, seeds)))
                .collect(),
            refusals: refusals::<A>(level),
        }
    }

    fn summaries(&self) -> impl Iterator<Item = &Summary> {
        self.forms.iter().filter_map(|(_, form)| form.as_ref().ok())
    }
}

impl Lemmas {
    pub(super) fn run(&self, level: Option<Level>) -> Result<u8> {
        let level = level.unwrap_or_else(Level::best);
        let runs = self.dtype.iter().map(|dtype| match dtype {
            Dtype::F64 => Run::new::<f64>(level, self.seeds),
            Dtype::F32 | Dtype::Bf16 => Run::new::<f32>(level, self.seeds),
        });
        let runs: Vec<_> = runs.collect();
        let broken: Vec<_> = runs.iter().flat_map(broken).collect();
        let text = match self.json {
            true => format!("{}\n", report(&runs, self.seeds, &broken)),
            false => {
                let tables: String = runs.iter().map(tables).collect();
                format!("{tables}{}", verdict(&broken))
            }
        };
        // The verdict does not depend on whether anyone reads the table.
        match print(&text) {
            Err(error) if !is_closed_output(&error) => return Err(error),
            _ => {}
        }
        Ok(if broken.is_empty() { OK } else { BROKEN })
    }
}

fn tables(run: &Run) -> String {
    let dtype = run.dtype.to_string();
    let figures = run.summaries().map(|form| {
        let inside = form.inner.map(|inner| inner.relative);
        let shares = form.inner.iter().chain([&form.block]).map(|d| d.share);
        vec![
            form.form.to_owned(),
            form.patch.clone(),
            form.rank.to_string(),
            optional(inside, |inside| format!("{inside:.1e}")),
            format!("{:.1e}", form.block.relative),
            format!("{:.1e}", form.block.bound),
            format!("{:.0} %", 100.0 * shares.fold(0.0, f64::max)),
        ]
    });
    let controls = run.summaries().map(|form| {
        let controls = &form.controls;
        let off = |off: f64| format!("{off:.2}");
        vec![
            form.form.to_owned(),
            off(controls.no_patch),
            optional(controls.without_inner, off),
            optional(controls.without_outer, off),
        ]
    });
    let refusals = run.refusals.iter().map(|refusal| {
        vec![
            refusal.what.to_owned(),
            refusal.form.to_owned(),
            refusal.refused.as_ref().map_or("patched".into(), cause),
        ]
    });
    let figures_header = [
        &dtype, "patch", "rank", "inside", "error", "bound", "of bound",
    ];
    let controls_header = ["", "no patch", "inner left out", "outer left out"];
    format!(
        "{}\nControls, which must be off by {CONTROL}:\n{}\nPreconditions that fail, which must be refused:\n{}\n",
        table(&figures_header, &figures.collect::<Vec<_>>()),
        table(&controls_header, &controls.collect::<Vec<_>>()),
        table(&["", "form", "refused for"], &refusals.collect::<Vec<_>>()),
    )
}

fn optional(x: Option<f64>, shown: impl Fn(f64) -> String) -> String {
    x.map_or_else(|| "–".into(), shown)
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
        [] => {
            "Every bound holds, every control fails, and every failing precondition is refused.\n"
                .into()
        }
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

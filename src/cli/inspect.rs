//! `context-patch inspect`.

use std::path::PathBuf;

use clap::Args;
use context_patch::Result;
use context_patch::patch::SavedPatch;
use serde_json::{Value, json};

use super::layers::layers;
use super::words::{commands, counted, quoted, rows, shell};
use super::{OK, print, program};

/// Print what a patch file says of itself: the model, what was absorbed, and how each layer was solved
#[derive(Args)]
#[command(before_help = "\
Example, with the small model that is built in:
  context-patch patch --model tiny --output figs.patch \\
      --context 'Ann likes plums. Bob likes figs. Bob likes'
  context-patch inspect figs.patch")]
pub(super) struct Inspect {
    /// The patch file
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Print one JSON object with every figure instead
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub(super) fn run(&self) -> Result<u8> {
        let saved = SavedPatch::load(&self.file)?;
        let text = if self.json {
            format!("{}\n", object(&saved))
        } else {
            let file = shell(&self.file.to_string_lossy());
            let model = shell(&saved.model);
            let next = format!("{} apply --model {model} --patch {file}", program());
            let (split, layers) = (describe(&saved), layers(&saved.report));
            format!("{split}\n{layers}\n{}", commands(&[next]))
        };
        print(&text)?;
        Ok(OK)
    }
}

/// Everything that a patch file says, but for the weights.
pub(super) fn object(saved: &SavedPatch) -> Value {
    json!({
        "model": saved.model,
        "model_hash": saved.model_hash,
        "dtype": saved.dtype.to_string(),
        "split": saved.split,
        "reduced_tokens": saved.split.reduced_tokens(),
        "reduced_positions": saved.split.reduced_positions(),
        "method": saved.method,
        "report": saved.report,
    })
}

/// What a patch is of, in a few lines.
fn describe(saved: &SavedPatch) -> String {
    let split = &saved.split;
    let (context, kept) = (split.context().len(), split.kept().len());
    let queries = split.queries().len();
    let positions = split.reduced_positions();
    let place = match positions[kept..] {
        [only] => format!("position {only}"),
        [first, .., last] => format!("positions {first} to {last}"),
        [] => String::new(),
    };
    let answer = match split.answer().len() {
        0 => String::new(),
        answer => format!(", the last {answer} of them the answer"),
    };
    rows([
        ("model", quoted(&saved.model, 200).trim_matches('"').into()),
        ("weights", saved.model_hash.escape_debug().to_string()),
        (
            "absorbed",
            format!(
                "{} of {} of the context",
                context - kept,
                counted(context, "token")
            ),
        ),
        (
            "for",
            format!(
                "{} at {place} ({}){answer}",
                counted(queries, "token"),
                split.positions()
            ),
        ),
        (
            "solver",
            format!(
                "{} in {}, applied as {}, gain {}",
                saved.method.solver, saved.dtype, saved.method.form, saved.method.gain,
            ),
        ),
    ])
}

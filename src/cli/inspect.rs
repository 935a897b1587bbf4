//! `context-patch inspect`.

use std::path::PathBuf;

use clap::Args;
use context_patch::Result;
use context_patch::patch::SavedPatch;

use super::layers::layers;
use super::{OK, print};

/// Print what a patch file says of itself: the model, what was absorbed, and how each layer was solved
#[derive(Args)]
pub(super) struct Inspect {
    /// The patch file
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub(super) fn run(&self) -> Result<u8> {
        let saved = SavedPatch::load(&self.file)?;
        if self.json {
            let object = serde_json::json!({
                "model": saved.model,
                "model_hash": saved.model_hash,
                "dtype": saved.dtype.to_string(),
                "split": saved.split,
                "reduced_tokens": saved.split.reduced_tokens(),
                "reduced_positions": saved.split.reduced_positions(),
                "method": saved.method,
                "report": saved.report,
            });
            print(&format!("{object}\n"))?;
        } else {
            print(&format!("{}\n{}", describe(&saved), layers(&saved.report)))?;
        }
        Ok(OK)
    }
}

/// What a patch is of, in a few lines.
pub(super) fn describe(saved: &SavedPatch) -> String {
    let split = &saved.split;
    let (context, kept) = (split.context().len(), split.kept().len());
    let positions = split.reduced_positions();
    format!(
        "model      {} ({})\n\
         absorbed   {} of {context} tokens\n\
         stays      {kept} tokens, then {} for which the patch is, of these {} the answer\n\
         positions  {}: {} to {}\n\
         solver     {}, {} {}, gain {}\n",
        saved.model.escape_debug(),
        saved.model_hash.escape_debug(),
        context - kept,
        split.queries().len(),
        split.answer().len(),
        split.positions(),
        positions.first().copied().unwrap_or_default(),
        positions.last().copied().unwrap_or_default(),
        saved.method.solver,
        saved.dtype,
        saved.method.form,
        saved.method.gain,
    )
}

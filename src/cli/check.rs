//! `context-patch check`.

use std::path::PathBuf;

use clap::Args;
use context_patch::Result;
use context_patch::kernels::Level;
use context_patch::model::ModelOptions;
use context_patch::receipt::{Difference, Receipt};
use serde_json::json;

use super::progress::waiting;
use super::words::{counted, paragraph};
use super::{BROKEN, BackendArgs, OK, builtin, print};

/// Run what a receipt is of again, and say whether it is the same, or what is not
///
/// The receipt of generate or apply has the hashes of the model and of every step's logits, and all settings: whoever has
/// the model gets the same bits, with any --threads, --level and exact --backend, on any machine. Exit code 1 says that
/// something differs.
#[derive(Args)]
#[command(before_help = "\
Example, with the small model that is built in:
  context-patch generate --model tiny --receipt figs.json \\
      --prompt 'Ann likes plums. Bob likes figs. Bob likes'
  context-patch check figs.json")]
pub(super) struct Check {
    /// The receipt
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// The model [default: what the receipt says]; its hashes must be the receipt's
    #[arg(long, value_name = "DIR|FILE|ID")]
    model: Option<String>,

    /// Branch, tag or full commit of a repository in the cache [default: main]
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,

    /// The patch file [default: what the receipt says]
    #[arg(long, value_name = "FILE")]
    patch: Option<PathBuf>,

    #[command(flatten)]
    products: BackendArgs,

    /// Print one JSON object instead of the text
    #[arg(long)]
    json: bool,
}

impl Check {
    pub(super) fn run(&self, level: Option<Level>) -> Result<u8> {
        let (receipt, changed) = Receipt::load(&self.file)?;
        let difference = waiting("Running it again", || {
            self.difference(&receipt, &changed, level)
        })?;
        let text = if self.json {
            let object = json!({
                "receipt": self.file,
                "same": difference.is_none(),
                "steps": receipt.steps.len(),
                "field": difference.as_ref().map(|difference| difference.field),
                "difference": difference.as_ref().map(Difference::to_string),
            });
            format!("{object}\n")
        } else {
            match &difference {
                None => said(&receipt),
                Some(difference) => paragraph(&format!("Not the same: {difference}")),
            }
        };
        print(&text)?;
        Ok(if difference.is_none() { OK } else { BROKEN })
    }

    fn difference(
        &self,
        receipt: &Receipt,
        changed: &[&'static str],
        level: Option<Level>,
    ) -> Result<Option<Difference>> {
        // Before a model is opened that the receipt may not mean.
        if let Some(changed) = Difference::of_changed(changed) {
            return Ok(Some(changed));
        }
        let options = ModelOptions {
            level,
            embedding_scale: receipt.embedding_scale,
            ..ModelOptions::default()
        };
        let model = self.model.as_ref().unwrap_or(&receipt.model);
        let model = builtin::open(model, self.revision.as_deref(), options)?;
        let model = model.on(self.products.backend)?;
        let named = receipt
            .patch
            .as_ref()
            .map(|patch| PathBuf::from(&patch.file));
        let patch = self.patch.clone().or(named);
        Ok(receipt.check(&model, patch.as_deref())?)
    }
}

/// What is the same.
fn said(receipt: &Receipt) -> String {
    let under = receipt.patch.as_ref().map_or("", |_| " under the patch");
    let written = counted(receipt.written.len(), "token");
    let steps = counted(receipt.steps.len(), "step");
    paragraph(&format!(
        "The same: {written} written{under}, and the logits of {steps} bit for bit, in {}.",
        receipt.dtype
    ))
}

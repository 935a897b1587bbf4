//! `context-patch check`.

use std::path::PathBuf;

use clap::Args;
use context_patch::kernels::Level;
use context_patch::model::{EmbeddingScale, Model, ModelOptions};
use context_patch::receipt::{AnyReceipt, Difference, Receipt, VerificationReceipt};
use context_patch::vision::{Picture, PictureRecord};
use context_patch::{Error, Result};
use serde_json::json;

use super::progress::{bar, waiting};
use super::words::{counted, paragraph};
use super::{BROKEN, BackendArgs, OK, builtin, print};

/// Run what a receipt is of again, and say whether it is the same, or what is not
///
/// The receipt of generate, apply or verify has the hashes of the model and of every step's logits, and all settings: whoever has
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

    /// A picture of the prompt, again for each [default: what the receipt says, in this folder]
    #[arg(long = "image", value_name = "FILE")]
    images: Vec<PathBuf>,

    #[command(flatten)]
    products: BackendArgs,

    /// Print one JSON object instead of the text
    #[arg(long)]
    json: bool,
}

/// What a receipt was found to be of.
struct Checked {
    steps: usize,
    /// What is the same, where there is no difference.
    same: String,
    difference: Option<Difference>,
}

impl Check {
    pub(super) fn run(&self, level: Option<Level>) -> Result<u8> {
        let (receipt, changed) = AnyReceipt::load(&self.file)?;
        // Before a model is opened that the receipt may not mean.
        let changed = Difference::of_changed(&changed);
        let Checked {
            steps,
            same,
            difference,
        } = match receipt {
            AnyReceipt::Generation(receipt) => self.generation(&receipt, changed, level)?,
            AnyReceipt::Verification(receipt) => self.verification(&receipt, changed, level)?,
        };
        let text = if self.json {
            let object = json!({
                "receipt": self.file,
                "same": difference.is_none(),
                "steps": steps,
                "field": difference.as_ref().map(|difference| difference.field),
                "difference": difference.as_ref().map(Difference::to_string),
            });
            format!("{object}\n")
        } else {
            match &difference {
                None => paragraph(&same),
                Some(difference) => paragraph(&format!("Not the same: {difference}")),
            }
        };
        print(&text)?;
        Ok(if difference.is_none() { OK } else { BROKEN })
    }

    fn generation(
        &self,
        receipt: &Receipt,
        changed: Option<Difference>,
        level: Option<Level>,
    ) -> Result<Checked> {
        let here = || {
            let model = self.open(&receipt.model, receipt.embedding_scale, level)?;
            let patch = receipt.patch.as_ref();
            let named = patch.map(|patch| PathBuf::from(&patch.file));
            let patch = self.patch.clone().or(named);
            let pictures = self.pictures(&receipt.images)?;
            Ok::<_, Error>(receipt.check(&model, patch.as_deref(), &pictures)?)
        };
        let difference = match changed {
            None => waiting("Running it again", here)?,
            changed => changed,
        };
        let under = receipt.patch.as_ref().map_or("", |_| " under the patch");
        let written = counted(receipt.written.len(), "token");
        let steps = counted(receipt.steps.len(), "step");
        let dtype = receipt.dtype;
        Ok(Checked {
            steps: receipt.steps.len(),
            same: format!(
                "The same: {written} written{under}, and the logits of {steps} bit for bit, in {dtype}."
            ),
            difference,
        })
    }

    fn verification(
        &self,
        receipt: &VerificationReceipt,
        changed: Option<Difference>,
        level: Option<Level>,
    ) -> Result<Checked> {
        let setting = &receipt.setting;
        let difference = match changed {
            None => {
                let model = self.open(&setting.model, setting.embedding_scale, level)?;
                let pictures = self.pictures(&setting.images)?;
                let bar = bar(0, receipt.tokens());
                let difference = receipt.check(&model, &pictures, |kind| {
                    bar.set_message(kind.to_string());
                    bar.inc(1);
                    Ok(())
                });
                bar.finish_and_clear();
                difference?
            }
            changed => changed,
        };
        let tokens = counted(receipt.tokens(), "token");
        let prompts = counted(setting.prompts.len(), "prompt");
        let kinds = counted(setting.kinds.len(), "row");
        Ok(Checked {
            steps: receipt.tokens(),
            same: format!(
                "The same: {tokens} of {prompts} in {kinds}, and the logits of each with the context, and without it but patched, bit \
                 for bit."
            ),
            difference,
        })
    }

    /// The model, here or where the receipt says.
    fn open(&self, named: &str, scale: EmbeddingScale, level: Option<Level>) -> Result<Model> {
        let options = ModelOptions {
            level,
            embedding_scale: scale,
            ..ModelOptions::default()
        };
        let model = self.model.as_deref().unwrap_or(named);
        let model = builtin::open(model, self.revision.as_deref(), options)?;
        Ok(model.on(self.products.backend)?)
    }

    /// The pictures, here or where the receipt says.
    fn pictures(&self, records: &[PictureRecord]) -> Result<Vec<Picture>> {
        let named = records.iter().map(|record| PathBuf::from(&record.file));
        let files = match &self.images[..] {
            [] => named.collect(),
            files => files.to_vec(),
        };
        let open = |file: &PathBuf| Ok(Picture::open(file)?);
        files.iter().map(open).collect()
    }
}

//! `context-patch trace`.

use std::path::PathBuf;

use clap::Args;
use context_patch::kernels::Level;
use context_patch::model::KnownBug;
use context_patch::output::check_writable;
use context_patch::tensor::Dtype;
use context_patch::{Result, trace};

use super::text::read_input;
use super::{BackendArgs, ModelArgs, OK, print, refuse_empty, signals};

/// Record the named intermediates of a forward pass into a safetensors file
///
/// Names are those of the Hugging Face modules: model.layers.3.self_attn.q_norm,
/// model.layers.3.residual_mid (what enters the MLP half), lm_head (the logits).
#[derive(Args)]
#[group(id = "input", required = true, multiple = false, args = ["prompt", "ids"])]
pub(super) struct Trace {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    products: BackendArgs,

    /// The text to run
    #[arg(long, allow_hyphen_values = true)]
    prompt: Option<String>,

    /// The token ids to run instead: a file with a JSON list, taken as they are; - is standard input
    #[arg(long, value_name = "FILE")]
    ids: Option<PathBuf>,

    /// Compute in f64, f32 or bf16
    #[arg(long, default_value_t = Dtype::F32)]
    dtype: Dtype,

    /// Record the last N tokens only [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    last: Option<u32>,

    /// Record the tensors whose names match, such as 'model.layers.3.*' [default: all]
    #[arg(long, value_name = "GLOB", num_args = 1..)]
    names: Vec<String>,

    /// Record a model that is wrong in one known way, to see whether a comparison finds it: embedding-unscaled,
    /// embedding-scale-type, missing-bos, norm-weight, norm-rounded, norm-after-rope, rope-interleaved,
    /// rope-local-theta, rope-no-factor, scale-head-dim, window-minus-1, window-plus-1, soft-capping, silu,
    /// gelu-erf
    #[arg(long, value_name = "BUG", hide_possible_values = true)]
    mutate: Option<KnownBug>,

    /// The file to write; F64 numbers for --dtype f64, F32 for the others
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

impl Trace {
    pub(super) fn run(&self, level: Option<Level>) -> Result<u8> {
        check_writable(&self.output)?;
        let mut model = self.model.open(level)?.on(self.products.backend);
        let mut tokens = match &self.ids {
            Some(file) => trace::parse_ids(file, &read_input(file)?)?,
            None => {
                let text = self.prompt.as_deref().unwrap_or_default();
                refuse_empty(text)?;
                model.checkpoint().tokenizer()?.encode(text)?
            }
        };
        if let Some(bug) = self.mutate {
            bug.check(model.config(), self.dtype, tokens.len())?;
            tokens = bug.tokens(&tokens).to_vec();
            model = model.with_bug(bug);
        }
        let last = self.last.map_or(usize::MAX, |last| last as usize);
        let recording = trace::Trace::new(model.config(), self.dtype, &self.names, last)?;
        let recording = recording.with_cancel(signals::cancel());
        recording.write(&self.output, &model, &tokens)?;
        print(&format!(
            "{}: tensors: {}, tokens: {} of {}\n",
            self.output.display(),
            recording.shapes(model.config(), tokens.len()).len(),
            tokens.len().min(last),
            tokens.len(),
        ))?;
        Ok(OK)
    }
}

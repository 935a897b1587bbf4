//! `context-patch trace`.

use std::path::PathBuf;

use clap::Args;
use context_patch::kernels::Level;
use context_patch::output::check_writable;
use context_patch::tensor::Dtype;
use context_patch::{Result, trace};

use super::{ModelArgs, OK, encode, print, with_dtype};

/// Record the named intermediates of a forward pass into a safetensors file
///
/// Names are those of the Hugging Face modules: model.layers.3.self_attn.q_norm,
/// model.layers.3.residual_mid (what enters the MLP half), lm_head (the logits).
#[derive(Args)]
pub(super) struct Trace {
    #[command(flatten)]
    model: ModelArgs,

    /// The text to run
    #[arg(long, required_unless_present = "ids", conflicts_with = "ids")]
    prompt: Option<String>,

    /// The token ids to run instead: a file with a JSON list, taken as they are
    #[arg(long, value_name = "FILE")]
    ids: Option<PathBuf>,

    /// Compute in f64, f32 or bf16
    #[arg(long, default_value_t = Dtype::F32)]
    dtype: Dtype,

    /// Record the last N tokens only [default: all]
    #[arg(long, value_name = "N")]
    last: Option<usize>,

    /// Record the tensors whose names match, such as 'model.layers.3.*' [default: all]
    #[arg(long, value_name = "GLOB", num_args = 1..)]
    names: Vec<String>,

    /// The file to write; F64 numbers for --dtype f64, F32 for the others
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

impl Trace {
    pub(super) fn run(&self, level: Option<Level>) -> Result<u8> {
        check_writable(&self.output)?;
        let model = self.model.open(level)?;
        let tokens = match &self.ids {
            Some(file) => trace::read_ids(file)?,
            None => encode(&model, self.prompt.as_deref().unwrap_or_default())?,
        };
        let last = self.last.unwrap_or(usize::MAX);
        let mut recording = trace::Trace::new(model.config(), &self.names, last)?;
        with_dtype!(self.dtype, E => recording.run::<E>(&model, &tokens))?;
        recording.write(&self.output, &model, self.dtype, &tokens)?;
        print(&format!(
            "{} tensors of {} tokens in {}\n",
            recording.tensors().len(),
            tokens.len(),
            self.output.display()
        ))?;
        Ok(OK)
    }
}

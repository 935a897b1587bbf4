//! `context-patch convert`.

use std::path::PathBuf;

use clap::Args;
use context_patch::Result;
use context_patch::checkpoint::Converted;
use context_patch::model::ModelOptions;
use context_patch::output::{check_new_dir, check_writable};
use context_patch::tensor::Storage;

use super::builtin;
use super::progress::waiting;
use super::solving::is_gguf;
use super::words::{commands, counted, rows, shell, size_of};
use super::{OK, print, program};

/// Write a GGUF file as a Hugging Face folder, or a folder as a GGUF file
///
/// Into a GGUF file goes what it can hold without loss, matrices as they are stored and vectors in f32; what it cannot say is
/// refused, but for the tokenizer, which is left out then. Into a folder quantised tensors go dequantised, since it cannot hold them.
#[derive(Args)]
#[command(before_help = "\
Example, with the small model that is built in:
  context-patch convert tiny tiny.gguf
  context-patch convert tiny.gguf folder")]
pub(super) struct Convert {
    /// A GGUF file (the first one of a model in several), a Hugging Face folder, a repository id in the local Hugging Face cache, or
    /// tiny: the small model that is built in
    #[arg(value_name = "FROM")]
    from: String,

    /// What to write: a GGUF file where the name ends with .gguf, else a new folder
    #[arg(value_name = "TO")]
    to: PathBuf,

    /// Store every tensor of a folder, or every matrix of a GGUF file, as bf16 (rounded once) or f32 [default: as they are stored,
    /// but quantised ones of a folder in bf16]
    #[arg(long, value_name = "TYPE", value_parser = ["bf16", "f32"])]
    dtype: Option<String>,
}

impl Convert {
    pub(super) fn run(&self) -> Result<u8> {
        let to_gguf = is_gguf(&self.to);
        if to_gguf {
            check_writable(&self.to)?;
        } else {
            check_new_dir(&self.to)?;
        }
        let model = builtin::open(&self.from, None, ModelOptions::default())?;
        let checkpoint = model.checkpoint();
        let storage = self.dtype.as_deref().map(|dtype| match dtype {
            "f32" => Storage::F32,
            _ => Storage::Bf16,
        });
        let (converted, without_tokenizer) = waiting("Writing", || {
            if to_gguf {
                let reason = checkpoint.write_gguf(&self.to, storage)?;
                return Ok((Vec::new(), reason));
            }
            Ok::<_, context_patch::checkpoint::Error>((
                checkpoint.write_dir(&self.to, storage)?,
                None,
            ))
        })?;
        let to = shell(&self.to.to_string_lossy());
        let size = size_of(&self.to).map_or_else(String::new, |size| format!(", {size}"));
        let mut said = vec![
            ("Written", format!("{to}{size}")),
            ("tensors", counted(checkpoint.tensors().len(), "tensor")),
        ];
        said.extend(
            converted
                .iter()
                .map(|converted| ("changed", changed(converted))),
        );
        let next = match &without_tokenizer {
            None => format!("generate --model {to} --prompt 'Once upon a time'"),
            Some(_) => format!("verify --model {to} --tokens 5"),
        };
        let next = format!("{} {next}", program());
        let reason = without_tokenizer.map(|reason| ("tokenizer", format!("left out: {reason}")));
        said.extend(reason);
        print(&format!("{}\n{}", rows(said), commands(&[next])))?;
        Ok(OK)
    }
}

/// What a conversion did to some tensors.
fn changed(converted: &Converted) -> String {
    let Converted { from, to, tensors } = converted;
    let tensors = counted(*tensors, "tensor");
    match (from.is_quantised(), to) {
        (true, Storage::F32) => format!("{tensors} of {from} dequantised to {to}"),
        (true, _) => format!("{tensors} of {from} dequantised, and rounded to {to}"),
        (false, Storage::F32) if *from != Storage::F64 => {
            format!("{tensors} of {from} widened to {to}")
        }
        (false, _) => format!("{tensors} of {from} rounded to {to}"),
    }
}

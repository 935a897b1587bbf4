//! Options that commands share: of the solvers, and of what becomes of a patch.

use std::ffi::OsStr;
use std::path::Path;

use clap::Args;
use context_patch::model::Model;
use context_patch::output::{check_new_dir, check_writable};
use context_patch::patch::export::{self, MergedGguf};
use context_patch::patch::{ApplyMode, Error, Method, Result, SavedPatch, Solver, StoredAs};
use context_patch::tensor::{Dtype, Storage};

use super::one_line;
use super::progress::waiting;
use super::words::{percent, size_of};

#[derive(Args)]
pub(super) struct SolvingArgs {
    /// How far the changed W_down overrules the stored one (closed-form, span): more makes the patch larger
    /// and safer to run in another engine [default: 10, and 1 for a span in bf16]
    #[arg(long, value_parser = positive)]
    pub(super) gain: Option<f64>,

    /// How many of the last layers a span changes
    #[arg(long, default_value_t = Method::LAYERS, value_parser = at_least_one)]
    pub(super) layers: usize,

    /// Passes to solve a span in at most; it ends sooner when the error no longer shrinks
    #[arg(long, default_value_t = Method::PASSES, value_parser = at_least_one)]
    pub(super) passes: usize,
}

impl SolvingArgs {
    pub(super) fn method(&self, solver: Solver, form: ApplyMode, dtype: Dtype) -> Method {
        Method {
            solver,
            form,
            gain: self.gain.unwrap_or(Method::gain(solver, dtype)),
            layers: self.layers,
            passes: self.passes,
        }
    }
}

fn positive(text: &str) -> std::result::Result<f64, String> {
    match text.parse() {
        Ok(number) if number > 0.0 && f64::is_finite(number) => Ok(number),
        _ => Err(format!("'{text}' is not a number above 0")),
    }
}

fn at_least_one(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("'{text}' is not a whole number of at least 1")),
    }
}

fn stored_as(text: &str) -> std::result::Result<StoredAs, String> {
    Ok(StoredAs::Type(match text {
        "f64" => Storage::F64,
        "f32" => Storage::F32,
        "f16" => Storage::F16,
        "bf16" => Storage::Bf16,
        "stored" => return Ok(StoredAs::Quantised),
        _ => return Err(format!("'{text}' is not f64, f32, f16, bf16 or stored")),
    }))
}

/// What a merged GGUF file has not, on standard error.
fn say_what_is_missing(merged: &MergedGguf, path: &Path) {
    if let Some(reason) = &merged.no_tokenizer {
        eprintln!("no tokenizer in {}: {}", path.display(), one_line(reason));
    }
    if let Some((tensor, share)) = &merged.lost {
        eprintln!(
            "what rounding to the stored types takes in {}: {} of the change of {tensor}, no more of any other",
            path.display(),
            percent(*share)
        );
    }
}

/// The narrowest type that holds the numbers of both.
fn wider(a: Storage, b: Storage) -> Storage {
    match (a, b) {
        (Storage::F64, _) | (_, Storage::F64) => Storage::F64,
        (a, b) if a == b => a,
        _ => Storage::F32,
    }
}

/// Whether what is written there is a GGUF file, by its name.
pub(super) fn is_gguf(path: &Path) -> bool {
    path.extension() == Some(OsStr::new("gguf"))
}

/// Where else a patch goes.
#[derive(Args)]
pub(super) struct ExportArgs {
    /// Write the patch in another program's form: peft DIR (an adapter; a plain LoRA where no norm is changed),
    /// gguf FILE (an adapter for llama.cpp; no norm may be changed), merged DIR (a whole checkpoint) or merged FILE.gguf
    /// (a whole GGUF file). Repeatable
    #[arg(long, num_args = 2, value_names = ["KIND", "PATH"])]
    export: Vec<String>,

    /// What a merged checkpoint stores patched tensors as: f64, f32, f16, bf16, or stored for the type that each has. That
    /// of a quantised one takes most of a small change away again; how much is said [default: what holds both the stored
    /// weights and what the patch was solved in, f32 for quantised ones]
    #[arg(long, value_name = "TYPE", value_parser = stored_as)]
    merged_dtype: Option<StoredAs>,

    /// What an adapter calls the model it belongs to [default: the repository and commit of one in the Hugging Face
    /// cache, else the whole path]
    #[arg(long, value_name = "NAME")]
    base_name: Option<String>,
}

impl ExportArgs {
    /// Refuses what could not be written, before anything is solved.
    pub(super) fn check(&self) -> Result<()> {
        self.each().try_for_each(|(kind, path)| match kind {
            "merged" if is_gguf(path) => Ok(check_writable(path)?),
            "peft" | "merged" => Ok(check_new_dir(path)?),
            "gguf" => Ok(check_writable(path)?),
            _ => Err(Error::ExportKind { kind: kind.into() }),
        })
    }

    /// Writes a patch in every form that is asked for, and as `file`.
    pub(super) fn save(
        &self,
        model: &Model,
        saved: &SavedPatch,
        file: Option<&Path>,
        storage: Storage,
    ) -> Result<()> {
        self.write(model, saved)?;
        match file {
            Some(file) => Ok(saved.save(file, storage)?),
            None => Ok(()),
        }
    }

    pub(super) fn write(&self, model: &Model, saved: &SavedPatch) -> Result<()> {
        let stored = model.layers()[0].outer.down()[0].weight().storage();
        let both = wider(stored.for_new_numbers(), Storage::from(saved.dtype));
        let stored = self.merged_dtype.unwrap_or(StoredAs::Type(both));
        let base = self.base_name.as_deref();
        let write = |(kind, path): (&str, &Path)| match kind {
            "peft" => export::peft(model, &saved.patch, base, path),
            "gguf" => export::gguf(model, &saved.patch, base, path),
            "merged" if is_gguf(path) => {
                let merged = export::merged_gguf(model, &saved.patch, stored, path)?;
                say_what_is_missing(&merged, path);
                Ok(())
            }
            "merged" => export::merged(model, &saved.patch, stored, path),
            _ => Err(Error::ExportKind { kind: kind.into() }),
        };
        waiting("Writing the exports", || self.each().try_for_each(write))
    }

    /// What was written and how large it is: a patch file, where there is one, and the exports.
    pub(super) fn written<'a>(
        &'a self,
        output: Option<&'a Path>,
    ) -> impl Iterator<Item = (&'static str, String)> + 'a {
        let exports = self.each().map(|(kind, path)| (Some(kind), path));
        let output = output.into_iter().map(|file| (None, file));
        output.chain(exports).map(|(kind, path)| {
            let size = size_of(path).unwrap_or_default();
            let kind = kind.map_or_else(String::new, |kind| format!(" ({kind})"));
            ("Written", format!("{}{kind}, {size}", path.display()))
        })
    }

    /// The kinds and paths.
    pub(super) fn each(&self) -> impl Iterator<Item = (&str, &Path)> {
        let pairs = self.export.chunks_exact(2);
        pairs.map(|pair| (pair[0].as_str(), Path::new(&pair[1])))
    }
}

//! `context-patch trace`.

use std::borrow::Cow;
use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;
use context_patch::kernels::Level;
use context_patch::model::{Inputs, KnownBug};
use context_patch::output::{check_writable, write_file};
use context_patch::tensor::Dtype;
use context_patch::{Result, trace};

use serde_json::json;
use sha2::{Digest, Sha256};

use super::images::{ImageArgs, Written};
use super::progress::waiting;
use super::text::read_input;
use super::words::{commands, counted, rows, shell, size_of};
use super::{BackendArgs, ModelArgs, OK, print, program, refuse_empty, signals};

/// Record the named intermediates of a forward pass into a safetensors file
///
/// Names are those of the Hugging Face modules: model.layers.3.self_attn.q_norm,
/// model.layers.3.residual_mid (what enters the MLP half), lm_head (the logits).
#[derive(Args)]
#[command(before_help = "\
Example, with the small model that is built in:
  context-patch trace --model tiny --prompt 'Bob likes figs.' \\
      --names '*.residual_mid' lm_head --output figs.safetensors")]
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

    #[command(flatten)]
    images: ImageArgs,

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
    #[arg(long, value_name = "FILE", required_unless_present = "hash")]
    output: Option<PathBuf>,

    /// Write the SHA-256 of every tensor's bits to FILE, a line each and one of all: two machines, or a CPU and a GPU, are
    /// compared by comparing two small files
    #[arg(long, value_name = "FILE")]
    hash: Option<PathBuf>,

    /// Print one JSON object about the recording: its tokens, and the shape of every tensor
    #[arg(long)]
    json: bool,
}

impl Trace {
    pub(super) fn run(&self, level: Option<Level>) -> Result<u8> {
        for file in self.files() {
            check_writable(file)?;
        }
        let mut model = self.model.open(level)?.on(self.products.backend)?;
        let prompt = match &self.ids {
            Some(file) => {
                let ids = trace::parse_ids(file, &read_input(file)?)?;
                self.images.ids(model.checkpoint(), ids)?
            }
            None => {
                let text = self.prompt.as_deref().unwrap_or_default();
                refuse_empty(text)?;
                let tokenizer = model.checkpoint().tokenizer()?;
                let text = Written::Text(text);
                self.images.prompt(model.checkpoint(), &tokenizer, text)?
            }
        };
        let (mut tokens, pixels) = (prompt.ids.clone(), prompt.pixel_values());
        let mut seen: Vec<_> = pixels.iter().map(|image| Cow::from(*image)).collect();
        if let Some(bug) = self.mutate {
            let inputs = Inputs {
                ids: &tokens,
                pixel_values: &pixels,
            };
            bug.check(&model, self.dtype, inputs)?;
            tokens = bug.tokens(&tokens).to_vec();
            if !pixels.is_empty() {
                let config = model.checkpoint().image_processor()?.unwrap_or_default();
                let images = pixels.iter();
                seen = images.map(|image| bug.pixels(&config, image)).collect();
            }
            model = model.with_bug(bug);
        }
        let seen: Vec<_> = seen.iter().map(AsRef::as_ref).collect();
        let last = self.last.map_or(usize::MAX, |last| last as usize);
        let recording = trace::Trace::new(&model, self.dtype, &self.names, last)?;
        let recording = recording.with_cancel(signals::cancel());
        let inputs = Inputs {
            ids: &tokens,
            pixel_values: &seen,
        };
        waiting("Recording", || -> Result<()> {
            if let Some(file) = &self.output {
                recording.write(file, &model, inputs)?;
            }
            if let Some(file) = &self.hash {
                let hashes = hash_lines(&recording.hashes(&model, inputs)?);
                write_file(file, |out| out.write_all(hashes.as_bytes()))?;
            }
            Ok(())
        })?;
        let shapes = recording.shapes(&model, inputs)?;
        if self.json {
            let shapes: serde_json::Map<_, _> = shapes
                .into_iter()
                .map(|(name, shape)| (name, json!(shape)))
                .collect();
            let object = json!({
                "output": self.output,
                "hash": self.hash,
                "model": model.checkpoint().name(),
                "dtype": self.dtype.to_string(),
                "backend": self.products.backend.to_string(),
                "bug": self.mutate.map(KnownBug::name),
                "ids": tokens,
                "tensors": shapes,
            });
            print(&format!("{object}\n"))?;
        } else {
            print(&self.text(shapes.len(), &tokens))?;
        }
        Ok(OK)
    }

    /// What was recorded, and what to do with it.
    fn text(&self, tensors: usize, tokens: &[u32]) -> String {
        let all = counted(tokens.len(), "token");
        let of = match self.last {
            Some(last) if (last as usize) < tokens.len() => format!("the last {last} of {all}"),
            _ => all,
        };
        let what = format!("{} of {of}, in {}", counted(tensors, "tensor"), self.dtype);
        let wrong = self
            .mutate
            .map(|bug| ("Wrong", format!("{}: {}", bug.name(), bug.meaning())));
        let written = self.files().map(|file| {
            let size = size_of(file).unwrap_or_default();
            ("Written", format!("{}, {size}", file.display()))
        });
        let said = [("Recorded", what)].into_iter().chain(wrong).chain(written);
        let next = self.output.iter().map(|file| {
            let file = shell(&file.to_string_lossy());
            match self.mutate {
                None => format!("{} compare {file} THEIRS", program()),
                Some(_) => format!("{} compare REFERENCE {file}", program()),
            }
        });
        let hash = self.hash.iter().map(|file| {
            let file = shell(&file.to_string_lossy());
            format!("diff {file} THEIRS")
        });
        rows(said) + &commands(&next.chain(hash).collect::<Vec<_>>())
    }

    /// The files to write.
    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.output.iter().chain(&self.hash)
    }
}

/// As `sha256sum` prints them: a hash and a name, and in the end the hash of these lines as that of all.
fn hash_lines(hashes: &[(String, String)]) -> String {
    let line = |(name, hash): &(String, String)| format!("{hash}  {name}\n");
    let lines: String = hashes.iter().map(line).collect();
    let all = Sha256::digest(&lines)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    lines + &line(&("all".into(), all))
}

//! Receipts: what a generation was made of and a hash of every step's logits, so that someone who was not there can
//! [run it again](Receipt::check), on any machine, and see the same bits or the first step that differs.
//!
//! A receipt is a JSON file:
//!
//! | field | what |
//! |---|---|
//! | `format` | `context-patch receipt 1` |
//! | `version` | of this crate |
//! | `model` | what the model was opened as; its hashes count |
//! | `weights` | the content hash of its tensors |
//! | `config`, `tokenizer` | SHA-256 of config.json and tokenizer.json, or of what a GGUF file says in their place |
//! | `embedding_scale` | `compute`, or `bf16` as Google's own code rounds it |
//! | `patch` | null, or the patch file, its SHA-256 and how it was applied |
//! | `dtype` | the compute type |
//! | `prompt`, `positions` | the tokens taken in, and the position of each |
//! | `images`, `pan_and_scan` | the pictures in the prompt, and whether crops of long ones are in it |
//! | `sampling` | how tokens were drawn, the seed included |
//! | `max_tokens` | how many tokens could be written |
//! | `stop_texts` | texts that end it when they are written |
//! | `written`, `text` | the tokens that were written, and what they say |
//! | `stop` | why there are no more: `end` (a token that ends a text), `text` (one of `stop_texts`), `length` or `cancelled` |
//! | `steps` | for each draw SHA-256 of the step before (in hexadecimal, nothing for the first) and the logits, little-endian in the compute type |
//! | `hashes` | for every field SHA-256 of its value as compact JSON |
//!
//! That of a verification is [another one](VerificationReceipt). The hashes name a field that was changed by hand. Someone who computes them anew changes what happens when the receipt is run
//! again, and is found there.

mod check;
mod difference;
mod error;
mod same;
mod sealed;
mod verification;

use std::io::Write as _;
use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use difference::{Difference, What};
pub use error::{Error, Result};
use same::hash_of_file;
use sealed::{Sealed, as_json};
pub use verification::VerificationReceipt;

use crate::checkpoint::Tokenizer;
use crate::message::{IoError, hex};
use crate::model::generate::{Sampling, Stop};
use crate::model::{EmbeddingScale, Model};
use crate::output::write_file;
use crate::patch::ApplyMode;
use crate::tensor::{Dtype, Element};
use crate::vision::PictureRecord;

/// What a generation was made of, and a hash of every step: the fields are those of the [file](self).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// Of this crate.
    pub version: String,
    /// What the model was opened as.
    pub model: String,
    /// The content hash of its tensors.
    pub weights: String,
    /// SHA-256 of config.json.
    pub config: String,
    /// SHA-256 of tokenizer.json.
    pub tokenizer: String,
    /// How √hidden was rounded.
    pub embedding_scale: EmbeddingScale,
    /// The patch, if there was one.
    pub patch: Option<PatchUsed>,
    /// The compute type.
    pub dtype: Dtype,
    /// The tokens taken in.
    pub prompt: Vec<u32>,
    /// The position of each, ascending.
    pub positions: Vec<usize>,
    /// The pictures in the prompt, in order.
    pub images: Vec<PictureRecord>,
    /// Whether crops of long pictures are in it.
    pub pan_and_scan: bool,
    /// How tokens were drawn.
    pub sampling: Sampling,
    /// How many tokens could be written.
    pub max_tokens: usize,
    /// Texts that end it when they are written.
    pub stop_texts: Vec<String>,
    /// The tokens that were written.
    pub written: Vec<u32>,
    /// What they say.
    pub text: String,
    /// Why there are no more.
    pub stop: Ending,
    /// A hash for each draw.
    pub steps: Vec<String>,
}

/// Why there are no more tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ending {
    /// The model wrote an end token.
    End,
    /// The text has one of [`Receipt::stop_texts`].
    Text,
    /// As many tokens as were allowed, or as there was room for.
    Length,
    /// Somebody ended it.
    Cancelled,
}

impl From<Stop> for Ending {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::End => Self::End,
            Stop::Length => Self::Length,
            Stop::Cancelled => Self::Cancelled,
        }
    }
}

/// A patch that a model ran under.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PatchUsed {
    /// The file.
    pub file: String,
    /// SHA-256 of it.
    pub hash: String,
    /// How it was applied.
    pub apply: ApplyMode,
}

impl PatchUsed {
    /// The patch in `file`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn new(file: &Path, apply: ApplyMode) -> Result<Self> {
        let bytes = std::fs::read(file).map_err(IoError::at("read", file))?;
        Ok(Self {
            file: file.to_string_lossy().into_owned(),
            hash: sha256(&bytes),
            apply,
        })
    }
}

impl Receipt {
    /// A receipt for what is about to run: `prompt` at `positions`, in compute type `dtype`.
    ///
    /// # Errors
    ///
    /// [`Error::Backend`] for one whose bits depend on the machine, and those of reading the checkpoint's files.
    pub fn new(
        model: &Model,
        dtype: Dtype,
        (prompt, positions): (Vec<u32>, Vec<usize>),
        sampling: Sampling,
        max_tokens: usize,
    ) -> Result<Self> {
        if !model.backend().is_exact() {
            return Err(Error::Backend(model.backend()));
        }
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").into(),
            model: model.checkpoint().name().into(),
            weights: model.checkpoint().tensors().content_hash(),
            config: hash_of_file(model, "config.json")?,
            tokenizer: hash_of_file(model, "tokenizer.json")?,
            embedding_scale: model.embedding_scale(),
            patch: None,
            dtype,
            prompt,
            positions,
            images: Vec::new(),
            pan_and_scan: false,
            sampling,
            max_tokens,
            stop_texts: Vec::new(),
            written: Vec::new(),
            text: String::new(),
            stop: Ending::Length,
            steps: Vec::new(),
        })
    }

    /// For a model that runs under a patch.
    #[must_use]
    pub fn under(self, patch: PatchUsed) -> Self {
        let patch = Some(patch);
        Self { patch, ..self }
    }

    /// For a prompt with pictures, and crops of long ones if `pan_and_scan` says so.
    #[must_use]
    pub fn with_images(self, images: Vec<PictureRecord>, pan_and_scan: bool) -> Self {
        Self {
            images,
            pan_and_scan,
            ..self
        }
    }

    /// Takes in the logits of a draw.
    pub fn step<E: Element>(&mut self, logits: &[E]) {
        let step = chained(self.steps.last(), logits);
        self.steps.push(step);
    }

    /// With what came of it: the tokens that were written, of `tokenizer`, and why there are no more.
    ///
    /// # Errors
    ///
    /// Those of decoding the tokens.
    pub fn finished(
        self,
        tokenizer: &Tokenizer,
        written: Vec<u32>,
        stop: impl Into<Ending>,
    ) -> Result<Self> {
        let text = Text::of(tokenizer, &written)?.whole;
        Ok(Self {
            written,
            text,
            stop: stop.into(),
            ..self
        })
    }

    /// Writes the file.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; a file that was there stays as it was.
    pub fn write(&self, path: &Path) -> Result<()> {
        let json = self.json();
        Ok(write_file(path, |out| out.write_all(json.as_bytes()))?)
    }

    /// The content of the file: a line for each field.
    pub fn json(&self) -> String {
        self.sealed()
    }
}

impl Sealed for Receipt {
    const FORMAT: &'static str = "context-patch receipt 1";

    fn fields(&self) -> Vec<(&'static str, String)> {
        vec![
            ("version", as_json(&self.version)),
            ("model", as_json(&self.model)),
            ("weights", as_json(&self.weights)),
            ("config", as_json(&self.config)),
            ("tokenizer", as_json(&self.tokenizer)),
            ("embedding_scale", as_json(&self.embedding_scale)),
            ("patch", as_json(&self.patch)),
            ("dtype", as_json(&self.dtype)),
            ("prompt", as_json(&self.prompt)),
            ("positions", as_json(&self.positions)),
            ("images", as_json(&self.images)),
            ("pan_and_scan", as_json(&self.pan_and_scan)),
            ("sampling", as_json(&self.sampling)),
            ("max_tokens", as_json(&self.max_tokens)),
            ("stop_texts", as_json(&self.stop_texts)),
            ("written", as_json(&self.written)),
            ("text", as_json(&self.text)),
            ("stop", as_json(&self.stop)),
            ("steps", as_json(&self.steps)),
        ]
    }

    fn wrong(&self) -> Option<&'static str> {
        if self.prompt.is_empty() || self.prompt.len() != self.positions.len() {
            return Some("it has not a position for each of at least one token");
        }
        if !self.positions.is_sorted_by(|a, b| a < b) {
            return Some("its positions do not ascend");
        }
        let gap = |pair: &[usize]| pair[0] + 1 < pair[1];
        if !self.images.is_empty() && self.positions.windows(2).any(gap) {
            return Some("its pictures stand among positions with gaps");
        }
        self.sampling.wrong()
    }
}

/// A receipt of either kind.
#[derive(Clone, Debug, PartialEq)]
pub enum AnyReceipt {
    /// Of a text that was written.
    Generation(Box<Receipt>),
    /// Of a verification.
    Verification(Box<VerificationReceipt>),
}

impl AnyReceipt {
    /// The content of the file: a line for each field.
    pub fn json(&self) -> String {
        match self {
            Self::Generation(receipt) => receipt.sealed(),
            Self::Verification(receipt) => receipt.sealed(),
        }
    }

    /// Reads a file, and says which of its fields are not those that were written: their hashes differ.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], and those of [`parse`](Self::parse).
    pub fn load(path: &Path) -> Result<(Self, Vec<&'static str>)> {
        let bytes = std::fs::read(path).map_err(IoError::at("read", path))?;
        Self::parse(path, &bytes)
    }

    /// [`load`](Self::load) for the content of a file called `path`.
    ///
    /// # Errors
    ///
    /// [`Error::Parse`] for what is no receipt, [`Error::Format`] for one of another version of the format.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<(Self, Vec<&'static str>)> {
        match sealed::format(path, bytes)?.as_str() {
            Receipt::FORMAT => {
                let (receipt, changed) = Receipt::unsealed(path, bytes)?;
                Ok((Self::Generation(receipt.into()), changed))
            }
            VerificationReceipt::FORMAT => {
                let (receipt, changed) = VerificationReceipt::unsealed(path, bytes)?;
                Ok((Self::Verification(receipt.into()), changed))
            }
            format => Err(Error::Format {
                path: path.into(),
                format: format.into(),
            }),
        }
    }
}

/// What tokens say.
struct Text {
    whole: String,
    /// Where what the last token says begins, and where it ends: an unfinished character may be behind it.
    last: Range<usize>,
}

impl Text {
    fn of(tokenizer: &Tokenizer, ids: &[u32]) -> Result<Self> {
        let mut stream = tokenizer.stream();
        let (mut whole, mut last) = (String::new(), 0..0);
        for &id in ids {
            last.start = whole.len();
            whole += &stream.push(id)?;
            last.end = whole.len();
        }
        whole += &stream.finish()?;
        Ok(Self { whole, last })
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The hash of a step from that of the one before.
fn chained<E: Element>(before: Option<&String>, logits: &[E]) -> String {
    let mut hash = Sha256::new();
    hash.update(before.map_or("", String::as_str));
    hash.update(bytemuck::cast_slice::<E, u8>(logits));
    hex(&hash.finalize())
}

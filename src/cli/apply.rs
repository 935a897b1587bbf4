//! `context-patch apply`.

use std::path::PathBuf;

use clap::Args;
use context_patch::checkpoint::{Conversation, Message, Tokenizer};
use context_patch::kernels::Level;
use context_patch::model::generate::{Sampling, likeliest};
use context_patch::model::{Model, Session};
use context_patch::output::check_writable;
use context_patch::patch::{ApplyMode, Error, Overlay, SavedPatch, Source};
use context_patch::receipt::{PatchUsed, Receipt};
use context_patch::tensor::{Dtype, Element};
use context_patch::verify::distribution;
use context_patch::vision;
use context_patch::{Result, trace};

use super::images::{ImageArgs, Prompt, Written};
use super::progress::waiting;
use super::solving::ExportArgs;
use super::table::table;
use super::text::read_input;
use super::writing::Writing;
use super::{BackendArgs, ModelArgs, OK, print, refuse_empty, signals, with_dtype};

/// Run a model under a saved patch and without the context: write on, or print logits
///
/// The input is the one that the patch was solved for, at its positions: what was kept, and the query.
/// Another input is allowed, and said so: a patch promises nothing there.
#[derive(Args)]
#[command(before_help = "\
Example, with the small model that is built in:
  context-patch patch --model tiny --output figs.patch \\
      --context 'Ann likes plums. Bob likes figs. Bob likes'
  context-patch apply --model tiny --patch figs.patch
  context-patch apply --model tiny --patch figs.patch --logits 5")]
pub(super) struct Apply {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    products: BackendArgs,

    /// The patch file
    #[arg(long, value_name = "FILE")]
    patch: PathBuf,

    /// Tokens to write at most [default: as many as the patch has an answer for, and the one after it; 64 for a compiled prompt]
    #[arg(long)]
    max_tokens: Option<usize>,

    /// Print the K largest logits instead of writing on
    #[arg(long, value_name = "K", conflicts_with = "max_tokens")]
    logits: Option<usize>,

    /// Another text to run under the patch
    #[arg(long, allow_hyphen_values = true)]
    prompt: Option<String>,

    /// Put that text into the model's chat template
    #[arg(long, requires = "prompt")]
    chat: bool,

    /// Other token ids to run: a file with a JSON list, taken as they are; - is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    ids: Option<PathBuf>,

    #[command(flatten)]
    images: ImageArgs,

    /// The position of the first token of another input
    #[arg(long, default_value_t = 0)]
    position: usize,

    /// Compute in f64, f32 or bf16 [default: what the patch was solved in]
    #[arg(long)]
    dtype: Option<Dtype>,

    /// overlay or materialise [default: as the patch was solved]
    #[arg(long)]
    apply: Option<ApplyMode>,

    #[command(flatten)]
    export: ExportArgs,

    /// Write to FILE what this was made of and a hash of every step's logits, for `context-patch check`
    #[arg(long, value_name = "FILE", conflicts_with = "logits")]
    receipt: Option<PathBuf>,

    /// Print one JSON object instead of the text
    #[arg(long)]
    json: bool,
}

/// What is run under the patch.
struct Input {
    prompt: Prompt,
    /// Of each token. Those of another input than the patch's own follow one another.
    positions: Vec<usize>,
}

/// What `--json` prints.
#[derive(serde::Serialize)]
struct Output<'a> {
    model: &'a str,
    dtype: String,
    apply: String,
    /// Whether the patch was solved for this input.
    own_input: bool,
    prompt_ids: &'a [u32],
    positions: &'a [usize],
    #[serde(flatten)]
    said: Said,
}

/// What the patched model says.
#[derive(serde::Serialize)]
#[serde(untagged)]
enum Said {
    Text { ids: Vec<u32>, text: String },
    Logits { logits: Vec<Candidate> },
}

/// A next token.
#[derive(serde::Serialize)]
struct Candidate {
    id: u32,
    token: Option<String>,
    logit: f64,
    p: f64,
}

impl Apply {
    pub(super) fn run(&self, level: Option<Level>) -> Result<u8> {
        if let Some(text) = &self.prompt {
            refuse_empty(text)?;
        } else if self.ids.is_none() && !self.images.is_empty() {
            return Err(vision::Error::NoPrompt.into());
        }
        self.export.check()?;
        if let Some(file) = &self.receipt {
            check_writable(file)?;
        }
        let saved = SavedPatch::load(&self.patch)?;
        let (model, tokenizer) = waiting("Reading the model", || -> Result<_> {
            let model = self.model.open(level)?;
            saved.check(&model)?;
            let tokenizer = model.checkpoint().tokenizer()?;
            Ok((model.on(self.products.backend)?, tokenizer))
        })?;
        self.export.write(&model, &saved)?;
        let input = self.input(&saved, &model, &tokenizer)?;
        let own = match &saved.source {
            Source::Solved(solved) => {
                let (ids, positions) = solved.split.reduced_prompt();
                input.prompt.ids == ids && input.positions == positions
            }
            Source::Compiled(_) => false,
        };
        if !own && matches!(saved.source, Source::Solved(_)) {
            eprintln!(
                "note: the patch was solved for other tokens or positions, and promises nothing for these"
            );
        }
        if let (Source::Compiled(compiled), Some(_)) = (&saved.source, &self.prompt)
            && compiled.chat != self.chat
        {
            let with = if compiled.chat { "with" } else { "without" };
            eprintln!(
                "note: the patch was compiled {with} --chat, and promises little for queries that are given otherwise"
            );
        }
        let dtype = self.dtype.unwrap_or(saved.dtype);
        let (said, code) =
            with_dtype!(dtype, E => self.apply::<E>(&model, &tokenizer, &saved, &input))?;
        if self.json {
            let output = Output {
                model: model.checkpoint().name(),
                dtype: dtype.to_string(),
                apply: self.form(&saved).to_string(),
                own_input: own,
                prompt_ids: &input.prompt.ids,
                positions: &input.positions,
                said,
            };
            print(&format!("{}\n", serde_json::json!(output)))?;
        }
        Ok(code)
    }

    fn form(&self, saved: &SavedPatch) -> ApplyMode {
        self.apply.unwrap_or(saved.source.form())
    }

    /// What to run.
    fn input(&self, saved: &SavedPatch, model: &Model, tokenizer: &Tokenizer) -> Result<Input> {
        let (checkpoint, images) = (model.checkpoint(), &self.images);
        let prompt = match (&self.prompt, &self.ids, &saved.source) {
            (Some(text), ..) => {
                let written = match self.chat {
                    true => Written::Chat(Conversation::new([Message::user(text)])),
                    false => Written::Text(text),
                };
                images.prompt(checkpoint, tokenizer, written)?
            }
            (None, Some(file), _) => {
                images.ids(checkpoint, trace::parse_ids(file, &read_input(file)?)?)?
            }
            (None, None, Source::Solved(solved)) => {
                let (ids, positions) = solved.split.reduced_prompt();
                let prompt = Prompt::text(ids);
                return Ok(Input { prompt, positions });
            }
            (None, None, Source::Compiled(_)) => return Err(Error::CompiledQuery.into()),
        };
        let positions = (0..prompt.ids.len()).map(|i| self.position + i).collect();
        Ok(Input { prompt, positions })
    }

    /// Runs the patched model; prints what it says unless that is to be JSON.
    fn apply<E: Element>(
        &self,
        model: &Model,
        tokenizer: &Tokenizer,
        saved: &SavedPatch,
        Input { prompt, positions }: &Input,
    ) -> Result<(Said, u8)> {
        let overlay = Overlay::<E>::new(model, &saved.patch, self.form(saved));
        let mut session = Session::new(model)
            .with_overlay(&overlay)
            .with_cancel(signals::cancel());
        let query = [session.take_in(prompt.inputs(&prompt.pixel_values()), positions)?];
        if let Some(k) = self.logits {
            let logits = session.forward(&query[..], 1)?;
            let logits = candidates(tokenizer, logits.row(0), k);
            if !self.json {
                print(&listed(&logits))?;
            }
            return Ok((Said::Logits { logits }, OK));
        }
        let most = self.max_tokens.unwrap_or(match &saved.source {
            Source::Solved(solved) => solved.split.answer().len() + 1,
            Source::Compiled(_) => 64,
        });
        let receipt = self.receipt.as_deref().map(|file| -> Result<_> {
            let input = (prompt.ids.clone(), positions.clone());
            let receipt = Receipt::new(model, E::DTYPE, input, Sampling::default(), most)?;
            let patch = PatchUsed::new(&self.patch, self.form(saved))?;
            let receipt = receipt.with_images(prompt.records(), self.images.pan_and_scan);
            Ok((receipt.under(patch), file))
        });
        let writing = Writing {
            tokenizer,
            sampling: Sampling::default(),
            max_tokens: most,
            show: !self.json,
            receipt: receipt.transpose()?,
        };
        let written = writing.after(&mut session, &query)?;
        let code = written.code();
        let (ids, text) = (written.ids, written.text);
        Ok((Said::Text { ids, text }, code))
    }
}

/// The `k` likeliest tokens.
fn candidates<E: Element>(tokenizer: &Tokenizer, logits: &[E], k: usize) -> Vec<Candidate> {
    let p = distribution(logits);
    let likeliest = likeliest(logits, k).into_iter();
    likeliest
        .map(|id| Candidate {
            id,
            token: tokenizer.token_text(id),
            logit: logits[id as usize].to_f64(),
            p: p[id as usize],
        })
        .collect()
}

fn listed(candidates: &[Candidate]) -> String {
    let rows = candidates.iter().map(|candidate| {
        vec![
            format!("{:?}", candidate.token.as_deref().unwrap_or_default()),
            candidate.id.to_string(),
            format!("{:.4}", candidate.logit),
            format!("{:.4}", candidate.p),
        ]
    });
    table(1, &["token", "id", "logit", "p"], &rows.collect::<Vec<_>>())
}

//! `context-patch generate`.

use std::path::PathBuf;

use clap::Args;
use context_patch::Result;
use context_patch::checkpoint::{Conversation, Message, Tokenizer};
use context_patch::kernels::Level;
use context_patch::model::generate::{Sampling, Stop};
use context_patch::model::{Model, Session};
use context_patch::output::check_writable;
use context_patch::receipt::Receipt;
use context_patch::tensor::{Dtype, Element};

use super::images::{ImageArgs, Prompt, Written};
use super::text::read_input;
use super::writing::Writing;
use super::{BackendArgs, ModelArgs, print, refuse_empty, signals, with_dtype};

/// Continue a text: the likeliest token by default, or drawn at a temperature
///
/// The text streams to standard output as it is written. Ctrl-C and SIGTERM end it and keep what is there.
#[derive(Args)]
#[command(before_help = "\
Example, with the small model that is built in:
  context-patch generate --model tiny \\
      --prompt 'Ann likes plums. Bob likes figs. Bob likes'")]
pub(super) struct Generate {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    products: BackendArgs,

    /// The text to continue, or the message to answer with --chat
    #[arg(long, allow_hyphen_values = true, required_unless_present = "messages")]
    prompt: Option<String>,

    /// Put the prompt into the model's chat template
    #[arg(long)]
    chat: bool,

    /// What the model is told before the prompt, with --chat
    #[arg(
        long,
        allow_hyphen_values = true,
        requires = "chat",
        conflicts_with = "messages"
    )]
    system: Option<String>,

    /// A JSON file to put into the model's chat template: a list of messages, or an object of messages, tools and what
    /// else the template takes; - is standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "chat"])]
    messages: Option<PathBuf>,

    #[command(flatten)]
    images: ImageArgs,

    /// Tokens to write at most
    #[arg(long, default_value_t = 128)]
    max_tokens: usize,

    /// Compute in f64, f32 or bf16
    #[arg(long, default_value_t = Dtype::F32)]
    dtype: Dtype,

    /// Draw the next token with logits divided by this; 0 takes the likeliest
    #[arg(long, default_value_t = 0.0, value_parser = non_negative, allow_negative_numbers = true)]
    temperature: f64,

    /// Draw from this many likeliest tokens; 0 is all
    #[arg(long, default_value_t = 0, requires = "temperature")]
    top_k: usize,

    /// Draw from the fewest likeliest tokens whose probabilities reach this
    #[arg(long, default_value_t = 1.0, value_parser = probability, requires = "temperature")]
    top_p: f64,

    /// Fixes what is drawn, on every machine
    #[arg(long, default_value_t = 0, requires = "temperature")]
    seed: u64,

    /// Write to FILE what this was made of and a hash of every step's logits, for `context-patch check`
    #[arg(long, value_name = "FILE")]
    receipt: Option<PathBuf>,

    /// Print one JSON object at the end instead of the text
    #[arg(long)]
    json: bool,
}

fn non_negative(text: &str) -> Result<f64, String> {
    let number: f64 = text
        .parse()
        .map_err(|_| format!("'{text}' is not a number"))?;
    (number >= 0.0 && number.is_finite())
        .then_some(number)
        .ok_or_else(|| "it must be 0 or more".into())
}

fn probability(text: &str) -> Result<f64, String> {
    let number = non_negative(text)?;
    (number > 0.0 && number <= 1.0)
        .then_some(number)
        .ok_or_else(|| "it must be above 0 and at most 1".into())
}

/// What `--json` prints.
#[derive(serde::Serialize)]
struct Output<'a> {
    model: &'a str,
    dtype: String,
    prompt_ids: &'a [u32],
    ids: &'a [u32],
    text: &'a str,
    stop: Stop,
}

impl Generate {
    pub(super) fn run(&self, level: Option<Level>) -> Result<u8> {
        if let Some(file) = &self.receipt {
            check_writable(file)?;
        }
        let text = self.prompt.as_deref().unwrap_or_default();
        let written = if let Some(path) = &self.messages {
            Written::Messages(Conversation::parse(path, &read_input(path)?)?)
        } else {
            refuse_empty(text)?;
            let system = self.system.as_deref().map(Message::system);
            let messages = system.into_iter().chain([Message::user(text)]);
            match self.chat {
                true => Written::Chat(Conversation::new(messages)),
                false => Written::Text(text),
            }
        };
        let (model, tokenizer) = self.model.open_with_tokenizer(level)?;
        let model = model.on(self.products.backend)?;
        let prompt = self
            .images
            .prompt(model.checkpoint(), &tokenizer, written)?;
        with_dtype!(self.dtype, E => self.generate::<E>(&model, &tokenizer, &prompt))
    }

    fn generate<E: Element>(
        &self,
        model: &Model,
        tokenizer: &Tokenizer,
        prompt: &Prompt,
    ) -> Result<u8> {
        let sampling = Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            seed: self.seed,
            ..Sampling::default()
        };
        let input = (prompt.ids.clone(), (0..prompt.ids.len()).collect());
        let receipt = self.receipt.as_deref().map(|file| -> Result<_> {
            let sampling = sampling.clone();
            let receipt = Receipt::new(model, self.dtype, input, sampling, self.max_tokens)?;
            Ok((
                receipt.with_images(prompt.records(), self.images.pan_and_scan),
                file,
            ))
        });
        let mut session = Session::<E>::new(model).with_cancel(signals::cancel());
        let writing = Writing {
            tokenizer,
            sampling,
            max_tokens: self.max_tokens,
            show: !self.json,
            receipt: receipt.transpose()?,
        };
        let values = prompt.pixel_values();
        let written = if values.is_empty() {
            writing.after(&mut session, &prompt.ids)?
        } else {
            let positions: Vec<_> = (0..prompt.ids.len()).collect();
            let query = session.take_in(prompt.inputs(&values), &positions)?;
            writing.after(&mut session, &[query])?
        };
        if self.json {
            let output = Output {
                model: model.checkpoint().name(),
                dtype: self.dtype.to_string(),
                prompt_ids: &prompt.ids,
                ids: &written.ids,
                text: &written.text,
                stop: written.stop,
            };
            print(&format!("{}\n", serde_json::json!(output)))?;
        }
        Ok(written.code())
    }
}

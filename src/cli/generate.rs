//! `context-patch generate`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use context_patch::Result;
use context_patch::checkpoint::{Message, Tokenizer};
use context_patch::kernels::Level;
use context_patch::model::generate::{Sampler, Stop, generate};
use context_patch::model::{Model, Session};
use context_patch::tensor::{Dtype, Element};

use super::{BackendArgs, INTERRUPTED, ModelArgs, OK, end_line, print, refuse_empty, with_dtype};

/// Continue a text: the likeliest token by default, or drawn at a temperature
///
/// The text streams to standard output as it is written. Ctrl-C ends it and keeps what is there.
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
    #[arg(long)]
    prompt: String,

    /// Put the prompt into the model's chat template
    #[arg(long)]
    chat: bool,

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
    stop: &'a str,
}

impl Generate {
    pub(super) fn run(&self, level: Option<Level>) -> Result<u8> {
        refuse_empty(&self.prompt)?;
        let (model, tokenizer) = self.model.open_with_tokenizer(level)?;
        let model = model.on(self.products.backend);
        let ids = if self.chat {
            let template = model.checkpoint().chat_template()?;
            tokenizer.encode(&template.render(&[Message::user(&*self.prompt)])?)?
        } else {
            tokenizer.encode(&self.prompt)?
        };
        with_dtype!(self.dtype, E => self.generate::<E>(&model, &tokenizer, &ids))
    }

    fn generate<E: Element>(
        &self,
        model: &Model,
        tokenizer: &Tokenizer,
        prompt: &[u32],
    ) -> Result<u8> {
        let cancel = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&cancel);
        let handler = ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::Relaxed) {
                std::process::exit(INTERRUPTED.into());
            }
        });
        // Without a handler Ctrl-C still ends the program.
        drop(handler);

        let mut sampler = Sampler::new(self.temperature, self.top_k, self.top_p, self.seed);
        let mut stream = tokenizer.stream();
        let (mut ids, mut text) = (Vec::new(), String::new());
        let mut session = Session::<E>::new(model).with_cancel(cancel);
        let say = |piece: &str, text: &mut String| {
            text.push_str(piece);
            if self.json { Ok(()) } else { print(piece) }
        };
        let stop = generate(&mut session, prompt, self.max_tokens, &mut sampler, |id| {
            ids.push(id);
            say(&stream.push(id)?, &mut text)
        })?;
        say(&stream.finish()?, &mut text)?;
        if self.json {
            let output = Output {
                model: model.checkpoint().name(),
                dtype: self.dtype.to_string(),
                prompt_ids: prompt,
                ids: &ids,
                text: &text,
                stop: match stop {
                    Stop::End => "end",
                    Stop::Length => "length",
                    Stop::Cancelled => "cancelled",
                },
            };
            print(&format!("{}\n", serde_json::json!(output)))?;
        } else {
            end_line(&text)?;
        }
        Ok(if stop == Stop::Cancelled {
            INTERRUPTED
        } else {
            OK
        })
    }
}

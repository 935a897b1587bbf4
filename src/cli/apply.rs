//! `context-patch apply`.

use std::path::PathBuf;

use clap::Args;
use context_patch::checkpoint::Tokenizer;
use context_patch::kernels::Level;
use context_patch::model::generate::{Sampler, Stop, generate};
use context_patch::model::{Model, Session};
use context_patch::patch::{ApplyMode, Overlay, SavedPatch};
use context_patch::tensor::{Dtype, Element};
use context_patch::verify::distribution;
use context_patch::{Result, trace};

use super::solving::ExportArgs;
use super::table::table;
use super::text::{print_written, read_input};
use super::{ModelArgs, OK, end_line, print, refuse_empty, signals, with_dtype};

/// Run a model under a saved patch and without the context: write on, or print logits
///
/// The input is the one that the patch was solved for, at its positions: what was kept, and the query.
/// Another input is allowed, and said so: a patch promises nothing there.
#[derive(Args)]
pub(super) struct Apply {
    #[command(flatten)]
    model: ModelArgs,

    /// The patch file
    #[arg(long, value_name = "FILE")]
    patch: PathBuf,

    /// Tokens to write at most [default: as many as the patch has an answer for, and the one after it]
    #[arg(long)]
    max_tokens: Option<usize>,

    /// Print the K largest logits instead of writing on
    #[arg(long, value_name = "K", conflicts_with = "max_tokens")]
    logits: Option<usize>,

    /// Another text to run under the patch
    #[arg(long, allow_hyphen_values = true)]
    prompt: Option<String>,

    /// Other token ids to run: a file with a JSON list, taken as they are; - is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    ids: Option<PathBuf>,

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
}

impl Apply {
    pub(super) fn run(&self, level: Option<Level>) -> Result<u8> {
        if let Some(text) = &self.prompt {
            refuse_empty(text)?;
        }
        self.export.check()?;
        let saved = SavedPatch::load(&self.patch)?;
        let model = self.model.open(level)?;
        saved.check(&model)?;
        let tokenizer = model.checkpoint().tokenizer()?;
        self.export.write(&model, &saved)?;
        let input = self.input(&saved, &tokenizer)?;
        let dtype = self.dtype.unwrap_or(saved.dtype);
        with_dtype!(dtype, E => self.apply::<E>(&model, &tokenizer, &saved, &input))
    }

    /// The tokens to run, and their positions.
    fn input(&self, saved: &SavedPatch, tokenizer: &Tokenizer) -> Result<(Vec<u32>, Vec<usize>)> {
        let own = saved.split.reduced_prompt();
        let tokens = match (&self.prompt, &self.ids) {
            (Some(text), _) => tokenizer.encode(text)?,
            (None, Some(file)) => trace::parse_ids(file, &read_input(file)?)?,
            (None, None) => return Ok(own),
        };
        let positions: Vec<_> = (0..tokens.len()).map(|i| self.position + i).collect();
        if (&tokens, &positions) != (&own.0, &own.1) {
            eprintln!(
                "note: the patch was solved for other tokens or positions, and promises nothing for these"
            );
        }
        Ok((tokens, positions))
    }

    fn apply<E: Element>(
        &self,
        model: &Model,
        tokenizer: &Tokenizer,
        saved: &SavedPatch,
        (tokens, positions): &(Vec<u32>, Vec<usize>),
    ) -> Result<u8> {
        let form = self.apply.unwrap_or(saved.method.form);
        let overlay = Overlay::<E>::new(model, &saved.patch, form);
        let mut session = Session::new(model)
            .with_overlay(&overlay)
            .with_cancel(signals::cancel());
        let last = tokens.len() - 1;
        session.forward_at(&tokens[..last], &positions[..last], 0)?;
        let mut session = session.at(positions[last]);
        let query = &tokens[last..];
        if let Some(k) = self.logits {
            let logits = session.forward(query, 1)?;
            print(&largest(tokenizer, logits.row(0), k))?;
            return Ok(OK);
        }
        let most = self.max_tokens.unwrap_or(saved.split.answer().len() + 1);
        let mut stream = tokenizer.stream();
        let mut greedy = Sampler::default();
        let mut text = String::new();
        let mut say = |piece: String| -> Result<()> {
            print_written(&piece)?;
            text.push_str(&piece);
            Ok(())
        };
        let stop = generate(&mut session, query, most, &mut greedy, |id| {
            say(stream.push(id)?)
        })?;
        say(stream.finish()?)?;
        end_line(&text)?;
        Ok(if stop == Stop::Cancelled {
            signals::code()
        } else {
            OK
        })
    }
}

/// The `k` largest logits with their tokens and probabilities.
fn largest<E: Element>(tokenizer: &Tokenizer, logits: &[E], k: usize) -> String {
    let p = distribution(logits);
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| {
        logits[b]
            .to_f64()
            .total_cmp(&logits[a].to_f64())
            .then(a.cmp(&b))
    });
    let rows: Vec<_> = order
        .into_iter()
        .take(k)
        .map(|id| {
            vec![
                format!("{:?}", tokenizer.token_text(id as u32).unwrap_or_default()),
                id.to_string(),
                logits[id].to_f64().to_string(),
                format!("{:.4}", p[id]),
            ]
        })
        .collect();
    table(&["token", "id", "logit", "p"], &rows)
}

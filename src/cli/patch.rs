//! `context-patch patch`.

use std::path::PathBuf;

use clap::Args;
use context_patch::checkpoint::Tokenizer;
use context_patch::kernels::Level;
use context_patch::model::generate::{Sampler, generate};
use context_patch::model::{Images, Model, Session, Tokens};
use context_patch::output::check_writable;
use context_patch::patch::{
    self, ApplyMode, Method, Overlay, Positions, Query, SavedPatch, Solver, SolverReport, Source,
    Split, solve, span,
};
use context_patch::tensor::{Dtype, Element, Storage};
use context_patch::verify::span::check;
use context_patch::{Error, Result};
use indicatif::ProgressBar;

use super::images::{ImageArgs, Prompt, Written, encode_behind};
use super::keep::parse_keep;
use super::progress::{counting, waiting};
use super::solved::Solved;
use super::solving::{ExportArgs, SolvingArgs};
use super::words::{commands, rows, shell};
use super::{BROKEN, BackendArgs, ModelArgs, OK, print, program, refuse_empty, with_dtype};

/// Turn a context into a patch, and save it
///
/// The patched model without the context says of the query what the model says with it, and so of every
/// token of the answer. A single token is solved in closed form, several at once as a span: a plain LoRA.
/// The patch is tried when it is solved; exit code 1 (with the files written all the same) when the logits are
/// off by more than the bound, or as good without the patch.
#[derive(Args)]
#[command(before_help = "\
Example, with the small model that is built in:
  context-patch patch --model tiny --output figs.patch \\
      --context 'Ann likes plums. Bob likes figs. Bob likes'
  context-patch apply --model tiny --patch figs.patch

A context and an answer of 8 tokens in the real model, as a LoRA:
  context-patch patch --model models/gemma-3-270m --output italy.patch \\
      --context 'Paris is in Italy. Paris is in' --answer-tokens 8 \\
      --keep 0 --positions natural --export peft italy-peft")]
pub(super) struct Patch {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    products: BackendArgs,

    /// The text to absorb
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    context: String,

    #[command(flatten)]
    images: ImageArgs,

    /// The text after it that the patch is for [default: the last token of the context]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    query: Option<String>,

    /// Let the model write an answer of up to N tokens, and patch for these too
    #[arg(long, value_name = "N")]
    answer_tokens: Option<usize>,

    /// The answer to patch for
    #[arg(
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        conflicts_with = "answer_tokens"
    )]
    answer: Option<String>,

    /// Tokens of the context that stay: their numbers from 0, such as 0 (the token that begins it) or
    /// 0,4..9
    #[arg(long, value_name = "LIST", default_value = "")]
    keep: String,

    /// Where the patched model sees its tokens: absolute (where they were) or natural (0, 1, 2, …)
    #[arg(long, default_value_t = Positions::Absolute)]
    positions: Positions,

    /// theorem-1, appendix-b, closed-form or span [default: closed-form for one token, else span]
    #[arg(long)]
    solver: Option<Solver>,

    /// Compute in f64, f32 or bf16
    #[arg(long, default_value_t = Dtype::F32)]
    dtype: Dtype,

    /// How the patch is applied while it is solved and tried: overlay or materialise
    #[arg(long, default_value_t = ApplyMode::Overlay)]
    apply: ApplyMode,

    #[command(flatten)]
    solving: SolvingArgs,

    /// The patch file to write
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Round the patch file's numbers to f32, in half the space
    #[arg(long)]
    single: bool,

    #[command(flatten)]
    export: ExportArgs,

    /// Print one JSON object with every figure instead
    #[arg(long)]
    json: bool,
}

impl Patch {
    pub(super) fn run(&self, level: Option<Level>) -> Result<u8> {
        for text in [Some(&self.context), self.query.as_ref()]
            .into_iter()
            .flatten()
        {
            refuse_empty(text)?;
        }
        if let Some(file) = &self.output {
            check_writable(file)?;
        }
        self.export.check()?;
        let (model, tokenizer) = self.model.open_with_tokenizer(level)?;
        let model = model.on(self.products.backend)?;
        with_dtype!(self.dtype, E => self.run_in::<E>(&model, &tokenizer))
    }

    fn run_in<E: Element>(&self, model: &Model, tokenizer: &Tokenizer) -> Result<u8> {
        let context = Written::Text(&self.context);
        let context = self.images.prompt(model.checkpoint(), tokenizer, context)?;
        let images = context.images::<E>(model)?;
        let images = images.as_ref();
        let split = self.split(model, tokenizer, &context, images)?;
        let tokens = split.queries().len();
        let solver = self.solver.unwrap_or(match tokens {
            1 => Solver::ClosedForm,
            _ => Solver::Span,
        });
        if tokens > 1 && solver != Solver::Span {
            return Err(patch::Error::OneToken { solver, tokens }.into());
        }
        let method = self.solving.method(solver, self.apply, self.dtype);
        let (patch, report) = solve_split(model, &split, images, &method)?;
        let overlay = Overlay::<E>::new(model, &patch, method.form);
        let steps = waiting("Trying the patch", || {
            check(model, &split, images, &overlay, 0, Some(report.clone()))
        })?;
        let source = patch::Solved {
            split,
            method,
            report,
            images: context.records(),
        };
        let saved = waiting("Hashing the weights", || {
            let source = Source::Solved(Box::new(source.clone()));
            SavedPatch::new(model, patch, source, self.dtype)
        });
        let storage = if self.single {
            Storage::F32
        } else {
            Storage::F64
        };
        self.export
            .save(model, &saved, self.output.as_deref(), storage)?;
        let solved = Solved::new(&saved, &source, &steps);
        let text = if self.json {
            format!("{}\n", solved.json(tokenizer)?)
        } else {
            solved.text(tokenizer)? + &self.files()
        };
        print(&text)?;
        Ok(if solved.good() { OK } else { BROKEN })
    }

    /// What was written, and what to do with it.
    fn files(&self) -> String {
        let written = rows(self.export.written(self.output.as_deref()));
        let next = match &self.output {
            None => rows([("Next", "--output FILE keeps the patch".to_owned())]),
            Some(file) => {
                let (program, file) = (program(), shell(&file.to_string_lossy()));
                let model = self.model.shell();
                commands(&[
                    format!("{program} apply {model} --patch {file}"),
                    format!("{program} inspect {file}"),
                ])
            }
        };
        written + &next
    }

    /// What is absorbed, what stays, and for which tokens the patch is to be.
    fn split<E: Element>(
        &self,
        model: &Model,
        tokenizer: &Tokenizer,
        context: &Prompt,
        images: Option<&Images<E>>,
    ) -> Result<Split> {
        let checkpoint = model.checkpoint();
        let mut tokens = context.ids.clone();
        let mut span = 1;
        if let Some(query) = &self.query {
            let query = encode_behind(checkpoint, tokenizer, query)?;
            span = query.len();
            tokens.extend(query);
        }
        let keep = parse_keep(&self.keep, tokens.len() - span)?;
        // Before the model writes for nothing.
        let split = Split::new(tokens.clone(), keep.clone(), span, self.positions)?;
        split.check_images(model, images)?;
        let answer = match (&self.answer, self.answer_tokens) {
            (Some(text), _) => encode_behind(checkpoint, tokenizer, text)?,
            (None, Some(most)) => {
                let (mut answer, mut session) = (Vec::new(), Session::new(model));
                let (before, last) = tokens.split_at(tokens.len() - 1);
                session.forward(Tokens::new(before, images), 0)?;
                let bar = counting("tokens of the answer", most);
                generate(&mut session, last, most, &mut Sampler::default(), |id| {
                    answer.push(id);
                    bar.inc(1);
                    Ok::<_, Error>(())
                })?;
                bar.finish_and_clear();
                answer
            }
            (None, None) => Vec::new(),
        };
        let span = span + answer.len();
        tokens.extend(&answer);
        let split = Split::new(tokens, keep, span, self.positions)?;
        Ok(split.with_answer(answer.len())?)
    }
}

/// Solves a split by the solver of `method`.
fn solve_split<E: Element>(
    model: &Model,
    split: &Split,
    images: Option<&Images<E>>,
    method: &Method,
) -> Result<(patch::Patch, SolverReport)> {
    if method.solver == Solver::Span {
        let bar = ProgressBar::new_spinner();
        let solved = span::solve(model, split, images, method, |quality| {
            bar.inc(1);
            let (pass, differing) = (bar.position(), quality.differing);
            bar.set_message(format!(
                "pass {pass}: L∞ {:.1e}, {differing} tokens differ",
                quality.linf
            ));
        });
        bar.finish_and_clear();
        return Ok(solved?);
    }
    let (tokens, positions) = (split.reduced_tokens(), split.reduced_positions());
    let placed: Vec<_> = tokens.into_iter().zip(positions).collect();
    let (&(token, position), kept) = placed.split_last().ok_or(patch::Error::NoQuery)?;
    let query = Query {
        token,
        position: Some(position),
        kept,
    };
    let solution = waiting("Solving the patch", || {
        let mut contextual = Session::new(model);
        contextual.forward(Tokens::new(split.context(), images), 0)?;
        solve(&mut contextual, query, method, &[])
    })?;
    Ok((solution.patch, solution.report))
}

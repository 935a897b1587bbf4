//! `context-patch demo`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use context_patch::Result;
use context_patch::checkpoint::Tokenizer;
use context_patch::kernels::Level;
use context_patch::model::{Model, ModelOptions, Session};
use context_patch::output::{check_writable, write_file};
use context_patch::patch::{self, Method, Query, Solution, Solver, Variant, solve};
use context_patch::report::{Answer, chance, picture};
use context_patch::tensor::{Dtype, Element};
use context_patch::verify::{LogitsDistance, distribution};
use serde_json::{Value, json};

use super::likeliest::likeliest;
use super::table::table;
use super::words::{figure, paragraph, rows};
use super::{OK, builtin, print, program, refuse_empty, with_dtype};

/// See a context absorbed into weights, by a small model that is built in
///
/// The model has learnt to recall: it answers from the context who likes what. It is asked with the context, without it,
/// and without it but with its weights patched (Theorem 1).
#[derive(Args)]
#[command(before_help = "\
Examples:
  context-patch demo
  context-patch demo --context 'Ida has bells.' --question 'Ida has'
  context-patch demo --svg demo.svg")]
pub(super) struct Demo {
    /// What the model is told
    #[arg(long, default_value = CONTEXT, allow_hyphen_values = true)]
    context: String,

    /// What it is asked; its last token is the one the patch is for
    #[arg(long, default_value = QUESTION, allow_hyphen_values = true)]
    question: String,

    /// Compute in f64, f32 or bf16
    #[arg(long, default_value_t = Dtype::F32)]
    dtype: Dtype,

    /// Draw the answers as a picture, too
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,

    /// Print one JSON object with every figure instead
    #[arg(long)]
    json: bool,
}

const CONTEXT: &str = "Ann likes plums. Bob likes figs.";
const QUESTION: &str = "Bob likes";

/// How many words are drawn of each answer.
const DRAWN: usize = 5;

impl Default for Demo {
    fn default() -> Self {
        Self {
            context: CONTEXT.into(),
            question: QUESTION.into(),
            dtype: Dtype::F32,
            svg: None,
            json: false,
        }
    }
}

impl Demo {
    pub(super) fn run(&self, level: Option<Level>) -> Result<u8> {
        if let Some(file) = &self.svg {
            check_writable(file)?;
        }
        let model = builtin::tiny(ModelOptions {
            level,
            ..ModelOptions::default()
        })?;
        let tokenizer = model.checkpoint().tokenizer()?;
        refuse_empty(&self.question)?;
        let context = tokenizer.encode(&self.context)?;
        let ids = tokenizer.encode(&format!("{} {}", self.context, self.question))?;
        if context.len() <= 1 || !ids.starts_with(&context) || ids.len() == context.len() {
            return Err(patch::Error::NoContext.into());
        }
        with_dtype!(self.dtype, E => {
            let solution = absorb::<E>(&model, &ids, context.len())?;
            self.say(&tokenizer, &solution)?;
        });
        Ok(OK)
    }

    fn say<E: Element>(&self, tokenizer: &Tokenizer, solution: &Solution<E>) -> Result<()> {
        let answers = self.answers(tokenizer, solution);
        if let Some(file) = &self.svg {
            let svg = picture(&answers);
            write_file(file, |out| out.write_all(svg.as_bytes()))?;
        }
        if self.json {
            return print(&format!("{}\n", self.json(&answers, solution)));
        }
        print(&self.text(&answers, solution))
    }

    /// What is said with the context, without it, and without it but patched.
    fn answers<E: Element>(&self, tokenizer: &Tokenizer, solution: &Solution<E>) -> [Answer; 3] {
        let answer = |title: &str, context: &str, logits: &[E]| {
            let p = distribution(logits);
            let words = likeliest(logits).into_iter().take(DRAWN).map(|id| {
                let word = tokenizer.decode(&[id]).unwrap_or_default();
                (word.trim().to_owned(), p[id as usize])
            });
            Answer {
                title: title.into(),
                reads: [context.into(), format!("{} …", self.question)],
                words: words.collect(),
            }
        };
        let (told, patched) = (self.context.as_str(), "(the context is in the weights)");
        [
            answer("with the context", told, &solution.contextual),
            answer("without it", "(no context)", solution.reduced.row(1)),
            answer("without it, patched", patched, solution.reduced.row(0)),
        ]
    }

    fn text<E: Element>(&self, answers: &[Answer], solution: &Solution<E>) -> String {
        let lines = answers.iter().map(|answer| {
            let likeliest = answer.words.first().cloned();
            let (word, p) = likeliest.unwrap_or_default();
            vec![answer.title.clone(), word, chance(p), bar(p)]
        });
        let lines: Vec<_> = lines.collect();
        let header = ["", "next word", "", ""];
        let [patched, unpatched] = distances(solution).map(|distance| figure(distance.linf));
        format!(
            "{}\n{}\n{}\n{}",
            rows([
                ("context", self.context.clone()),
                ("question", format!("{} …", self.question)),
            ]),
            table(4, &header, &lines),
            paragraph(&format!(
                "The patched model does not see the context, and answers as if it did: its {} logits differ from those of \
                 the model that sees it by {patched} at most; without the patch, by up to {unpatched}.",
                solution.contextual.len(),
            )),
            match &self.svg {
                Some(file) => rows([("Drawn", file.display().to_string())]),
                None => rows([("Next", format!("{} patch --help", program()))]),
            },
        )
    }

    fn json<E: Element>(&self, answers: &[Answer], solution: &Solution<E>) -> Value {
        let [patched, unpatched] = distances(solution);
        let answers = answers.iter().map(|answer| {
            let words = answer.words.iter();
            let words = words.map(|(word, p)| json!({ "word": word, "p": p }));
            json!({ "how": answer.title, "words": words.collect::<Vec<_>>() })
        });
        json!({
            "context": self.context,
            "question": self.question,
            "dtype": self.dtype.to_string(),
            "answers": answers.collect::<Vec<_>>(),
            "patched": patched,
            "unpatched": unpatched,
            "report": solution.report,
        })
    }
}

/// The patched logits and the unpatched ones against those with the context.
fn distances<E: Element>(solution: &Solution<E>) -> [LogitsDistance; 2] {
    [0, 1].map(|row| LogitsDistance::new(solution.reduced.row(row), &solution.contextual))
}

/// A probability as a bar.
fn bar(p: f64) -> String {
    match (30.0 * p).round() as usize {
        0 => "▏".into(),
        length => "█".repeat(length),
    }
}

/// Everything but the first token (which marks the beginning) and the question is absorbed.
fn absorb<E: Element>(model: &Model, ids: &[u32], context: usize) -> Result<Solution<E>> {
    let question = ids.len() - 1;
    let mut contextual = Session::<E>::new(model);
    contextual.forward(&ids[..question], 0)?;
    let stays = std::iter::once(0).chain(context..question);
    let kept: Vec<_> = stays.map(|position| (ids[position], position)).collect();
    let query = Query {
        kept: &kept,
        ..Query::alone(ids[question])
    };
    let method = Method::new(Solver::Theorem1);
    Ok(solve(&mut contextual, query, &method, &[Variant::NoPatch])?)
}

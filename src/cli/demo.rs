//! `context-patch demo`.

use bytes::Bytes;
use clap::Args;
use context_patch::Result;
use context_patch::checkpoint::{Checkpoint, Tokenizer};
use context_patch::kernels::Level;
use context_patch::model::generate::greedy;
use context_patch::model::{Model, ModelOptions, Session};
use context_patch::patch::{self, Method, Query, Solution, Solver, Variant, solve};
use context_patch::tensor::{Dtype, Element};
use context_patch::verify::{LogitsDistance, distribution};

use super::table::table;
use super::{OK, print, refuse_empty, with_dtype};

/// See a context absorbed into weights, by a small model that is built in
///
/// The model has learnt to recall: it answers from the context who likes what. It is asked with the
/// context, without it, and without it but with its weights patched (Theorem 1).
#[derive(Args)]
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
}

const CONTEXT: &str = "Ann likes plums. Bob likes figs.";
const QUESTION: &str = "Bob likes";

impl Default for Demo {
    fn default() -> Self {
        Self {
            context: CONTEXT.into(),
            question: QUESTION.into(),
            dtype: Dtype::F32,
        }
    }
}

macro_rules! tiny {
    ($($name:literal),*) => {
        [$(($name, Bytes::from_static(include_bytes!(concat!("../../reference/tiny/", $name))))),*]
    };
}

fn tiny_model(level: Option<Level>) -> Result<Model> {
    let files = tiny!(
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json"
    );
    let checkpoint = Checkpoint::from_files("built-in", files)?;
    let options = ModelOptions {
        level,
        ..ModelOptions::default()
    };
    Ok(Model::from_checkpoint(checkpoint, options)?)
}

impl Demo {
    pub(super) fn run(&self, level: Option<Level>) -> Result<u8> {
        let model = tiny_model(level)?;
        let tokenizer = model.checkpoint().tokenizer()?;
        refuse_empty(&self.question)?;
        let context = tokenizer.encode(&self.context)?;
        let ids = tokenizer.encode(&format!("{} {}", self.context, self.question))?;
        if context.len() <= 1 || !ids.starts_with(&context) || ids.len() == context.len() {
            return Err(patch::Error::NoContext.into());
        }
        with_dtype!(self.dtype, E => {
            let solution = absorb::<E>(&model, &ids, context.len())?;
            print(&self.report(&tokenizer, &solution))?;
        });
        Ok(OK)
    }

    fn report<E: Element>(&self, tokenizer: &Tokenizer, solution: &Solution<E>) -> String {
        let answer = greedy(&solution.contextual);
        let word = |id| {
            tokenizer
                .decode(&[id])
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let line = |what: &str, logits: &[E]| {
            let (said, p) = (greedy(logits), distribution(logits));
            vec![
                what.to_owned(),
                word(said),
                format!("{:.4}", p[said as usize]),
                format!("{:.4}", p[answer as usize]),
            ]
        };
        let answers = [
            line("with the context", &solution.contextual),
            line("without it", solution.reduced.row(1)),
            line("without it, patched", solution.reduced.row(0)),
        ];
        let header = ["", "answer", "p(answer)", &format!("p({})", word(answer))];
        let patched = LogitsDistance::new(solution.reduced.row(0), &solution.contextual);
        let unpatched = LogitsDistance::new(solution.reduced.row(1), &solution.contextual);
        format!(
            "context   {}\nquestion  {}\n\n{}\n{}\n\
             Largest difference of a logit from the answer with the context: {:.1e} patched, {:.1} not.\n\
             The patch is for the question's last token at its place: two matrices of rank 1 and one scale a layer.\n",
            self.context,
            self.question,
            table(&header, &answers),
            layers(solution),
            patched.linf,
            unpatched.linf,
        )
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

/// A line for each layer: how large its patch is, and how far its output is off.
fn layers<E: Element>(solution: &Solution<E>) -> String {
    let percent = |share: f64| format!("{:.2} %", 100.0 * share);
    let rows: Vec<_> = solution
        .report
        .layers
        .iter()
        .enumerate()
        .map(|(i, layer)| {
            vec![
                format!("layer {i}"),
                percent(layer.delta_gate),
                percent(layer.delta_up),
                format!("{:.1}", layer.largest_delta_m),
                format!("{:.1e}", layer.hidden_error),
            ]
        })
        .collect();
    table(
        &[
            "",
            "‖ΔW_gate‖/‖W‖",
            "‖ΔW_up‖/‖W‖",
            "max |Δm|",
            "hidden error",
        ],
        &rows,
    )
}

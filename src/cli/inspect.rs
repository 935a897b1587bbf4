//! `context-patch inspect`.

use std::path::PathBuf;

use clap::Args;
use context_patch::Result;
use context_patch::patch::compile::Compiled;
use context_patch::patch::{SavedPatch, Solved, Source};
use serde_json::{Value, json};

use super::layers::layers;
use super::words::{commands, counted, figure, percent, quoted, rows, shell};
use super::{OK, print, program};

/// Print what a patch file says of itself: the model, what was absorbed, and how each layer was solved
#[derive(Args)]
#[command(before_help = "\
Example, with the small model that is built in:
  context-patch patch --model tiny --output figs.patch \\
      --context 'Ann likes plums. Bob likes figs. Bob likes'
  context-patch inspect figs.patch")]
pub(super) struct Inspect {
    /// The patch file
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Print one JSON object with every figure instead
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub(super) fn run(&self) -> Result<u8> {
        let saved = SavedPatch::load(&self.file)?;
        let text = if self.json {
            format!("{}\n", object(&saved))
        } else {
            let file = shell(&self.file.to_string_lossy());
            let model = shell(&saved.model);
            let next = format!("{} apply --model {model} --patch {file}", program());
            let named = rows([
                ("model", quoted(&saved.model, 200).trim_matches('"').into()),
                ("weights", saved.model_hash.escape_debug().to_string()),
            ]);
            match &saved.source {
                Source::Solved(solved) => {
                    let (split, layers) = (describe(&saved, solved), layers(&solved.report));
                    format!("{named}{split}\n{layers}\n{}", commands(&[next]))
                }
                Source::Compiled(compiled) => {
                    let text = describe_compiled(&saved, compiled);
                    let chat = if compiled.chat { " --chat" } else { "" };
                    let next = next + chat + " --prompt QUERY";
                    format!("{named}{text}\n{}", commands(&[next]))
                }
            }
        };
        print(&text)?;
        Ok(OK)
    }
}

/// Everything that a patch file says, but for the weights.
pub(super) fn object(saved: &SavedPatch) -> Value {
    let mut object = json!({
        "model": saved.model,
        "model_hash": saved.model_hash,
        "dtype": saved.dtype.to_string(),
    });
    match &saved.source {
        Source::Solved(solved) => {
            object["split"] = json!(solved.split);
            object["reduced_tokens"] = json!(solved.split.reduced_tokens());
            object["reduced_positions"] = json!(solved.split.reduced_positions());
            object["method"] = json!(solved.method);
            object["report"] = json!(solved.report);
            if !solved.images.is_empty() {
                object["images"] = json!(solved.images);
            }
        }
        Source::Compiled(compiled) => object["compiled"] = json!(compiled),
    }
    object
}

/// What a compiled patch was made from, in a few lines.
fn describe_compiled(saved: &SavedPatch, compiled: &Compiled) -> String {
    let recipe = &compiled.recipe;
    let with_chat = match compiled.chat {
        true => ", in the chat template",
        false => "",
    };
    let mut said = vec![
        (
            "compiled",
            counted(compiled.context.len(), "token") + with_chat,
        ),
        ("from", compiled.made_from()),
        (
            "recipe",
            format!(
                "from layer {} on, rank {}, lambda {:e}, gain {}, in {}, seed {}",
                recipe.first, recipe.rank, recipe.lambda, recipe.gain, saved.dtype, compiled.seed
            ),
        ),
    ];
    if let Some(estimate) = &compiled.estimate {
        let patched = &estimate.patched;
        said.push((
            "tried",
            format!(
                "{} of {} queries left out get the same answer, KL {} a token",
                percent(patched.exact),
                patched.samples,
                figure(patched.kl)
            ),
        ));
    }
    rows(said)
}

/// What a patch is of, in a few lines.
fn describe(saved: &SavedPatch, solved: &Solved) -> String {
    let split = &solved.split;
    let (context, kept) = (split.context().len(), split.kept().len());
    let queries = split.queries().len();
    let positions = split.reduced_positions();
    let place = match positions[kept..] {
        [only] => format!("position {only}"),
        [first, .., last] => format!("positions {first} to {last}"),
        [] => String::new(),
    };
    let answer = match split.answer().len() {
        0 => String::new(),
        answer => format!(", the last {answer} of them the answer"),
    };
    let absorbed = format!(
        "{} of {} of the context",
        context - kept,
        counted(context, "token")
    );
    let images = solved.images.iter();
    let images = images.map(|image| ("picture", format!("{image}, SHA-256 {}", image.sha256)));
    let others = [
        (
            "for",
            format!(
                "{} at {place} ({}){answer}",
                counted(queries, "token"),
                split.positions()
            ),
        ),
        (
            "solver",
            format!(
                "{} in {}, applied as {}, gain {}",
                solved.method.solver, saved.dtype, solved.method.form, solved.method.gain,
            ),
        ),
    ];
    rows(
        [("absorbed", absorbed)]
            .into_iter()
            .chain(images)
            .chain(others),
    )
}

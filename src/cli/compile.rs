//! `context-patch compile`.

mod said;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use context_patch::kernels::Level;
use context_patch::model::{self, Model, Session};
use context_patch::output::{check_new_dir, check_writable};
use context_patch::patch::compile::{
    ANCHOR_TOKENS, Asked, Compiled, Estimate, FOLDS, Kept, Lesson, OWN_TOKENS, Prompt, Recipe,
    Sample, States, Survey, compile, samples_hash,
};
use context_patch::patch::{self, Error, SavedPatch, Source};
use context_patch::tensor::{Dtype, Element, Storage};
use context_patch::{IoError, Result};
use serde::Deserialize;

use super::compiled_report;
use super::progress::counting;
use super::signals;
use super::solving::ExportArgs;
use super::{BROKEN, BackendArgs, ModelArgs, OK, print, refuse_empty, with_dtype};

/// Texts that the model writes itself where no queries are given.
const OWN: usize = 96;

/// Turn a prompt into a LoRA that serves questions nobody has asked yet
///
/// The model without the prompt is fitted, layer by layer and without training, to what it says with it: of your queries, or of
/// queries that it makes up itself. Three times a part of the queries is left out and tried, which says how good the patch
/// will be for others. Exit code 1 (with the files written all the same) when --at-least is missed.
#[derive(Args)]
#[command(before_help = "\
Example, with the small model that is built in:
  context-patch compile --model tiny --output likes.patch \\
      --context 'Ann likes plums. Bob likes figs. ' --self 24 --anchors 8

The real model, a prompt of examples and a file of queries:
  context-patch compile --model models/gemma-3-270m --output shots.patch \\
      --context-file shots.txt --queries queries.jsonl --export peft shots-peft")]
pub(super) struct Compile {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    products: BackendArgs,

    /// The prompt to compile; with --chat the system message
    #[arg(
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        required_unless_present = "context_file"
    )]
    context: Option<String>,

    /// The same from a file
    #[arg(long, value_name = "FILE", conflicts_with = "context")]
    context_file: Option<PathBuf>,

    /// Put the prompt and the queries into the model's chat template
    #[arg(long)]
    chat: bool,

    /// Queries like those to come: one JSON a line, a string or {"query": …, "answer": …}. Without --chat each is
    /// the text that follows the prompt
    #[arg(long, value_name = "FILE.jsonl")]
    queries: Option<PathBuf>,

    /// How many texts the model writes itself after the prompt, which are cut into queries line by line; with --chat how many
    /// queries it makes up. Beside --queries they are never what is tried [default: 96, and none beside --queries]
    #[arg(long = "self", value_name = "N")]
    own: Option<usize>,

    /// Tokens of an answer at most
    #[arg(long, value_name = "N", default_value_t = 32)]
    answer_tokens: usize,

    /// What ends an answer besides the model's end token [default: a line break, and nothing with --chat]
    #[arg(long, value_name = "TEXT")]
    stop: Option<String>,

    /// Texts that must not change: how many the model makes up itself, or a file of ordinary text
    #[arg(long, value_name = "N|FILE", default_value = "24")]
    anchors: String,

    /// Queries of other kinds, as in --queries: what the model answers to them without the prompt it is to answer with the patch, too
    #[arg(long, value_name = "FILE.jsonl")]
    away: Option<PathBuf>,

    /// Compile every query also as the second of a conversation, behind another one and its answer
    #[arg(long)]
    turns: bool,

    /// Keep what the model writes in a folder, and take from there what it has written before; Ctrl-C then loses none of it
    #[arg(long, value_name = "DIR")]
    samples: Option<PathBuf>,

    /// Keep in that folder, too, what every layer says with the prompt to what is compiled from: a number of the compute type for each
    /// token, layer and coordinate. The same texts and queries by another recipe then take less time
    #[arg(long, requires = "samples")]
    keep_states: bool,

    /// The rank of the LoRA; 0 is all there is
    #[arg(long, default_value_t = 32)]
    rank: usize,

    /// The first layer that is changed. Without --first, --lambda and --gain two recipes are tried on the queries and texts left
    /// out, and the one that is less off there is taken: the usual one, or one that serves some prompts better
    /// [with one of the others alone: two sevenths of the layers; a third where no norm stands behind the MLP]
    #[arg(long, value_name = "LAYER")]
    first: Option<usize>,

    /// How far the change is held small [with one of the others alone: 1e-3; 1e-2 where no norm
    /// stands behind the MLP]
    #[arg(long, value_name = "X")]
    lambda: Option<f64>,

    /// How much of the way to its target each layer goes, above 0 and at most 1; the last goes all of it
    /// [with one of the others alone: 0.9; 0.7 where no norm stands behind the MLP]
    #[arg(long, value_name = "X")]
    gain: Option<f64>,

    /// Take the usual recipe, and do not find out how good the patch will be for other queries: less than half the time
    #[arg(long, conflicts_with_all = ["at_least", "report"])]
    no_estimate: bool,

    /// Fixes what is drawn, on every machine
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Exit with 1 where fewer of the queries left out get the same answer, as a share of 1; without --queries and --chat, where at
    /// fewer places the likeliest next token is the same
    #[arg(long, value_name = "X")]
    at_least: Option<f64>,

    /// Compute in f64, f32 or bf16
    #[arg(long, default_value_t = Dtype::F32)]
    dtype: Dtype,

    /// The patch file to write
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    #[command(flatten)]
    export: ExportArgs,

    /// Make this folder with a page about it: index.html with curves over queries and ranks and answers side by side, all of
    /// queries left out, and figures.json, which they were drawn from. Some eight more patches are compiled for it
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,

    /// Print one JSON object with every figure instead
    #[arg(long)]
    json: bool,
}

/// A line of the file of queries.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Query(String),
    Answered {
        query: String,
        answer: Option<String>,
    },
}

/// What is asked by the files of queries.
struct AskedOf {
    /// Without them the model makes some up.
    queries: Option<Vec<Asked>>,
    away: Vec<Asked>,
}

impl Compile {
    pub(super) fn run(&self, level: Option<Level>) -> Result<u8> {
        let context = self.context()?;
        refuse_empty(&context)?;
        let asked = self.asked()?;
        if let Some(file) = &self.output {
            check_writable(file)?;
        }
        self.export.check()?;
        if let Some(dir) = &self.report {
            check_new_dir(dir)?;
        }
        let (model, tokenizer) = self.model.open_hashed_with_tokenizer(level)?;
        let model = model.on(self.products.backend)?;
        self.recipes(&model).0.check(&model)?;
        let template = match self.chat {
            true => Some(model.checkpoint().chat_template()?),
            false => None,
        };
        let prompt = Prompt {
            tokenizer: &tokenizer,
            template: template.as_ref(),
            context: &context,
            stop: self.stop.as_deref().or((!self.chat).then_some("\n")),
            answer_tokens: self.answer_tokens,
            second_turn: self.turns,
        };
        with_dtype!(self.dtype, E => self.run_in::<E>(&model, &prompt, asked))
    }

    /// The queries of both files.
    fn asked(&self) -> Result<AskedOf> {
        let read = |file: &Option<PathBuf>| file.as_deref().map(read_queries).transpose();
        let (queries, away) = (read(&self.queries)?, read(&self.away)?.unwrap_or_default());
        for Asked { query, .. } in queries.iter().flatten() {
            if away.iter().any(|away| away.query == *query) {
                let query = query.clone();
                return Err(Error::AwayQuery { query }.into());
            }
        }
        Ok(AskedOf { queries, away })
    }

    fn context(&self) -> Result<String> {
        match (&self.context, &self.context_file) {
            (Some(text), _) => Ok(text.clone()),
            (None, Some(file)) => read_text(file),
            (None, None) => Ok(String::new()),
        }
    }

    fn run_in<E: Element>(&self, model: &Model, prompt: &Prompt<'_>, asked: AskedOf) -> Result<u8> {
        let (patch, compiled, survey) = self.compiled::<E>(model, prompt, asked)?;
        let source = Source::Compiled(Box::new(compiled.clone()));
        let saved = SavedPatch::new(model, patch, source, self.dtype);
        self.export
            .save(model, &saved, self.output.as_deref(), Storage::F32)?;
        let worth = if self.json && self.report.is_none() {
            Vec::new()
        } else {
            self.worth(&compiled, reading::<E>(model, &compiled.context)?)
        };
        if let (Some(dir), Some(survey)) = (&self.report, &survey) {
            compiled_report::write::<E>(dir, model, prompt, &saved, &compiled, &worth, survey)?;
        }
        let text = if self.json {
            format!("{}\n", super::inspect::object(&saved))
        } else {
            self.text(worth)
        };
        print(&text)?;
        let estimate = compiled.estimate.unwrap_or_default();
        let enough = self
            .at_least
            .is_none_or(|least| self.alike(&estimate.patched) >= least);
        Ok(if enough { OK } else { BROKEN })
    }

    /// The patch, and what it was compiled from.
    fn compiled<E: Element>(
        &self,
        model: &Model,
        prompt: &Prompt<'_>,
        asked: AskedOf,
    ) -> Result<(patch::Patch, Compiled, Option<Survey>)> {
        let [queries, own, anchors, away] = self.samples::<E>(model, prompt, asked)?;
        // Not those that are there once more, as a second turn.
        let first = |sample: &&Sample| sample.turn == sample.bare.len();
        let [asked, made_up] = [&queries, &own].map(|all| all.iter().filter(first).count());
        let counts = [asked, anchors.len()];
        let of_other_kinds = away.len();
        let samples = [queries, own, anchors, away].concat();
        let samples_hash = samples_hash(&samples);
        let bar = counting("texts read", samples.len());
        let lessons = match &self.samples {
            Some(dir) if self.keep_states => {
                States::new(dir, model).lessons::<E>(&samples, || bar.inc(1))?
            }
            _ => Lesson::all(model, &samples, || bar.inc(1))?,
        };
        bar.finish_and_clear();
        let (usual, other) = self.recipes(model);
        let layers = |recipe: &Recipe| model.layers().len() - recipe.first;
        let tried = layers(&usual) + other.as_ref().map_or(0, layers);
        let bar = counting("layers", if self.no_estimate { 0 } else { tried * FOLDS });
        let (recipe, estimate) = if self.no_estimate {
            (usual, None)
        } else {
            let best = Estimate::best(model, &lessons, usual, other, || bar.inc(1))?;
            (best.0, Some(best.1))
        };
        let surveyed = match self.report {
            Some(_) => Survey::patches(model, &lessons, &recipe)?,
            None => 0,
        };
        bar.set_length(bar.position() + (layers(&recipe) * (1 + surveyed)) as u64);
        let all: Vec<_> = lessons.iter().collect();
        let patch = compile(model, &all, &recipe, || bar.inc(1))?;
        let survey = (surveyed > 0)
            .then(|| Survey::new(model, &lessons, &recipe, || bar.inc(1)))
            .transpose()?;
        bar.finish_and_clear();
        let compiled = Compiled {
            context: prompt.beginning()?,
            chat: self.chat,
            recipe,
            seed: self.seed,
            samples: counts,
            own: made_up,
            away: of_other_kinds,
            samples_hash,
            estimate,
        };
        Ok((patch, compiled, survey))
    }

    /// The recipe, or the two that are to be tried.
    fn recipes(&self, model: &Model) -> (Recipe, Option<Recipe>) {
        let [usual, other] = Recipe::choices(model).map(|recipe| Recipe {
            rank: self.rank,
            ..recipe
        });
        if self.first.is_none() && self.lambda.is_none() && self.gain.is_none() {
            return (usual, Some(other));
        }
        let asked = Recipe {
            first: self.first.unwrap_or(usual.first),
            lambda: self.lambda.unwrap_or(usual.lambda),
            gain: self.gain.unwrap_or(usual.gain),
            ..usual
        };
        (asked, None)
    }

    /// The queries with what the model with the prompt says to them, those that it makes up beside them, the texts that must not change, and the
    /// queries of other kinds: written now, or kept.
    fn samples<E: Element>(
        &self,
        model: &Model,
        prompt: &Prompt<'_>,
        asked: AskedOf,
    ) -> Result<[Vec<Sample>; 4]> {
        let Some(dir) = &self.samples else {
            return self.written::<E>(model, prompt, asked, &mut Kept::default());
        };
        if !dir.exists() {
            fs::create_dir(dir).map_err(|source| IoError {
                action: "make",
                path: dir.clone(),
                source,
            })?;
        }
        let file = Kept::file::<E>(dir, model);
        check_writable(&file)?;
        let mut kept = Kept::load(&file)?.with_cancel(signals::cancel());
        let written = self.written::<E>(model, prompt, asked, &mut kept);
        kept.save(&file)?;
        if let Err(context_patch::Error::Model(model::Error::Cancelled)) = &written {
            eprintln!(
                "interrupted; {} has what is written, and the same command goes on there",
                dir.display()
            );
        }
        let written = written?;
        match signals::no_longer() {
            false => Ok(written),
            true => Err(model::Error::Cancelled.into()),
        }
    }

    /// The same, written as far as it is not kept.
    fn written<E: Element>(
        &self,
        model: &Model,
        prompt: &Prompt<'_>,
        asked: AskedOf,
        kept: &mut Kept,
    ) -> Result<[Vec<Sample>; 4]> {
        let AskedOf { queries, away } = asked;
        let given = match &queries {
            None => None,
            Some(queries) => {
                let bar = counting("tokens of answers", queries.len() * self.answer_tokens);
                let given = prompt.samples::<E>(model, queries, kept, || bar.inc(1));
                bar.finish_and_clear();
                Some(given?)
            }
        };
        let count = self.own.unwrap_or(if given.is_some() { 0 } else { OWN });
        let bar = counting("tokens of queries", count * OWN_TOKENS);
        let (seed, bump) = (self.seed, || bar.inc(1));
        let own = match &given {
            Some(given) => prompt.more_samples::<E>(model, given, count, seed, kept, bump),
            None => prompt.own_samples::<E>(model, count, seed, kept, bump),
        };
        bar.finish_and_clear();
        let (queries, own) = match given {
            Some(given) => (given, own?),
            None => (own?, Vec::new()),
        };
        let bar = counting("tokens of other answers", away.len() * self.answer_tokens);
        let away = prompt.away::<E>(model, &away, kept, || bar.inc(1));
        bar.finish_and_clear();
        let away = away?;
        let Ok(count) = self.anchors.parse() else {
            let text = read_text(Path::new(&self.anchors))?;
            return Ok([queries, own, prompt.anchors_from(&text)?, away]);
        };
        let bar = counting("tokens of other texts", count * ANCHOR_TOKENS);
        let anchors = prompt.anchors::<E>(model, count, self.seed, kept, || bar.inc(1));
        bar.finish_and_clear();
        Ok([queries, own, anchors?, away])
    }
}

/// How long the model takes to read some tokens.
fn reading<E: Element>(model: &Model, tokens: &[u32]) -> Result<Duration> {
    let start = Instant::now();
    Session::<E>::new(model).forward(tokens, 1)?;
    Ok(start.elapsed())
}

/// A text file.
fn read_text(file: &Path) -> Result<String> {
    let read = fs::read_to_string(file);
    Ok(read.map_err(|source| IoError {
        action: "read",
        path: file.into(),
        source,
    })?)
}

/// The queries of a file, one JSON a line.
fn read_queries(file: &Path) -> Result<Vec<Asked>> {
    let text = read_text(file)?;
    let lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty());
    let asked = lines.map(|(i, line)| match serde_json::from_str(line) {
        Ok(Line::Query(query)) => Ok(Asked {
            query,
            answer: None,
        }),
        Ok(Line::Answered { query, answer }) => Ok(Asked { query, answer }),
        Err(_) => Err(Error::QueryLine {
            path: file.into(),
            line: i + 1,
        }
        .into()),
    });
    asked.collect()
}

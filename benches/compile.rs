//! Prompts compiled, and tried on queries that were not among those they were compiled from: the benchmarks of `benches/compile`.
//!
//! ```text
//! cargo bench --bench compile -- models/gemma-3-270m validation
//! cargo bench --bench compile -- models/qwen2.5-coder-0.5b-instruct test record keeper
//! ```
//!
//! The model is a folder; a model with a chat template gets prompts as system messages. The split is `validation` for choosing
//! and `test` for the figures of docs/compile.md. Names after it are those of the files to run.
#![allow(
    clippy::unwrap_used,
    reason = "a benchmark stops where something is wrong"
)]

mod common;

use std::path::PathBuf;

use common::timed;
use context_patch::Model;
use context_patch::checkpoint::{ChatTemplate, Tokenizer};
use context_patch::patch::compile::{
    Asked, Estimate, Lesson, Prompt, Recipe, Sample, Summary, Trial, answers, compile,
};
use context_patch::patch::{ApplyMode, Overlay};
use serde::Deserialize;

/// Texts that must not change: those that are compiled in, and as many others on which bleed is measured.
const ANCHORS: usize = 24;

/// A file of benches/compile.
#[derive(Deserialize)]
struct Benchmark {
    kind: String,
    context: String,
    system: Option<String>,
    wrap: String,
    stop: String,
    tokens: usize,
    train: Vec<Query>,
    validation: Vec<Query>,
    test: Vec<Query>,
}

#[derive(Deserialize)]
struct Query {
    query: String,
    answer: Option<String>,
}

fn main() {
    let arguments = common::arguments();
    let (path, split, names) = match &arguments[..] {
        [path, split, names @ ..] => (path.as_str(), split.as_str(), names),
        _ => match common::gemma_270m() {
            Some(path) => (path, "validation", &[][..]),
            None => return,
        },
    };
    let model = Model::open(path).unwrap();
    println!(
        "| {path}, {split} | queries | bare: KL | exact | patched: KL | exact | first | accuracy: bare | prompted | patched | bleed: KL | bits | estimate: exact | KL | s |"
    );
    println!("|{}", "---|".repeat(15));
    let texts = Texts::new(&model);
    let mut lines: Vec<(String, Line)> = Vec::new();
    for (name, benchmark) in benchmarks(names) {
        if let Some(line) = run(&model, &texts, &benchmark, split) {
            println!("| {name}, {} {line}", benchmark.kind);
            lines.push((benchmark.kind, line));
        }
    }
    for kind in ["task", "system", "document"] {
        let of_kind: Vec<_> = lines
            .iter()
            .filter(|(k, _)| k == kind)
            .map(|(_, line)| line)
            .collect();
        if !of_kind.is_empty() {
            println!("| **{kind}, mean** {}", Line::mean(&of_kind));
        }
    }
    let errors = lines.iter().map(|(_, line)| (line.0[11] - line.0[4]).abs());
    println!(
        "\nestimate of the exact share, mean absolute error: {:.3}",
        errors.sum::<f64>() / lines.len() as f64
    );
}

/// The files by their names, all of them where none are given.
fn benchmarks(names: &[String]) -> Vec<(String, Benchmark)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/compile");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let files = files
        .into_iter()
        .filter(|file| file.extension().is_some_and(|e| e == "json"));
    let named = files.map(|file| {
        (
            file.file_stem().unwrap().to_string_lossy().into_owned(),
            file,
        )
    });
    let wanted = named.filter(|(name, _)| names.is_empty() || names.contains(name));
    wanted
        .map(|(name, file)| {
            let benchmark = serde_json::from_slice(&std::fs::read(file).unwrap());
            (
                name.clone(),
                benchmark.unwrap_or_else(|error| panic!("{name}: {error}")),
            )
        })
        .collect()
}

/// What all benchmarks of a model share.
struct Texts {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    /// Those that are compiled in.
    anchors: Vec<Lesson<f32>>,
    /// Others, on which bleed is measured.
    elsewhere: Vec<Lesson<f32>>,
}

impl Texts {
    fn new(model: &Model) -> Self {
        let tokenizer = model.checkpoint().tokenizer().unwrap();
        let template = model.checkpoint().chat_template().ok();
        // The first token is that of every prompt.
        let prompt = Prompt {
            tokenizer: &tokenizer,
            template: template.as_ref(),
            context: "A",
            stop: None,
            answer_tokens: 0,
        };
        let [anchors, elsewhere] = [0, 1].map(|seed| {
            let samples = prompt.anchors::<f32>(model, ANCHORS, seed, || {}).unwrap();
            Lesson::all(model, &samples, || {}).unwrap()
        });
        Self {
            tokenizer,
            template,
            anchors,
            elsewhere,
        }
    }
}

/// What the table has of a benchmark, in the order of its columns.
struct Line([f64; 14]);

impl Line {
    fn mean(lines: &[&Self]) -> Self {
        let mean = |i: usize| lines.iter().map(|line| line.0[i]).sum::<f64>() / lines.len() as f64;
        Self(std::array::from_fn(mean))
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, x) in self.0.iter().enumerate() {
            match i {
                0 => write!(f, "| {x:.0} ")?,
                13 => write!(f, "| {x:.1} ")?,
                _ => write!(f, "| {x:.3} ")?,
            }
        }
        write!(f, "|")
    }
}

/// One benchmark; `None` where it does not apply to the model.
fn run(model: &Model, texts: &Texts, benchmark: &Benchmark, split: &str) -> Option<Line> {
    let Texts {
        tokenizer,
        template,
        ..
    } = texts;
    if template.is_some() && benchmark.system.is_none() {
        return None;
    }
    let chat = template.is_some();
    let prompt = Prompt {
        tokenizer,
        template: template.as_ref(),
        context: benchmark
            .system
            .as_ref()
            .filter(|_| chat)
            .unwrap_or(&benchmark.context),
        stop: (!chat).then_some(&benchmark.stop),
        answer_tokens: benchmark.tokens,
    };
    let tried = match split {
        "test" => &benchmark.test,
        _ => &benchmark.validation,
    };
    let asked = |queries: &[Query]| -> Vec<Asked> {
        let each = queries.iter().map(|query| Asked {
            query: if chat {
                query.query.clone()
            } else {
                benchmark.wrap.replace("{}", &query.query)
            },
            answer: None,
        });
        each.collect()
    };
    let recipe = Recipe::new(model.layers().len());
    let of = |samples: Vec<Sample>| Lesson::<f32>::all(model, &samples, || {}).unwrap();
    let (seconds, (lessons, patch)) = timed(|| {
        let samples = prompt.samples::<f32>(model, &asked(&benchmark.train), || {});
        let mut lessons = of(samples.unwrap());
        lessons.extend(texts.anchors.iter().cloned());
        let all: Vec<_> = lessons.iter().collect();
        let patch = compile(model, &all, &recipe, || {}).unwrap();
        (lessons, patch)
    });
    let overlay = Overlay::<f32>::new(model, &patch, ApplyMode::Overlay);
    let estimate = Estimate::new(model, &lessons, &recipe, || {}).unwrap();

    let tried_lessons = of(prompt.samples::<f32>(model, &asked(tried), || {}).unwrap());
    let summary = |overlay: Option<&Overlay<f32>>, lessons: &[Lesson<f32>]| {
        let lessons: Vec<_> = lessons.iter().collect();
        Summary::new(&Trial::all(model, overlay, &lessons).unwrap())
    };
    let (bare, patched) = (
        summary(None, &tried_lessons),
        summary(Some(&overlay), &tried_lessons),
    );
    let bleed = summary(Some(&overlay), &texts.elsewhere);
    let prompts: Vec<_> = asked(tried)
        .iter()
        .map(|asked| prompt.query(&asked.query).unwrap())
        .collect();
    let accuracy = |overlay: Option<&Overlay<f32>>, with: usize| {
        let prompts: Vec<_> = prompts.iter().map(|pair| pair[with].clone()).collect();
        let ended = |written: &[u32]| prompt.ended(written);
        let answers =
            answers::<f32>(model, overlay, &prompts, benchmark.tokens, ended, || {}).unwrap();
        let right = answers.iter().zip(tried).filter(|(answer, query)| {
            query
                .answer
                .as_deref()
                .is_some_and(|right| benchmark.is_right(&tokenizer.decode(answer).unwrap(), right))
        });
        right.count() as f64 / tried.len() as f64
    };
    Some(Line([
        tried_lessons.len() as f64,
        bare.kl,
        bare.exact,
        patched.kl,
        patched.exact,
        patched.first,
        accuracy(None, 1),
        accuracy(None, 0),
        accuracy(Some(&overlay), 1),
        bleed.kl,
        (bleed.bits[1] - bleed.bits[0]) / bleed.bits[0],
        estimate.patched.exact,
        estimate.patched.kl,
        seconds,
    ]))
}

impl Benchmark {
    /// Whether an answer is right, whatever its case: of a task it is that and nothing else, of a document it has it in it.
    fn is_right(&self, answer: &str, right: &str) -> bool {
        let answer = answer.split(&self.stop).next().unwrap_or_default();
        let [answer, right] = [answer, right].map(|text| text.trim().to_lowercase());
        match self.kind.as_str() {
            "task" => answer.trim_end_matches('.') == right,
            _ => answer.contains(&right),
        }
    }
}

//! Prompts compiled, and tried on queries that were not among those they were compiled from: the benchmarks of `benches/compile`.
//!
//! ```text
//! cargo bench --bench compile -- models/gemma-3-270m validation
//! cargo bench --bench compile -- models/qwen2.5-coder-0.5b-instruct test record keeper
//! cargo bench --bench compile -- models/gemma-3-270m validation city french rank=64 anchors=48
//! ```
//!
//! The model is a folder; a model with a chat template gets prompts as system messages. The split is `validation` for choosing
//! and `test` for the figures of docs/compile.md. Names after it are those of the files to run. What is to be done otherwise than by
//! the better of two recipes: `first=`, `lambda=` or `gain=`, by which there is one only, `rank=`, `anchor_weight=`; `anchors=`
//! texts that must not change; `away=` queries of each other file that are to be answered as without the prompt; `own=` queries that the model
//! makes up, instead of those of `train`, and `more=` such beside them; `second=1` to try second turns, and `second=2` to compile
//! from such, too; `together=joint` to compile all prompts into one patch, `together=added` to add their patches.
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
    Asked, Estimate, Kept, Lesson, Prompt, Recipe, Role, Sample, Summary, Through, Trial, Until,
    answers, compile,
};
use context_patch::patch::{ApplyMode, Overlay, Patch, TensorChange};
use context_patch::tensor::Matrix;
use serde::Deserialize;

/// Texts that must not change: those that are compiled in, and as many others on which bleed is measured.
const ANCHORS: usize = 24;

/// Queries of each other file on which it is measured how far a patch captures what it is not for.
const AWAY: usize = 2;

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

/// What is compiled, and how.
struct Setting {
    recipe: Recipe,
    /// What is taken in its place where it is better, but where λ or `first` is given.
    other: Option<Recipe>,
    anchors: usize,
    away: usize,
    own: usize,
    more: usize,
    second: usize,
    together: Together,
}

/// What becomes of several prompts.
#[derive(Clone, Copy, PartialEq)]
enum Together {
    /// Each has a patch of its own.
    Apart,
    /// One patch is compiled from all.
    Joint,
    /// Their patches are added.
    Added,
}

impl Setting {
    /// The usual one, but for what `NAME=VALUE` says.
    fn new(model: &Model, changes: &[String]) -> Self {
        let [recipe, other] = Recipe::choices(model);
        let mut setting = Self {
            recipe,
            other: Some(other),
            anchors: ANCHORS,
            away: 0,
            own: 0,
            more: 0,
            second: 0,
            together: Together::Apart,
        };
        for change in changes {
            let (name, value) = change.split_once('=').unwrap();
            let count = || value.parse().unwrap();
            match name {
                "lambda" => setting.recipe.lambda = value.parse().unwrap(),
                "gain" => setting.recipe.gain = value.parse().unwrap(),
                "first" => setting.recipe.first = count(),
                "anchor_weight" => setting.recipe.anchor_weight = value.parse().unwrap(),
                "rank" => setting.recipe.rank = count(),
                "anchors" => setting.anchors = count(),
                "away" => setting.away = count(),
                "own" => setting.own = count(),
                "more" => setting.more = count(),
                "second" => setting.second = count(),
                "together" if value == "joint" => setting.together = Together::Joint,
                "together" if value == "added" => setting.together = Together::Added,
                _ => panic!("{change} is nothing to be changed"),
            }
            if matches!(name, "first" | "lambda" | "gain") {
                setting.other = None;
            }
        }
        let recipe = setting.recipe;
        setting.other = setting.other.map(|other| Recipe {
            rank: recipe.rank,
            anchor_weight: recipe.anchor_weight,
            ..other
        });
        setting
    }
}

fn main() {
    let arguments = common::arguments();
    let (changes, arguments): (Vec<_>, Vec<_>) =
        (arguments.iter().cloned()).partition(|argument| argument.contains('='));
    let (path, split, names) = match &arguments[..] {
        [path, split, names @ ..] => (path.as_str(), split.as_str(), names),
        _ => match common::gemma_270m() {
            Some(path) => (path, "validation", &[][..]),
            None => return,
        },
    };
    let model = Model::open(path).unwrap();
    let setting = Setting::new(&model, &changes);
    println!(
        "| {path}, {split} | queries | bare: KL | exact | patched: KL | exact | first | accuracy: bare | prompted | patched | bleed: KL | bits | estimate: exact | KL | s | literal: KL | exact | diagonal: KL | exact | bleed | other kinds: KL | same tokens |"
    );
    println!("|{}", "---|".repeat(22));
    let texts = Texts::new(&model, setting.anchors);
    let benchmarks = benchmarks();
    let all = benchmarks.iter();
    let all = all.filter_map(|(name, benchmark)| Case::new(name, benchmark, &texts, &setting));
    let all: Vec<_> = all.collect();
    let cases = all
        .iter()
        .filter(|case| names.is_empty() || names.iter().any(|name| name == case.name));
    let cases: Vec<_> = cases.collect();
    let of_other_kinds = |case: &Case<'_>, split, each| {
        let is_mine = |other: &&Case<'_>| match setting.together {
            Together::Apart => other.name == case.name,
            Together::Joint | Together::Added => cases.iter().any(|mine| mine.name == other.name),
        };
        let others = all.iter().filter(|other| !is_mine(other));
        away(&model, others, split, each)
    };
    let mut lines = Vec::new();
    let mut tell = |case: &Case<'_>, made: &Made| {
        let other_kinds = of_other_kinds(case, split, AWAY);
        let line = case.line(&model, &texts, &other_kinds, &setting, split, made);
        let from = made.recipe.first;
        println!(
            "| {}, {}, from layer {from} {line}",
            case.name, case.benchmark.kind
        );
        lines.push((case.benchmark.kind.clone(), line));
    };
    let lessons_of = |case: &Case<'_>| case.lessons(&model, &setting);
    let made = |case: &Case<'_>| {
        let away = of_other_kinds(case, "train", setting.away);
        let lessons = [lessons_of(case), away].concat();
        Made::new(&model, lessons, &texts, &setting)
    };
    match setting.together {
        Together::Apart => cases.iter().for_each(|case| tell(case, &made(case))),
        Together::Joint => {
            let lessons = cases.iter().flat_map(|case| lessons_of(case));
            let away = of_other_kinds(cases[0], "train", setting.away);
            let made = Made::new(&model, lessons.chain(away).collect(), &texts, &setting);
            cases.iter().for_each(|case| tell(case, &made));
        }
        Together::Added => {
            let made = cases.iter().copied().map(made).reduce(Made::added).unwrap();
            cases.iter().for_each(|case| tell(case, &made));
        }
    }
    for kind in ["task", "system", "document"] {
        let of_kind = lines.iter().filter(|(k, _)| *k == kind);
        let of_kind: Vec<_> = of_kind.map(|(_, line)| line).collect();
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

/// The files by their names.
fn benchmarks() -> Vec<(String, Benchmark)> {
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
    named
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
    fn new(model: &Model, anchors: usize) -> Self {
        let tokenizer = model.checkpoint().tokenizer().unwrap();
        let template = model.checkpoint().chat_template().ok();
        // The first token is that of every prompt.
        let prompt = Prompt {
            tokenizer: &tokenizer,
            template: template.as_ref(),
            context: "A",
            stop: None,
            answer_tokens: 0,
            second_turn: false,
        };
        let [anchors, elsewhere] = [(anchors, 0), (ANCHORS, 1)].map(|(count, seed)| {
            let kept = &mut Kept::default();
            let samples = prompt.anchors::<f32>(model, count, seed, kept, || {});
            Lesson::all(model, &samples.unwrap(), || {}).unwrap()
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
struct Line([f64; 21]);

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
                _ if x.is_nan() => write!(f, "| – ")?,
                0 => write!(f, "| {x:.0} ")?,
                13 => write!(f, "| {x:.1} ")?,
                _ => write!(f, "| {x:.3} ")?,
            }
        }
        write!(f, "|")
    }
}

/// A patch, and the lessons that it was compiled from.
struct Made {
    lessons: Vec<Lesson<f32>>,
    patch: Patch,
    /// The better one, by what its folds leave out.
    recipe: Recipe,
    estimate: Estimate,
    seconds: f64,
}

impl Made {
    fn new(model: &Model, mut lessons: Vec<Lesson<f32>>, texts: &Texts, setting: &Setting) -> Self {
        lessons.extend(texts.anchors.iter().cloned());
        let (recipe, estimate) =
            Estimate::best(model, &lessons, setting.recipe, setting.other, || {}).unwrap();
        let all: Vec<_> = lessons.iter().collect();
        let (seconds, patch) = timed(|| compile(model, &all, &recipe, || {}).unwrap());
        Self {
            lessons,
            patch,
            recipe,
            estimate,
            seconds,
        }
    }

    /// Both patches at once.
    fn added(mut self, other: Self) -> Self {
        for (layer, other) in self.patch.layers.iter_mut().zip(other.patch.layers) {
            for (name, change) in other {
                match (layer.get_mut(&name), change) {
                    (Some(TensorChange::LowRank(sum)), TensorChange::LowRank(more)) => {
                        let (u, v) = (sum.u.transposed(), more.u.transposed());
                        let columns = [u.into_vec(), v.into_vec()].concat();
                        sum.u = Matrix::from_vec(more.u.rows(), columns).transposed();
                        let rows = [sum.v.as_slice(), more.v.as_slice()].concat();
                        sum.v = Matrix::from_vec(more.v.cols(), rows);
                    }
                    (_, change) => drop(layer.insert(name, change)),
                }
            }
        }
        self.seconds += other.seconds;
        self
    }
}

/// A benchmark for a model.
struct Case<'a> {
    name: &'a str,
    benchmark: &'a Benchmark,
    prompt: Prompt<'a>,
}

impl<'a> Case<'a> {
    /// `None` where it does not apply to the model.
    fn new(
        name: &'a str,
        benchmark: &'a Benchmark,
        texts: &'a Texts,
        setting: &Setting,
    ) -> Option<Self> {
        let template = texts.template.as_ref();
        let context = match template {
            Some(_) => benchmark.system.as_ref()?,
            None => &benchmark.context,
        };
        let prompt = Prompt {
            tokenizer: &texts.tokenizer,
            template,
            context,
            stop: template.is_none().then_some(&benchmark.stop),
            answer_tokens: benchmark.tokens,
            second_turn: setting.second == 2,
        };
        Some(Self {
            name,
            benchmark,
            prompt,
        })
    }

    fn asked(&self, queries: &[Query]) -> Vec<Asked> {
        let each = queries.iter().map(|query| Asked {
            query: match self.prompt.template {
                Some(_) => query.query.clone(),
                None => self.benchmark.wrap.replace("{}", &query.query),
            },
            answer: None,
        });
        each.collect()
    }

    /// What is compiled.
    fn lessons(&self, model: &Model, setting: &Setting) -> Vec<Lesson<f32>> {
        let kept = &mut Kept::default();
        let train = self.asked(&self.benchmark.train);
        let samples = match setting.own {
            0 => self.prompt.samples::<f32>(model, &train, kept, || {}),
            own => self.prompt.own_samples::<f32>(model, own, 0, kept, || {}),
        };
        let mut samples = samples.unwrap();
        if setting.more > 0 {
            let (given, count) = (&samples, setting.more);
            let more = (self.prompt).more_samples::<f32>(model, given, count, 0, kept, || {});
            samples.extend(more.unwrap());
        }
        Lesson::all(model, &samples, || {}).unwrap()
    }

    /// What is tried: queries, or these in second turns alone.
    fn tried(&self, model: &Model, queries: &[Query], setting: &Setting) -> Vec<Lesson<f32>> {
        let prompt = Prompt {
            second_turn: setting.second > 0,
            ..self.prompt
        };
        let (asked, kept) = (self.asked(queries), &mut Kept::default());
        let mut samples = (prompt.samples::<f32>(model, &asked, kept, || {})).unwrap();
        if prompt.second_turn {
            samples.retain(|sample| sample.turn < sample.bare.len());
        }
        Lesson::all(model, &samples, || {}).unwrap()
    }

    /// The share of right answers, with the prompt or without.
    fn accuracy(
        &self,
        model: &Model,
        overlay: Option<&Overlay<f32>>,
        queries: &[Query],
        prompted: bool,
    ) -> f64 {
        let asked = self.asked(queries);
        let pairs = asked.iter().map(|asked| self.prompt.query(&asked.query));
        let prompts = pairs.map(|pair| {
            let [with, without] = pair.unwrap();
            if prompted { with } else { without }
        });
        let until = Until {
            most: self.benchmark.tokens,
            ended: &|written| self.prompt.ended(written),
        };
        let (prompts, kept): (Vec<_>, _) = (prompts.collect(), &mut Kept::default());
        let answers = answers::<f32>(model, overlay, &prompts, &until, kept, || {}).unwrap();
        let right = answers.iter().zip(queries).filter(|(answer, query)| {
            let said = self.prompt.tokenizer.decode(answer).unwrap();
            (query.answer.as_deref()).is_some_and(|right| self.benchmark.is_right(&said, right))
        });
        right.count() as f64 / queries.len() as f64
    }

    /// What a patch does on the split; accuracy and the published forms of the ridge on `test` alone.
    fn line(
        &self,
        model: &Model,
        texts: &Texts,
        other_kinds: &[Lesson<f32>],
        setting: &Setting,
        split: &str,
        made: &Made,
    ) -> Line {
        let queries = self.benchmark.split(split);
        let tried = self.tried(model, queries, setting);
        let overlay = Overlay::<f32>::new(model, &made.patch, ApplyMode::Overlay);
        let summary = |overlay: Option<&Overlay<f32>>, lessons: &[Lesson<f32>]| {
            let lessons: Vec<_> = lessons.iter().collect();
            Summary::new(&Trial::all(model, overlay, &lessons).unwrap())
        };
        let [bare, patched] = [None, Some(&overlay)].map(|overlay| summary(overlay, &tried));
        let [bleed, captured] =
            [&texts.elsewhere[..], other_kinds].map(|lessons| summary(Some(&overlay), lessons));
        let mut line = Line([f64::NAN; 21]);
        line.0[..6].copy_from_slice(&[
            tried.len() as f64,
            bare.kl,
            bare.exact,
            patched.kl,
            patched.exact,
            patched.first,
        ]);
        line.0[9] = bleed.kl;
        line.0[10] = (bleed.bits[1] - bleed.bits[0]) / bleed.bits[0];
        line.0[11] = made.estimate.patched.exact;
        line.0[12] = made.estimate.patched.kl;
        line.0[13] = made.seconds;
        line.0[19..].copy_from_slice(&[captured.kl, captured.tokens]);
        if split != "test" {
            return line;
        }
        // The two published forms of the ridge, which know no text that must not change.
        let [literal, diagonal] = [Through::Nothing, Through::Diagonal].map(|through| {
            let queries = (made.lessons.iter()).filter(|lesson| lesson.sample.role == Role::Query);
            let recipe = Recipe {
                through,
                gain: 1.0,
                ..made.recipe
            };
            let patch = compile(model, &queries.collect::<Vec<_>>(), &recipe, || {}).unwrap();
            let overlay = Overlay::<f32>::new(model, &patch, ApplyMode::Overlay);
            [&tried, &texts.elsewhere].map(|lessons| summary(Some(&overlay), lessons))
        });
        for (i, figure) in [
            (6, self.accuracy(model, None, queries, false)),
            (7, self.accuracy(model, None, queries, true)),
            (8, self.accuracy(model, Some(&overlay), queries, false)),
            (14, literal[0].kl),
            (15, literal[0].exact),
            (16, diagonal[0].kl),
            (17, diagonal[0].exact),
            (18, diagonal[1].kl),
        ] {
            line.0[i] = figure;
        }
        line
    }
}

/// So many queries of each of some files, with the answers of the model without any prompt.
fn away<'c>(
    model: &Model,
    cases: impl Iterator<Item = &'c Case<'c>>,
    split: &str,
    each: usize,
) -> Vec<Lesson<f32>> {
    let samples = cases.flat_map(|case| {
        let queries = case.asked(case.benchmark.split(split));
        let asked = &queries[..each.min(queries.len())];
        (case.prompt)
            .away::<f32>(model, asked, &mut Kept::default(), || {})
            .unwrap()
    });
    let numbered = samples
        .enumerate()
        .map(|(about, sample)| Sample { about, ..sample });
    Lesson::all(model, &numbered.collect::<Vec<_>>(), || {}).unwrap()
}

impl Benchmark {
    fn split(&self, name: &str) -> &[Query] {
        match name {
            "train" => &self.train,
            "test" => &self.test,
            _ => &self.validation,
        }
    }

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

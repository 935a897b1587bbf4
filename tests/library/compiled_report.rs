//! `compile --report`: a page whose figures are those of queries and texts left out, and what they were drawn from.

use std::fs;

use crate::common::page::{parsed, text, with_class};
use crate::common::{open, program};
use context_patch::Model;
use context_patch::checkpoint::Tokenizer;
use context_patch::patch::compile::{
    Answered, Asked, Compiled, Estimate, Kept, Lesson, Point, Prompt, Recipe, Role, Sample,
    Summary, Survey, Trial, compile, samples_hash,
};
use context_patch::patch::{ApplyMode, Error, Overlay};
use context_patch::report::{CompiledPrompt, write_compiled};
use context_patch::tensor::Dtype;
use roxmltree::Node;
use serde_json::Value;
use tempfile::TempDir;

const CONTEXT: &str = "Ann likes plums. Bob likes <figs>. ";

/// Every third is left out, the first among them.
const QUERIES: [&str; 9] = [
    "Ann <script>alert('&amp;')</script>",
    "Bob likes",
    "Cleo likes",
    "So Ann likes",
    "So Bob likes",
    "So Cleo likes",
    "Ann and Bob like",
    "Who likes figs?",
    "Who likes plums?",
];

struct Compilation {
    model: Model,
    tokenizer: Tokenizer,
    lessons: Vec<Lesson<f32>>,
    recipe: Recipe,
}

impl Compilation {
    /// Of the tiny model, with so many of the queries and of texts that must not change.
    fn new(queries: usize, anchors: usize) -> Self {
        let model = open("tiny");
        let tokenizer = model.checkpoint().tokenizer().unwrap();
        let asked = QUERIES[..queries].iter().map(|query| Asked {
            query: (*query).into(),
            answer: None,
        });
        let asked: Vec<_> = asked.collect();
        let prompt = prompt(&tokenizer);
        let mut samples = prompt
            .samples::<f32>(&model, &asked, &mut Kept::default(), || {})
            .unwrap();
        samples.extend(
            prompt
                .anchors::<f32>(&model, anchors, 0, &mut Kept::default(), || {})
                .unwrap(),
        );
        Self {
            lessons: Lesson::all(&model, &samples, || {}).unwrap(),
            recipe: Recipe {
                rank: 6,
                ..Recipe::new(&model)
            },
            model,
            tokenizer,
        }
    }

    fn survey(&self) -> Survey {
        Survey::new(&self.model, &self.lessons, &self.recipe, || {}).unwrap()
    }

    fn answers(&self, survey: &Survey) -> Vec<Answered> {
        let prompt = prompt(&self.tokenizer);
        survey.answers::<f32>(&self.model, &prompt, || {}).unwrap()
    }

    /// The page and the data.
    fn page(&self, survey: &Survey, answers: &[Answered]) -> (String, Value) {
        let samples = || self.lessons.iter().map(|lesson| &lesson.sample);
        let anchors = samples().filter(|sample| sample.role == Role::Text).count();
        let estimate = Estimate {
            bare: survey.bare,
            ..Estimate::default()
        };
        let compiled = Compiled {
            context: self.tokenizer.encode(CONTEXT).unwrap(),
            chat: false,
            recipe: self.recipe,
            seed: 0,
            samples: [self.lessons.len() - anchors, anchors],
            own: 0,
            away: 0,
            samples_hash: samples_hash(samples()),
            estimate: Some(estimate),
        };
        let page = CompiledPrompt {
            model: "<tiny>",
            model_hash: "0",
            dtype: Dtype::F32,
            context: CONTEXT,
            compiled: &compiled,
            worth: &[("Expect", "<nothing>".into())],
            survey,
            answers,
        };
        let dir = TempDir::new().unwrap();
        let dir = dir.path().join("report");
        let decode = |tokens: &[u32]| self.tokenizer.decode(tokens).unwrap();
        write_compiled(&page, decode, str::to_owned, &dir).unwrap();
        let read = |name| fs::read_to_string(dir.join(name)).unwrap();
        let data: Value = serde_json::from_str(&read("figures.json")).unwrap();
        assert_eq!(data["estimate"], serde_json::json!(compiled.estimate));
        (read("index.html"), data)
    }
}

fn prompt(tokenizer: &Tokenizer) -> Prompt<'_> {
    Prompt {
        tokenizer,
        template: None,
        context: CONTEXT,
        stop: Some("."),
        answer_tokens: 6,
        second_turn: false,
    }
}

/// Compiled here from the queries and texts that are used, and tried on the first and every third after it.
#[test]
fn the_figures_are_of_what_was_left_out() {
    let it = Compilation::new(9, 4);
    let (anchors, queries): (Vec<_>, Vec<_>) = it
        .lessons
        .iter()
        .partition(|lesson| lesson.sample.role == Role::Text);
    let tried = |numbers: &[usize], recipe: Recipe| {
        let queries = numbers.iter().map(|&i| queries[i]);
        let used: Vec<_> = queries.chain([anchors[1], anchors[2]]).collect();
        let patch = compile(&it.model, &used, &recipe, || {}).unwrap();
        let overlay = Overlay::<f32>::new(&it.model, &patch, ApplyMode::Overlay);
        let of = |lessons: &[&Lesson<f32>]| {
            Summary::new(&Trial::all(&it.model, Some(&overlay), lessons).unwrap())
        };
        Point {
            queries: numbers.len(),
            rank: recipe.rank,
            patched: of(&[queries_at(&it, 0), queries_at(&it, 3), queries_at(&it, 6)]),
            elsewhere: of(&[anchors[0], anchors[3]]),
        }
    };
    let all = [1, 2, 4, 5, 7, 8];
    let mut layers = 0;
    let survey = Survey::new(&it.model, &it.lessons, &it.recipe, || layers += 1).unwrap();
    let learning = [&[1, 7][..], &[1, 4, 7], &all].map(|used| tried(used, it.recipe));
    assert_eq!(survey.learning, learning);
    let numbers: Vec<_> = survey.ranks.iter().map(|point| point.rank).collect();
    assert_eq!(numbers, [4, 6, 8, 16, 32, 64]);
    assert_eq!(survey.ranks[1], survey.learning[2]);
    for point in [survey.ranks[0], survey.ranks[5]] {
        let recipe = Recipe {
            rank: point.rank,
            ..it.recipe
        };
        assert_eq!(point, tried(&all, recipe));
    }

    let patches = Survey::patches(&it.model, &it.lessons, &it.recipe).unwrap();
    let changed = it.model.layers().len() - it.recipe.first;
    assert_eq!((patches, layers), (8, 8 * changed));

    let (_, data) = it.page(&survey, &[]);
    let points = |name: &str| serde_json::from_value::<Vec<Point>>(data[name].clone()).unwrap();
    assert_eq!(points("learning"), survey.learning);
    assert_eq!(points("ranks"), survey.ranks);
    assert_eq!(data["bare"], serde_json::json!(survey.bare));
}

fn queries_at(it: &Compilation, query: usize) -> &Lesson<f32> {
    &it.lessons[query]
}

#[test]
fn everything_is_there_and_escaped() {
    let it = Compilation::new(9, 4);
    let survey = it.survey();
    let answers = it.answers(&survey);
    assert_eq!((answers.len(), survey.answered()), (3, 3));
    let (page, data) = it.page(&survey, &answers);
    for fetching in ["src=", "href=", "url(", "@import", "<script", "<link"] {
        assert!(!page.contains(fetching), "{fetching}");
    }
    let parsed = parsed(&page);
    let whole = text(parsed.root());
    assert!(whole.contains("A prompt compiled for <tiny>") && whole.contains("Expect: <nothing>"));
    assert!(
        with_class(&parsed, "prompt")
            .iter()
            .any(|node| text(*node) == CONTEXT)
    );
    let named = |tag: &'static str| {
        let nodes = parsed.descendants();
        let nodes = nodes.filter(move |node| node.tag_name().name() == tag);
        nodes.map(text).collect::<Vec<_>>()
    };
    assert_eq!(named("h2"), ["Learning curve", "Rank", "Answers"]);
    let queries = named("h3");
    assert!(queries[0].ends_with(QUERIES[0]), "{queries:?}");
    let charts = with_class(&parsed, "chart");
    let titles = charts
        .iter()
        .filter_map(|chart| chart.first_element_child());
    let titles: Vec<_> = titles.map(text).collect();
    let want = [
        "KL and queries compiled from",
        "Same answers and queries compiled from",
        "KL and rank",
        "Same answers and rank",
    ];
    assert_eq!(titles, want);
    // A line for each point and one without a patch, in both tables.
    assert_eq!(named("tr").len(), (1 + 3 + 1) + (1 + 6 + 1));

    // With the prompt the model says what it was asked to say again; the others are marked where they say something else.
    let left_out = [0, 3, 6].map(|i| queries_at(&it, i).sample.clone());
    for (answered, Sample { bare, answer, .. }) in answers.iter().zip(left_out) {
        let (query, answer) = bare.split_at(bare.len() - answer);
        assert_eq!(
            (&answered.query[..], &answered.prompted[..]),
            (query, answer)
        );
    }
    let said = with_class(&parsed, "said");
    assert_eq!(said.len(), 3 * 3);
    let mark = |said: &&Node<'_, '_>| text(**said).contains("another answer");
    let differ = answers
        .iter()
        .flat_map(|a| [a.patched != a.prompted, a.bare != a.prompted]);
    let differ = differ.filter(|differs| *differs).count();
    assert!(differ > 0);
    assert_eq!(said.iter().filter(mark).count(), differ);
    for (answered, data) in answers.iter().zip(data["answers"].as_array().unwrap()) {
        for (name, tokens) in [("patched", &answered.patched), ("bare", &answered.bare)] {
            assert_eq!(data[name]["text"], it.tokenizer.decode(tokens).unwrap());
            assert_eq!(data[name]["same"], *tokens == answered.prompted);
        }
    }
}

/// A single query to compile from, a single one to try, and no text that must not change.
#[test]
fn a_page_of_next_to_nothing() {
    let it = Compilation::new(2, 0);
    let survey = it.survey();
    assert_eq!(survey.learning.len(), 1);
    let (page, _) = it.page(&survey, &it.answers(&survey));
    let whole = text(parsed(&page).root());
    assert!(whole.contains("on the same 1 query, and on no text that must not change"));
    assert!(!whole.contains("NaN"), "{whole}");

    let one = Survey::new(&it.model, &it.lessons[..1], &it.recipe, || {});
    assert!(matches!(one, Err(Error::FewQueries { queries: 1 })));
}

/// Where the model wrote the queries itself, half of each is asked.
#[test]
fn queries_that_the_model_wrote_are_halved() {
    let mut it = Compilation::new(2, 0);
    let prompt = prompt(&it.tokenizer);
    let samples = prompt
        .own_samples::<f32>(&it.model, 3, 0, &mut Kept::default(), || {})
        .unwrap();
    it.lessons = Lesson::all(&it.model, &samples, || {}).unwrap();
    let answers = it.answers(&it.survey());
    assert_eq!(answers.len(), 1);
    let half = 1 + samples[0].answer.div_ceil(2);
    assert_eq!(answers[0].query, samples[0].bare[..half]);
    assert!(half > 2);
}

#[test]
fn the_command_makes_the_page_in_a_new_folder() {
    let dir = TempDir::new().unwrap();
    let queries = QUERIES.map(|query| serde_json::json!(query).to_string());
    fs::write(dir.path().join("queries.jsonl"), queries[..4].join("\n")).unwrap();
    let command = |report: &str| {
        let arguments = [
            "compile",
            "--model",
            "tiny",
            "--context",
            CONTEXT,
            "--queries",
            "queries.jsonl",
            "--anchors",
            "2",
            "--rank",
            "4",
            "--answer-tokens",
            "4",
            "--report",
            report,
        ];
        program(dir.path()).args(arguments).output().unwrap()
    };
    let done = command("report");
    assert!(done.status.success(), "{done:?}");
    let page = fs::read_to_string(dir.path().join("report/index.html")).unwrap();
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let said = words(&text(with_class(&parsed(&page), "verdict")[0]));
    let printed = words(&String::from_utf8(done.stdout).unwrap());
    let (_, expected) = printed.split_once("Expect ").unwrap();
    let (expected, _) = expected.split_once(" Written ").unwrap();
    assert_eq!(
        said.split_once("Expect: ").unwrap().1,
        expected
            .replace("Elsewhere ", "Elsewhere: ")
            .replace("Saves ", "Saves: ")
    );
    assert!(printed.contains("Written report/index.html"), "{printed}");

    let again = command("report");
    assert_eq!(again.status.code(), Some(2));
    let said = String::from_utf8(again.stderr).unwrap();
    assert!(
        said.contains("give a new folder, or empty that one"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1);
    assert!(again.stdout.is_empty());
}

//! `verify --report`: a page that any browser and any XML parser can read, whose figures show what the record says.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::common::page::{parsed, text, with_class};
use crate::common::{open, reference};
use context_patch::kernels::Backend;
use context_patch::patch::{ApplyMode, Solver};
use context_patch::report;
use context_patch::tensor::Dtype;
use context_patch::verify::{Kind, Machine, Record, Setting, Shard, campaign};
use roxmltree::Node;
use tempfile::TempDir;

const DTYPES: [Dtype; 3] = [Dtype::F64, Dtype::F32, Dtype::Bf16];

/// What a cross is drawn in; nothing else of a chart is.
const RED: &str = "#D50000";

/// All solvers and compute types on the built-in model, two tokens of one prompt.
fn record() -> Record {
    let model = open("tiny");
    let kinds = Kind::all(
        &Solver::ALL,
        &DTYPES,
        &[ApplyMode::Overlay],
        &[Backend::Native],
    );
    let prompts = vec!["Ann likes plums. Bob likes figs. Bob likes".into()];
    let setting = Setting {
        tokens: 2,
        ..Setting::new(&model, prompts, kinds).unwrap()
    };
    let mut record = Record::new(setting, vec![Machine::here(&model)]);
    campaign::run(&model, &mut record, &[], Shard::WHOLE, |_, _| Ok(())).unwrap();
    record
}

/// The page and the data of a report.
fn written(record: &Record, token: impl Fn(u32) -> Option<String>) -> (String, String) {
    let dir = TempDir::new().unwrap();
    let dir = dir.path().join("report");
    report::write(record, &[], token, &dir).unwrap();
    let read = |name| fs::read_to_string(dir.join(name)).unwrap();
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 2);
    (read("index.html"), read("figures.json"))
}

fn page(record: &Record) -> String {
    written(record, |_| None).0
}

fn crosses(page: &str) -> usize {
    let page = parsed(page);
    let lines = page.descendants();
    lines
        .filter(|line| line.attribute("stroke") == Some(RED))
        .count()
}

#[test]
fn everything_is_there() {
    let record = record();
    let page = page(&record);
    let page = parsed(&page);
    let whole = text(page.root());
    for kind in &record.setting.kinds {
        assert!(whole.contains(&kind.to_string()), "{kind}");
    }
    assert!(whole.contains(&record.verdict()));
    assert!(whole.contains(&record.setting.command()));
    assert!(whole.contains(&record.setting.model_hash));
    // Two charts over the steps and one for each of five figures over the layers; those of a chart say so.
    let charts = with_class(&page, "chart");
    for dtype in DTYPES {
        let of = format!("native {dtype}");
        let titles = charts
            .iter()
            .filter_map(|chart| chart.first_element_child());
        let titles = titles.filter(|title| text(*title).ends_with(&of));
        assert_eq!(titles.count(), 2 + 5, "{dtype}");
    }
    assert_eq!(charts.len(), 3 * 7 + 1);
    for chart in charts {
        assert_eq!(chart.attribute("role"), Some("img"));
        for name in ["title", "desc"] {
            let said = chart
                .children()
                .find(|child| child.has_tag_name(("http://www.w3.org/2000/svg", name)));
            assert!(!text(said.unwrap()).is_empty(), "{name}");
        }
    }
    // Each solver has a marker of its own, in a colour of its own.
    let swatches = with_class(&page, "swatch");
    let polygons = swatches.iter().filter_map(|svg| svg.first_element_child());
    let looks = polygons.map(|polygon| (polygon.attribute("points"), polygon.attribute("stroke")));
    let looks: Vec<_> = looks.collect();
    let (one, other) = looks.split_at(Solver::ALL.len());
    assert_eq!(one, other, "two legends");
    for (i, (points, colour)) in one.iter().enumerate() {
        let before = &one[..i];
        assert!(before.iter().all(|(p, c)| p != points && c != colour));
    }
}

#[test]
fn nothing_is_fetched() {
    let page = page(&record());
    for fetching in ["src=", "href=", "url(", "@import", "<script", "<link"] {
        assert!(!page.contains(fetching), "{fetching}");
    }
}

#[test]
fn the_same_record_gives_the_same_bytes() {
    let record = record();
    let first = written(&record, |_| None);
    assert_eq!(first, written(&record, |_| None));
    assert_ne!(first.0, written(&record, |id| Some(format!("[{id}]"))).0);
}

#[test]
fn a_cross_is_where_a_token_differs() {
    let mut record = record();
    assert!(
        record
            .runs
            .iter()
            .all(|run| run.steps.iter().all(|step| step.patched.same_top))
    );
    assert_eq!(crosses(&page(&record)), 0);
    let marks = |record: &Record| {
        let page = page(record);
        let page = parsed(&page);
        let marks = page
            .descendants()
            .filter(|node| node.has_tag_name(("http://www.w3.org/1999/xhtml", "mark")));
        let column = |mark: Node<'_, '_>| text(mark.ancestors().nth(2).unwrap());
        let marks = marks.filter(|mark| column(*mark).starts_with("Patched"));
        marks.map(text).collect::<Vec<_>>()
    };
    assert!(marks(&record).is_empty());

    let step = &mut record.runs[4].steps[1];
    step.patched.same_top = false;
    step.patched.top = step.next + 1;
    let other = format!("#{} ", step.next + 1);
    // Two strokes in each of two charts.
    assert_eq!(crosses(&page(&record)), 4);
    assert_eq!(marks(&record), [other]);
}

/// The labels of the vertical axis and the places of markers say so.
#[test]
fn zeros_and_nan_are_shown_as_such() {
    let mut record = record();
    let closed_form = record
        .runs
        .iter()
        .filter(|run| run.kind.solver == Solver::ClosedForm);
    assert!(
        closed_form
            .flat_map(|run| &run.steps)
            .all(|step| step.patched.linf == 0.0)
    );
    let labels = |page: &str| {
        let page = parsed(page);
        let charts = with_class(&page, "chart");
        let texts = charts[0].descendants().filter(Node::is_text);
        let texts = texts.filter_map(|text| Some(text.text()?.trim().to_owned()));
        texts.collect::<Vec<_>>()
    };
    let before = labels(&page(&record));
    assert!(
        before.contains(&"0".into()) && !before.contains(&"NaN, ∞".into()),
        "{before:?}"
    );

    record.runs[0].steps[0].patched.linf = f64::NAN;
    let (page, data) = written(&record, |_| None);
    assert!(labels(&page).contains(&"NaN, ∞".into()));
    assert!(data.contains("\"linf\":null") && data.contains("\"not_finite\":1"));
    assert!(text(parsed(&page).root()).contains("BROKEN"));
}

#[test]
fn texts_are_escaped() {
    let bad = "<script>alert('&amp;')</script>\u{1}\"\n\u{ffff}]]>";
    let mut record = record();
    record.setting.prompts[0] = bad.into();
    record.setting.model = bad.into();
    let (page, _) = written(&record, |_| Some(bad.into()));
    assert!(!page.contains("<script"));
    let page = parsed(&page);
    let said = "<script>alert('&amp;')</script>\\u{1}\"\\n\u{fffd}]]>";
    assert_eq!(text(with_class(&page, "prompt")[0]), said);
    let tokens = with_class(&page, "said")[0]
        .children()
        .find(|node| node.has_tag_name(("http://www.w3.org/1999/xhtml", "p")));
    assert_eq!(text(tokens.unwrap()), said.repeat(2));
}

#[test]
fn an_unfinished_verification_says_so() {
    let mut record = record();
    record.runs[2].steps.truncate(1);
    let unfinished = text(parsed(&page(&record)).root());
    assert!(
        unfinished.contains("Not finished: 1 step is missing"),
        "{unfinished}"
    );
    for run in &mut record.runs {
        run.steps.clear();
    }
    assert!(text(parsed(&page(&record)).root()).contains("No step is done."));
}

fn verify(dir: &Path, tokens: &str) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_context-patch"));
    program.current_dir(reference(".."));
    program.args([
        "verify",
        "--model",
        "reference/tiny",
        "--prompts",
        "tests/prompts.jsonl",
    ]);
    program.args([
        "--tokens",
        tokens,
        "--solver",
        "closed-form,span",
        "--dtype",
        "f32,bf16",
    ]);
    program.arg("--report").arg(dir);
    program.output().unwrap()
}

/// What breaks its bound, as the span does here, is reported all the same. The snapshot has a line for each object.
#[test]
fn figures() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path().join("report");
    let output = verify(&dir, "2");
    assert_eq!(output.status.code(), Some(1));
    let data = fs::read_to_string(dir.join("figures.json")).unwrap();
    insta::assert_snapshot!(data.replace("},{", "},\n{").replace("[{", "[\n{"));
    let page = fs::read_to_string(dir.join("index.html")).unwrap();
    let broken = text(with_class(&parsed(&page), "verdict broken")[0]);
    let printed = String::from_utf8(output.stdout).unwrap();
    // The same lines, which a terminal has wrapped.
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let findings = broken.lines().filter(|line| line.starts_with("BROKEN"));
    let findings = words(&findings.collect::<Vec<_>>().join(" "));
    assert!(
        !findings.is_empty() && words(&printed).contains(&findings),
        "{broken}\n{printed}"
    );
    assert_eq!(
        printed.matches("BROKEN").count(),
        broken.matches("BROKEN").count()
    );
}

#[test]
fn a_folder_that_is_there_is_refused_before_any_work() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("mine"), "").unwrap();
    // So many tokens that it would fail, if it began.
    let output = verify(dir.path(), "1000000");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("give a new folder, or empty that one"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1);
}

//! What must not change unnoticed: the tiny model's patches to the bit, the inventory of a recording, and what
//! the commands print.
//!
//! Every number here is exact, and the same on every machine and at every level.

use std::fmt::Write;
use std::path::Path;

use crate::common::{low_rank, open, program, reference, scale};
use context_patch::kernels::Level;
use context_patch::model::ModelOptions;
use context_patch::patch::{
    ApplyMode, LowRank, Method, Patch, Positions, Query, Solver, Split, solve, span,
};
use context_patch::tensor::{Dtype, Element};
use context_patch::trace::{Trace, names};
use context_patch::{Model, Session};
use half::bf16;
use sha2::{Digest, Sha256};

const TEXT: &str = "Ann likes plums. Bob likes figs. Bob likes";

/// Everything but the first token absorbed: for the last token, or as a span for the last three.
fn solved<E: Element>(model: &Model, solver: Solver, form: ApplyMode) -> Patch {
    let ids = model
        .checkpoint()
        .tokenizer()
        .unwrap()
        .encode(TEXT)
        .unwrap();
    let method = Method {
        form,
        ..Method::new(solver)
    };
    if solver == Solver::Span {
        let split = Split::new(ids, vec![0], 3, Positions::Natural).unwrap();
        return span::solve::<E>(model, &split, None, &method, |_| {})
            .unwrap()
            .0;
    }
    let (&last, context) = ids.split_last().unwrap();
    let mut session = Session::<E>::new(model);
    session.forward(context, 0).unwrap();
    let query = Query {
        kept: &[(ids[0], 0)],
        ..Query::alone(last)
    };
    solve(&mut session, query, &method, &[]).unwrap().patch
}

/// A line for each tensor: name, length, norm, the bits of its first numbers, and a hash of all.
fn digest(patch: &Patch) -> String {
    let mut text = String::new();
    let mut line = |name: String, values: &[f64]| {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let hash: String = Sha256::digest(&bytes)[..8]
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        let norm = values.iter().map(|x| x * x).sum::<f64>().sqrt();
        let first: Vec<_> = values
            .iter()
            .take(2)
            .map(|x| format!("{:016x}", x.to_bits()))
            .collect();
        writeln!(
            text,
            "{name:8} [{}] norm {norm:.6e} {} … {hash}",
            values.len(),
            first.join(" ")
        )
        .unwrap();
    };
    for (i, layer) in patch.layers.iter().enumerate() {
        for name in ["gate", "up", "down"] {
            if let Some(LowRank { u, v }) = low_rank(layer, &format!("mlp.{name}_proj")) {
                line(format!("{i}.{name}.u"), u.as_slice());
                line(format!("{i}.{name}.v"), v.as_slice());
            }
        }
        let scale = scale(layer, "post_feedforward_layernorm");
        line(format!("{i}.m+Δm"), scale.map_or(&[], Vec::as_slice));
    }
    text
}

macro_rules! patches {
    ($($name:ident: $solver:ident, $element:ty, $form:ident;)*) => {$(
        #[test]
        fn $name() {
            let patch = solved::<$element>(&open("tiny"), Solver::$solver, ApplyMode::$form);
            insta::assert_snapshot!(digest(&patch));
        }
    )*};
}

patches! {
    theorem_1_f64: Theorem1, f64, Overlay;
    theorem_1_f32: Theorem1, f32, Overlay;
    theorem_1_bf16: Theorem1, bf16, Overlay;
    theorem_1_bf16_materialised: Theorem1, bf16, Materialise;
    appendix_b_f64: AppendixB, f64, Overlay;
    appendix_b_f32: AppendixB, f32, Overlay;
    appendix_b_bf16_materialised: AppendixB, bf16, Materialise;
    closed_form_f64: ClosedForm, f64, Overlay;
    closed_form_f32: ClosedForm, f32, Overlay;
    closed_form_bf16_materialised: ClosedForm, bf16, Materialise;
    span_f64: Span, f64, Overlay;
    span_f32: Span, f32, Overlay;
    span_bf16_materialised: Span, bf16, Materialise;
}

#[test]
fn every_level_solves_the_same_patch() {
    let path = reference("tiny");
    let with = |level| {
        let options = ModelOptions {
            level: Some(level),
            ..ModelOptions::default()
        };
        let model = Model::open_with(path.to_str().unwrap(), options).unwrap();
        Solver::ALL.map(|solver| {
            [
                digest(&solved::<f64>(&model, solver, ApplyMode::Overlay)),
                digest(&solved::<f32>(&model, solver, ApplyMode::Overlay)),
                digest(&solved::<bf16>(&model, solver, ApplyMode::Materialise)),
            ]
        })
    };
    for level in Level::available() {
        assert_eq!(with(level), with(Level::Scalar), "{level}");
    }
}

#[test]
fn inventory() {
    let model = open("tiny");
    let ids = [2, 10, 20, 30];
    let trace = Trace::new(&model, Dtype::F32, &[], 2).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.safetensors");
    trace.write(&path, &model, &ids).unwrap();
    let file = std::fs::read(&path).unwrap();
    let recorded = safetensors::SafeTensors::deserialize(&file).unwrap();
    // What is promised is what is recorded.
    let promised = trace.shapes(&model, ids.len());
    assert!(promised.iter().map(|(name, _)| name).eq(&names(&model)));
    let mut inventory = String::new();
    for (name, shape) in &promised {
        assert_eq!(recorded.tensor(name).unwrap().shape(), shape, "{name}");
        writeln!(inventory, "{name} {shape:?}").unwrap();
    }
    assert_eq!(recorded.len(), promised.len());
    insta::assert_snapshot!(inventory);
}

/// What a command prints, after its exit code. What is for people fits 80 columns, but for a command to copy.
fn printed_in(dir: &Path, arguments: &[&str]) -> String {
    let output = program(dir).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (said, complaint) = (text(output.stdout), text(output.stderr));
    let free = ["{", "Usage:", "  context-patch "];
    let lines = said
        .lines()
        .filter(|line| !free.iter().any(|start| line.starts_with(start)));
    for line in lines {
        assert!(line.chars().count() <= 80, "{arguments:?}: {line}");
    }
    format!("exit code {:?}\n{said}{complaint}", output.status.code())
}

fn printed(arguments: &[&str]) -> String {
    printed_in(&reference(".."), arguments)
}

#[test]
fn demo() {
    let text = printed(&["demo"]);
    assert_eq!(text, printed(&[]), "without a command the demo runs");
    insta::assert_snapshot!(text);
}

#[test]
fn demo_without_context() {
    insta::assert_snapshot!(printed(&["demo", "--context", ""]));
}

#[test]
fn demo_json() {
    insta::assert_snapshot!(printed(&["demo", "--json"]));
}

/// The picture in the README is the one that the program draws.
#[test]
fn demo_svg() {
    let dir = tempfile::tempdir().unwrap();
    printed_in(dir.path(), &["demo", "--svg", "demo.svg"]);
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    let drawn = read(&dir.path().join("demo.svg"));
    let committed = read(&reference("../docs/demo.svg"));
    assert_eq!(
        drawn, committed,
        "draw it again: context-patch demo --svg docs/demo.svg"
    );
}

#[test]
fn help() {
    insta::assert_snapshot!(printed(&["--help"]));
}

#[test]
fn help_demo() {
    insta::assert_snapshot!(printed(&["demo", "--help"]));
}

#[test]
fn help_generate() {
    insta::assert_snapshot!(printed(&["generate", "--help"]));
}

#[test]
fn help_inspect() {
    insta::assert_snapshot!(printed(&["inspect", "--help"]));
}

#[test]
fn help_trace() {
    insta::assert_snapshot!(printed(&["trace", "--help"]));
}

#[test]
fn help_verify() {
    insta::assert_snapshot!(printed(&["verify", "--help"]));
}

#[test]
fn help_report() {
    insta::assert_snapshot!(printed(&["report", "--help"]));
}

#[test]
fn help_compare() {
    insta::assert_snapshot!(printed(&["compare", "--help"]));
}

#[test]
fn help_conformance() {
    insta::assert_snapshot!(printed(&["conformance", "--help"]));
}

#[test]
fn help_compile() {
    insta::assert_snapshot!(printed(&["compile", "--help"]));
}

#[test]
fn help_patch() {
    insta::assert_snapshot!(printed(&["patch", "--help"]));
}

#[test]
fn help_apply() {
    insta::assert_snapshot!(printed(&["apply", "--help"]));
}

/// Solved, saved, inspected, and applied: one token, which holds, and a span, which the small model cannot say.
#[test]
fn patch_inspect_apply() {
    let dir = tempfile::tempdir().unwrap();
    let printed = |arguments: &[&str]| printed_in(dir.path(), arguments);
    let model = ["--model", "tiny"];
    let context = ["--context", "Ann likes plums. Bob likes figs."];
    let context = [&model[..], &context, &["--keep", "0", "--query"]].concat();
    let patch = [&["patch"], &context[..]].concat();
    let one = [&patch[..], &[" Bob", "--output", "bob's.patch"]].concat();
    insta::assert_snapshot!("patch_one", printed(&one));
    insta::assert_snapshot!("inspect_one", printed(&["inspect", "bob's.patch"]));
    let answer = [
        " Bob likes",
        "--answer-tokens",
        "2",
        "--output",
        "figs.patch",
    ];
    let span = [&patch[..], &answer].concat();
    insta::assert_snapshot!("patch", printed(&span));
    insta::assert_snapshot!("patch_json", printed(&[&span[..], &["--json"]].concat()));
    insta::assert_snapshot!("inspect", printed(&["inspect", "figs.patch"]));
    insta::assert_snapshot!(
        "inspect_json",
        printed(&["inspect", "--json", "figs.patch"])
    );
    let applied = [&["apply"], &model[..], &["--patch", "figs.patch"]].concat();
    let apply = |more: &[&str]| printed(&[&applied[..], more].concat());
    insta::assert_snapshot!("apply", apply(&[]));
    insta::assert_snapshot!("apply_json", apply(&["--json"]));
    let materialised = ["--logits", "3", "--apply", "materialise"];
    insta::assert_snapshot!("apply_logits", apply(&materialised));
    let elsewhere = ["--prompt", "Ann likes", "--max-tokens", "2"];
    insta::assert_snapshot!("apply_elsewhere", apply(&elsewhere));
}

#[test]
fn patch_without_output() {
    let context = ["--context", "Ann likes plums. Ann"];
    insta::assert_snapshot!(printed(
        &[&["patch", "--model", "tiny"], &context[..]].concat()
    ));
}

#[test]
fn trace() {
    let dir = tempfile::tempdir().unwrap();
    let printed = |more: &[&str]| {
        let options = [
            "trace",
            "--model",
            "tiny",
            "--prompt",
            TEXT,
            "--output",
            "figs.safetensors",
        ];
        printed_in(dir.path(), &[&options, more].concat())
    };
    insta::assert_snapshot!("trace", printed(&["--dtype", "f64"]));
    insta::assert_snapshot!("trace_wrong", printed(&["--last", "3", "--mutate", "silu"]));
    insta::assert_snapshot!("trace_json", printed(&["--names", "lm_head", "--json"]));
}

#[test]
fn help_lemmas() {
    insta::assert_snapshot!(printed(&["lemmas", "--help"]));
}

#[test]
fn lemmas() {
    insta::assert_snapshot!(printed(&["lemmas"]));
}

const PROMPTS: &str = "tests/prompts.jsonl";

#[test]
fn verify() {
    insta::assert_snapshot!(printed(&[
        "verify",
        "--model",
        "tiny",
        "--prompts",
        PROMPTS,
        "--tokens",
        "4",
        "--solver",
        "theorem-1,appendix-b,closed-form,span",
        "--dtype",
        "f64,f32,bf16",
        "--apply",
        "overlay,materialise",
    ]));
}

#[test]
fn generate() {
    let text = printed(&["generate", "--model", "tiny", "--prompt", TEXT]);
    insta::assert_snapshot!(text);
}

#[test]
fn generate_json() {
    insta::assert_snapshot!(printed(&[
        "generate",
        "--model",
        "tiny",
        "--prompt",
        TEXT,
        "--json",
        "--max-tokens",
        "6",
        "--temperature",
        "1.5",
        "--top-k",
        "50",
        "--top-p",
        "0.95",
        "--seed",
        "1",
    ]));
}

#[test]
fn generate_chat() {
    insta::assert_snapshot!(printed(&[
        "generate",
        "--model",
        "tiny",
        "--chat",
        "--prompt",
        "Ann likes plums. Bob likes figs. What does Bob like?",
    ]));
}

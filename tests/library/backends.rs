//! The second backend, as a caller and a user choose it.

use std::process::{Command, Output};

use crate::common::{open, reference};
use context_patch::kernels::Backend;
use context_patch::patch::{Method, Positions, Solver};
use context_patch::tensor::{Dtype, Element};
use context_patch::verify::{Bounds, Crossing, Keep, Step, Verification};
use context_patch::{Model, Session};
use serde_json::Value;

const TEXT: &str = "Ann likes plums. Bob likes figs. Bob likes";

fn program(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_context-patch"))
        .current_dir(reference(".."))
        .args(arguments)
        .output()
        .unwrap()
}

/// The logits of all of forty tokens.
fn logits<E: Element>(model: &Model) -> Vec<f64> {
    let vocabulary = model.config().vocab_size as u32;
    let ids: Vec<_> = (0..40).map(|i| (i * i * 7 + 3) % vocabulary).collect();
    let logits = Session::<E>::new(model).forward(&ids, ids.len()).unwrap();
    logits.map(E::to_f64).into_vec()
}

#[test]
fn a_model_is_native_unless_told_otherwise() {
    let model = open("tiny");
    assert_eq!(model.backend(), Backend::Native);
    let back = model.clone().on(Backend::Gemm).unwrap();
    let back = back.on(Backend::Native).unwrap();
    assert_eq!(logits::<f32>(&back), logits::<f32>(&model));
}

#[test]
fn generate_writes_the_same_text() {
    let write = |backend| {
        let arguments = ["--prompt", TEXT, "--max-tokens", "8", "--backend", backend];
        program(&[&["generate", "--model", "reference/tiny"], &arguments[..]].concat())
    };
    let (native, gemm) = (write("native"), write("gemm"));
    assert!(gemm.status.success() && !gemm.stdout.is_empty());
    assert_eq!(native.stdout, gemm.stdout);
}

#[test]
fn a_recording_says_its_backend_and_has_its_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let record = |backend: &str| {
        let file = dir.path().join(backend);
        let (path, model) = (file.to_str().unwrap(), "reference/tiny");
        let done = program(&[
            "trace",
            "--model",
            model,
            "--prompt",
            "Ann likes plums.",
            "--backend",
            backend,
            "--output",
            path,
        ]);
        assert!(done.status.success());
        let bytes = std::fs::read(file).unwrap();
        let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        assert_eq!(header["__metadata__"]["backend"], backend);
        bytes[8 + length..].to_vec()
    };
    assert_ne!(record("native"), record("gemm"));
}

/// Every platform and every crossing, in every compute type, with its controls.
#[test]
fn patches_solved_on_one_backend_hold_on_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("report.json");
    let options = "verify --model reference/tiny --prompts tests/prompts.jsonl --tokens 4 \
                   --dtype f64,f32,bf16 --backend native,gemm --json";
    let arguments = options.split_whitespace();
    let arguments: Vec<_> = arguments.chain([json.to_str().unwrap()]).collect();
    let done = program(&arguments);
    let said = String::from_utf8(done.stdout).unwrap();
    assert_eq!(done.status.code(), Some(0), "{said}");

    let report: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let runs = report["runs"].as_array().unwrap();
    let (native, gemm) = ("native", "gemm");
    let platforms = [
        (native, native),
        (gemm, gemm),
        (native, gemm),
        (gemm, native),
    ];
    let rows = ["f64", "f32", "bf16"].map(|dtype| platforms.map(|platform| (dtype, platform)));
    assert_eq!(runs.len(), rows.as_flattened().len());
    for (run, &(dtype, (solved, applied))) in runs.iter().zip(rows.as_flattened()) {
        let name = format!("{dtype} {solved} {applied}");
        let names = [&run["dtype"], &run["solved_on"], &run["applied_on"]];
        assert_eq!(names, [dtype, solved, applied], "{name}");
        check(run, &name);
        // Two platforms, and not one under two names. In bf16 these few numbers may round to the same.
        if solved != applied && dtype != "bf16" {
            let apart = run["summary"]["worst_linf"].as_f64().unwrap();
            assert!(apart > 0.0, "{name}");
        }
    }
}

/// A row of a report: it holds, and each of its controls by itself would have been noticed.
fn check(run: &Value, name: &str) {
    let summary = &run["summary"];
    assert_eq!(summary["holds"], true, "{name}");
    assert_eq!(summary["controls_fail"], true, "{name}");
    for step in run["steps"].as_array().unwrap() {
        let bound = step["bound"].as_f64();
        let controls = step["controls"].as_array().unwrap();
        assert_eq!(controls.len(), 3);
        let mut off = controls
            .iter()
            .map(|control| control["reduced"]["linf"].as_f64());
        assert!(bound.is_some() && off.all(|off| off > bound), "{name}");
    }
}

fn ids(model: &Model) -> Vec<u32> {
    let tokenizer = model.checkpoint().tokenizer().unwrap();
    tokenizer.encode(TEXT).unwrap()
}

/// The patch of the first token after `TEXT`, solved natively, under gemm.
fn crossed<E: Element>(solver: Solver) -> Step {
    let native = open("tiny");
    let gemm = native.clone().on(Backend::Gemm).unwrap();
    let solved = Verification {
        model: &native,
        tokens: 1,
        method: Method::new(solver),
        keep: Keep::Nothing,
        positions: Positions::Absolute,
    };
    let crossing = Crossing {
        solved,
        applied: &gemm,
    };
    let mut steps = Vec::new();
    let on_step = |step| {
        steps.push(step);
        Ok(())
    };
    crossing.prompt::<E>(0, &ids(&native), on_step).unwrap();
    steps.remove(0)
}

/// Theorem 1 divides by numbers that are mostly rounding, and the closed form does not: its bound stays near the one of
/// patches at home, and shrinks with the roundoff.
#[test]
fn the_bound_of_a_crossing_is_the_patchs_own() {
    let closed = crossed::<f32>(Solver::ClosedForm).bound;
    let theorem_1 = crossed::<f32>(Solver::Theorem1).bound;
    assert!(theorem_1 > 100.0 * closed, "{theorem_1:e} {closed:e}");
    let native = open("tiny");
    let want = Session::<f32>::new(&native).forward(&ids(&native), 1);
    let home = Bounds::new(Dtype::F32, &native).logits(want.unwrap().row(0), 0.0);
    assert!(closed > home && closed < 20.0 * home, "{closed:e} {home:e}");
    let ratio = closed / crossed::<f64>(Solver::ClosedForm).bound;
    let roundoffs = Dtype::F32.unit_roundoff() / Dtype::F64.unit_roundoff();
    assert!((0.1..10.0).contains(&(ratio / roundoffs)), "{ratio:e}");
}

/// The first line of what a command says about a backend.
fn refused(command: &str, backend: &str) -> String {
    let mut arguments = vec![command, "--model", "x", "--backend", backend];
    arguments.extend(match command {
        "verify" => &[][..],
        "patch" => &["--context", "x"],
        "apply" => &["--patch", "x"],
        "trace" => &["--prompt", "x", "--hash", "x"],
        _ => &["--prompt", "x"],
    });
    let done = program(&arguments);
    let message = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(2), "{message}");
    assert!(done.stdout.is_empty());
    message.lines().next().unwrap().to_owned()
}

#[test]
fn a_backend_that_is_none_is_refused() {
    for command in ["generate", "trace", "verify", "patch", "apply"] {
        let first = refused(command, "blas");
        let clear = "'blas' is no backend: use native, gemm or cuda";
        assert!(first.ends_with(clear), "{first}");
    }
    let first = refused("generate", "cuda:first");
    let clear = "'cuda:first' is no backend: a CUDA device is cuda, or cuda:1 by its number";
    assert!(first.ends_with(clear), "{first}");
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_program_without_cuda_says_how_to_build_one_with_it() {
    for backend in ["cuda", "cuda:1"] {
        let first = refused("generate", backend);
        let clear = "this program has no CUDA in it: build it with cargo's --features cuda";
        assert!(first.ends_with(clear), "{first}");
    }
}

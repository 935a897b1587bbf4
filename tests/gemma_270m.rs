//! The real Gemma 3 270M, which `python3 reference/fetch_270m.py` brings.
//!
//! Without it these tests are reported as ignored, by name; with `CONTEXT_PATCH_REQUIRE_270M=1`, as in CI, that is
//! a failure.

mod common;

use std::sync::OnceLock;

use common::{Golden, linf, reference, top_and_margin};
use context_patch::patch::Form;
use context_patch::tensor::{Element, Matrix};
use context_patch::verify::{PROMPTS, Summary, Verification};
use context_patch::{Model, Session};
use half::bf16;
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

type Test = fn() -> Result<(), Failed>;

const TESTS: [(&str, Test); 9] = [
    (
        "the_tokenizer_gives_hugging_faces_ids",
        the_tokenizer_gives_hugging_faces_ids,
    ),
    ("f64_is_the_numpy_reference", f64_is_the_numpy_reference),
    (
        "f32_is_as_near_to_f64_as_hugging_face",
        f32_is_as_near_to_f64_as_hugging_face,
    ),
    (
        "bf16_is_as_near_to_f64_as_hugging_face",
        bf16_is_as_near_to_f64_as_hugging_face,
    ),
    (
        "bf16_has_hugging_faces_top_token_where_that_is_clear",
        bf16_has_hugging_faces_top_token_where_that_is_clear,
    ),
    (
        "f32_writes_hugging_faces_64_tokens",
        f32_writes_hugging_faces_64_tokens,
    ),
    ("verify_theorem_1_f64", verify_f64),
    ("verify_theorem_1_f32", verify_f32),
    ("verify_theorem_1_bf16", verify_bf16),
];

fn directory() -> std::path::PathBuf {
    reference("../models/gemma-3-270m")
}

fn main() {
    let arguments = Arguments::from_args();
    let required = std::env::var_os("CONTEXT_PATCH_REQUIRE_270M").is_some();
    let absent = !directory().join("model.safetensors").exists() && !required;
    if absent {
        println!("ignored without models/gemma-3-270m: python3 reference/fetch_270m.py brings it");
    }
    let trials = TESTS.map(|(name, test)| Trial::test(name, test).with_ignored_flag(absent));
    // One at a time: each uses all cores, and the f64 one gigabytes.
    let arguments = Arguments {
        test_threads: Some(1),
        ..arguments
    };
    libtest_mimic::run(&arguments, trials.into()).exit();
}

fn model() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| Model::open(directory().to_str().unwrap()).unwrap())
}

struct Prompt {
    name: String,
    text: String,
    ids: Vec<u32>,
    golden: Value,
}

fn prompts() -> Vec<Prompt> {
    let json = std::fs::read(reference("golden/gemma-3-270m.json")).unwrap();
    let json: Value = serde_json::from_slice(&json).unwrap();
    let prompts = json["prompts"].as_array().unwrap().iter();
    prompts
        .map(|golden| Prompt {
            name: golden["name"].as_str().unwrap().into(),
            text: golden["text"].as_str().unwrap().into(),
            ids: serde_json::from_value(golden["ids"].clone()).unwrap(),
            golden: golden.clone(),
        })
        .collect()
}

/// The logits after the prompt, `[vocab]`.
fn last_logits<E: Element>(ids: &[u32]) -> Vec<f64> {
    let logits: Matrix<E> = Session::new(model()).forward(ids, 1).unwrap();
    logits.map(E::to_f64).into_vec()
}

/// What the golden files keep of logits: every 64th entry, the 32 largest, and the log-sum-exp.
fn every_64th(logits: &[f64]) -> Vec<f64> {
    logits.iter().copied().step_by(64).collect()
}

fn the_tokenizer_gives_hugging_faces_ids() -> Result<(), Failed> {
    let tokenizer = model().checkpoint().tokenizer()?;
    for prompt in prompts() {
        assert_eq!(
            tokenizer.encode(&prompt.text)?,
            prompt.ids,
            "{}",
            prompt.name
        );
    }
    Ok(())
}

fn f64_is_the_numpy_reference() -> Result<(), Failed> {
    let golden = Golden::open("gemma-3-270m.f64");
    for prompt in prompts() {
        let logits = last_logits::<f64>(&prompt.ids);
        let get = |what: &str| golden.get(&format!("{}.{what}", prompt.name));
        let top: Vec<_> = get("top_ids")
            .iter()
            .map(|&id| logits[id as usize])
            .collect();
        let max = logits.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
        let sum: f64 = logits.iter().map(|x| (x - max).exp()).sum();
        let error = linf(&every_64th(&logits), &get("logits_f64"))
            .max(linf(&top, &get("top_logits")))
            .max((max + sum.ln() - get("log_sum_exp")[0]).abs());
        println!("{}: {error:.1e}", prompt.name);
        assert!(error <= 1e-9, "{}: {error:e}", prompt.name);
    }
    Ok(())
}

/// Ours and Hugging Face's error against f64 for every prompt, the latter from the golden files.
fn errors<E: Element>(dtype: &str) -> Vec<(String, f64, f64)> {
    let truth = Golden::open("gemma-3-270m.f64");
    let theirs = Golden::open("gemma-3-270m");
    let errors = prompts().into_iter().map(|Prompt { name, ids, .. }| {
        let truth = truth.get(&format!("{name}.logits_f64"));
        let ours = linf(&every_64th(&last_logits::<E>(&ids)), &truth);
        let theirs = linf(&theirs.get(&format!("{name}.logits_{dtype}")), &truth);
        println!(
            "{name} {dtype}: {ours:.2e}, Hugging Face {theirs:.2e}, ratio {:.2}",
            ours / theirs
        );
        (name, ours, theirs)
    });
    errors.collect()
}

fn f32_is_as_near_to_f64_as_hugging_face() -> Result<(), Failed> {
    for (name, ours, theirs) in errors::<f32>("f32") {
        assert!(ours <= 1.25 * theirs, "{name}: {ours:e} against {theirs:e}");
    }
    Ok(())
}

/// In bf16 a prompt's error is one draw from a distribution: Hugging Face's own two ways to the same
/// logits, in one piece and token by token, differ by up to a factor 1.6 in it
/// (`docs/numerics.md`). So the factor 1.25 is asked of all prompts together, and each must be a draw
/// that Hugging Face could have had.
fn bf16_is_as_near_to_f64_as_hugging_face() -> Result<(), Failed> {
    let errors = errors::<bf16>("bf16");
    for (name, ours, theirs) in &errors {
        assert!(
            ours <= &(1.6 * theirs),
            "{name}: {ours:e} against {theirs:e}"
        );
    }
    let squares = |error: fn(&(String, f64, f64)) -> f64| {
        errors.iter().map(error).map(|e| e * e).sum::<f64>()
    };
    let ratio = (squares(|e| e.1) / squares(|e| e.2)).sqrt();
    println!("root mean square over prompts: ratio {ratio:.2}");
    assert!(ratio <= 1.25, "{ratio}");
    Ok(())
}

fn bf16_has_hugging_faces_top_token_where_that_is_clear() -> Result<(), Failed> {
    let mut clear = 0;
    for prompt in prompts() {
        let golden = &prompt.golden["bf16"];
        let top: Vec<f64> = serde_json::from_value(golden["top_logits"].clone())?;
        if top[0] - top[1] > 0.5 {
            let ours = top_and_margin(&last_logits::<bf16>(&prompt.ids)).0 as u64;
            assert_eq!(Some(ours), golden["top_ids"][0].as_u64(), "{}", prompt.name);
            clear += 1;
        }
    }
    assert!(clear >= 3, "only {clear} prompts say anything");
    Ok(())
}

fn f32_writes_hugging_faces_64_tokens() -> Result<(), Failed> {
    let mut checked = 0;
    for prompt in prompts() {
        let want = &prompt.golden["f32"]["greedy"]["ids"];
        let Ok(want) = serde_json::from_value::<Vec<u32>>(want.clone()) else {
            continue;
        };
        let mut session = Session::<f32>::new(model());
        let mut next = prompt.ids;
        let mut got = Vec::new();
        while got.len() < want.len() {
            let token = context_patch::model::generate::greedy(session.forward(&next, 1)?.row(0));
            got.push(token);
            next = vec![token];
        }
        assert_eq!(got, want, "{}", prompt.name);
        checked += want.len();
    }
    assert_eq!(checked, 5 * 64);
    Ok(())
}

/// The paper's protocol: 20 tokens of five prompts.
fn verify<E: Element>(form: Form) -> Summary {
    let tokenizer = model().checkpoint().tokenizer().unwrap();
    let verification = Verification {
        model: model(),
        tokens: 20,
        form,
    };
    let mut steps = Vec::new();
    for (i, prompt) in PROMPTS.iter().enumerate() {
        let ids = tokenizer.encode(prompt).unwrap();
        verification
            .prompt::<E>(i, &ids, |step| {
                steps.push(step);
                Ok(())
            })
            .unwrap();
    }
    let summary = Summary::new(&steps);
    println!("{} {form}: {summary:?}", E::DTYPE);
    assert_eq!(summary.tokens, 100);
    assert!(summary.holds, "a bound is broken");
    for (_, control) in summary.controls.iter() {
        assert!(
            control.median_linf >= 10.0 && control.matching < 10,
            "{control:?}"
        );
    }
    summary
}

fn verify_f64() -> Result<(), Failed> {
    for form in [Form::Overlay, Form::Materialise] {
        let summary = verify::<f64>(form);
        assert!(summary.matching == 100 && summary.worst_linf <= 1e-12);
    }
    Ok(())
}

fn verify_f32() -> Result<(), Failed> {
    for form in [Form::Overlay, Form::Materialise] {
        let summary = verify::<f32>(form);
        assert!(summary.matching == 100 && summary.worst_linf <= 2.7e-5);
    }
    Ok(())
}

fn verify_bf16() -> Result<(), Failed> {
    for form in [Form::Overlay, Form::Materialise] {
        // One ulp of a logit between 16 and 32.
        assert!(verify::<bf16>(form).worst_linf <= 0.125);
    }
    Ok(())
}

//! Receipts: what is run again is the same, and whatever is changed in one is found and named.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use std::path::Path;
use std::process::Output;

use common::{program, reference};
use context_patch::receipt::{AnyReceipt, Ending, Receipt, VerificationReceipt};
use context_patch::vision::Picture;
use serde_json::{Value, json};
use tempfile::TempDir;

const PROMPT: &str = "Ann likes plums. Bob likes figs. Bob likes";

fn run(dir: &Path, arguments: &[&str]) -> Output {
    let mut program = program(dir);
    program.args(arguments).env("HF_HUB_CACHE", "hub");
    program.output().unwrap()
}

/// The receipt of a generation by the small model, called `r.json`, and the folder it is in.
fn of_generate(arguments: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let generate = ["generate", "--model", "tiny", "--receipt", "r.json"];
    let done = run(dir.path(), &[&generate, arguments].concat());
    assert!(done.status.success(), "{done:?}");
    dir
}

fn of_prompt(arguments: &[&str]) -> TempDir {
    of_generate(&[&["--prompt", PROMPT], arguments].concat())
}

/// The receipt in a file, and its fields that were changed.
fn load(path: &Path) -> (Receipt, Vec<&'static str>) {
    match AnyReceipt::load(path).unwrap() {
        (AnyReceipt::Generation(receipt), changed) => (*receipt, changed),
        (receipt, _) => panic!("{receipt:?}"),
    }
}

/// The exit code of `check r.json`, and what it prints.
fn check(dir: &Path, arguments: &[&str]) -> (i32, String) {
    let done = run(dir, &[&["check", "r.json"], arguments].concat());
    let said = [done.stdout, done.stderr].concat();
    (
        done.status.code().unwrap(),
        String::from_utf8(said).unwrap(),
    )
}

fn is_the_same(dir: &Path, arguments: &[&str]) {
    let (code, said) = check(dir, arguments);
    assert!(code == 0 && said.starts_with("The same: "), "{said}");
}

/// What `check` says when `r.json` has `value` in its field `field`, the hashes as they were.
fn edited(dir: &Path, field: &str, value: Value) -> (i32, String) {
    let path = dir.join("r.json");
    let before = std::fs::read(&path).unwrap();
    let mut receipt: Value = serde_json::from_slice(&before).unwrap();
    assert_ne!(receipt[field], value, "{field}");
    receipt[field] = value;
    std::fs::write(&path, receipt.to_string()).unwrap();
    let said = check(dir, &[]);
    std::fs::write(&path, before).unwrap();
    said
}

/// What `check` says when the receipt is another one, whose hashes fit.
fn rewritten(dir: &Path, change: impl FnOnce(&mut Receipt)) -> (i32, String) {
    let path = dir.join("r.json");
    let (before, changed) = load(&path);
    assert_eq!(changed, [] as [&str; 0]);
    let mut receipt = before.clone();
    change(&mut receipt);
    assert_ne!(receipt, before);
    receipt.write(&path).unwrap();
    let said = check(dir, &[]);
    before.write(&path).unwrap();
    said
}

#[test]
fn the_same_on_any_threads_and_at_any_level() {
    let drawn = [
        "--temperature",
        "1.2",
        "--top-p",
        "0.9",
        "--seed",
        "7",
        "--max-tokens",
        "12",
    ];
    for arguments in [
        &[][..],
        &["--dtype", "bf16"],
        &["--dtype", "f64", "--max-tokens", "3"],
        &drawn,
    ] {
        let dir = of_prompt(arguments);
        is_the_same(dir.path(), &[]);
        is_the_same(dir.path(), &["--threads", "3", "--level", "scalar"]);
    }
}

#[test]
fn nothing_written_is_a_receipt_too() {
    let dir = of_prompt(&["--max-tokens", "0"]);
    is_the_same(dir.path(), &[]);
    let (code, said) = rewritten(dir.path(), |receipt| receipt.stop = Ending::End);
    assert_eq!(
        (code, said.as_str()),
        (
            1,
            "Not the same: stop: \"end\" in the receipt, \"length\" here\n"
        )
    );
}

#[test]
fn a_patch_is_part_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let patch = |name: &str, context: &str| {
        let done = run(
            dir.path(),
            &[
                "patch",
                "--model",
                "tiny",
                "--output",
                name,
                "--context",
                context,
            ],
        );
        assert!(done.status.success(), "{done:?}");
    };
    patch("figs.patch", PROMPT);
    patch("plums.patch", "Bob likes figs. Ann likes plums. Ann likes");
    let apply = [
        "apply",
        "--model",
        "tiny",
        "--patch",
        "figs.patch",
        "--receipt",
        "r.json",
    ];
    assert!(run(dir.path(), &apply).status.success());
    is_the_same(dir.path(), &[]);
    let (code, said) = check(dir.path(), &["--patch", "plums.patch"]);
    assert!(
        code == 1 && said.starts_with("Not the same: patch: "),
        "{said}"
    );
    // Without the patch the model says something else.
    let (code, said) = rewritten(dir.path(), |receipt| receipt.patch = None);
    assert_eq!(
        (code, said.as_str()),
        (1, "Not the same: step 1: the logits are others\n")
    );
}

#[test]
fn a_field_changed_by_hand_is_named() {
    let dir = of_prompt(&["--temperature", "1", "--max-tokens", "4"]);
    let path = dir.path().join("r.json");
    let receipt: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut changed = 0;
    for (field, value) in receipt.as_object().unwrap() {
        let other = match (field.as_str(), value) {
            ("format" | "hashes", _) => continue,
            ("dtype", _) => json!("bf16"),
            ("embedding_scale", _) => json!("bf16"),
            ("stop", _) => json!("cancelled"),
            ("patch", _) => json!({"file": "a", "hash": "b", "apply": "overlay"}),
            ("prompt", Value::Array(ids)) => json!([&ids[1..], &[json!(5)]].concat()),
            ("positions", Value::Array(all)) => json!((1..=all.len()).collect::<Vec<_>>()),
            ("sampling", Value::Object(settings)) => {
                let mut settings = settings.clone();
                settings["seed"] = json!(1);
                json!(settings)
            }
            (_, Value::String(text)) => json!(format!("{text}x")),
            (_, Value::Number(number)) => json!(number.as_u64().unwrap() + 1),
            ("stop_texts", _) => json!(["figs"]),
            ("images", _) => {
                json!([{ "file": "a", "format": "png", "width": 1, "height": 1, "sha256": "b" }])
            }
            (_, Value::Bool(is)) => json!(!is),
            (_, Value::Array(items)) => json!(&items[1..]),
            other => panic!("{other:?}"),
        };
        let (code, said) = edited(dir.path(), field, other);
        let want = format!("Not the same: {field}: not what was written, its hash differs\n");
        assert_eq!((code, said), (1, want));
        changed += 1;
    }
    assert_eq!(changed, 19);
}

#[test]
fn what_was_changed_with_its_hash_is_found_by_running_it() {
    let dir = of_prompt(&["--temperature", "3", "--seed", "5", "--max-tokens", "8"]);
    let mut all = String::new();
    let mut say = |name: &str, change: fn(&mut Receipt)| {
        let (code, said) = rewritten(dir.path(), change);
        assert_eq!(code, 1, "{name}: {said}");
        all += &format!("{name}\n  {}\n", said.trim_end().replace('\n', "\n  "));
    };
    say("another token of the prompt", |receipt| {
        receipt.prompt[2] += 1
    });
    say("a gap in the positions", |receipt| {
        receipt.positions[3..].iter_mut().for_each(|p| *p += 1)
    });
    say("another type", |receipt| {
        receipt.dtype = context_patch::tensor::Dtype::F64
    });
    say("another seed", |receipt| receipt.sampling.seed += 1);
    say("another temperature", |receipt| {
        receipt.sampling.temperature = 0.0
    });
    say("more tokens allowed", |receipt| receipt.max_tokens += 1);
    say("fewer tokens allowed", |receipt| receipt.max_tokens -= 1);
    say("another token written", |receipt| receipt.written[4] += 1);
    say("a token less", |receipt| receipt.written.truncate(7));
    say("a token more", |receipt| receipt.written.push(5));
    say("other words", |receipt| {
        receipt.text = receipt.text.replace('.', "!")
    });
    say("another end", |receipt| receipt.stop = Ending::End);
    say("a text that would have ended it", |receipt| {
        receipt.stop_texts = vec![receipt.text[2..5].into()];
    });
    say("ended by a text that it has not", |receipt| {
        receipt.stop_texts = vec!["zebra".into()];
        receipt.stop = Ending::Text;
    });
    say("another hash", |receipt| {
        receipt.steps[2] = receipt.steps[1].clone()
    });
    say("a step less", |receipt| receipt.steps.truncate(7));
    say("a step more", |receipt| receipt.steps.push("0".repeat(64)));
    say("other weights", |receipt| receipt.weights = "0".repeat(64));
    say("another config", |receipt| receipt.config = "0".repeat(64));
    say("another tokenizer", |receipt| {
        receipt.tokenizer = "0".repeat(64)
    });
    insta::assert_snapshot!(all);
}

#[test]
fn pictures_are_part_of_it() {
    let see = |name: &str, pictures: &[&str], more: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        for picture in ["00.png", "01.png"] {
            let from = reference("tiny-vision/examples").join(picture);
            std::fs::copy(from, dir.path().join(picture)).unwrap();
        }
        let images = pictures.iter().flat_map(|picture| ["--image", picture]);
        let generate = ["generate", "--model", "tiny-vision", "--receipt", "r.json"];
        let question = ["--prompt", "What colour is the circle?\nA:"];
        let images: Vec<_> = images.collect();
        let done = run(
            dir.path(),
            &[&generate[..], &question, &images, more].concat(),
        );
        assert!(done.status.success(), "{name}: {done:?}");
        is_the_same(dir.path(), &[]);
        dir
    };
    see("two", &["00.png", "01.png"], &[]);
    see("crops", &["00.png"], &["--pan-and-scan"]);
    let dir = see("one", &["00.png"], &[]);
    let moved = dir.path().join("moved.png");
    std::fs::rename(dir.path().join("00.png"), &moved).unwrap();
    assert_eq!(check(dir.path(), &[]).0, 2);
    is_the_same(dir.path(), &["--image", "moved.png"]);
    let (code, said) = check(dir.path(), &["--image", "01.png"]);
    assert!(
        code == 1 && said.starts_with("Not the same: images: "),
        "{said}"
    );
    let (code, said) = check(dir.path(), &["--image", "01.png", "--image", "01.png"]);
    assert_eq!(
        (code, &*said),
        (1, "Not the same: images: 1 in the receipt, 2 here\n")
    );
    // The other picture's hash, and the picture that it is of: the logits are others.
    let record = Picture::open(&dir.path().join("01.png")).unwrap().record();
    let (code, said) = rewritten(dir.path(), |receipt| receipt.images = vec![record]);
    assert_eq!(
        (code, &*said),
        (1, "Not the same: step 1: the logits are others\n")
    );
}

#[test]
fn a_verification_has_one_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.json");
    std::fs::write(
        dir.path().join("p.jsonl"),
        format!("{PROMPT:?}\n\"Ann likes\"\n"),
    )
    .unwrap();
    let verify = [
        "verify",
        "--model",
        "tiny",
        "--prompts",
        "p.jsonl",
        "--tokens",
        "3",
    ];
    let rows = [
        "--solver",
        "closed-form,span",
        "--dtype",
        "f32,bf16",
        "--receipt",
        "r.json",
    ];
    let done = run(dir.path(), &[&verify[..], &rows].concat());
    // What does not hold, as a span here, has a receipt too.
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    is_the_same(dir.path(), &[]);
    is_the_same(dir.path(), &["--threads", "3", "--level", "scalar"]);
    let before = std::fs::read(&path).unwrap();
    let load = || match AnyReceipt::load(&path).unwrap() {
        (AnyReceipt::Verification(receipt), changed) if changed.is_empty() => *receipt,
        other => panic!("{other:?}"),
    };
    let rewritten = |change: fn(&mut VerificationReceipt)| {
        let mut receipt = load();
        change(&mut receipt);
        receipt.write(&path).unwrap();
        let said = check(dir.path(), &[]);
        std::fs::write(&path, &before).unwrap();
        said
    };
    // A hash, and what the hashes depend on.
    let (code, said) = rewritten(|receipt| receipt.steps[3][1][2] = "0".repeat(64));
    let want = "Not the same: span bf16 overlay, prompt 2 token 3: the logits are others\n";
    assert_eq!((code, &*said), (1, want));
    let (code, said) = rewritten(|receipt| receipt.setting.gain = Some(7.0));
    assert!(
        code == 1 && said.contains("the logits are others"),
        "{said}"
    );
    let (code, said) = rewritten(|receipt| receipt.setting.prompt_ids[0][3] += 1);
    assert!(
        code == 1 && said.contains("prompt 1 token 1: the logits"),
        "{said}"
    );
    let (code, said) = rewritten(|receipt| receipt.setting.model_hash = "0".repeat(64));
    assert!(
        code == 1 && said.starts_with("Not the same: weights: "),
        "{said}"
    );
    // A prompt's hashes are missing.
    let (code, said) = rewritten(|receipt| receipt.steps[0].truncate(1));
    assert!(
        code == 2 && said.contains("a hash for each token of each prompt"),
        "{said}"
    );
    let (code, said) = edited(dir.path(), "tokenizer", json!("0"));
    assert_eq!(
        (code, &*said),
        (
            1,
            "Not the same: tokenizer: not what was written, its hash differs\n"
        )
    );
}

#[test]
fn another_model_is_named() {
    let dir = of_prompt(&[]);
    let other = reference("checkpoints/window-3");
    let (code, said) = check(dir.path(), &["--model", other.to_str().unwrap()]);
    assert!(
        code == 1 && said.starts_with("Not the same: weights: "),
        "{said}"
    );
}

#[test]
fn what_is_no_receipt_is_refused_in_one_line() {
    let dir = of_prompt(&["--max-tokens", "2"]);
    let path = dir.path().join("r.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut all = String::new();
    let mut say = |name: &str, text: &str| {
        std::fs::write(&path, text).unwrap();
        let (code, said) = check(dir.path(), &[]);
        assert_eq!((code, said.lines().count()), (2, 1), "{name}: {said}");
        all += &format!("{name}\n  {said}");
    };
    let field = |name: &str, value: Value| {
        let mut receipt: Value = serde_json::from_str(&text).unwrap();
        receipt[name] = value;
        receipt.to_string()
    };
    say("nothing", "");
    say("a patch's report", "{}");
    say(
        "a later format",
        &field("format", json!("context-patch receipt 2")),
    );
    say("no token", &field("prompt", json!([])));
    say("a position too few", &field("positions", json!([0])));
    say("a token that is none", &field("prompt", json!([-1])));
    say("a compute type that is none", &field("dtype", json!("f16")));
    let mut sampling =
        serde_json::to_value(context_patch::model::generate::Sampling::default()).unwrap();
    sampling["min_p"] = json!(2);
    say("a probability that is none", &field("sampling", sampling));
    std::fs::write(&path, &text).unwrap();
    let (mut receipt, _) = load(&path);
    receipt.prompt[0] = u32::MAX;
    say("a token that the model has not", &receipt.json());
    receipt.prompt[0] = 5;
    receipt.positions[1..]
        .iter_mut()
        .for_each(|p| *p += 1 << 40);
    say("a position that the model has not", &receipt.json());
    std::fs::write(&path, &text).unwrap();
    let (mut receipt, _) = load(&path);
    receipt.model = "nowhere".into();
    say("a model that is not here", &receipt.json());
    let gemm = run(
        dir.path(),
        &[
            "generate",
            "--model",
            "tiny",
            "--prompt",
            "Ann",
            "--backend",
            "gemm",
            "--receipt",
            "g.json",
        ],
    );
    assert!(!dir.path().join("g.json").exists());
    all += &format!(
        "a backend that promises no bits\n  {}",
        String::from_utf8(gemm.stderr).unwrap()
    );
    insta::assert_snapshot!(all);
}

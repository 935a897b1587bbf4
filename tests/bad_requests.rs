//! What a patch that cannot be had gets: one clear line, exit code 2, and no file.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A model: the built-in one, or a copy of it to break.
fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("reference/tiny")
}

/// Runs `patch` and gives the message of its refusal.
fn refused_by(model: &Path, arguments: &[&str]) -> String {
    let dir = TempDir::new().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_context-patch"))
        .current_dir(dir.path())
        .args(["patch", "--model", model.to_str().unwrap()])
        .args(["--output", "out.patch"])
        .args(arguments)
        .output()
        .unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert_eq!(message.trim_end().lines().count(), 1, "{message}");
    assert!(output.stdout.is_empty());
    assert_eq!(
        dir.path().read_dir().unwrap().count(),
        0,
        "something was written"
    );
    message
}

fn refused(arguments: &[&str]) -> String {
    refused_by(&tiny(), arguments)
}

const CONTEXT: &str = "Ann likes plums. Bob likes figs.";

#[test]
fn an_empty_context() {
    insta::assert_snapshot!(refused(&["--context", ""]));
}

#[test]
fn an_empty_query() {
    insta::assert_snapshot!(refused(&["--context", CONTEXT, "--query", ""]));
}

#[test]
fn nothing_to_absorb() {
    insta::assert_snapshot!(refused(&[
        "--context",
        CONTEXT,
        "--query",
        " Bob",
        "--keep",
        ".."
    ]));
}

#[test]
fn a_kept_token_outside_the_context() {
    insta::assert_snapshot!(refused(&["--context", CONTEXT, "--keep", "0,99"]));
}

#[test]
fn a_list_that_is_none() {
    insta::assert_snapshot!(refused(&["--context", CONTEXT, "--keep", "bos"]));
}

#[test]
fn several_tokens_for_a_solver_of_one() {
    let arguments = ["--context", CONTEXT, "--query", " Bob likes"];
    let solver = ["--solver", "closed-form"];
    insta::assert_snapshot!(refused(&[&arguments[..], &solver].concat()));
}

#[test]
fn a_span_of_more_tokens_than_h_has_rows() {
    let answer = " figs".repeat(200);
    insta::assert_snapshot!(refused(&["--context", CONTEXT, "--answer", &answer]));
}

#[test]
fn a_span_that_repeats_a_state() {
    // Without attention's output, a token has the same state wherever it stands.
    let dir = TempDir::new().unwrap();
    for file in [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "model.safetensors",
    ] {
        std::fs::copy(tiny().join(file), dir.path().join(file)).unwrap();
    }
    let file = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let start = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..start]).unwrap();
    for (name, entry) in header.as_object().unwrap() {
        if name.contains("o_proj") {
            let offset = |i: usize| start + entry["data_offsets"][i].as_u64().unwrap() as usize;
            bytes[offset(0)..offset(1)].fill(0);
        }
    }
    std::fs::write(file, bytes).unwrap();
    let arguments = ["--context", CONTEXT, "--answer", " figs figs figs"];
    insta::assert_snapshot!(refused_by(dir.path(), &arguments));
}

#[test]
fn an_export_that_is_none() {
    insta::assert_snapshot!(refused(&["--context", CONTEXT, "--export", "onnx", "out"]));
}

#[test]
fn a_changed_norm_in_gguf() {
    // Refused before the patch file is there.
    insta::assert_snapshot!(refused(&[
        "--context",
        CONTEXT,
        "--export",
        "gguf",
        "out.gguf"
    ]));
}

#[test]
fn a_gain_that_is_none() {
    let output = Command::new(env!("CARGO_BIN_EXE_context-patch"))
        .args(["patch", "--model", "x", "--context", "x", "--gain", "0"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("'0' is not a number above 0"), "{message}");
}

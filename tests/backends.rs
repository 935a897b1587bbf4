//! The second backend, as a caller and a user choose it.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use std::process::{Command, Output};

use common::{open, reference};
use context_patch::kernels::Backend;
use context_patch::tensor::Element;
use context_patch::{Model, Session};

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
    let back = model.clone().on(Backend::Gemm).on(Backend::Native);
    assert_eq!(logits::<f32>(&back), logits::<f32>(&model));
}

#[test]
fn generate_writes_the_same_text() {
    let prompt = "Ann likes plums. Bob likes figs. Bob likes";
    let write = |backend| {
        let arguments = [
            "--prompt",
            prompt,
            "--max-tokens",
            "8",
            "--backend",
            backend,
        ];
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
        let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        assert_eq!(header["__metadata__"]["backend"], backend);
        bytes[8 + length..].to_vec()
    };
    assert_ne!(record("native"), record("gemm"));
}

#[test]
fn a_backend_that_is_none_is_refused() {
    for command in ["generate", "trace"] {
        let done = program(&[
            command,
            "--model",
            "x",
            "--prompt",
            "x",
            "--backend",
            "blas",
        ]);
        let message = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(2), "{message}");
        let first = message.lines().next().unwrap();
        let clear = "'--backend <BACKEND>': 'blas' is no backend: use native or gemm";
        assert!(first.ends_with(clear), "{message}");
        assert!(done.stdout.is_empty());
    }
}

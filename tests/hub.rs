//! Models in a Hugging Face cache, named on the command line by repository and revision.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

const FIRST: &str = "1111111111111111111111111111111111111111";
const SECOND: &str = "2222222222222222222222222222222222222222";

/// A cache with two commits of the model `org/tiny`, of which `refs/pr/1` is the second. There is no main, as where
/// files were fetched by commit.
struct Cache(TempDir);

impl Cache {
    fn new() -> Self {
        let cache = Self(TempDir::new().unwrap());
        for commit in [FIRST, SECOND] {
            let snapshot = cache.repository().join("snapshots").join(commit);
            std::fs::create_dir_all(&snapshot).unwrap();
            for file in [
                "config.json",
                "model.safetensors",
                "tokenizer.json",
                "tokenizer_config.json",
            ] {
                std::fs::copy(reference("tiny").join(file), snapshot.join(file)).unwrap();
            }
        }
        let refs = cache.repository().join("refs/refs/pr");
        std::fs::create_dir_all(&refs).unwrap();
        std::fs::write(refs.join("1"), SECOND).unwrap();
        cache
    }

    fn repository(&self) -> PathBuf {
        self.0.path().join("models--org--tiny")
    }

    /// Writes one token of a text with the cache in the variable, from within the cache.
    fn generate(&self, variable: &str, options: &[&str]) -> Result<String, String> {
        self.run(
            variable,
            &[
                &["generate", "--prompt", "Ann", "--max-tokens", "1"],
                options,
            ]
            .concat(),
        )
    }

    fn run(&self, variable: &str, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_context-patch"));
        for name in [
            "HF_HUB_CACHE",
            "HUGGINGFACE_HUB_CACHE",
            "HF_HOME",
            "XDG_CACHE_HOME",
        ] {
            command.env_remove(name);
        }
        let command = command
            .current_dir(self.0.path())
            .env("HOME", "/nowhere")
            .env(variable, self.0.path());
        let output = command.args(arguments).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        if output.status.success() {
            Ok(text(output.stdout))
        } else {
            Err(text(output.stderr).trim_end().to_owned())
        }
    }
}

fn reference(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("reference")
        .join(path)
}

#[test]
fn a_revision_names_a_repository_without_main() {
    let cache = Cache::new();
    let tiny = reference("tiny");
    let expected = cache
        .generate("HF_HUB_CACHE", &["--model", tiny.to_str().unwrap()])
        .unwrap();
    for variable in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"] {
        for revision in [FIRST, SECOND, "refs/pr/1"] {
            let options = ["--model", "org/tiny", "--revision", revision];
            assert_eq!(
                cache.generate(variable, &options).as_ref(),
                Ok(&expected),
                "{variable} {revision}"
            );
        }
    }
    let named = |revision: &[&str]| {
        let options = [&["--model", "org/tiny"], revision].concat();
        cache.generate("HF_HUB_CACHE", &options).unwrap_err()
    };
    assert_eq!(
        named(&[]),
        format!(
            "error: the cache has org/tiny, but not its revision main; choose one with --revision {FIRST} (or {SECOND}), or fetch it with `hf download org/tiny --revision main`"
        )
    );
    assert!(named(&["--revision", "2222222"]).contains("not its revision 2222222;"));
}

#[test]
fn an_adapter_names_the_repository_and_the_commit() {
    let cache = Cache::new();
    let config = |name: &str, options: &[&str]| -> Value {
        let patch = [
            "patch",
            "--context",
            "Ann likes plums. Ann likes",
            "--export",
            "peft",
            name,
        ];
        cache
            .run("HF_HUB_CACHE", &[&patch, options].concat())
            .unwrap();
        let file = cache.0.path().join(name).join("adapter_config.json");
        serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
    };
    let by_id = config("by-id", &["--model", "org/tiny", "--revision", "refs/pr/1"]);
    let snapshot = format!("models--org--tiny/snapshots/{SECOND}");
    for named in [by_id, config("by-path", &["--model", &snapshot])] {
        assert_eq!(named["base_model_name_or_path"], "org/tiny");
        assert_eq!(named["revision"], SECOND);
    }
    let named = config("by-option", &["--model", &snapshot, "--base-name", "mine"]);
    assert_eq!(named["base_model_name_or_path"], "mine");
    assert!(named["revision"].is_null());
}

//! What bad input gets: one clear line, exit code 2, and no output file.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "../fuzz/fuzz_targets/any_config.rs"]
mod any_config;
mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

/// A copy of a good checkpoint to break, ids to run, and a place for the output.
struct Case {
    dir: TempDir,
}

impl Case {
    fn new() -> Self {
        let case = Self {
            dir: TempDir::new().unwrap(),
        };
        std::fs::create_dir(case.path("model")).unwrap();
        for file in ["config.json", "model.safetensors"] {
            let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("reference/checkpoints/window-3");
            std::fs::copy(from.join(file), case.path("model").join(file)).unwrap();
        }
        std::fs::write(case.path("ids.json"), "[2, 5, 7]").unwrap();
        case
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn config(&self, change: impl FnOnce(&mut Value)) {
        let file = self.path("model/config.json");
        let mut config = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        change(&mut config);
        std::fs::write(file, config.to_string()).unwrap();
    }

    /// Changes the header of the weights, and their data.
    fn weights(&self, change: impl FnOnce(&mut Value, &mut Vec<u8>)) {
        let file = self.path("model/model.safetensors");
        let bytes = std::fs::read(&file).unwrap();
        let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        let mut header = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let mut data = bytes[8 + length..].to_vec();
        change(&mut header, &mut data);
        let header = header.to_string();
        let bytes = [
            &(header.len() as u64).to_le_bytes(),
            header.as_bytes(),
            &data,
        ]
        .concat();
        std::fs::write(file, bytes).unwrap();
    }

    /// Runs `trace` on the model and ids, checks what every refusal has in common, and gives the message.
    fn refused(&self) -> String {
        self.refused_with(&["--ids", "ids.json", "--output", "out.safetensors"])
    }

    fn refused_with(&self, arguments: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_context-patch"))
            .current_dir(self.dir.path())
            .env("HF_HUB_CACHE", "cache")
            .args(["trace", "--model", "model"])
            .args(arguments)
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(output.stdout.is_empty());
        assert_eq!(error.lines().count(), 1, "{error}");
        let left: Vec<_> = std::fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !["model", "ids.json"].contains(&name.as_str()))
            .collect();
        assert!(left.is_empty(), "left behind: {left:?}");
        error.trim_end().to_owned()
    }
}

const EMBEDDING: &str = "model.embed_tokens.weight";

#[test]
fn the_case_itself_is_good() {
    let case = Case::new();
    let output = Command::new(env!("CARGO_BIN_EXE_context-patch"))
        .current_dir(case.dir.path())
        .args([
            "trace",
            "--model",
            "model",
            "--ids",
            "ids.json",
            "--output",
            "out.safetensors",
        ])
        .status()
        .unwrap();
    assert!(output.success() && case.path("out.safetensors").exists());
}

#[test]
fn missing_ids_file() {
    let case = Case::new();
    insta::assert_snapshot!(case.refused_with(&[
        "--ids",
        "none.json",
        "--output",
        "out.safetensors"
    ]));
}

#[test]
fn missing_model() {
    let case = Case::new();
    std::fs::remove_dir_all(case.path("model")).unwrap();
    insta::assert_snapshot!(case.refused());
}

#[test]
fn no_config() {
    let case = Case::new();
    std::fs::remove_file(case.path("model/config.json")).unwrap();
    insta::assert_snapshot!(case.refused());
}

#[test]
fn unknown_architecture() {
    let case = Case::new();
    case.config(|config| {
        config["architectures"] = json!(["Llama4ForCausalLM"]);
        config["model_type"] = json!("llama4");
    });
    insta::assert_snapshot!(case.refused());
}

/// The weights of one family with the config of another.
#[test]
fn another_family() {
    let case = Case::new();
    case.config(|config| config["model_type"] = json!("llama"));
    insta::assert_snapshot!(case.refused());
}

#[test]
fn tensor_missing() {
    let case = Case::new();
    case.weights(|header, _| {
        let tensors = header.as_object_mut().unwrap();
        let moved = tensors.remove("model.norm.weight").unwrap();
        tensors.insert("model.other.weight".into(), moved);
    });
    insta::assert_snapshot!(case.refused());
}

#[test]
fn more_layers_than_the_config_says() {
    let case = Case::new();
    case.config(|config| {
        let layers = config["num_hidden_layers"].as_u64().unwrap() as usize - 1;
        config["num_hidden_layers"] = json!(layers);
        config["layer_types"]
            .as_array_mut()
            .unwrap()
            .truncate(layers);
    });
    insta::assert_snapshot!(case.refused());
}

#[test]
fn tensor_of_another_shape() {
    let case = Case::new();
    case.config(|config| config["vocab_size"] = json!(102));
    insta::assert_snapshot!(case.refused());
}

#[test]
fn header_longer_than_the_file() {
    let case = Case::new();
    let file = case.path("model/model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[..8].copy_from_slice(&10_000_000u64.to_le_bytes());
    std::fs::write(file, bytes).unwrap();
    insta::assert_snapshot!(case.refused());
}

#[test]
fn overlapping_tensors() {
    let case = Case::new();
    case.weights(|header, _| {
        // Stored after others, so that it can begin before their end.
        let offsets = &mut header["model.norm.weight"]["data_offsets"];
        let (first, end) = (offsets[0].as_u64().unwrap(), offsets[1].as_u64().unwrap());
        *offsets = json!([first - 4, end - 4]);
    });
    insta::assert_snapshot!(case.refused());
}

#[test]
fn gapped_tensors() {
    let case = Case::new();
    case.weights(|header, data| {
        // Four bytes that belong to nobody, before everything.
        for (name, tensor) in header.as_object_mut().unwrap() {
            if name != "__metadata__" {
                for offset in tensor["data_offsets"].as_array_mut().unwrap() {
                    *offset = json!(offset.as_u64().unwrap() + 4);
                }
            }
        }
        data.extend([0; 4]);
    });
    insta::assert_snapshot!(case.refused());
}

#[test]
fn index_naming_an_absent_shard() {
    let case = Case::new();
    std::fs::remove_file(case.path("model/model.safetensors")).unwrap();
    let index = json!({"weight_map": {EMBEDDING: "model-00001-of-00002.safetensors"}});
    std::fs::write(
        case.path("model/model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
    insta::assert_snapshot!(case.refused());
}

#[test]
fn dtype_nobody_can_compute_with() {
    let case = Case::new();
    case.weights(|header, _| {
        assert_eq!(header[EMBEDDING]["dtype"], "F32");
        header[EMBEDDING]["dtype"] = json!("I32");
    });
    insta::assert_snapshot!(case.refused());
}

#[test]
fn token_id_outside_the_vocabulary() {
    let case = Case::new();
    std::fs::write(case.path("ids.json"), "[2, 5, 101]").unwrap();
    insta::assert_snapshot!(case.refused());
}

#[test]
fn ids_that_are_no_list() {
    let case = Case::new();
    std::fs::write(case.path("ids.json"), "[2, -5]").unwrap();
    insta::assert_snapshot!(case.refused());
}

#[test]
fn empty_prompt() {
    let case = Case::new();
    std::fs::write(case.path("ids.json"), "[]").unwrap();
    let no_ids = case.refused();
    let no_text = case.refused_with(&["--prompt", "", "--output", "out.safetensors"]);
    assert_eq!(no_ids, no_text);
    insta::assert_snapshot!(no_ids);
}

#[test]
fn prompt_longer_than_the_models_positions() {
    let case = Case::new();
    case.config(|config| config["max_position_embeddings"] = json!(2));
    insta::assert_snapshot!(case.refused());
}

#[test]
fn nan_weights() {
    let case = Case::new();
    case.weights(|header, data| {
        let tensor = &header["model.layers.1.mlp.up_proj.weight"];
        assert_eq!(tensor["dtype"], "F32");
        let at = tensor["data_offsets"][0].as_u64().unwrap() as usize + 4 * 3;
        data[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    insta::assert_snapshot!(case.refused());
}

#[test]
fn tokenizer_for_another_vocabulary() {
    let case = Case::new();
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("reference/tiny/tokenizer.json");
    std::fs::copy(tokenizer, case.path("model/tokenizer.json")).unwrap();
    insta::assert_snapshot!(case.refused_with(&["--prompt", "Ann", "--output", "out.safetensors"]));
}

#[test]
fn no_tokenizer() {
    let case = Case::new();
    insta::assert_snapshot!(case.refused_with(&["--prompt", "Ann", "--output", "out.safetensors"]));
}

#[test]
fn output_that_cannot_be_written() {
    let case = Case::new();
    insta::assert_snapshot!(case.refused_with(&[
        "--ids",
        "ids.json",
        "--output",
        "none/out.safetensors"
    ]));
}

#[test]
fn output_that_is_a_folder() {
    let case = Case::new();
    insta::assert_snapshot!(case.refused_with(&["--ids", "ids.json", "--output", "model"]));
}

#[test]
fn pattern_that_matches_nothing() {
    let case = Case::new();
    insta::assert_snapshot!(case.refused_with(&[
        "--ids",
        "ids.json",
        "--output",
        "out.safetensors",
        "--names",
        "model.layers.9.*",
    ]));
}

/// What the fuzz target does: every prefix of a config of each family, and some bytes of it changed.
#[test]
fn damaged_configs() {
    for (dir, name) in common::all_models() {
        let json = std::fs::read(common::reference(&dir).join("config.json")).unwrap();
        assert!(any_config::check(&json).is_some(), "{name}");
        for i in 0..json.len() {
            any_config::check(&json[..i]);
            for byte in [b'0', b'9', b'-', b'"', b'[', b'}', 0, 0xff] {
                let mut damaged = json.clone();
                damaged[i] = byte;
                any_config::check(&damaged);
            }
        }
    }
}

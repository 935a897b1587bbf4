//! `compare` and `conformance` as programs: their tables, their exit codes, and what bad input gets.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::program;
use safetensors::SafeTensors;
use safetensors::tensor::{TensorView, serialize};
use tempfile::TempDir;

/// A folder with a model, ids, and a reference of them.
struct Case {
    dir: TempDir,
}

/// A tensor's shape and numbers (F32).
type Tensor = (Vec<usize>, Vec<u8>);

impl Case {
    fn new() -> Self {
        let case = Self {
            dir: TempDir::new().unwrap(),
        };
        std::fs::write(case.path("ids.json"), "[2, 10, 31, 66, 14, 77]").unwrap();
        case.checkpoint("window-3", "model");
        case.trace("model", &["--dtype", "f64"], "reference.safetensors");
        case
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn checkpoint(&self, name: &str, folder: &str) {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("reference/checkpoints");
        std::fs::create_dir(self.path(folder)).unwrap();
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(from.join(name).join(file), self.path(folder).join(file)).unwrap();
        }
    }

    /// What the program says, after its exit code.
    fn run(&self, arguments: &[&str]) -> String {
        let output = program(self.dir.path()).args(arguments).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let code = output.status.code();
        format!(
            "exit code {code:?}\n{}{}",
            text(output.stdout),
            text(output.stderr)
        )
    }

    fn trace(&self, model: &str, options: &[&str], output: &str) {
        let base = [
            "trace", "--model", model, "--ids", "ids.json", "--output", output,
        ];
        let said = self.run(&[&base, options].concat());
        assert!(said.starts_with("exit code Some(0)"), "{said}");
    }

    /// Records in f32, changes what was recorded, and writes it as `other.safetensors`, without what it says of itself.
    fn other(&self, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) {
        self.trace("model", &[], "recorded.safetensors");
        let bytes = std::fs::read(self.path("recorded.safetensors")).unwrap();
        let recorded = SafeTensors::deserialize(&bytes).unwrap();
        let owned = |(name, view): (String, TensorView<'_>)| {
            assert_eq!(view.dtype(), safetensors::Dtype::F32);
            (name, (view.shape().to_vec(), view.data().to_vec()))
        };
        let mut tensors = recorded.tensors().into_iter().map(owned).collect();
        change(&mut tensors);
        let view = |(shape, data): &'_ Tensor| (shape.clone(), data.clone());
        let tensors: Vec<_> = tensors.iter().map(|(name, t)| (name, view(t))).collect();
        let views = tensors.iter().map(|(name, (shape, data))| {
            let view = TensorView::new(safetensors::Dtype::F32, shape.clone(), data);
            (*name, view.unwrap())
        });
        std::fs::write(
            self.path("other.safetensors"),
            serialize(views, None).unwrap(),
        )
        .unwrap();
    }

    fn compare(&self, options: &[&str]) -> String {
        let base = ["compare", "reference.safetensors", "other.safetensors"];
        self.run(&[&base, options].concat())
    }

    /// Asserts what every refusal has in common: exit code 2, and one line.
    fn refused(&self, arguments: &[&str]) -> String {
        let said = self.run(arguments);
        let line = said.strip_prefix("exit code Some(2)\n").expect(&said);
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(!self.path("out.json").exists());
        line.trim_end().to_owned()
    }

    fn refused_other(&self) -> String {
        let files = ["reference.safetensors", "other.safetensors"];
        self.refused(&["compare", files[0], files[1], "--json", "out.json"])
    }
}

#[test]
fn tables() {
    let case = Case::new();
    case.other(|_| ());
    insta::assert_snapshot!("clean", case.compare(&[]));
    for mutation in ["window-plus-1", "norm-weight", "silu"] {
        case.trace("model", &["--mutate", mutation], "other.safetensors");
        insta::assert_snapshot!(mutation, case.compare(&[]));
    }
}

/// A line for every tensor is asked for. It fits also where layers have two digits, which takes a column more.
#[test]
fn the_table_of_all_tensors_fits_80_columns() {
    let case = Case::new();
    case.trace("model", &["--mutate", "norm-weight"], "other.safetensors");
    let said = case.compare(&["--all"]);
    let lines = said.lines().skip(1);
    let table: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
    let widest = table.iter().map(|line| line.chars().count()).max().unwrap();
    assert!(widest < 80, "{widest}");
    let recorded = std::fs::read(case.path("other.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&recorded).unwrap().len();
    // The header is a line more, and the token ids are no tensor of a pass.
    assert_eq!(table.len(), tensors + 1);
    insta::assert_snapshot!("all", table[..12].join("\n"));
}

#[test]
fn json_has_the_finding_and_every_row() {
    let case = Case::new();
    case.trace("model", &["--mutate", "silu"], "other.safetensors");
    case.compare(&["--json", "out.json"]);
    let json = std::fs::read(case.path("out.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let finding = &json["finding"];
    assert_eq!(finding["tensor"], "model.layers.0.mlp.act_fn");
    assert_eq!(finding["causes"][0]["name"], "silu");
    let recorded = std::fs::read(case.path("other.safetensors")).unwrap();
    let recorded = SafeTensors::deserialize(&recorded).unwrap().len();
    let rows = json["rows"].as_array().unwrap();
    // The token ids are no row.
    assert_eq!(rows.len(), recorded);
}

#[test]
fn a_recording_of_another_model() {
    let case = Case::new();
    case.checkpoint("window-1", "window-1");
    case.trace("window-1", &[], "other.safetensors");
    insta::assert_snapshot!(case.refused_other());
}

#[test]
fn another_model_than_the_references() {
    let case = Case::new();
    case.other(|_| ());
    case.checkpoint("window-1", "window-1");
    let files = ["reference.safetensors", "other.safetensors"];
    let arguments = ["compare", files[0], files[1], "--model", "window-1"];
    insta::assert_snapshot!(case.refused(&arguments));
}

#[test]
fn a_recording_of_other_tokens() {
    let case = Case::new();
    std::fs::write(case.path("ids.json"), "[2, 10, 31, 66, 14, 78]").unwrap();
    case.trace("model", &[], "other.safetensors");
    insta::assert_snapshot!(case.refused_other());
}

#[test]
fn a_recording_of_more_tokens() {
    let case = Case::new();
    std::fs::write(case.path("ids.json"), "[2, 10, 31, 66, 14, 77, 5]").unwrap();
    case.other(|_| ());
    insta::assert_snapshot!(case.refused_other());
}

#[test]
fn missing_tensors() {
    let case = Case::new();
    case.other(|tensors| {
        tensors.remove("model.layers.1.mlp.up_proj").unwrap();
        tensors.remove("model.norm").unwrap();
    });
    insta::assert_snapshot!(case.refused_other());
    let said = case.compare(&["--partial"]);
    assert!(said.starts_with("exit code Some(0)"), "{said}");
    assert!(
        said.contains("not recorded: 2 tensors, model.layers.1.mlp.up_proj first\n"),
        "{said}"
    );
}

/// An engine that computes act_fn and the product in one has no act_fn to record.
#[test]
fn a_fused_activation() {
    let case = Case::new();
    let names = ["--names", "*.mlp.{gate_proj,up_proj,product}"];
    case.trace("model", &names, "other.safetensors");
    let said = case.compare(&["--partial"]);
    assert!(said.starts_with("exit code Some(0)"), "{said}");
    for mutation in ["gelu-f16", "gelu-erf"] {
        let options = [&names[..], &["--mutate", mutation]].concat();
        case.trace("model", &options, "other.safetensors");
        let said = case.compare(&["--partial"]);
        assert!(
            said.contains("first at model.layers.0.mlp.product: "),
            "{said}"
        );
        let causes = said
            .lines()
            .filter(|line| line.starts_with("likely cause: "));
        assert!(causes.eq([said.lines().last().unwrap()]), "{said}");
        assert!(
            said.contains(&format!("likely cause: {mutation}: ")),
            "{said}"
        );
    }
}

#[test]
fn nothing_in_common() {
    let case = Case::new();
    case.other(|tensors| {
        let all = std::mem::take(tensors);
        *tensors = all
            .into_iter()
            .map(|(name, t)| (format!("my.{name}"), t))
            .collect();
    });
    insta::assert_snapshot!(case.refused_other());
}

#[test]
fn a_number_that_is_none() {
    let case = Case::new();
    case.other(|tensors| {
        let (_, data) = tensors.get_mut("model.layers.1.mlp.up_proj").unwrap();
        data[12..16].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    insta::assert_snapshot!(case.refused_other());
}

#[test]
fn a_tensor_of_another_shape() {
    let case = Case::new();
    case.other(|tensors| {
        let (shape, data) = tensors.get_mut("model.norm").unwrap();
        shape[1] -= 1;
        data.truncate(4 * shape[0] * shape[1]);
    });
    insta::assert_snapshot!(case.refused_other());
}

#[test]
fn a_map_that_matches_nothing() {
    let case = Case::new();
    case.other(|_| ());
    std::fs::write(
        case.path("engine.map"),
        "h.{i}.q = model.layers.{i}.self_attn.q_proj\n",
    )
    .unwrap();
    let files = ["reference.safetensors", "other.safetensors"];
    let arguments = ["compare", files[0], files[1], "--map", "engine.map"];
    insta::assert_snapshot!(case.refused(&arguments));
}

#[test]
fn a_reference_that_is_none() {
    let case = Case::new();
    case.other(|_| ());
    let arguments = ["compare", "other.safetensors", "reference.safetensors"];
    insta::assert_snapshot!(case.refused(&arguments));
}

#[test]
fn a_recording_that_is_none() {
    let case = Case::new();
    std::fs::write(case.path("other.safetensors"), "no recording").unwrap();
    insta::assert_snapshot!(case.refused_other());
}

#[test]
fn a_bug_that_would_not_show() {
    let case = Case::new();
    let arguments = ["trace", "--model", "model", "--ids", "ids.json"];
    let mutate = ["--output", "out.json", "--mutate", "rope-no-factor"];
    insta::assert_snapshot!(case.refused(&[&arguments[..], &mutate].concat()));
}

#[test]
fn results_that_are_none() {
    let case = Case::new();
    std::fs::create_dir(case.path("results")).unwrap();
    insta::assert_snapshot!(case.refused(&[
        "conformance",
        "--check",
        "results",
        "--json",
        "out.json"
    ]));
}

/// The kit's own recordings pass, and of three results one is wrong and one no recording.
#[test]
fn the_kit() {
    let case = Case::new();
    let written = case.run(&["conformance", "--output", "kit"]);
    insta::assert_snapshot!(
        "kit",
        written + &case.run(&["conformance", "--check", "kit"])
    );
    let again = case.refused(&["conformance", "--output", "kit"]);
    assert!(again.contains("kit"), "{again}");

    let ids = case.path("kit/window-3/ids.json");
    std::fs::copy(ids, case.path("ids.json")).unwrap();
    for folder in ["window-3", "window-1", "tiny"] {
        std::fs::create_dir_all(case.path("results").join(folder)).unwrap();
    }
    let wrong = ["--mutate", "window-plus-1"];
    case.trace(
        "kit/window-3/model",
        &wrong,
        "results/window-3/f32.safetensors",
    );
    let bf16 = "window-1/bf16.safetensors";
    std::fs::copy(case.path("kit").join(bf16), case.path("results").join(bf16)).unwrap();
    std::fs::write(case.path("results/tiny/f32.npz"), "no recording").unwrap();
    insta::assert_snapshot!(
        "kit_results",
        case.run(&["conformance", "--check", "results"])
    );
}

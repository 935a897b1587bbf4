//! `compare` and `conformance` as programs: their tables, their exit codes, and what bad input gets.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::program;
use half::{bf16, f16};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};
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

    /// Writes what was recorded as `recorded.safetensors` in F32 again, each tensor in a type of its own, as `other.safetensors`,
    /// without what it says of itself.
    fn store(&self, stored: impl Fn(usize, &str) -> Dtype, change: impl Fn(&str, &mut Vec<f32>)) {
        let bytes = std::fs::read(self.path("recorded.safetensors")).unwrap();
        let recorded = SafeTensors::deserialize(&bytes).unwrap();
        let mut recorded = recorded.tensors();
        recorded.sort_by(|a, b| a.0.cmp(&b.0));
        let stored = recorded.iter().enumerate().map(|(index, (name, view))| {
            let (fours, _) = view.data().as_chunks::<4>();
            let mut numbers: Vec<_> = fours.iter().map(|&b| f32::from_le_bytes(b)).collect();
            change(name, &mut numbers);
            let numbers = numbers.into_iter();
            let dtype = stored(index, name);
            let data: Vec<u8> = match dtype {
                Dtype::F16 => numbers
                    .flat_map(|x| f16::from_f32(x).to_le_bytes())
                    .collect(),
                Dtype::BF16 => numbers
                    .flat_map(|x| bf16::from_f32(x).to_le_bytes())
                    .collect(),
                _ => numbers.flat_map(f32::to_le_bytes).collect(),
            };
            (name, dtype, view.shape().to_vec(), data)
        });
        let stored: Vec<_> = stored.collect();
        let views = stored.iter().map(|(name, dtype, shape, data)| {
            (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        let file = serialize(views, None).unwrap();
        std::fs::write(self.path("other.safetensors"), file).unwrap();
    }

    fn json(&self) -> serde_json::Value {
        let json = std::fs::read(self.path("out.json")).unwrap();
        serde_json::from_slice(&json).unwrap()
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
    for bug in ["window-plus-1", "norm-weight", "silu"] {
        case.trace("model", &["--mutate", bug], "other.safetensors");
        insta::assert_snapshot!(bug, case.compare(&[]));
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

/// f32 that was rounded for the file is no finding, in one type or several.
#[test]
fn numbers_in_a_coarser_type_stand_for_all_that_round_to_them() {
    let case = Case::new();
    case.trace("model", &[], "recorded.safetensors");
    let mixed = |index: usize, _: &str| [Dtype::F16, Dtype::BF16, Dtype::F32][index % 3];
    for (stored, dtype, said) in [
        (
            &(|_, _: &str| Dtype::F16) as &dyn Fn(usize, &str) -> Dtype,
            None,
            "f16",
        ),
        (&|_, _: &str| Dtype::BF16, Some("f32"), "f32"),
        (&mixed, None, "f32"),
        (
            &|_, name: &str| {
                if name == "lm_head" {
                    Dtype::F32
                } else {
                    Dtype::F16
                }
            },
            None,
            "f32",
        ),
    ] {
        case.store(stored, |_, _| ());
        let options: Vec<_> = dtype.iter().flat_map(|dtype| ["--dtype", dtype]).collect();
        let text = case.compare(&options);
        assert!(text.starts_with("exit code Some(0)"), "{text}");
        assert!(
            text.contains(&format!("Within rounding of {said}: ")),
            "{text}"
        );
        assert!(
            text.contains("; each number stands for all that round to it"),
            "{text}"
        );
    }
    // The control: taken for computed in bf16 the same file is wrong, and what to do is said.
    case.store(|_, _| Dtype::BF16, |_, _| ());
    let text = case.compare(&[]);
    assert!(text.starts_with("exit code Some(1)"), "{text}");
    assert!(text.ends_with("add --dtype f32\n"), "{text}");
}

/// Numbers without inputs are held against our whole pass.
#[test]
fn what_was_recorded_alone_is_as_coarse() {
    let case = Case::new();
    for names in [
        &["--names", "lm_head"][..],
        &["--names", "lm_head", "model.layers.1"],
    ] {
        case.trace("model", names, "recorded.safetensors");
        case.store(|_, _| Dtype::F16, |_, _| ());
        let text = case.compare(&["--partial"]);
        assert!(text.starts_with("exit code Some(0)"), "{text}");
        case.trace(
            "model",
            &[names, &["--mutate", "silu"]].concat(),
            "recorded.safetensors",
        );
        case.store(|_, _| Dtype::F16, |_, _| ());
        let text = case.compare(&["--partial"]);
        assert!(text.starts_with("exit code Some(1)"), "{text}");
    }
}

#[test]
fn known_bugs_are_found_in_f16_too() {
    let case = Case::new();
    let mut found = Vec::new();
    for bug in [
        "embedding-unscaled",
        "norm-weight",
        "window-plus-1",
        "rope-interleaved",
        "silu",
    ] {
        case.trace("model", &["--mutate", bug], "recorded.safetensors");
        case.store(|_, _| Dtype::F16, |_, _| ());
        let text = case.compare(&[]);
        assert!(text.starts_with("exit code Some(1)"), "{bug}: {text}");
        if text.contains(&format!("likely cause: {bug}: ")) {
            found.push(bug);
        }
    }
    assert_eq!(found.len(), 5, "{found:?}");
}

#[test]
fn what_f16_cannot_hold_is_not_checked_but_counted() {
    let case = Case::new();
    case.trace("model", &[], "recorded.safetensors");
    // A number that should be small is none that overflowed.
    let at = "model.layers.0.mlp.up_proj";
    case.store(
        |_, _| Dtype::F16,
        |name, numbers| {
            if name == at {
                numbers[1] = 70000.0;
            }
        },
    );
    let text = case.compare(&["--json", "out.json"]);
    assert!(text.contains(&format!("first at {at}: 1 of")), "{text}");
    assert!(
        text.contains("too large for f16: numbers 1, above 65504"),
        "{text}"
    );
    let json = case.json();
    let rows = json["rows"].as_array().unwrap();
    let row = |name: &str| rows.iter().find(|row| row["name"] == name).unwrap();
    assert_eq!(row(at)["overflowed"], 1);
    assert_eq!(row(at)["beyond"]["numbers"], 1);
    // What comes from it is not known, and so not wrong.
    assert!(row("model.layers.0.mlp.product")["beyond"].is_null());
    // In a type that can hold it, infinity is an engine gone wrong.
    case.store(
        |_, _| Dtype::F32,
        |name, numbers| {
            if name == at {
                numbers[1] = f32::INFINITY;
            }
        },
    );
    std::fs::remove_file(case.path("out.json")).unwrap();
    assert!(
        case.refused_other()
            .contains("has inf at token 0, column 1")
    );
}

/// Hooks on every module, in one call: their outputs, of several also the others, and inputs.
#[test]
fn names_are_compared_or_set_aside_and_said_to_be() {
    let case = Case::new();
    case.other(|tensors| {
        let mut put = |from: &str, to: &str, keep: bool| {
            let tensor = tensors[from].clone();
            if !keep {
                tensors.remove(from);
            }
            tensors.insert(to.into(), tensor);
        };
        // Under another name that is known, under one beside its own, and under ones that are not.
        put("model.layers.0.mlp.down_proj", "model.layers.0.mlp", false);
        put("model.layers.1.mlp.down_proj", "model.layers.1.mlp", true);
        put(
            "model.layers.0.self_attn.o_proj",
            "model.layers.0.self_attn.0",
            false,
        );
        put(
            "model.layers.0.self_attn.mixed",
            "model.layers.0.self_attn.1",
            true,
        );
        put("model.layers.0.self_attn.mixed", "Qcur-0", true);
        for layer in 0..2 {
            let from = format!("model.layers.{layer}.mlp.up_proj");
            put(&from, &format!("model.layers.{layer}.mlp.upproj"), true);
        }
        put("model.norm", "pooler", true);
    });
    let text = case.compare(&["--json", "out.json"]);
    assert!(text.starts_with("exit code Some(0)"), "{text}");
    let start = text.find("not compared").unwrap();
    insta::assert_snapshot!(&text[start..]);
    let json = case.json();
    let aside = json["aside"].as_array().unwrap();
    assert_eq!(aside.len(), 6, "{aside:?}");
    let one = aside
        .iter()
        .find(|aside| aside["name"] == "model.layers.1.mlp.upproj");
    assert_eq!(one.unwrap()["nearest"], "model.layers.1.mlp.up_proj");
    let rows = json["rows"].as_array().unwrap();
    assert!(
        rows.iter()
            .any(|row| row["name"] == "model.layers.0.mlp.down_proj")
    );
}

#[test]
fn many_names_that_are_set_aside_are_counted() {
    let case = Case::new();
    case.other(|tensors| {
        let tensor = tensors["model.norm"].clone();
        for name in ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta"] {
            tensors.insert(name.into(), tensor.clone());
        }
    });
    let text = case.compare(&[]);
    let listed = text.lines().filter(|line| line.ends_with("is not known"));
    assert_eq!(listed.count(), 5, "{text}");
    assert!(text.contains("not compared: tensors 7\n"), "{text}");
    assert!(
        text.contains("  and 2 more; --json FILE has all\n"),
        "{text}"
    );
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
    for bug in ["gelu-f16", "gelu-erf"] {
        let options = [&names[..], &["--mutate", bug]].concat();
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
        assert!(said.contains(&format!("likely cause: {bug}: ")), "{said}");
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

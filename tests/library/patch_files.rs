//! Patch files: what is saved comes back to the bit, and whatever is wrong with one gets one clear line.

use std::path::PathBuf;
use std::process::Output;

use crate::common::{low_rank, open, program, reference};
use crate::parts::Parts;
use context_patch::patch::{
    ApplyMode, Case, Error, LayerPatch, LowRank, Method, Overlay, Patch, Positions, Query,
    SavedPatch, Solved, Solver, SolverReport, Source, Split, TensorChange, solve, span,
};
use context_patch::tensor::{Dtype, Matrix, Storage};
use context_patch::{Model, Session};
use serde_json::{Value, json};
use tempfile::TempDir;

const TEXT: &str = "Ann likes plums. Bob likes figs. Bob likes";

/// The tensors of a layer that the small patch changes.
const DOWN: &str = "mlp.down_proj.weight";
const NORM: &str = "post_feedforward_layernorm.weight";

/// A patch of the tiny model in f32, everything but the first token absorbed.
fn solved(model: &Model, solver: Solver) -> SavedPatch {
    let tokens = model
        .checkpoint()
        .tokenizer()
        .unwrap()
        .encode(TEXT)
        .unwrap();
    let tokens_for = if solver == Solver::Span { 2 } else { 1 };
    let split = Split::new(tokens, vec![0], tokens_for, Positions::Absolute).unwrap();
    let method = Method::new(solver);
    let (patch, report) = match solver {
        Solver::Span => span::solve::<f32>(model, &split, None, &method, |_| {}).unwrap(),
        _ => {
            let mut contextual = Session::<f32>::new(model);
            contextual.forward(split.context(), 0).unwrap();
            let query = Query {
                kept: &[(split.tokens()[0], 0)],
                ..Query::alone(split.queries()[0])
            };
            let solution = solve(&mut contextual, query, &method, &[]).unwrap();
            (solution.patch, solution.report)
        }
    };
    SavedPatch {
        patch,
        source: Source::Solved(Box::new(Solved {
            split,
            method,
            report,
            images: Vec::new(),
        })),
        dtype: Dtype::F32,
        model: "reference/tiny".into(),
        model_hash: model.checkpoint().tensors().content_hash(),
    }
}

/// What a patch for known tokens was solved from.
fn known(patch: &mut SavedPatch) -> &mut Solved {
    match &mut patch.source {
        Source::Solved(solved) => solved,
        Source::Compiled(_) => panic!("compiled"),
    }
}

/// A patch of one layer and a few numbers, of no model.
fn small() -> SavedPatch {
    let down = LowRank {
        u: Matrix::from_vec(2, vec![1.0, 0.1, -0.0, 1e-300, f64::MAX, -2.5]),
        v: Matrix::from_vec(2, vec![1.0 / 3.0, 5e-324, 7.0, -1e300]),
    };
    SavedPatch {
        patch: Patch {
            layers: vec![
                LayerPatch::from([
                    (DOWN.into(), TensorChange::LowRank(down)),
                    (NORM.into(), TensorChange::Vector(vec![0.5, -1e7, 0.0])),
                ]),
                LayerPatch::default(),
            ],
        },
        source: Source::Solved(Box::new(Solved {
            split: Split::new(vec![2, 5, 7, 8], vec![0], 2, Positions::Natural).unwrap(),
            method: Method::new(Solver::Span),
            report: SolverReport::default(),
            images: Vec::new(),
        })),
        dtype: Dtype::Bf16,
        model: "a \"name\"\n".into(),
        model_hash: "0123".into(),
    }
}

/// A patch file and a place beside it.
struct Saved {
    dir: TempDir,
}

impl Saved {
    fn new(patch: &SavedPatch) -> Self {
        let saved = Self {
            dir: TempDir::new().unwrap(),
        };
        patch.save(&saved.file(), Storage::F64).unwrap();
        saved
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("patch.safetensors")
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.file()).unwrap()
    }

    fn load(&self) -> Result<SavedPatch, Error> {
        SavedPatch::load(&self.file())
    }

    fn parts(&self) -> Parts {
        Parts::of(&self.bytes())
    }

    /// Changes the file's parts, with a hash that fits again.
    fn forge(&self, change: impl FnOnce(&mut Parts)) {
        let mut parts = self.parts();
        change(&mut parts);
        parts.sign();
        std::fs::write(self.file(), parts.file()).unwrap();
    }

    /// What `inspect` says of the file: one line, exit code 2.
    fn refused(&self) -> String {
        refused(&self.run(&["inspect", "patch.safetensors"]))
    }

    fn run(&self, arguments: &[&str]) -> Output {
        program(self.dir.path()).args(arguments).output().unwrap()
    }

    fn apply(&self, model: &str, more: &[&str]) -> Output {
        let model = reference(model);
        let arguments = ["apply", "--patch", "patch.safetensors", "--model"];
        let arguments = [&arguments[..], &[model.to_str().unwrap()], more].concat();
        self.run(&arguments)
    }
}

fn refused(output: &Output) -> String {
    let error = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(output.stdout.is_empty());
    assert_eq!(error.lines().count(), 1, "{error}");
    error.trim_end().to_owned()
}

const A: &str = "model.layers.0.mlp.down_proj.lora_A";
const B: &str = "model.layers.0.mlp.down_proj.lora_B";
const SCALE: &str = "model.layers.0.post_feedforward_layernorm.scale";

// ---- what is good -------------------------------------------------------------------------------

#[test]
fn saved_then_loaded_is_the_same_to_the_bit() {
    let model = open("tiny");
    for solver in Solver::ALL {
        let patch = solved(&model, solver);
        let saved = Saved::new(&patch);
        let loaded = saved.load().unwrap();
        assert_eq!(loaded, patch, "{solver}");
        loaded.check(&model).unwrap();
        // == takes -0 for 0: the bits are in the file.
        let again = Saved::new(&loaded);
        assert!(saved.bytes() == again.bytes(), "{solver}");
        // The control: a patch is not the same as another solver's.
        assert_ne!(
            loaded,
            solved(&model, Solver::ALL[usize::from(solver == Solver::Theorem1)])
        );
    }
    assert_eq!(Saved::new(&small()).load().unwrap(), small());
}

#[test]
fn in_f32_every_number_is_rounded_once() {
    let model = open("tiny");
    let patch = solved(&model, Solver::ClosedForm);
    let saved = Saved::new(&patch);
    let numbers = |saved: &Saved| -> usize {
        let tensors = saved.parts().tensors.into_values();
        tensors.map(|(_, _, bytes)| bytes.len()).sum()
    };
    let size = numbers(&saved);
    patch.save(&saved.file(), Storage::F32).unwrap();
    assert_eq!(2 * numbers(&saved), size);
    let loaded = saved.load().unwrap();
    for (got, want) in loaded.patch.layers.iter().zip(&patch.patch.layers) {
        let [got, want] = [got, want].map(|layer| low_rank(layer, "mlp.down_proj").unwrap());
        assert_eq!(got.u, want.u.map(|x| f64::from(x as f32)));
        assert_eq!(got.v, want.v.map(|x| f64::from(x as f32)));
    }
    let refused = small().save(&saved.file(), Storage::F32).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "model.layers.0.mlp.down_proj.lora_A of the patch has a number that is not finite as it is to be saved; save it in F64, or solve it again"
    );
    assert_eq!(saved.load().unwrap(), loaded, "the file stays as it was");
}

#[test]
fn another_program_can_read_it() {
    let parts = Saved::new(&small()).parts();
    let field = |name: &str| parts.metadata[name].as_str();
    assert_eq!(
        (field("format"), field("dtype")),
        ("context-patch 1", "bf16")
    );
    assert_eq!(
        (field("model"), field("model_hash")),
        ("a \"name\"\n", "0123")
    );
    let split: Value = serde_json::from_str(field("split")).unwrap();
    assert_eq!(
        split,
        json!({"tokens": [2, 5, 7, 8], "kept": [0], "span": 2, "answer": 0, "positions": "natural"})
    );
    let method: Value = serde_json::from_str(field("method")).unwrap();
    assert_eq!(method["solver"], "span");
    let shapes: Vec<_> = parts
        .tensors
        .iter()
        .map(|(name, t)| (&**name, &*t.1))
        .collect();
    assert_eq!(shapes, [(A, &[2, 2][..]), (B, &[3, 2]), (SCALE, &[3])]);
    let mut signed = parts.clone();
    signed.sign();
    assert_eq!(parts.metadata["hash"], signed.metadata["hash"]);
}

#[test]
fn what_is_not_finite_is_not_saved() {
    let file = TempDir::new().unwrap();
    let path = file.path().join("patch.safetensors");
    let mut patch = small();
    known(&mut patch).method.gain = f64::NAN;
    assert_eq!(
        patch.save(&path, Storage::F64).unwrap_err().to_string(),
        "the patch's method has a number that is not finite; solve it again"
    );
    let mut patch = small();
    let nan = TensorChange::Vector(vec![f64::NAN]);
    patch.patch.layers[0].insert(NORM.into(), nan);
    assert!(matches!(
        patch.save(&path, Storage::F64),
        Err(Error::PatchValue { .. })
    ));
    assert!(!path.exists());
}

/// The whole way: a patch from a file does to the tiny model what the solver's did.
#[test]
fn a_loaded_patch_answers_without_the_context() {
    let model = open("tiny");
    let mut patch = solved(&model, Solver::ClosedForm);
    assert_eq!(known(&mut patch).report.layers[0].case, Case::Regular);
    let saved = Saved::new(&patch);
    let (tokens, positions) = known(&mut patch).split.reduced_prompt();
    let run = |patch: &Patch| {
        let overlay = Overlay::<f32>::new(&model, patch, ApplyMode::Overlay);
        let mut session = Session::new(&model).with_overlay(&overlay);
        session.forward_at(&tokens, &positions, 1).unwrap()
    };
    assert_eq!(run(&saved.load().unwrap().patch), run(&patch.patch));
    let said = saved.apply("tiny", &["--max-tokens", "1"]);
    assert_eq!(String::from_utf8(said.stdout).unwrap().trim(), "figs");
    assert!(said.stderr.is_empty());

    // Elsewhere it is allowed, and said.
    let elsewhere = saved.apply("tiny", &["--max-tokens", "1", "--prompt", "Ann likes"]);
    assert!(elsewhere.status.success());
    assert_eq!(
        String::from_utf8(elsewhere.stderr).unwrap(),
        "note: the patch was solved for other tokens or positions, and promises nothing for these\n"
    );
}

#[test]
fn inspect() {
    let model = open("tiny");
    let saved = Saved::new(&solved(&model, Solver::ClosedForm));
    let text = saved.run(&["inspect", "patch.safetensors"]);
    insta::assert_snapshot!(String::from_utf8(text.stdout).unwrap());
    let json = saved.run(&["inspect", "--json", "patch.safetensors"]);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["report"]["layers"].as_array().unwrap().len(), 6);
    assert_eq!(json["reduced_positions"], json!([0, 10]));
}

// ---- what is not --------------------------------------------------------------------------------

#[test]
fn no_file() {
    let saved = Saved::new(&small());
    std::fs::remove_file(saved.file()).unwrap();
    insta::assert_snapshot!(saved.refused());
}

#[test]
fn a_folder() {
    let saved = Saved::new(&small());
    std::fs::remove_file(saved.file()).unwrap();
    std::fs::create_dir(saved.file()).unwrap();
    insta::assert_snapshot!(saved.refused());
}

#[test]
fn not_safetensors() {
    let saved = Saved::new(&small());
    std::fs::write(saved.file(), "a patch").unwrap();
    insta::assert_snapshot!(saved.refused());
}

#[test]
fn cut_short() {
    let saved = Saved::new(&small());
    let bytes = saved.bytes();
    std::fs::write(saved.file(), &bytes[..bytes.len() - 8]).unwrap();
    insta::assert_snapshot!(saved.refused());
    for end in 0..bytes.len() {
        std::fs::write(saved.file(), &bytes[..end]).unwrap();
        let error = saved.load().unwrap_err().to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn weights_instead_of_a_patch() {
    let saved = Saved::new(&small());
    std::fs::copy(reference("tiny/model.safetensors"), saved.file()).unwrap();
    insta::assert_snapshot!(saved.refused());
}

#[test]
fn another_version_of_the_format() {
    let saved = Saved::new(&small());
    saved.forge(|parts| {
        parts
            .metadata
            .insert("format".into(), "context-patch 2".into());
    });
    insta::assert_snapshot!(saved.refused());
}

/// Every kind of edit that leaves a sound safetensors file.
#[test]
fn edited() {
    let saved = Saved::new(&small());
    let good = saved.parts();
    let edits: [fn(&mut Parts); 7] = [
        |parts| parts.tensors.get_mut(A).unwrap().2[0] ^= 1,
        |parts| parts.tensors.get_mut(SCALE).unwrap().1 = vec![1, 3],
        |parts| parts.tensors.get_mut(SCALE).unwrap().1 = vec![3, 1],
        |parts| parts.json("split", |split| split["tokens"][0] = json!(3)),
        |parts| parts.json("method", |method| method["gain"] = json!(1.0)),
        |parts| drop(parts.tensors.remove(SCALE)),
        |parts| drop(parts.metadata.remove("hash")),
    ];
    for edit in edits {
        let mut parts = good.clone();
        edit(&mut parts);
        std::fs::write(saved.file(), parts.file()).unwrap();
        assert!(matches!(saved.load(), Err(Error::PatchFile { .. })));
    }
    insta::assert_snapshot!(saved.refused());
    // The control: taken apart and put together it is good.
    std::fs::write(saved.file(), good.file()).unwrap();
    assert_eq!(saved.load().unwrap(), small());
}

#[test]
fn half_a_pair() {
    let saved = Saved::new(&small());
    saved.forge(|parts| drop(parts.tensors.remove(A)));
    insta::assert_snapshot!(saved.refused());
}

#[test]
fn factors_of_two_ranks() {
    let saved = Saved::new(&small());
    saved.forge(|parts| parts.tensors.get_mut(A).unwrap().1 = vec![1, 4]);
    insta::assert_snapshot!(saved.refused());
}

#[test]
fn a_factor_that_is_no_matrix() {
    let saved = Saved::new(&small());
    saved.forge(|parts| parts.tensors.get_mut(A).unwrap().1 = vec![4]);
    insta::assert_snapshot!(saved.refused());
}

#[test]
fn an_empty_factor() {
    let saved = Saved::new(&small());
    saved.forge(|parts| {
        for (name, shape) in [(A, vec![0, 2]), (B, vec![3, 0])] {
            *parts.tensors.get_mut(name).unwrap() = ("F64".into(), shape, vec![]);
        }
    });
    insta::assert_snapshot!(saved.refused());
}

#[test]
fn factors_in_a_type_that_is_never_saved() {
    let saved = Saved::new(&small());
    saved.forge(|parts| {
        let tensor = ("BF16".into(), vec![2, 2], vec![0; 8]);
        parts.tensors.insert(A.into(), tensor);
    });
    insta::assert_snapshot!(saved.refused());
}

#[test]
fn not_a_number() {
    let saved = Saved::new(&small());
    saved.forge(|parts| {
        let bytes = &mut parts.tensors.get_mut(SCALE).unwrap().2;
        bytes[8..16].copy_from_slice(&f64::NAN.to_le_bytes());
    });
    insta::assert_snapshot!(saved.refused());
}

#[test]
fn a_tensor_of_no_patch() {
    let saved = Saved::new(&small());
    let add = |name: &str| {
        saved.forge(|parts| {
            let tensor = parts.tensors[SCALE].clone();
            parts.tensors.insert(name.into(), tensor);
        });
        saved.refused()
    };
    insta::assert_snapshot!(add("model.layers.0.self_attn.q_proj.weight"));
    // Of a layer that there is not; and of the kind that a model's weights may have beside the text model's.
    for name in [
        "model.layers.2.post_feedforward_layernorm.scale",
        "vision_tower.patch",
    ] {
        let saved = Saved::new(&small());
        saved.forge(|parts| {
            let tensor = parts.tensors[SCALE].clone();
            parts.tensors.insert(name.into(), tensor);
        });
        let said = saved.refused();
        assert!(
            said.contains(&format!("its tensor {name} is no part of a patch")),
            "{said}"
        );
    }
}

#[test]
fn a_field_left_out() {
    let saved = Saved::new(&small());
    saved.forge(|parts| drop(parts.metadata.remove("split")));
    insta::assert_snapshot!(saved.refused());
}

#[test]
fn a_field_that_is_no_json() {
    let saved = Saved::new(&small());
    saved.forge(|parts| {
        parts.metadata.insert("report".into(), "{\n".into());
    });
    insta::assert_snapshot!(saved.refused());
}

#[test]
fn a_split_that_absorbs_nothing() {
    let saved = Saved::new(&small());
    saved.forge(|parts| parts.json("split", |split| split["kept"] = json!([0, 1])));
    insta::assert_snapshot!(saved.refused());
}

#[test]
fn a_solver_that_is_none() {
    let saved = Saved::new(&small());
    saved.forge(|parts| parts.json("method", |method| method["solver"] = json!("guess")));
    insta::assert_snapshot!(saved.refused());
}

#[test]
fn a_compute_type_that_is_none() {
    let saved = Saved::new(&small());
    saved.forge(|parts| {
        // Found by fuzzing: a line break in what the message quotes.
        parts.metadata.insert("dtype".into(), "f8\n".into());
    });
    insta::assert_snapshot!(saved.refused());
}

#[test]
fn more_layers_than_any_model() {
    let saved = Saved::new(&small());
    saved.forge(|parts| {
        parts
            .metadata
            .insert("num_hidden_layers".into(), u64::MAX.to_string());
    });
    insta::assert_snapshot!(saved.refused());
}

#[test]
fn a_report_about_other_layers() {
    let saved = Saved::new(&small());
    let layer = serde_json::to_value(
        &known(&mut solved(&open("tiny"), Solver::Theorem1))
            .report
            .layers[0],
    );
    let layer = layer.unwrap();
    saved.forge(|parts| parts.json("report", |report| report["layers"] = json!([layer])));
    insta::assert_snapshot!(saved.refused());
}

/// `null` is how a number that is not finite is written where it may be.
#[test]
fn a_report_with_a_number_that_is_none() {
    let saved = Saved::new(&solved(&open("tiny"), Solver::Theorem1));
    saved.forge(|parts| {
        parts.json("report", |report| {
            report["layers"][0]["residual"] = json!(null);
        });
    });
    insta::assert_snapshot!(saved.refused());
}

#[test]
fn a_patch_of_another_model() {
    let saved = Saved::new(&solved(&open("tiny"), Solver::ClosedForm));
    insta::assert_snapshot!(refused(&saved.apply("checkpoints/window-3", &[])));
}

#[test]
fn a_patch_of_other_shapes() {
    let model = open("tiny");
    let mut patch = small();
    patch.model_hash = model.checkpoint().tensors().content_hash();
    let saved = Saved::new(&patch);
    insta::assert_snapshot!(
        "a_patch_of_other_layers",
        refused(&saved.apply("tiny", &[]))
    );
    patch.patch.layers.resize(6, LayerPatch::default());
    insta::assert_snapshot!(
        "a_patch_of_other_factors",
        refused(&Saved::new(&patch).apply("tiny", &[]))
    );
    patch.patch.layers[0].remove(DOWN);
    insta::assert_snapshot!(
        "a_patch_of_other_scales",
        refused(&Saved::new(&patch).apply("tiny", &[]))
    );
    patch.patch.layers[0].remove(NORM);
    assert!(Saved::new(&patch).apply("tiny", &[]).status.success());
}

/// Sound factors of a map that no patch changes.
#[test]
fn a_patch_of_other_tensors() {
    let mut patch = solved(&open("tiny"), Solver::ClosedForm);
    let change = patch.patch.layers[0].remove(DOWN).unwrap();
    patch.patch.layers[0].insert("self_attn.q_proj.weight".into(), change);
    insta::assert_snapshot!(refused(&Saved::new(&patch).apply("tiny", &[])));
}

/// A weight in the place of its change.
#[test]
fn a_patch_that_replaces_a_matrix_by_a_vector() {
    let mut patch = solved(&open("tiny"), Solver::ClosedForm);
    patch.patch.layers[0].insert(DOWN.into(), TensorChange::Vector(vec![0.0; 3]));
    insta::assert_snapshot!(refused(&Saved::new(&patch).apply("tiny", &[])));
}

/// Factors in the place of a norm's scale.
#[test]
fn a_patch_that_adds_a_matrix_to_a_vector() {
    let mut patch = solved(&open("tiny"), Solver::ClosedForm);
    let change = patch.patch.layers[0].remove(DOWN).unwrap();
    patch.patch.layers[0].insert(NORM.into(), change);
    insta::assert_snapshot!(refused(&Saved::new(&patch).apply("tiny", &[])));
}

#[test]
fn a_patch_for_tokens_that_the_model_has_not() {
    let mut patch = solved(&open("tiny"), Solver::ClosedForm);
    let mut tokens = known(&mut patch).split.tokens().to_vec();
    tokens[3] = 765;
    known(&mut patch).split = Split::new(tokens, vec![0], 1, Positions::Absolute).unwrap();
    insta::assert_snapshot!(refused(&Saved::new(&patch).apply("tiny", &[])));
}

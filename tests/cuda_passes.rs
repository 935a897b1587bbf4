//! Whole passes by the CUDA kernels' source, run on the CPU, against the native ones: bit for bit.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use common::ways::{AT_ONCE, Way, hashes};
use common::{all_models, open, reference};
use context_patch::cuda::Device;
use context_patch::kernels::Backend;
use context_patch::model::Recorder;
use context_patch::patch::{ApplyMode, Method, Overlay, Query, Solver, solve};
use context_patch::tensor::{Element, Matrix};
use context_patch::{Model, Session};
use half::bf16;

/// Enough for products by tiles, and for more than any window.
const TOKENS: usize = 21;

/// A device that has the kernels, compiled for this processor.
fn twin() -> &'static Arc<Device> {
    static TWIN: OnceLock<Arc<Device>> = OnceLock::new();
    TWIN.get_or_init(another_twin)
}

/// The same once more, for a test that looks at what is done on it.
fn another_twin() -> Arc<Device> {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    Device::twin(LIBRARY.get_or_init(|| compiled("twin", None))).unwrap()
}

/// The library of the kernels, which may have an edit of a copy of their source: in a file, one text by another.
fn compiled(name: &str, edit: Option<(&str, &str, &str)>) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    for part in ["src/cuda", "src/cuda/matmul", "tests/cuda"] {
        std::fs::create_dir_all(folder.join(part)).unwrap();
        for file in std::fs::read_dir(root.join(part)).unwrap() {
            let path = file.unwrap().path();
            if path.is_file() {
                let to = folder.join(part).join(path.file_name().unwrap());
                std::fs::copy(&path, to).unwrap();
            }
        }
    }
    if let Some((file, from, to)) = edit {
        let file = folder.join(file);
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains(from), "{from} is not in {}", file.display());
        std::fs::write(&file, text.replace(from, to)).unwrap();
    }
    let library = folder.join("twin.so");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let done = Command::new(&compiler)
        .args([
            "-std=c++20",
            "-O2",
            "-march=native",
            "-ffp-contract=off",
            "-shared",
            "-fPIC",
        ])
        .args(["-Wno-unknown-pragmas", "-o"])
        .arg(&library)
        .arg(folder.join("tests/cuda/twin.cpp"))
        .status();
    assert!(
        done.as_ref().is_ok_and(|done| done.success()),
        "{compiler}: {done:?}"
    );
    library
}

fn ids(model: &Model) -> Vec<u32> {
    let id = |i| ((i * i * 7 + 3) % model.config().vocab_size) as u32;
    (0..TOKENS.min(model.config().max_position_embeddings))
        .map(id)
        .collect()
}

fn all_hashes(name: &str, model: &Model, way: Way) -> String {
    hashes(name, model, &ids(model), usize::MAX, way)
}

/// At once, by tiles, and token by token, by the other kernels.
#[test]
fn every_model_has_the_native_bits() {
    let device = twin();
    for (dir, name) in all_models() {
        let native = open(&dir);
        let there = native.clone().on_device(device).unwrap();
        let want = all_hashes(&name, &native, AT_ONCE);
        for decoded in [0, usize::MAX] {
            let way = Way { decoded, ..AT_ONCE };
            assert_eq!(all_hashes(&name, &there, way), want, "{decoded}");
        }
    }
}

/// Every tensor of a pass that has a name.
#[derive(Default, PartialEq)]
struct All(Vec<(String, Vec<u64>)>);

impl Recorder for All {
    fn wants(&self, _: &str) -> bool {
        true
    }

    fn record(&mut self, name: &str, rows: &Matrix<f64>) {
        let bits = rows.as_slice().iter().map(|x| x.to_bits()).collect();
        self.0.push((name.into(), bits));
    }
}

fn recorded<E: Element>(model: &Model) -> All {
    let mut all = All::default();
    let ids = ids(model);
    Session::<E>::new(model)
        .forward_recorded(&ids, ids.len(), &mut all)
        .unwrap();
    all
}

fn records_the_same<E: Element>(dir: &str, device: &Arc<Device>) {
    let native = open(dir);
    let there = native.clone().on_device(device).unwrap();
    let (want, got) = (recorded::<E>(&native), recorded::<E>(&there));
    assert_eq!(got.0.len(), want.0.len());
    for ((name, want), (there, got)) in want.0.iter().zip(&got.0) {
        assert_eq!(name, there, "{dir}");
        assert!(want == got, "{dir} {}: {name}", E::DTYPE);
    }
}

#[test]
fn every_recorded_tensor_has_the_native_bits() {
    let device = twin();
    for (dir, _) in all_models() {
        records_the_same::<f64>(&dir, device);
        records_the_same::<bf16>(&dir, device);
    }
}

/// What is solved there is what is solved here, and what is solved here does the same there.
fn patches_the_same<E: Element>(dir: &str, solver: Solver, device: &Arc<Device>) {
    let native = open(dir);
    let there = native.clone().on_device(device).unwrap();
    let ids = ids(&native);
    let (&last, context) = ids.split_last().unwrap();
    for form in [ApplyMode::Overlay, ApplyMode::Materialise] {
        let method = Method {
            form,
            ..Method::new(solver)
        };
        let solution = |model| {
            let mut session = Session::<E>::new(model);
            session.forward(context, 0).unwrap();
            solve(&mut session, Query::alone(last), &method, &[]).unwrap()
        };
        let (here, solved_there) = (solution(&native), solution(&there));
        let what = format!("{dir} {} {solver} {form}", E::DTYPE);
        assert!(here.patch == solved_there.patch, "{what}");
        assert_eq!(here.contextual, solved_there.contextual, "{what}");
        let overlay = Overlay::<E>::new(&there, &here.patch, form);
        let mut patched = Session::new(&there)
            .at(context.len())
            .with_overlay(&overlay);
        let logits = patched.forward(&[last], 1).unwrap();
        assert_eq!(logits.as_slice(), here.reduced.as_slice(), "{what}");
    }
}

#[test]
fn patches_are_the_same_solved_here_or_there() {
    let device = twin();
    for (dir, solver) in [
        ("tiny", Solver::ClosedForm),
        ("checkpoints/window-3", Solver::AppendixB),
        ("checkpoints/gemma2", Solver::ClosedForm),
        ("checkpoints/mixtral", Solver::Theorem5),
        ("checkpoints/gpt2", Solver::Theorem5),
        ("checkpoints/falcon-7b", Solver::ClosedForm),
    ] {
        patches_the_same::<f32>(dir, solver, device);
        patches_the_same::<bf16>(dir, solver, device);
    }
}

/// A sequence that is copied goes two ways; the copy does not see what the other takes in.
#[test]
fn a_copied_session_has_keys_of_its_own() {
    let device = twin();
    let native = open("checkpoints/window-3");
    let there = native.clone().on_device(device).unwrap();
    let both = |model| {
        let mut first = Session::<f32>::new(model);
        first.forward(&[5; 10], 0).unwrap();
        let mut second = first.clone();
        let one = first.forward(&[6, 7], 1).unwrap();
        let other = second.forward(&[8, 9], 1).unwrap();
        [one, other].map(Matrix::into_vec)
    };
    assert_eq!(both(&there), both(&native));
}

/// The kernels of the last layer of a decoded token and of the logits, in order and without their types.
fn kernels_of_a_layer(dir: &str) -> Vec<String> {
    let device = another_twin();
    let there = open(dir).on_device(&device).unwrap();
    let mut session = Session::<f32>::new(&there);
    session.forward(&[5, 6, 7], 0).unwrap();
    let (logits, launched) = device.watched(|| session.forward(&[8], 1)).unwrap();
    logits.unwrap();
    let name = |kernel: &str| kernel.split("_f32").next().unwrap().to_owned();
    let kernels: Vec<_> = launched.iter().map(|launch| name(&launch.kernel)).collect();
    let layers = there.layers().len();
    // The first norm, and those of the logits.
    let [beyond, of_layers] = [3, kernels.len() - 3];
    assert_eq!(of_layers % layers, 0, "{kernels:?}");
    let of_layer = &kernels[kernels.len() - (of_layers / layers + beyond - 1)..];
    of_layer.to_vec()
}

/// Eleven kernels a layer, four of them products, wherever norms stand and biases are; three more where a fused map is split.
#[test]
fn a_decoded_token_takes_few_launches() {
    let attention = "heads scores_few probabilities weighted_sums_few multiply_one norm_add_norm";
    let behind = "multiply_one norm_add_norm norm_add_norm multiply_one";
    for (dir, projections, activation) in [
        ("tiny", "multiply_one", "gelu_tanh"),
        ("checkpoints/qwen2", "multiply_one", "silu"),
        ("checkpoints/qwen3", "multiply_one", "silu"),
        (
            "checkpoints/gpt2",
            "multiply_one select_columns select_columns select_columns",
            "gelu_tanh",
        ),
    ] {
        let want = format!("{projections} {attention} multiply_one {activation} {behind}");
        assert_eq!(kernels_of_a_layer(dir).join(" "), want, "{dir}");
    }
}

/// Arrays in use beside the weights and the cache take no more than is said beforehand.
#[test]
fn activations_keep_to_what_is_stated() {
    fn most_used<E: Element>(dir: &str, tokens: usize) -> [usize; 2] {
        let device = another_twin();
        let there = open(dir).on_device(&device).unwrap();
        let pass = |ids: &[u32]| {
            let mut session = Session::<E>::new(&there);
            session.forward(ids, ids.len()).unwrap();
        };
        // So that every vector is there.
        pass(&[5]);
        let before = device.taken();
        pass(&vec![5; tokens]);
        let stated = there.activation_bytes::<E>(tokens, tokens);
        let cache = there.cache_bytes::<E>(tokens);
        let used = device.taken().most_used - before.used;
        assert!(
            used <= cache + stated,
            "{dir} {}: {used} {cache} {stated}",
            E::DTYPE
        );
        [used.saturating_sub(cache), stated]
    }
    for (dir, _) in all_models() {
        let tokens = TOKENS.min(open(&dir).config().max_position_embeddings);
        most_used::<f64>(&dir, tokens);
        most_used::<bf16>(&dir, tokens);
        let [used, stated] = most_used::<f32>(&dir, tokens);
        println!("{dir}: {used} of {stated}");
    }
}

/// The controls: kernels with one thing wrong.
#[test]
fn a_wrong_kernel_changes_the_hash() {
    let native = open("checkpoints/window-3");
    let want = all_hashes("", &native, AT_ONCE);
    for (name, file, from, to) in [
        (
            "scale",
            "src/cuda/norm.cuh",
            "normed * scale",
            "normed * scale * (Acc<E>)1.0000001",
        ),
        (
            "window",
            "src/cuda/attention.cu",
            "first[token]",
            "(first[token] + place[token]) / 2",
        ),
    ] {
        let device = Device::twin(&compiled(name, Some((file, from, to)))).unwrap();
        let there = native.clone().on_device(&device).unwrap();
        let got = all_hashes("", &there, AT_ONCE);
        let same = got.lines().filter(|line| want.contains(*line)).count();
        assert!(same <= 1, "{name}: {got}{want}");
    }
}

/// One that lacks a kernel stands for one that is lost.
#[test]
fn a_device_that_fails_is_an_error_in_every_pass() {
    let missing = (
        "tests/cuda/table.hpp",
        "PRODUCTS(multiply_one) PRODUCTS(multiply_few)",
        "",
    );
    let device = Device::twin(&compiled("fails", Some(missing))).unwrap();
    let native = open("tiny");
    let there = native.clone().on_device(&device).unwrap();
    let says = |error: String| {
        let what = "the CPU twin failed to find the kernel multiply_";
        assert!(error.starts_with(what), "{error}");
    };
    let mut session = Session::<f32>::new(&there);
    says(session.forward(&[5], 1).unwrap_err().to_string());
    let mut session = Session::<f32>::new(&there);
    let query = Query::alone(7);
    let solved = solve(&mut session, query, &Method::new(Solver::ClosedForm), &[]);
    says(solved.unwrap_err().to_string());
    let back = there.on(Backend::Native).unwrap();
    let want = all_hashes("", &native, AT_ONCE);
    assert_eq!(all_hashes("", &back, AT_ONCE), want);
}

#[test]
fn a_model_goes_back_to_the_cpu() {
    let device = twin();
    let native = open("tiny");
    let there = native.clone().on_device(device).unwrap();
    assert_eq!(there.backend(), Backend::Cuda(0));
    let back = there.on(Backend::Native).unwrap();
    assert_eq!(
        all_hashes("", &back, AT_ONCE),
        all_hashes("", &native, AT_ONCE)
    );
    let missing = Device::twin(&reference("no-such.so"));
    assert!(missing.unwrap_err().to_string().contains("no-such.so"));
}

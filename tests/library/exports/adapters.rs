//! Adapters for PEFT and for llama.cpp.

use std::collections::BTreeMap;

use super::{adapter, all_parts, delta, empty, json, low_rank, scale, scale_of, sizes, some_down};
use crate::common::{open, reference};
use context_patch::Model;
use context_patch::patch::export;
use context_patch::tensor::{Matrix, Storage};

#[test]
fn peft_plain_lora() {
    let tmp = tempfile::tempdir().unwrap();
    let model = open("tiny");
    let (hidden, inner) = sizes(&model);
    let out = tmp.path().join("lora");
    let patch = some_down(&model, &[1, 3]);
    export::peft(&model, &patch, None, &out).unwrap();
    let config = json(&out.join("adapter_config.json"));
    assert_eq!(config["peft_type"], "LORA");
    assert_eq!(config["task_type"], "CAUSAL_LM");
    assert_eq!(
        (&config["r"], &config["lora_alpha"]),
        (&2.into(), &2.into())
    );
    assert_eq!(config["target_modules"], serde_json::json!(["down_proj"]));
    assert_eq!(config["layers_to_transform"], serde_json::json!([1, 3]));
    assert!(config["modules_to_save"].is_null());
    let tensors = adapter(&out);
    let place = "base_model.model.model.layers.3.mlp.down_proj";
    assert_eq!(tensors.len(), 4);
    let delta = delta(&patch, 3, "down_proj");
    for (factor, matrix, shape) in [
        ("lora_A", &delta.v, [2, inner]),
        ("lora_B", &delta.u, [hidden, 2]),
    ] {
        let tensor = &tensors[&format!("{place}.{factor}.weight")];
        assert_eq!(tensor.shape(), shape);
        assert_eq!(tensor.storage(), Storage::F32);
        let expected: Vec<_> = matrix.as_slice().iter().map(|&x| x as f32).collect();
        assert_eq!(tensor.to_vec::<f32>(), expected);
    }
}

#[test]
fn an_adapter_names_its_model_from_any_folder() {
    let tmp = tempfile::tempdir().unwrap();
    let named = |model: &Model, base: Option<&str>| {
        let out = tempfile::tempdir_in(tmp.path()).unwrap();
        export::peft(model, &some_down(model, &[1]), base, out.path()).unwrap();
        let config = json(&out.path().join("adapter_config.json"));
        let text = |name: &str| config[name].as_str().map(String::from);
        (text("base_model_name_or_path").unwrap(), text("revision"))
    };
    let tiny = reference("tiny").canonicalize().unwrap();
    let whole = tiny.to_str().unwrap().to_owned();
    // However the directory is written, by another way or from where the tests run.
    let ways = ["reference/tiny", "./reference/../reference/tiny/", &whole];
    for way in ways {
        let model = Model::open(way).unwrap();
        assert_eq!(named(&model, None), (whole.clone(), None), "{way}");
        let given = named(&model, Some("org/other"));
        assert_eq!(given, ("org/other".into(), None), "{way}");
    }
    // A snapshot in a cache is its repository's commit.
    let commit = "9b0cfec892e2bc2afd938c98eabe4e4a7b1e0ca1";
    let snapshot = tmp
        .path()
        .join("hub/models--org--tiny/snapshots")
        .join(commit);
    std::fs::create_dir_all(&snapshot).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(tiny.join(file), snapshot.join(file)).unwrap();
    }
    let model = Model::open(snapshot.to_str().unwrap()).unwrap();
    assert_eq!(
        named(&model, None),
        ("org/tiny".into(), Some(commit.into()))
    );
    let file = tmp.path().join("lora.gguf");
    export::gguf(&model, &some_down(&model, &[1]), None, &file).unwrap();
    let bytes = std::fs::read(file).unwrap();
    for text in [
        "general.base_model.0.name",
        "org/tiny",
        "general.base_model.0.version",
        commit,
    ] {
        let there = bytes
            .windows(text.len())
            .any(|window| window == text.as_bytes());
        assert!(there, "{text}");
    }
}

#[test]
fn peft_with_norms_and_uneven_ranks() {
    let tmp = tempfile::tempdir().unwrap();
    for (dir, prefix) in [
        ("tiny", "base_model.model.model.layers"),
        (
            "checkpoints/multimodal",
            "base_model.model.model.language_model.layers",
        ),
    ] {
        let model = open(dir);
        let (hidden, inner) = sizes(&model);
        let out = tmp.path().join(dir.replace('/', "-"));
        let patch = all_parts(&model);
        export::peft(&model, &patch, None, &out).unwrap();
        let config = json(&out.join("adapter_config.json"));
        assert_eq!(config["r"], 3);
        assert_eq!(
            config["target_modules"],
            serde_json::json!(["gate_proj", "up_proj"])
        );
        assert!(config["layers_to_transform"].is_null());
        let saved =
            (0..model.layers().len()).map(|i| format!("layers.{i}.post_feedforward_layernorm"));
        assert_eq!(
            config["modules_to_save"],
            serde_json::json!(saved.collect::<Vec<_>>())
        );
        let tensors = adapter(&out);
        assert_eq!(tensors.len(), 5 * model.layers().len());
        let a = &tensors[&format!("{prefix}.0.mlp.gate_proj.lora_A.weight")];
        let b = &tensors[&format!("{prefix}.0.mlp.gate_proj.lora_B.weight")];
        assert_eq!((a.shape(), b.shape()), (&[3, hidden][..], &[inner, 3][..]));
        assert!(a.to_vec::<f32>()[hidden..].iter().all(|&x| x == 0.0));
        assert!(
            b.to_vec::<f32>()
                .chunks(3)
                .all(|u| u[0] != 0.0 && u[1..] == [0.0; 2])
        );
        let w = &tensors[&format!("{prefix}.0.post_feedforward_layernorm.weight")];
        let m = scale_of(&patch, 0);
        let expected: Vec<_> = m.iter().map(|m| (m - 1.0) as f32).collect();
        assert_eq!(w.to_vec::<f32>(), expected);
    }
}

#[test]
fn peft_names_modules_by_layer_where_layers_differ() {
    let tmp = tempfile::tempdir().unwrap();
    let model = open("tiny");
    let (hidden, inner) = sizes(&model);
    let mut patch = some_down(&model, &[0, 1]);
    patch.layers[1].extend([low_rank("up_proj", 9, [inner, hidden], 1)]);
    let out = tmp.path().join("uneven");
    export::peft(&model, &patch, None, &out).unwrap();
    let config = json(&out.join("adapter_config.json"));
    let names = [
        "layers.0.mlp.down_proj",
        "layers.1.mlp.down_proj",
        "layers.1.mlp.up_proj",
    ];
    assert_eq!(config["target_modules"], serde_json::json!(names));
    assert!(config["layers_to_transform"].is_null());

    // A norm alone: PEFT wants a linear map beside it, and gets one of zeros.
    let mut patch = empty(&model);
    patch.layers[2].extend([scale(vec![1.5; hidden])]);
    let out = tmp.path().join("norm");
    export::peft(&model, &patch, None, &out).unwrap();
    let config = json(&out.join("adapter_config.json"));
    assert_eq!(config["layers_to_transform"], serde_json::json!([2]));
    let b = "base_model.model.model.layers.2.mlp.down_proj.lora_B.weight";
    assert_eq!(adapter(&out)[b].to_vec::<f32>(), vec![0.0; hidden]);
}

/// A reader of as much of GGUF as an adapter has.
struct Gguf<'a>(&'a [u8], usize);

impl<'a> Gguf<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        self.1 += count;
        &self.0[self.1 - count..self.1]
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> usize {
        u64::from_le_bytes(self.take(8).try_into().unwrap()) as usize
    }

    fn string(&mut self) -> String {
        let length = self.u64();
        String::from_utf8(self.take(length).into()).unwrap()
    }
}

#[test]
fn gguf_holds_the_factors() {
    let tmp = tempfile::tempdir().unwrap();
    let file = tmp.path().join("lora.gguf");
    // Of odd sizes: the tensors' bytes are no multiple of the alignment.
    let model = open("checkpoints/odd-sizes");
    let (hidden, inner) = sizes(&model);
    let mut patch = some_down(&model, &[1]);
    patch.layers[0].extend([low_rank("gate_proj", 4, [inner, hidden], 1)]);
    export::gguf(&model, &patch, None, &file).unwrap();

    let bytes = std::fs::read(&file).unwrap();
    let mut gguf = Gguf(&bytes, 0);
    assert_eq!(gguf.take(4), b"GGUF");
    assert_eq!((gguf.u32(), gguf.u64(), gguf.u64()), (3, 4, 6));
    let dir = reference("checkpoints/odd-sizes").canonicalize().unwrap();
    for (key, value) in [
        ("general.type", "adapter"),
        ("general.architecture", "gemma3"),
        ("adapter.type", "lora"),
        ("general.base_model.0.name", dir.to_str().unwrap()),
    ] {
        assert_eq!((gguf.string(), gguf.u32()), (key.into(), 8));
        assert_eq!(gguf.string(), value);
    }
    assert_eq!(gguf.string(), "general.base_model.count");
    assert_eq!((gguf.u32(), gguf.u32()), (4, 1));
    assert_eq!(gguf.string(), "adapter.lora.alpha");
    assert_eq!((gguf.u32(), f32::from_bits(gguf.u32())), (6, 2.0));
    let mut tensors = BTreeMap::new();
    for _ in 0..4 {
        let name = gguf.string();
        assert_eq!(gguf.u32(), 2);
        let (cols, rows) = (gguf.u64(), gguf.u64());
        assert_eq!(gguf.u32(), 0);
        tensors.insert(name, ([rows, cols], gguf.u64()));
    }
    let start = gguf.1.next_multiple_of(32);
    let mut matrix = |name: &str, shape: [usize; 2]| {
        let (found, offset) = tensors[name];
        assert_eq!((found, offset % 32), (shape, 0), "{name}");
        gguf.1 = start + offset;
        let numbers = (0..shape[0] * shape[1]).map(|_| f32::from_bits(gguf.u32()));
        numbers.collect::<Vec<_>>()
    };
    let to_f32 = |m: &Matrix<f64>| m.as_slice().iter().map(|&x| x as f32).collect::<Vec<_>>();
    let down = delta(&patch, 1, "down_proj");
    let a = matrix("blk.1.ffn_down.weight.lora_a", [2, inner]);
    let b = matrix("blk.1.ffn_down.weight.lora_b", [hidden, 2]);
    assert_eq!((a, b), (to_f32(&down.v), to_f32(&down.u)));
    // The smaller rank is filled with zeros.
    let gate = delta(&patch, 0, "gate_proj");
    let a = matrix("blk.0.ffn_gate.weight.lora_a", [2, hidden]);
    assert_eq!(a[..hidden], to_f32(&gate.v));
    assert_eq!(a[hidden..], vec![0.0; hidden]);
    let b = matrix("blk.0.ffn_gate.weight.lora_b", [inner, 2]);
    let firsts: Vec<_> = b.chunks(2).map(|row| row[0]).collect();
    assert_eq!(firsts, to_f32(&gate.u));
    assert_eq!(bytes.len() % 32, 0);
}

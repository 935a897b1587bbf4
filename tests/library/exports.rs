//! Patches written into weights and into files, and read back.

use std::collections::BTreeMap;
use std::path::Path;

use crate::common::{linf, logits, open, reference};
use context_patch::checkpoint::{Access, Tensors};
use context_patch::patch::{
    Error, LayerPatch, LowRank, Patch, StoredAs, TensorChange, export, materialise,
};
use context_patch::tensor::{Matrix, Storage, Tensor};
use context_patch::{Checkpoint, Model};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

const IDS: [u32; 6] = [2, 17, 5, 33, 8, 60];

/// Numbers without a pattern, the same each time.
fn numbers(seed: usize, count: usize, size: f64) -> Vec<f64> {
    let number = |i: usize| ((seed * 7919 + i) as f64 * 0.618_033_988_749_895).fract() - 0.5;
    (0..count).map(|i| size * number(i)).collect()
}

/// A change of one of the MLP's maps.
fn low_rank(
    map: &str,
    seed: usize,
    [out, input]: [usize; 2],
    rank: usize,
) -> (String, TensorChange) {
    let delta = LowRank {
        u: Matrix::from_vec(rank, numbers(seed, out * rank, 0.3)),
        v: Matrix::from_vec(input, numbers(seed + 1, rank * input, 0.3)),
    };
    (format!("mlp.{map}.weight"), TensorChange::LowRank(delta))
}

/// A changed post-norm.
fn scale(m: Vec<f64>) -> (String, TensorChange) {
    let name = "post_feedforward_layernorm.weight";
    (name.into(), TensorChange::Vector(m))
}

fn delta<'p>(patch: &'p Patch, layer: usize, map: &str) -> &'p LowRank {
    crate::common::low_rank(&patch.layers[layer], &format!("mlp.{map}")).unwrap()
}

fn scale_of(patch: &Patch, layer: usize) -> &Vec<f64> {
    crate::common::scale(&patch.layers[layer], "post_feedforward_layernorm").unwrap()
}

/// ΔW_down of rank 2, on the layers given.
fn some_down(model: &Model, layers: &[usize]) -> Patch {
    let (hidden, inner) = sizes(model);
    let mut patch = empty(model);
    for &layer in layers {
        patch.layers[layer].extend([low_rank("down_proj", layer, [hidden, inner], 2)]);
    }
    patch
}

/// Everything of every layer, at ranks 1 and 3.
fn all_parts(model: &Model) -> Patch {
    let (hidden, inner) = sizes(model);
    let layers = model.layers().iter().enumerate().map(|(i, block)| {
        let m = block.outer.post_norm().unwrap().scale::<f64>();
        let change = numbers(i + 50, hidden, 0.2);
        LayerPatch::from([
            low_rank("gate_proj", i + 10, [inner, hidden], 1),
            low_rank("up_proj", i + 20, [inner, hidden], 3),
            scale(m.iter().zip(change).map(|(m, d)| m + d).collect()),
        ])
    });
    let layers = layers.collect();
    Patch { layers }
}

fn empty(model: &Model) -> Patch {
    let layers = vec![LayerPatch::default(); model.layers().len()];
    Patch { layers }
}

fn sizes(model: &Model) -> (usize, usize) {
    let config = model.config();
    (config.hidden_size, config.intermediate_size)
}

fn hash(model: &Model) -> String {
    model.checkpoint().tensors().content_hash()
}

fn tensor(model: &Model, name: &str, shape: &[usize]) -> Tensor {
    model.checkpoint().tensors().get(name, shape).unwrap()
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The names and tensors of a safetensors file that holds none of a checkpoint.
fn adapter(dir: &Path) -> BTreeMap<String, Tensor> {
    let file = dir.join("adapter_model.safetensors");
    let tensors = Tensors::open_file(&file, Access::Read).unwrap();
    let owned = tensors.iter().map(|(name, t)| (name.to_owned(), t.clone()));
    owned.collect()
}

#[test]
fn materialised_weights_are_rounded_once() {
    for dir in ["tiny", "checkpoints/multimodal"] {
        let model = open(dir);
        let (hidden, inner) = sizes(&model);
        let name = "model.layers.1.mlp.down_proj.weight";
        let patch = some_down(&model, &[1]);
        for stored in [
            StoredAs::Own,
            StoredAs::Type(Storage::F64),
            StoredAs::Type(Storage::F16),
        ] {
            let patched = materialise(&model, &patch, stored).unwrap();
            let old = tensor(&model, name, &[hidden, inner]);
            let new = tensor(patched.model(), name, &[hidden, inner]);
            let expected = match stored {
                StoredAs::Type(storage) => storage,
                _ => old.storage(),
            };
            assert_eq!(new.storage(), expected, "{dir}");
            let delta = delta(&patch, 1, "down_proj");
            let sums = old.to_vec::<f64>().into_iter().enumerate().map(|(i, w)| {
                let (row, col) = (i / inner, i % inner);
                let u = delta.u.row(row);
                w + u[0] * delta.v.row(0)[col] + u[1] * delta.v.row(1)[col]
            });
            let sums: Vec<_> = sums.collect();
            let expected = Tensor::from_f64(new.storage(), vec![hidden, inner], &sums).unwrap();
            assert_eq!(new.bytes(), expected.bytes(), "{dir} {stored:?}");
        }
    }
}

#[test]
fn a_norm_is_stored_less_one() {
    let model = open("checkpoints/multimodal");
    let patch = all_parts(&model);
    let patched = materialise(&model, &patch, StoredAs::Type(Storage::F64)).unwrap();
    let name = "model.layers.2.post_feedforward_layernorm.weight";
    let w = tensor(patched.model(), name, &[sizes(&model).0]).to_vec::<f64>();
    let m = scale_of(&patch, 2);
    assert_eq!(w, m.iter().map(|m| m - 1.0).collect::<Vec<_>>());
}

#[test]
fn reverted_is_as_it_was() {
    for dir in ["tiny", "checkpoints/multimodal"] {
        let model = open(dir);
        let (before, plain) = (hash(&model), logits::<f32>(&model, &IDS));
        for patch in [some_down(&model, &[0, 2]), all_parts(&model)] {
            let patched = materialise(&model, &patch, StoredAs::Own).unwrap();
            assert_ne!(hash(patched.model()), before, "{dir}");
            let changed = logits::<f32>(patched.model(), &IDS);
            assert!(linf(changed.as_slice(), plain.as_slice()) > 1e-2, "{dir}");
            assert_eq!(hash(&model), before, "{dir}: the original stays");
            let reverted = patched.revert().unwrap();
            assert_eq!(hash(&reverted), before, "{dir}");
            assert_eq!(logits::<f32>(&reverted, &IDS), plain, "{dir}");
        }
    }
}

#[test]
fn a_merged_folder_is_the_materialised_model() {
    let tmp = tempfile::tempdir().unwrap();
    for dir in ["tiny", "checkpoints/multimodal", "checkpoints/all-global"] {
        let model = open(dir);
        let plain = logits::<f32>(&model, &IDS);
        for (i, patch) in [some_down(&model, &[1]), all_parts(&model)]
            .iter()
            .enumerate()
        {
            for stored in [
                StoredAs::Own,
                StoredAs::Type(Storage::F32),
                StoredAs::Type(Storage::F64),
            ] {
                let case = format!("{}-{i}-{stored:?}", dir.replace('/', "-"));
                let out = tmp.path().join(&case);
                export::merged(&model, patch, stored, &out).unwrap();
                let merged = Model::open(out.to_str().unwrap()).unwrap();
                let expected = materialise(&model, patch, stored).unwrap().into_model();
                assert_eq!(hash(&merged), hash(&expected), "{case}");
                let logits = [&merged, &expected].map(|m| crate::common::logits::<f32>(m, &IDS));
                assert_eq!(logits[0], logits[1], "{case}");
                assert!(
                    linf(logits[0].as_slice(), plain.as_slice()) > 1e-2,
                    "{case}"
                );
            }
        }
    }
}

#[test]
fn a_merged_folder_is_complete() {
    let tmp = tempfile::tempdir().unwrap();
    let out = tmp.path().join("tiny");
    let model = open("tiny");
    export::merged(&model, &some_down(&model, &[1]), StoredAs::Own, &out).unwrap();
    for name in [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        let original = std::fs::read(reference("tiny").join(name)).unwrap();
        assert_eq!(std::fs::read(out.join(name)).unwrap(), original, "{name}");
    }
    // A multimodal model keeps its vision tensors and its names; without a patch, all of it.
    let out = tmp.path().join("multimodal");
    let model = open("checkpoints/multimodal");
    export::merged(&model, &empty(&model), StoredAs::Type(Storage::F64), &out).unwrap();
    let read = |dir: &Path| std::fs::read(dir.join("model.safetensors")).unwrap();
    let (original, copy) = (read(&reference("checkpoints/multimodal")), read(&out));
    let parse = |bytes| safetensors::SafeTensors::deserialize(bytes).unwrap();
    let (original, copy) = (parse(&original), parse(&copy));
    assert_eq!(original.len(), copy.len());
    for (name, tensor) in original.tensors() {
        let other = copy.tensor(&name).unwrap();
        assert_eq!(tensor.shape(), other.shape(), "{name}");
        assert_eq!(tensor.data(), other.data(), "{name}");
    }
}

#[test]
fn a_model_in_memory_can_be_exported() {
    let file = |name: &str| std::fs::read(reference("tiny").join(name)).unwrap().into();
    let files = ["config.json", "model.safetensors", "tokenizer.json"];
    let files = files.map(|name| (name, file(name)));
    let checkpoint = Checkpoint::from_files("inside", files).unwrap();
    let model = Model::from_checkpoint(checkpoint, Default::default()).unwrap();
    let tmp = tempfile::tempdir().unwrap();
    let out = tmp.path().join("out");
    export::merged(&model, &empty(&model), StoredAs::Own, &out).unwrap();
    assert_eq!(
        hash(&Model::open(out.to_str().unwrap()).unwrap()),
        hash(&model)
    );
    assert!(out.join("tokenizer.json").is_file());
}

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
fn what_nothing_is_computed_with_is_copied() {
    let tmp = tempfile::tempdir().unwrap();
    for base in ["checkpoints/window-3", "checkpoints/multimodal"] {
        let dir = tmp.path().join(base.replace('/', "-"));
        std::fs::create_dir(&dir).unwrap();
        std::fs::copy(reference(base).join("config.json"), dir.join("config.json")).unwrap();
        let original = std::fs::read(reference(base).join("model.safetensors")).unwrap();
        let original = safetensors::SafeTensors::deserialize(&original).unwrap();
        let mut tensors: Vec<_> = original.tensors();
        for (name, dtype, shape, bytes) in [
            (
                "model.rotary_emb.inv_freq",
                Dtype::F32,
                vec![2],
                &[1; 8][..],
            ),
            (
                "model.layers.0.self_attn.position_ids",
                Dtype::I64,
                vec![1, 2],
                &[2; 16],
            ),
            ("vision_tower.position_ids", Dtype::I64, vec![1], &[3; 8]),
            ("vision_tower.mask", Dtype::BOOL, vec![3], &[1, 0, 1]),
            ("extra.eights", Dtype::F8_E4M3, vec![2, 2], &[5; 4]),
            ("extra.fours", Dtype::F4, vec![4], &[6; 2]),
            ("extra.none", Dtype::U8, vec![0, 7], &[]),
            (
                "model.layers.1.mlp.up_proj.qweight",
                Dtype::U8,
                vec![3],
                &[7; 3],
            ),
        ] {
            let view = TensorView::new(dtype, shape, bytes).unwrap();
            tensors.push((name.into(), view));
        }
        let metadata = [("by".to_owned(), "a test".to_owned())].into();
        let bytes = safetensors::serialize(tensors.clone(), Some(metadata)).unwrap();
        std::fs::write(dir.join("model.safetensors"), bytes).unwrap();

        let model = Model::open(dir.to_str().unwrap()).unwrap();
        let plain = open(base);
        assert_eq!(
            logits::<f32>(&model, &IDS),
            logits::<f32>(&plain, &IDS),
            "{base}"
        );
        let out = tmp
            .path()
            .join(format!("{}-merged", base.replace('/', "-")));
        export::merged(&model, &some_down(&model, &[1]), StoredAs::Own, &out).unwrap();
        let merged = std::fs::read(out.join("model.safetensors")).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&merged).unwrap();
        let metadata = header.metadata().clone().unwrap();
        assert_eq!(metadata["by"], "a test");
        assert_eq!(metadata["format"], "pt");
        let merged = safetensors::SafeTensors::deserialize(&merged).unwrap();
        assert_eq!(merged.len(), tensors.len());
        for (name, tensor) in tensors {
            let copy = merged.tensor(&name).unwrap();
            assert_eq!(
                (copy.dtype(), copy.shape()),
                (tensor.dtype(), tensor.shape()),
                "{name}"
            );
            let changed = name.ends_with("layers.1.mlp.down_proj.weight");
            assert_eq!(copy.data() != tensor.data(), changed, "{name}");
        }
    }
}

#[test]
fn merged_weights_lie_where_config_json_says() {
    let tmp = tempfile::tempdir().unwrap();
    for named in ["other.safetensors", "other.safetensors.index.json"] {
        let dir = tmp.path().join(named.replace('.', "-"));
        std::fs::create_dir(&dir).unwrap();
        let weights = std::fs::read(reference("checkpoints/window-3/model.safetensors")).unwrap();
        let mut config = json(&reference("checkpoints/window-3/config.json"));
        config["transformers_weights"] = named.into();
        std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
        if named.ends_with(".json") {
            let index = r#"{"weight_map": {"x": "shard.safetensors"}}"#;
            std::fs::write(dir.join(named), index).unwrap();
            std::fs::write(dir.join("shard.safetensors"), weights).unwrap();
        } else {
            std::fs::write(dir.join(named), weights).unwrap();
        }
        let model = Model::open(dir.to_str().unwrap()).unwrap();
        assert_eq!(hash(&model), hash(&open("checkpoints/window-3")), "{named}");
        let (patch, out) = (some_down(&model, &[1]), tmp.path().join("out").join(named));
        std::fs::create_dir_all(out.parent().unwrap()).unwrap();
        export::merged(&model, &patch, StoredAs::Own, &out).unwrap();
        let merged = Model::open(out.to_str().unwrap()).unwrap();
        let expected = materialise(&model, &patch, StoredAs::Own).unwrap();
        assert_eq!(hash(&merged), hash(expected.model()), "{named}");
    }
}

#[test]
fn a_head_that_is_the_embedding_too_is_loaded_and_merged() {
    let tmp = tempfile::tempdir().unwrap();
    for (base, embedding, head) in [
        (
            "checkpoints/window-3",
            "model.embed_tokens.weight",
            "lm_head.weight",
        ),
        (
            "checkpoints/multimodal",
            "language_model.model.embed_tokens.weight",
            "language_model.lm_head.weight",
        ),
    ] {
        let dir = tmp.path().join(base.replace('/', "-"));
        std::fs::create_dir(&dir).unwrap();
        std::fs::copy(reference(base).join("config.json"), dir.join("config.json")).unwrap();
        let original = std::fs::read(reference(base).join("model.safetensors")).unwrap();
        let original = safetensors::SafeTensors::deserialize(&original).unwrap();
        let renamed = original.tensors().into_iter().map(|(name, tensor)| {
            let name = if name == embedding { head.into() } else { name };
            (name, tensor)
        });
        let bytes = safetensors::serialize(renamed, None).unwrap();
        std::fs::write(dir.join("model.safetensors"), bytes).unwrap();
        let model = Model::open(dir.to_str().unwrap()).unwrap();
        let expected = logits::<f32>(&open(base), &IDS);
        assert_eq!(logits::<f32>(&model, &IDS), expected, "{base}");
        let out = tmp
            .path()
            .join(format!("{}-merged", base.replace('/', "-")));
        export::merged(&model, &empty(&model), StoredAs::Own, &out).unwrap();
        let merged = Model::open(out.to_str().unwrap()).unwrap();
        assert_eq!(logits::<f32>(&merged, &IDS), expected, "{base}");
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

#[test]
fn what_cannot_be_exported_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("out");
    let model = open("tiny");
    let refused = export::gguf(&model, &all_parts(&model), None, &path).unwrap_err();
    assert!(matches!(refused, Error::NormInGguf { layer: 0 }));
    assert!(refused.to_string().contains("solve with --solver span"));
    let nothing = empty(&model);
    let refused = export::gguf(&model, &nothing, None, &path).unwrap_err();
    assert!(matches!(refused, Error::EmptyPatch));
    let refused = export::peft(&model, &nothing, None, &path).unwrap_err();
    assert!(matches!(refused, Error::EmptyPatch));

    // Another model's patch: of other shapes, or of fewer layers.
    let other = some_down(&open("checkpoints/multimodal"), &[1]);
    let mut shapes = other.clone();
    shapes.layers.truncate(6);
    for patch in [other, shapes] {
        let refused = materialise(&model, &patch, StoredAs::Own).unwrap_err();
        assert!(matches!(refused, Error::PatchShape { .. }), "{refused}");
        let refused = export::merged(&model, &patch, StoredAs::Own, &path).unwrap_err();
        assert!(matches!(refused, Error::PatchShape { .. }), "{refused}");
    }

    // A number beyond f16; nothing stays of the half written folder.
    let mut patch = empty(&model);
    patch.layers[0].extend([scale(vec![1e6; sizes(&model).0])]);
    let refused = export::merged(&model, &patch, StoredAs::Type(Storage::F16), &path).unwrap_err();
    assert!(
        matches!(refused, Error::StorageOverflow { .. }),
        "{refused}"
    );
    assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0);
}

#[test]
fn a_folder_with_something_in_it_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let model = open("tiny");
    let patch = some_down(&model, &[1]);
    std::fs::write(tmp.path().join("mine"), "dear").unwrap();
    for refused in [
        export::peft(&model, &patch, None, tmp.path()),
        export::merged(&model, &patch, StoredAs::Own, tmp.path()),
    ] {
        let message = refused.unwrap_err().to_string();
        assert!(
            message.contains("there is something there already"),
            "{message}"
        );
    }
    assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 1);
    let new = tmp.path().join("empty");
    std::fs::create_dir(&new).unwrap();
    export::peft(&model, &patch, None, &new).unwrap();
}

#[test]
fn the_same_patch_gives_the_same_bytes() {
    let tmp = tempfile::tempdir().unwrap();
    let model = open("tiny");
    let patch = some_down(&model, &[1, 4]);
    let files = [0, 1].map(|i| {
        let dir = tmp.path().join(i.to_string());
        export::peft(&model, &patch, None, &dir).unwrap();
        export::gguf(&model, &patch, None, &dir.join("lora.gguf")).unwrap();
        [
            "adapter_config.json",
            "adapter_model.safetensors",
            "lora.gguf",
        ]
        .map(|name| std::fs::read(dir.join(name)).unwrap())
    });
    assert_eq!(files[0], files[1]);
}

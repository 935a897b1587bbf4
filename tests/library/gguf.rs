//! GGUF files: what they are read as, what is refused, and checkpoints written as such files.

use std::path::Path;

use crate::common::gguf::{File, TYPES, Value, llama};
use crate::common::{FAMILIES, logits, open, reference};
use bytes::Bytes;
use context_patch::checkpoint::{Access, Checkpoint};
use context_patch::model::ModelOptions;
use context_patch::patch::{
    LayerPatch, LowRank, Patch, StoredAs, TensorChange, export, materialise,
};
use context_patch::tensor::{Element, Matrix, Storage};
use context_patch::{Model, checkpoint};
use half::bf16;
use serde_json::json;

const IDS: [u32; 12] = [2, 5, 7, 90, 3, 3, 41, 8, 60, 2, 11, 77];

fn model(checkpoint: Checkpoint) -> Model {
    Model::from_checkpoint(checkpoint, ModelOptions::default()).unwrap()
}

fn parse(file: &File) -> checkpoint::Result<Checkpoint> {
    Checkpoint::from_gguf("model.gguf", file.bytes().into())
}

fn bits<E: Element>(model: &Model) -> Vec<u64> {
    let ids = IDS.map(|id| id % model.config().vocab_size as u32);
    let logits = logits::<E>(model, &ids);
    logits.as_slice().iter().map(|x| x.to_bits()).collect()
}

/// Q4_0, whose blocks are the smallest.
fn small() -> File {
    llama(TYPES[0])
}

/// What a file that was changed is refused with.
fn refused(change: impl FnOnce(&mut File)) -> String {
    let mut file = small();
    change(&mut file);
    let read = parse(&file).map_err(|error| error.to_string());
    let model = read.and_then(|checkpoint| {
        let model = Model::from_checkpoint(checkpoint, ModelOptions::default());
        model.map_err(|error| error.to_string())
    });
    model.err().unwrap_or_else(|| "read".into())
}

#[test]
fn every_type_is_what_its_numbers_are_in_a_folder() {
    for kind in TYPES {
        let quantised = parse(&llama(kind)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("folder");
        quantised.write_dir(&folder, Some(Storage::F32)).unwrap();
        let widened = Checkpoint::open(folder.to_str().unwrap(), Access::Mapped).unwrap();
        assert_eq!(quantised.config(), widened.config());
        let (quantised, widened) = (model(quantised), model(widened));
        assert_eq!(bits::<f32>(&quantised), bits::<f32>(&widened), "{}", kind.0);
        assert_eq!(
            bits::<bf16>(&quantised),
            bits::<bf16>(&widened),
            "{}",
            kind.0
        );
        // In f64 the numbers have not been rounded to f32.
        let exact = logits::<f64>(&quantised, &IDS);
        let finite = exact.as_slice().iter().all(|x| x.is_finite());
        assert!(
            finite && exact.as_slice().iter().any(|&x| x != 0.0),
            "{}",
            kind.0
        );
    }
}

#[test]
fn another_block_is_another_model() {
    let mut file = small();
    let before = bits::<f32>(&model(parse(&file).unwrap()));
    let (_, _, _, bytes) = file
        .tensors
        .iter_mut()
        .find(|(name, ..)| name == "blk.1.attn_k.weight")
        .unwrap();
    bytes[10] ^= 1;
    assert_ne!(bits::<f32>(&model(parse(&file).unwrap())), before);
}

/// A random checkpoint with another config, if one is given for it: one that GGUF can say.
fn sayable(name: &str) -> Checkpoint {
    let dir = reference(&format!("checkpoints/{name}"));
    let changes = match name {
        "gemma2" => json!({"query_pre_attn_scalar": 8}),
        "mistral" => json!({"sliding_window": null}),
        "qwen2" => json!({"use_sliding_window": false}),
        "llama-3" => json!({"rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }}),
        _ => json!({}),
    };
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(&dir).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let path = copy.path().join("config.json");
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (field, value) in changes.as_object().unwrap() {
        config[field] = value.clone();
    }
    std::fs::write(path, config.to_string()).unwrap();
    Checkpoint::open(copy.path().to_str().unwrap(), Access::Read).unwrap()
}

/// Random checkpoints of all families: written as GGUF and read again they give the same bits. GGUF's vectors are in f32.
#[test]
fn every_family_goes_there_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut said = String::new();
    for name in FAMILIES {
        let original = model(sayable(name));
        let file = dir.path().join(format!("{name}.gguf"));
        if let Err(error) = original.checkpoint().write_gguf(&file, None) {
            let error = error.to_string();
            let (_, reason) = error.split_once(" cannot be written").unwrap();
            said += &format!("{name} cannot be written{reason}\n");
            assert!(!file.exists(), "{name}");
            continue;
        }
        let back = model(Checkpoint::open(file.to_str().unwrap(), Access::Read).unwrap());
        assert!(bits::<f32>(&original) == bits::<f32>(&back), "{name}");
        assert!(bits::<bf16>(&original) == bits::<bf16>(&back), "{name}");
        assert!(
            bits::<f32>(&open("checkpoints/window-1")) != bits::<f32>(&back),
            "{name}"
        );
        said += &format!("{name} as {}\n", back.config().model_type);
    }
    insta::assert_snapshot!(said);
}

#[test]
fn what_gguf_cannot_say_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.gguf");
    let mut said = String::new();
    for name in ["gemma2", "gemma3-bias", "mistral", "qwen2", "llama-3"] {
        let original = open(&format!("checkpoints/{name}"));
        let path = reference(&format!("checkpoints/{name}"));
        let error = original.checkpoint().write_gguf(&file, None).unwrap_err();
        said += &format!(
            "{}\n",
            error.to_string().replace(path.to_str().unwrap(), name)
        );
        assert!(!file.exists(), "{name}");
    }
    insta::assert_snapshot!(said);
}

#[test]
fn what_a_header_must_be() {
    let mut said = String::new();
    let mut say = |what: &str, message: String| said += &format!("{what}: {message}\n");
    let changed = |at: usize, byte: u8| {
        let mut bytes = small().bytes();
        bytes[at] = byte;
        Checkpoint::from_gguf("model.gguf", bytes.into())
            .unwrap_err()
            .to_string()
    };
    say("magic", changed(0, b'g'));
    say("version 1", changed(4, 1));
    let mut bytes = small().bytes();
    bytes[4..8].reverse();
    let error = Checkpoint::from_gguf("model.gguf", bytes.into()).unwrap_err();
    say("big-endian", error.to_string());
    say("many tensors", changed(14, 200));
    say("many values", changed(22, 200));
    say("a long key", changed(31, 127));
    say("a key that is not UTF-8", changed(32, 0xff));
    say("an unknown type of value", changed(24 + 8 + 20, 77));
    let values = small().values.len();
    say(
        "one value twice",
        refused(|file| file.values.push(file.values[0].clone())),
    );
    say(
        "no architecture",
        refused(|file| file.remove("general.architecture")),
    );
    say(
        "another architecture",
        refused(|file| file.set("general.architecture", Value::Text("mamba"))),
    );
    say(
        "an architecture that is a number",
        refused(|file| file.set("general.architecture", Value::U32(7))),
    );
    say(
        "alignment",
        refused(|file| file.set("general.alignment", Value::U32(48))),
    );
    say(
        "no layers",
        refused(|file| file.remove("llama.block_count")),
    );
    say(
        "no context",
        refused(|file| file.remove("llama.context_length")),
    );
    say(
        "heads that differ",
        refused(|file| file.set("llama.attention.head_count", Value::U32s(vec![4, 2]))),
    );
    say(
        "no heads",
        refused(|file| file.set("llama.attention.head_count", Value::U32(0))),
    );
    say(
        "a part of each head",
        refused(|file| {
            file.set("llama.attention.key_length", Value::U32(64));
            file.set("llama.rope.dimension_count", Value::U32(32));
        }),
    );
    say(
        "scaling",
        refused(|file| file.set("llama.rope.scaling.type", Value::Text("longrope"))),
    );
    say(
        "a scale of the logits",
        refused(|file| file.set("llama.logit_scale", Value::F32(0.5))),
    );
    say(
        "not causal",
        refused(|file| file.set("llama.attention.causal", Value::Bool(false))),
    );
    assert_eq!(values, small().values.len());
    insta::assert_snapshot!(said);
}

#[test]
fn what_tensors_must_be() {
    let mut said = String::new();
    let mut say = |what: &str, message: String| said += &format!("{what}: {message}\n");
    say(
        "one tensor twice",
        refused(|file| file.tensors.push(file.tensors[0].clone())),
    );
    say("no embedding", refused(|file| drop(file.tensors.remove(0))));
    say(
        "an unknown name",
        refused(|file| file.tensors[4].0 = "blk.0.ssm_a".into()),
    );
    say(
        "a type of no storage",
        refused(|file| file.tensors[3].2 = 16),
    );
    say("an unknown type", refused(|file| file.tensors[3].2 = 99));
    say("no dimensions", refused(|file| file.tensors[3].1.clear()));
    say(
        "five dimensions",
        refused(|file| file.tensors[3].1 = vec![1; 5]),
    );
    say(
        "a dimension of nothing",
        refused(|file| file.tensors[3].1[1] = 0),
    );
    say(
        "more numbers than bits",
        refused(|file| file.tensors[3].1 = vec![1 << 40; 3]),
    );
    say(
        "rows of a part of a block",
        refused(|file| file.tensors[3].1 = vec![16, 4096]),
    );
    say("fewer rows", refused(|file| file.tensors[3].1[1] -= 8));
    say(
        "more rows at the end",
        refused(|file| file.tensors.last_mut().unwrap().1[1] += 8),
    );
    say(
        "another shape",
        refused(|file| {
            let tensor = &mut file.tensors[3];
            tensor.1 = vec![512, 128];
        }),
    );
    let infinite = parse(&{
        let mut file = small();
        file.tensors[4].3[..2].copy_from_slice(&0x7c00u16.to_le_bytes());
        file
    });
    let found = infinite.unwrap().tensors().check_finite().unwrap_err();
    say("a scale that is infinite", found.to_string());
    insta::assert_snapshot!(said);
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = Bytes::from(small().bytes());
    let places = (0..2000).chain((2000..bytes.len()).step_by(997));
    for end in places {
        let error = Checkpoint::from_gguf("model.gguf", bytes.slice(..end)).unwrap_err();
        let error = error.to_string();
        assert!(
            error.starts_with("model.gguf") && !error.contains('\n'),
            "{end}: {error}"
        );
    }
    Checkpoint::from_gguf("model.gguf", bytes).unwrap();
}

#[test]
fn a_model_in_several_files() {
    let whole = small();
    let dir = tempfile::tempdir().unwrap();
    let path = |number: usize| dir.path().join(format!("m-{number:05}-of-00003.gguf"));
    let open = |path: &Path| Checkpoint::open(path.to_str().unwrap(), Access::Read);
    let count = whole.tensors.len();
    let mut parts: Vec<File> = whole
        .tensors
        .chunks(count.div_ceil(3))
        .enumerate()
        .map(|(number, tensors)| {
            let values = if number == 0 {
                whole.values.clone()
            } else {
                Vec::new()
            };
            let mut file = File {
                version: 3,
                values,
                tensors: tensors.to_vec(),
            };
            file.set("split.no", Value::U32(number as u32));
            file.set("split.count", Value::U32(3));
            file.set("split.tensors.count", Value::U32(count as u32));
            file
        })
        .collect();
    let write =
        |number: usize, file: &File| std::fs::write(path(number + 1), file.bytes()).unwrap();
    parts
        .iter()
        .enumerate()
        .for_each(|(number, file)| write(number, file));
    let read = open(&path(1)).unwrap();
    assert_eq!(
        read.tensors().content_hash(),
        parse(&whole).unwrap().tensors().content_hash()
    );

    let mut said = String::new();
    let mut say = |what: &str, path: &Path| {
        let error = open(path).unwrap_err().to_string();
        said += &format!(
            "{what}: {}\n",
            error.replace(dir.path().to_str().unwrap(), "DIR")
        );
    };
    say("the second alone", &path(2));
    let other = dir.path().join("other.gguf");
    std::fs::copy(path(1), &other).unwrap();
    say("another name", &other);
    parts[1].set("split.count", Value::U32(4));
    write(1, &parts[1]);
    say(
        "one of another model",
        &path(2).with_file_name("m-00001-of-00003.gguf"),
    );
    parts[1].set("split.count", Value::U32(3));
    parts[1].tensors.pop();
    write(1, &parts[1]);
    say("one tensor missing", &path(1));
    std::fs::remove_file(path(3)).unwrap();
    say("one file missing", &path(1));
    insta::assert_snapshot!(said);
}

/// ΔW of rank 1 on one layer's down projection.
fn some_patch(model: &Model) -> Patch {
    let config = model.config();
    let mut numbers = crate::common::numbers(3, 2.0, 2);
    let mut column = |length: usize| (0..length).map(|_| numbers()).collect::<Vec<f64>>();
    let delta = LowRank {
        u: Matrix::from_vec(1, column(config.hidden_size)),
        v: Matrix::from_vec(config.intermediate_size, column(config.intermediate_size)),
    };
    let mut layers = vec![LayerPatch::default(); config.num_hidden_layers];
    let change = TensorChange::LowRank(delta);
    layers[1].insert("mlp.down_proj.weight".into(), change);
    Patch { layers }
}

/// Every type as it was: nothing moves without a change, and with one the numbers come nearer to it than they were.
#[test]
fn a_merged_file_can_be_quantised_again() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("merged.gguf");
    for kind in TYPES {
        let source = llama(kind);
        let original = model(parse(&source).unwrap());
        let patch = some_patch(&original);
        let mut still = patch.clone();
        for change in still.layers[1].values_mut() {
            if let TensorChange::LowRank(delta) = change {
                delta.u.as_mut_slice().fill(0.0);
            }
        }
        export::merged_gguf(&original, &still, StoredAs::Quantised, &file).unwrap();
        let mut written = std::fs::read(&file).unwrap();
        written.truncate(source.bytes().len());
        assert!(written == source.bytes(), "{}", kind.0);

        let stored = StoredAs::Quantised;
        let (down, share) = export::merged_gguf(&original, &patch, stored, &file)
            .unwrap()
            .lost
            .unwrap();
        assert_eq!(down, "model.layers.1.mlp.down_proj.weight", "{}", kind.0);
        assert!(0.0 < share && share < 0.9, "{}: {share}", kind.0);
        let merged = model(Checkpoint::open(file.to_str().unwrap(), Access::Read).unwrap());
        assert_ne!(bits::<f32>(&merged), bits::<f32>(&original), "{}", kind.0);
        for ((name, before), (_, after)) in original
            .checkpoint()
            .tensors()
            .iter()
            .zip(merged.checkpoint().tensors().iter())
        {
            assert_eq!(before.storage(), after.storage(), "{} {name}", kind.0);
            assert_eq!(
                before.bytes() == after.bytes(),
                *name != down,
                "{} {name}",
                kind.0
            );
        }
    }
}

#[test]
fn a_merged_file_is_the_materialised_model_and_all_else_is_copied() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("merged.gguf");
    let mut source = small();
    source.set("general.name", Value::Text("Named"));
    source.set("tokenizer.ggml.tokens", Value::Texts(vec!["a", "b"]));
    let original = model(parse(&source).unwrap());
    let patch = some_patch(&original);
    for storage in [Storage::F32, Storage::Bf16] {
        let stored = StoredAs::Type(storage);
        export::merged_gguf(&original, &patch, stored, &file).unwrap();
        let merged = model(Checkpoint::open(file.to_str().unwrap(), Access::Read).unwrap());
        let materialised = materialise(&original, &patch, stored).unwrap();
        assert_eq!(bits::<f32>(&merged), bits::<f32>(materialised.model()));
        assert_ne!(bits::<f32>(&merged), bits::<f32>(&original));
        let mut expected = source.clone();
        let down = "model.layers.1.mlp.down_proj.weight";
        let (_, _, kind, bytes) = expected
            .tensors
            .iter_mut()
            .find(|(name, ..)| name == "blk.1.ffn_down.weight")
            .unwrap();
        *kind = if storage == Storage::F32 { 0 } else { 30 };
        let (_, tensor) = merged
            .checkpoint()
            .tensors()
            .iter()
            .find(|(name, _)| *name == down)
            .unwrap();
        *bytes = tensor.bytes().to_vec();
        let mut written = std::fs::read(&file).unwrap();
        // The last tensor's padding, which a file need not have.
        written.truncate(expected.bytes().len());
        assert!(written == expected.bytes(), "{storage}");
    }
}

#[test]
fn a_file_in_another_type_has_the_same_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("wide.gguf");
    let stored = model(parse(&small()).unwrap());
    stored
        .checkpoint()
        .write_gguf(&file, Some(Storage::F32))
        .unwrap();
    let wide = model(Checkpoint::open(file.to_str().unwrap(), Access::Read).unwrap());
    let mut types = wide
        .checkpoint()
        .tensors()
        .iter()
        .map(|(_, tensor)| tensor.storage());
    assert!(types.all(|storage| storage == Storage::F32));
    assert_eq!(bits::<f32>(&stored), bits::<f32>(&wide));
}

#[test]
fn a_file_without_a_chat_template_says_where_it_would_be() {
    let error = parse(&small()).unwrap().chat_template().unwrap_err();
    assert_eq!(
        error.to_string(),
        "model.gguf has no chat template (no tokenizer.chat_template); use an instruction-tuned checkpoint, or leave out --chat"
    );
}

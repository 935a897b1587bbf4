//! Folders with the patched weights.

use std::path::Path;

use super::{IDS, all_parts, empty, hash, json, some_down};
use crate::common::{linf, logits, open, reference};
use context_patch::patch::{StoredAs, export, materialise};
use context_patch::tensor::Storage;
use context_patch::{Checkpoint, Model};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

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

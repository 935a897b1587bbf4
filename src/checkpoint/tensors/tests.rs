use half::{bf16, f16};

use super::*;

fn tensors(list: &[(&str, Storage, &[usize], &[u8])]) -> Tensors {
    let entry = |(name, storage, shape, data): &(&str, Storage, &[usize], &[u8])| {
        let data = Bytes::copy_from_slice(data);
        let tensor = Tensor::new(*storage, shape.to_vec(), data).unwrap();
        let entry = Entry {
            tensor: Ok(tensor),
            file: Path::new("m.safetensors").into(),
            stored: (*name).into(),
        };
        ((*name).to_owned(), entry)
    };
    let entries = list.iter().map(entry).collect();
    Tensors::new(Path::new("m.safetensors"), entries, BTreeMap::new())
}

#[test]
fn a_missing_tensor_is_named() {
    let tensors = tensors(&[("a", Storage::F32, &[1], &[0; 4])]);
    assert!(tensors.get("a", &[1]).is_ok());
    assert!(tensors.contains("a") && !tensors.contains("b"));
    assert_eq!(
        tensors.get("b", &[1]).unwrap_err().to_string(),
        "m.safetensors has no tensor b; config.json and the weights do not belong together"
    );
}

#[test]
fn a_tensor_behind_another_prefix_is_named() {
    for stored in [
        "base_model.model.model.embed_tokens.weight",
        "transformer.embed_tokens.weight",
        "module.model.embed_tokens.weight",
        "_orig_mod.model.embed_tokens.weight",
    ] {
        let tensors = tensors(&[(stored, Storage::F32, &[1], &[0; 4])]);
        let error = tensors.get("model.embed_tokens.weight", &[1]).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "m.safetensors has the tensor {stored} in the place of model.embed_tokens.weight; take what is too much off the names"
            )
        );
    }
    let tensors = tensors(&[(
        "model.layers.0.self_attn.q_norm.weight",
        Storage::F32,
        &[1],
        &[0; 4],
    )]);
    let error = tensors.get("model.norm.weight", &[1]).unwrap_err();
    assert!(matches!(error, Error::MissingTensor { .. }));
}

#[test]
fn a_tensor_of_another_shape_is_named() {
    let tensors = tensors(&[("a", Storage::F32, &[1, 2], &[0; 8])]);
    assert_eq!(
        tensors.get("a", &[2, 1]).unwrap_err().to_string(),
        "m.safetensors: tensor a has shape [1, 2], but config.json says [2, 1]; they do not belong together"
    );
}

#[test]
fn the_hash_sees_names_types_shapes_and_bytes() {
    let hash = |name, storage, shape: &[usize], byte| {
        tensors(&[(name, storage, shape, &[byte; 8])]).content_hash()
    };
    let hashes = [
        hash("a", Storage::F32, &[2], 0),
        hash("b", Storage::F32, &[2], 0),
        hash("a", Storage::Bf16, &[4], 0),
        hash("a", Storage::F16, &[4], 0),
        hash("a", Storage::F32, &[2, 1], 0),
        hash("a", Storage::F32, &[2], 1),
    ];
    let distinct: std::collections::BTreeSet<_> = hashes.iter().collect();
    assert_eq!(distinct.len(), hashes.len());
    // Pinned: recordings and verifications name models by it. Computed apart with Python's hashlib.
    assert_eq!(
        hashes[0],
        "01713b529e70f4f3363cd4cfd5ac0eacdb5660bb83e1cadeeaea41fe6cac8767"
    );
}

#[test]
fn the_hash_covers_every_chunk() {
    let mut data = vec![0; 2 * CHUNK + 4];
    let shape = [data.len() / 4];
    let before = tensors(&[("a", Storage::F32, &shape, &data)]).content_hash();
    *data.last_mut().unwrap() = 1;
    let after = tensors(&[("a", Storage::F32, &shape, &data)]).content_hash();
    assert_ne!(before, after);
}

#[test]
fn weights_that_are_not_finite_are_named() {
    let floats = |x: &[f32]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
    let good = floats(&[f32::MAX, -f32::MAX, 0.0, f32::MIN_POSITIVE]);
    let nan = floats(&[0.0, 1.0, f32::NAN, f32::INFINITY]);
    let max16 = f16::MAX.to_le_bytes();
    let all = tensors(&[
        ("a", Storage::F32, &[4], &good),
        ("b", Storage::F16, &[1], &max16),
    ]);
    assert!(all.check_finite().is_ok());
    assert_eq!(
        tensors(&[
            ("a", Storage::F32, &[4], &good),
            ("b", Storage::F32, &[2, 2], &nan)
        ])
        .check_finite()
        .unwrap_err()
        .to_string(),
        "m.safetensors: tensor b holds NaN at element 2; fetch the file again"
    );
    for (storage, data, value) in [
        (
            Storage::F64,
            f64::NEG_INFINITY.to_le_bytes().to_vec(),
            "-inf",
        ),
        (Storage::F16, f16::INFINITY.to_le_bytes().to_vec(), "inf"),
        (Storage::Bf16, bf16::INFINITY.to_le_bytes().to_vec(), "inf"),
    ] {
        let error = tensors(&[("a", storage, &[1], &data)]).check_finite();
        assert_eq!(
            error.unwrap_err().to_string(),
            format!("m.safetensors: tensor a holds {value} at element 0; fetch the file again")
        );
    }
}

#[test]
fn the_first_bad_weight_of_many_is_found() {
    let mut data = vec![0; 4 * 100_000];
    for i in [70_000, 99_999] {
        data[4 * i..4 * i + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    }
    let error = tensors(&[("a", Storage::F32, &[100_000], &data)]).check_finite();
    assert!(matches!(error, Err(Error::NotFinite { index: 70_000, .. })));
}

#[test]
fn a_scale_that_is_not_finite_is_found() {
    // 34 bytes are 32 numbers, of which each is infinite or, where q is 0, NaN.
    let mut data = vec![1; 34 * 10_000];
    let bad = 7_000;
    data[34 * bad..34 * bad + 3].copy_from_slice(&[0, 0x7c, 0]);
    let all = |data: &[u8]| tensors(&[("a", Storage::Q8_0, &[100, 3200], data)]).check_finite();
    let first = 32 * bad;
    assert_eq!(
        all(&data).unwrap_err().to_string(),
        format!("m.safetensors: tensor a holds NaN at element {first}; fetch the file again")
    );
    // The largest that is finite.
    data[34 * bad..34 * bad + 2].copy_from_slice(&[0xff, 0x7b]);
    assert!(all(&data).is_ok());
}

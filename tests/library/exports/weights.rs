//! Patches written into weights, in memory.

use super::{IDS, all_parts, delta, hash, scale_of, sizes, some_down, tensor};
use crate::common::{linf, logits, open};
use context_patch::patch::{StoredAs, materialise};
use context_patch::tensor::{Storage, Tensor};

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

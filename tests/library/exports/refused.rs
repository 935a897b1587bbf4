//! What cannot be exported.

use super::{all_parts, empty, scale, sizes, some_down};
use crate::common::open;
use context_patch::patch::{Error, StoredAs, export, materialise};
use context_patch::tensor::Storage;

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

//! Recordings of prompts with images: the names and layouts of the vision part's modules, and what does not fit.

use std::path::Path;

use crate::common::images::{Pixels, Prompt};
use crate::common::{Golden, open};
use bytes::Bytes;
use context_patch::Model;
use context_patch::compare::{Comparison, Recording, Result, Rules};
use context_patch::tensor::Dtype;
use context_patch::trace::Trace;
use safetensors::tensor::{Dtype as Stored, TensorView, serialize};

const PATCHES: usize = 16;
const HIDDEN: usize = 20;
const FC2: &str = "model.vision_tower.encoder.layers.1.mlp.fc2";

fn model() -> Model {
    open("checkpoints/vision-window")
}

/// Numbers that tell row and column.
fn number(row: usize, col: usize) -> f32 {
    (row * 1000 + col) as f32
}

/// `[rows, cols]`.
fn rows(rows: usize, cols: usize) -> Vec<f32> {
    let all = (0..rows).flat_map(|row| (0..cols).map(move |col| number(row, col)));
    all.collect()
}

/// `[images, cols, each]`: a picture for each column, as convolutions give them.
fn pictures(images: usize, each: usize, cols: usize) -> Vec<f32> {
    let of_image = move |image: usize| {
        let columns = (0..cols).flat_map(move |col| (0..each).map(move |row| (row, col)));
        columns.map(move |(row, col)| number(image * each + row, col))
    };
    (0..images).flat_map(of_image).collect()
}

/// A safetensors file in F32.
fn file(tensors: &[(&str, &[usize], Vec<f32>)]) -> Bytes {
    let bytes = |numbers: &[f32]| numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    let stored: Vec<(_, _, Vec<u8>)> = tensors
        .iter()
        .map(|(name, shape, numbers)| (*name, shape.to_vec(), bytes(numbers)))
        .collect();
    let views = stored.iter().map(|(name, shape, data)| {
        let view = TensorView::new(Stored::F32, shape.clone(), data);
        (*name, view.unwrap())
    });
    serialize(views, None).unwrap().into()
}

fn recording(tensors: &[(&str, &[usize], Vec<f32>)]) -> Result<Recording> {
    let path = Path::new("engine.safetensors");
    Recording::parse(path, &file(tensors), &model(), &Rules::default())
}

#[test]
fn every_layout_of_modules_is_read() {
    let tensors: [(&str, &[usize], Vec<f32>); 7] = [
        ("pixel_values", &[2, 3, 28, 28], rows(2 * 3 * 28, 28)),
        (
            "vision_tower.vision_model.embeddings.patch_embedding.output",
            &[2, HIDDEN, 4, 4],
            pictures(2, PATCHES, HIDDEN),
        ),
        (
            "model.vision_tower.embeddings.position_embedding",
            &[1, PATCHES, HIDDEN],
            rows(PATCHES, HIDDEN),
        ),
        (
            "vision_tower.encoder.layers[1].mlp",
            &[2, PATCHES, HIDDEN],
            rows(2 * PATCHES, HIDDEN),
        ),
        (
            "model.vision_tower.encoder.layers.1.input",
            &[2 * PATCHES, HIDDEN],
            rows(2 * PATCHES, HIDDEN),
        ),
        (
            "multi_modal_projector.avg_pool",
            &[2, HIDDEN, 2, 2],
            pictures(2, 4, HIDDEN),
        ),
        ("hidden_states.0", &[1, 13, 24], rows(13, 24)),
    ];
    let recording = recording(&tensors).unwrap();
    assert_eq!(recording.aside(), []);
    assert_eq!((recording.images(), recording.tokens()), (2, 13));
    for (name, expected) in [
        ("pixel_values", 2 * 3 * 28),
        ("model.vision_tower.embeddings.patch_embedding", 2 * PATCHES),
        ("model.vision_tower.embeddings.position_embedding", PATCHES),
        (FC2, 2 * PATCHES),
        ("model.vision_tower.encoder.layers.0", 2 * PATCHES),
        ("model.multi_modal_projector.avg_pool", 2 * 4),
        // Embeddings after images were put in.
        ("inputs_embeds", 13),
    ] {
        let read = recording.read(name).unwrap().unwrap();
        assert_eq!(read.rows(), expected, "{name}");
        for (row, numbers) in read.iter_rows().enumerate() {
            let right = (0..numbers.len()).map(|col| f64::from(number(row, col)));
            assert!(right.eq(numbers.iter().copied()), "{name} {row}");
        }
    }
    // What enters the first layer of a text is the embedding.
    let text = recording_of_text();
    assert!(text.contains("model.embed_tokens") && !text.contains("inputs_embeds"));
}

fn recording_of_text() -> Recording {
    recording(&[("hidden_states.0", &[13, 24], rows(13, 24))]).unwrap()
}

#[test]
fn tensors_of_different_images_are_refused() {
    let more = (FC2, &[3, PATCHES, HIDDEN][..], rows(3 * PATCHES, HIDDEN));
    let two = (
        "model.multi_modal_projector",
        &[2, 4, 24][..],
        rows(2 * 4, 24),
    );
    let error = recording(&[more, two]).unwrap_err().to_string();
    assert!(
        error.contains("48 rows") || error.contains("8 rows"),
        "{error}"
    );
    assert!(error.contains("record all tensors in one pass"), "{error}");
    let shape = recording(&[(FC2, &[5, HIDDEN, 2], rows(5, 2 * HIDDEN))]);
    let error = shape.unwrap_err().to_string();
    assert!(
        error.contains("[images · 16, 20] or [images, 16, 20]"),
        "{error}"
    );
}

/// A reference of images begins with their pixels.
#[test]
fn a_reference_without_its_pixels_is_refused() {
    let model = model();
    let golden = Golden::open("vision-window.images");
    let pixels = Pixels::of(&golden, &model);
    let prompt = Prompt::of(&golden, "several", &pixels);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let compared = |globs: &[String]| {
        let trace = Trace::new(&model, Dtype::F64, globs, usize::MAX).unwrap();
        trace.write(&path, &model, prompt.inputs()).unwrap();
        let reference = Recording::open(&path, &model, &Rules::default())?;
        assert_eq!(reference.images(), 3);
        Comparison::new(&model, &reference, &reference, None, false).map(|c| c.tensors())
    };
    assert_eq!(
        compared(&["lm_head".into(), "pixel_values".into()]).unwrap(),
        2
    );
    let error = compared(&["lm_head".into()]).unwrap_err().to_string();
    assert!(error.contains("lacks their pixel_values"), "{error}");
}

//! Patch files: whatever the bytes, a patch or an error of one line; what is saved comes back; and a patch that is
//! taken out of the weights again leaves the bits that were there.
#![no_main]

mod number;
mod parts;
mod small_model;

use std::collections::BTreeMap;
use std::path::Path;

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use context_patch::Model;
use context_patch::patch::{
    Error, LayerPatch, LowRank, Method, Patch, Positions, SavedPatch, Solved, Solver, SolverReport,
    Source, Split, StoredAs, TensorChange, materialise,
};
use context_patch::tensor::{Dtype, Matrix, Storage};
use libfuzzer_sys::fuzz_target;
use number::number;
use parts::Parts;
use small_model::SMALL;

fuzz_target!(|bytes: &[u8]| {
    read(bytes);
    let mut u = Unstructured::new(bytes);
    if let Ok(parts) = forged(&mut u) {
        read(&parts.file());
    }
    let mut u = Unstructured::new(bytes);
    if let Ok(patch) = patch(&mut u) {
        there_and_back(&patch);
    }
    let mut u = Unstructured::new(bytes);
    if let Ok(layers) = layers(&mut u, 24, 40, 5) {
        in_and_out(&Patch { layers });
    }
});

/// Written into the weights of a small model, and out of them.
fn in_and_out(patch: &Patch) {
    let hash = |model: &Model| model.checkpoint().tensors().content_hash();
    match materialise(&SMALL, patch, StoredAs::Own) {
        Ok(patched) => {
            assert!(
                patched
                    .model()
                    .checkpoint()
                    .tensors()
                    .check_finite()
                    .is_ok()
            );
            assert_eq!(hash(&patched.revert().unwrap()), hash(&SMALL));
        }
        Err(error) => assert!(matches!(error, Error::StorageOverflow { .. }), "{error}"),
    }
}

/// A file of any bytes.
fn read(bytes: &[u8]) {
    match SavedPatch::parse(
        Path::new("patch.safetensors"),
        &Bytes::copy_from_slice(bytes),
    ) {
        Ok(saved) => there_and_back(&saved),
        Err(error) => assert_eq!(error.to_string().lines().count(), 1, "{error}"),
    }
}

/// Saved and loaded again.
fn there_and_back(patch: &SavedPatch) {
    let file = std::env::temp_dir().join(format!("patch_file_{}", std::process::id()));
    match patch.save(&file, Storage::F64) {
        Ok(()) => assert_eq!(SavedPatch::load(&file).as_ref().ok(), Some(patch)),
        Err(error) => {
            let changes = patch.patch.layers.iter().flat_map(LayerPatch::values);
            let numbers = changes.flat_map(|change| match change {
                TensorChange::LowRank(delta) => [delta.u.as_slice(), delta.v.as_slice()].concat(),
                TensorChange::Vector(vector) => vector.clone(),
            });
            let said = match &patch.source {
                Source::Solved(solved) => vec![solved.method.gain],
                Source::Compiled(compiled) => vec![compiled.recipe.lambda],
            };
            let finite = numbers.chain(said).all(|x| x.is_finite());
            assert!(!finite, "{error} is no reason to refuse {patch:?}");
        }
    }
}

/// A sound safetensors file with the right hash, and anything in it.
fn forged(u: &mut Unstructured<'_>) -> Result<Parts> {
    let mut metadata: BTreeMap<String, String> = [
        ("format", "context-patch 1"),
        ("model", "m"),
        ("model_hash", "h"),
        ("num_hidden_layers", "2"),
        ("dtype", "f32"),
        (
            "split",
            r#"{"tokens":[2,5,7],"kept":[0],"span":1,"positions":"absolute"}"#,
        ),
        (
            "method",
            r#"{"solver":"span","form":"overlay","gain":10.0,"layers":4,"passes":40}"#,
        ),
        ("report", r#"{"layers":[]}"#),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    // Now and then another value, or a character of one changed.
    if let Some(value) = metadata.values_mut().nth(u.int_in_range(0..=31)?) {
        let mut bytes = std::mem::take(value).into_bytes();
        let at = u.choose_index(bytes.len())?;
        match u.arbitrary::<bool>()? {
            true => bytes[at] = u.arbitrary()?,
            false => bytes = u.arbitrary()?,
        }
        *value = String::from_utf8_lossy(&bytes).into_owned();
    }
    let mut tensors = BTreeMap::new();
    for _ in 0..u.int_in_range(0..=4)? {
        let layer = u.int_in_range(0..=2)?;
        let name = match u.int_in_range(0..=9)? {
            0..=3 => format!("model.layers.{layer}.mlp.down_proj.lora_A"),
            4..=7 => format!("model.layers.{layer}.mlp.down_proj.lora_B"),
            8 => format!("model.layers.{layer}.post_feedforward_layernorm.scale"),
            _ => u.arbitrary()?,
        };
        let (dtype, size) = *u.choose(&[("F64", 8), ("F64", 8), ("F32", 4), ("I16", 2)])?;
        let rank = u.int_in_range(0..=3)?;
        let shape: Vec<usize> = (0..rank)
            .map(|_| u.int_in_range(0..=3))
            .collect::<Result<_>>()?;
        let length = size * shape.iter().product::<usize>();
        let data = (0..length).map(|_| u.arbitrary()).collect::<Result<_>>()?;
        tensors.insert(name, (dtype.to_owned(), shape, data));
    }
    let mut parts = Parts { metadata, tensors };
    parts.sign();
    Ok(parts)
}

/// Any patch of a few small layers.
fn patch(u: &mut Unstructured<'_>) -> Result<SavedPatch> {
    let (hidden, inner) = (u.int_in_range(1..=4)?, u.int_in_range(1..=4)?);
    let count = u.int_in_range(0..=3)?;
    let layers = layers(u, hidden, inner, count)?;
    let tokens: Vec<u32> = u.arbitrary()?;
    let positions = *u.choose(&[Positions::Absolute, Positions::Natural])?;
    let split = Split::new(tokens, u.arbitrary()?, u.int_in_range(0..=4)?, positions);
    let split = split.and_then(|split| split.with_answer(u.int_in_range(0..=2).unwrap_or(0)));
    Ok(SavedPatch {
        patch: Patch { layers },
        source: Source::Solved(Box::new(Solved {
            split: split.map_err(|_| arbitrary::Error::IncorrectFormat)?,
            method: Method {
                gain: number(u)?,
                ..Method::new(*u.choose(&Solver::ALL)?)
            },
            report: SolverReport::default(),
            images: Vec::new(),
        })),
        dtype: *u.choose(&[Dtype::F64, Dtype::F32, Dtype::Bf16])?,
        model: u.arbitrary()?,
        model_hash: u.arbitrary()?,
    })
}

fn layers(
    u: &mut Unstructured<'_>,
    hidden: usize,
    inner: usize,
    count: usize,
) -> Result<Vec<LayerPatch>> {
    let layer = |u: &mut Unstructured<'_>| {
        let mut layer = LayerPatch::new();
        for (map, out, cols) in [
            ("gate_proj", inner, hidden),
            ("up_proj", inner, hidden),
            ("down_proj", hidden, inner),
        ] {
            if let Some(delta) = low_rank(u, out, cols)? {
                let name = format!("mlp.{map}.weight");
                layer.insert(name, TensorChange::LowRank(delta));
            }
        }
        if u.arbitrary()? {
            let scale = (0..hidden).map(|_| number(u)).collect::<Result<_>>()?;
            let name = "post_feedforward_layernorm.weight";
            layer.insert(name.into(), TensorChange::Vector(scale));
        }
        Ok(layer)
    };
    (0..count).map(|_| layer(u)).collect()
}

fn low_rank(u: &mut Unstructured<'_>, out: usize, cols: usize) -> Result<Option<LowRank>> {
    let rank = u.int_in_range(0..=2)?;
    if rank == 0 {
        return Ok(None);
    }
    let mut numbers = |n: usize| (0..n).map(|_| number(u)).collect::<Result<Vec<_>>>();
    Ok(Some(LowRank {
        u: Matrix::from_vec(rank, numbers(out * rank)?),
        v: Matrix::from_vec(cols, numbers(rank * cols)?),
    }))
}

//! What a receipt is of, against what is here.

use super::{Difference, Result, What, sha256};
use crate::message::one_line;
use crate::model::Model;
use crate::vision::{PanAndScan, Picture, PictureRecord, PixelValues, Processor};

/// The SHA-256 of a file of the checkpoint.
pub(super) fn hash_of_file(model: &Model, name: &str) -> Result<String> {
    let file = model.checkpoint().file(name)?;
    Ok(sha256(&file.unwrap_or_default()))
}

/// The first of the model's hashes that is another one.
pub(super) fn of_model(
    model: &Model,
    weights: &str,
    config: &str,
    tokenizer: &str,
) -> Result<Option<Difference>> {
    let hashes = [
        (
            "weights",
            weights,
            model.checkpoint().tensors().content_hash(),
        ),
        ("config", config, hash_of_file(model, "config.json")?),
        (
            "tokenizer",
            tokenizer,
            hash_of_file(model, "tokenizer.json")?,
        ),
    ];
    let mut hashes = hashes.into_iter();
    Ok(hashes.find_map(|(field, receipt, here)| of_hash(field, receipt, &here)))
}

/// That a hash is another one, if it is.
pub(super) fn of_hash(field: &'static str, receipt: &str, here: &str) -> Option<Difference> {
    // As much of it as tells it from others.
    let shown = |hash: &str| one_line(hash, 16);
    (receipt != here).then(|| other(field, shown(receipt), shown(here)))
}

/// The first picture that is another one.
pub(super) fn of_pictures(records: &[PictureRecord], pictures: &[Picture]) -> Option<Difference> {
    if records.len() != pictures.len() {
        let (receipt, here) = (records.len().to_string(), pictures.len().to_string());
        return Some(other("images", receipt, here));
    }
    let mut pairs = records.iter().zip(pictures);
    pairs.find_map(|(record, picture)| of_hash("images", &record.sha256, &picture.record().sha256))
}

pub(super) fn other(field: &'static str, receipt: String, here: String) -> Difference {
    let what = What::Other { receipt, here };
    Difference { field, what }
}

/// What a model reads of the pictures among `ids`.
pub(super) fn pixel_values(
    model: &Model,
    ids: &[u32],
    pictures: &[Picture],
    pan_and_scan: bool,
) -> Result<Vec<PixelValues>> {
    if pictures.is_empty() {
        return Ok(Vec::new());
    }
    let mut processor = Processor::of(model.checkpoint())?;
    if pan_and_scan {
        processor = processor.with_pan_and_scan(PanAndScan::default());
    }
    Ok(processor.pixel_values(ids, pictures)?)
}

/// The values alone.
pub(super) fn slices(values: &[PixelValues]) -> Vec<&[f32]> {
    values.iter().map(|image| &*image.values).collect()
}

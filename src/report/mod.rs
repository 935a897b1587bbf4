//! Pages about a verification and about a compiled prompt: figures, and the data they were drawn from; and a [`picture`] of what a
//! model answers.

mod axis;
mod chart;
mod compiled;
mod curves;
mod data;
mod escaped;
mod figures;
mod html;
mod page;
mod picture;
mod texts;
mod thumbnails;

use std::path::Path;

use serde::Serialize;

pub use compiled::CompiledPrompt;
pub use picture::{Answer, chance, picture};

use crate::message::IoError;
use crate::output::write_dir;
use crate::verify::Record;
use crate::vision::Picture;

/// The page.
const PAGE: &str = "index.html";
/// The data of its figures.
const DATA: &str = "figures.json";

/// Makes the folder `dir` with `index.html`, which needs no other file, no network and no script, and `figures.json`,
/// the data that its figures were drawn from. The same record gives the same bytes.
///
/// `pictures` are those of the prompts, in the order of [`Setting::images`](crate::verify::Setting::images), where they are at hand.
/// `token` gives the text of a token as the vocabulary writes it
/// ([`Tokenizer::token_text`](crate::checkpoint::Tokenizer::token_text)); one that it does not know is shown by its number.
///
/// # Errors
///
/// [`IoError`], as [`write_dir`] has it.
pub fn write(
    record: &Record,
    pictures: &[Picture],
    token: impl Fn(u32) -> Option<String>,
    dir: &Path,
) -> Result<(), IoError> {
    let figures = data::Figures::new(record, &token);
    write_files(dir, &page::page(record, pictures, &figures)?, &figures)
}

/// The same about a compiled prompt. `decode` gives the text of tokens, and `query` what was asked of the text that the model read.
///
/// # Errors
///
/// Those of [`write()`].
pub fn write_compiled(
    of: &CompiledPrompt<'_>,
    decode: impl Fn(&[u32]) -> String,
    query: impl Fn(&str) -> String,
    dir: &Path,
) -> Result<(), IoError> {
    let figures = compiled::Figures::new(of, &decode, &query);
    write_files(dir, &compiled::page(of, &figures)?, &figures)
}

fn write_files(dir: &Path, page: &str, figures: &impl Serialize) -> Result<(), IoError> {
    write_dir(dir, |beside| {
        let file = |name: &str, bytes: &[u8]| {
            let path = beside.join(name);
            std::fs::write(&path, bytes).map_err(IoError::at("write", path))
        };
        let json = serde_json::to_vec(figures).map_err(std::io::Error::from);
        file(
            DATA,
            &json.map_err(IoError::at("write", beside.join(DATA)))?,
        )?;
        file(PAGE, page.as_bytes())
    })
}

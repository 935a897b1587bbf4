//! A page about a verification: the paper's figures, and the data they were drawn from; and a [`picture`] of what a model answers.

mod axis;
mod chart;
mod data;
mod escaped;
mod figures;
mod page;
mod picture;
mod texts;

use std::path::Path;

pub use picture::{Answer, chance, picture};

use crate::message::IoError;
use crate::output::write_dir;
use crate::verify::Record;

/// The page.
const PAGE: &str = "index.html";
/// The data of its figures.
const DATA: &str = "figures.json";

/// Makes the folder `dir` with `index.html`, which needs no other file, no network and no script, and `figures.json`,
/// the data that its figures were drawn from. The same record gives the same bytes.
///
/// `token` gives the text of a token as the vocabulary writes it
/// ([`Tokenizer::token_text`](crate::checkpoint::Tokenizer::token_text)); one that it does not know is shown by its number.
///
/// # Errors
///
/// [`IoError`], as [`write_dir`] has it.
pub fn write(
    record: &Record,
    token: impl Fn(u32) -> Option<String>,
    dir: &Path,
) -> Result<(), IoError> {
    let figures = data::Figures::new(record, &token);
    let page = page::page(record, &figures)?;
    write_dir(dir, |beside| {
        let file = |name: &str, bytes: &[u8]| {
            let path = beside.join(name);
            std::fs::write(&path, bytes).map_err(IoError::at("write", path))
        };
        let json = serde_json::to_vec(&figures).map_err(std::io::Error::from);
        file(
            DATA,
            &json.map_err(IoError::at("write", beside.join(DATA)))?,
        )?;
        file(PAGE, page.as_bytes())
    })
}

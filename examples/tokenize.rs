//! The token ids of texts: `cargo run --example tokenize MODEL < TEXTS.json`, where TEXTS.json is a list of strings.
//!
//! Prints a JSON list of the ids of each. The scripts in reference/ compare them with those of other programs.

use std::error::Error;
use std::io::{Read, stdin};

use context_patch::checkpoint::{Access, Checkpoint};

fn main() -> Result<(), Box<dyn Error>> {
    let model = std::env::args().nth(1).ok_or("which model?")?;
    let mut json = String::new();
    stdin().read_to_string(&mut json)?;
    let texts: Vec<String> = serde_json::from_str(&json)?;
    let tokenizer = Checkpoint::open(&model, Access::Mapped)?.tokenizer()?;
    let ids: Result<Vec<_>, _> = texts.iter().map(|text| tokenizer.encode(text)).collect();
    println!("{}", serde_json::to_string(&ids?)?);
    Ok(())
}

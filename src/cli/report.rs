//! `context-patch report`.

use std::path::PathBuf;

use clap::Args;
use context_patch::Result;
use context_patch::output::{check_new_dir, check_writable};
use context_patch::verify::steps_file;

use super::images::open_pictures;
use super::outcome::{conclude, write_json, write_report};
use super::words::counted;
use super::{BROKEN, builtin, print};

/// Join the files of `verify --steps`, and say what the verification came to
///
/// Prints the tables and the verdict of `verify`. The files are parts of one verification (--shard), interrupted or
/// finished; steps that are in several of them must be the same and count once. Exit code 1 when steps are missing, a
/// bound is broken or a control is not off; 2 when the files do not belong together.
#[derive(Args)]
#[command(before_help = "\
Example, with the small model that is built in:
  context-patch verify --model tiny --tokens 4 --steps 1.jsonl --shard 1/2
  context-patch verify --model tiny --tokens 4 --steps 2.jsonl --shard 2/2
  context-patch report 1.jsonl 2.jsonl --json all.json")]
pub(super) struct Report {
    /// Files that verify --steps wrote
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Write every figure of every token here, as verify --json does
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Write the joined steps here: the file that one uninterrupted run would have left
    #[arg(long, value_name = "FILE")]
    steps: Option<PathBuf>,

    /// Make this folder with a page about it, as verify --report does; the model has to be where it was
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,

    /// A picture of the prompts for that page to show, as verify had it; again for each, in order
    #[arg(long = "image", value_name = "FILE", requires = "output")]
    images: Vec<PathBuf>,
}

impl Report {
    pub(super) fn run(&self) -> Result<u8> {
        for file in [&self.json, &self.steps].into_iter().flatten() {
            check_writable(file)?;
        }
        if let Some(dir) = &self.output {
            check_new_dir(dir)?;
        }
        let record = steps_file::read(&self.files)?;
        let pictures = open_pictures(&self.images)?;
        if !pictures.is_empty() {
            record.setting.check_pictures(&pictures)?;
        }
        if let Some(file) = &self.json {
            write_json(file, &record)?;
        }
        if let Some(file) = &self.steps {
            steps_file::replace(file, &record)?;
        }
        if let Some(dir) = &self.output {
            let checkpoint = builtin::open_checkpoint(&record.setting.model)?;
            write_report(dir, &record, &pictures, &checkpoint)?;
        }
        let code = conclude(&record)?;
        let Some((count, first)) = record.missing() else {
            return Ok(code);
        };
        let steps = counted(count, "step");
        print(&format!("MISSING: {steps}, first {first}\n"))?;
        Ok(BROKEN)
    }
}

//! The README's commands, as they stand in it, and what they print.
//!
//! Each block of commands is a test, in a folder that all share. `context-patch` is that of this build, also where the
//! README calls cargo. The block of text after a block of commands is what its last command prints, but
//! for what a line `…` leaves out.
//! Blocks that need the 270M, or a program that is not there, are reported as ignored, by name; with
//! `CONTEXT_PATCH_REQUIRE_MODELS=1`, as in CI, that is a failure.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;
#[path = "common/server.rs"]
mod server;

use std::path::Path;
use std::process::Command;

use common::{in_path, reference};
use libtest_mimic::{Arguments, Failed, Trial};
use server::Server;
use tempfile::TempDir;

const README: &str = include_str!("../README.md");

/// Where the server of the README listens.
const ADDRESS: &str = "localhost:8080";

/// What is not run, and why.
const NOT_RUN: [(&str, &str); 2] = [
    ("cargo test --release", "it is what runs this"),
    (
        "python3 reference/fetch_models.py gemma-3-270m",
        "it downloads; CI does it before the tests, which fail there without the 270M",
    ),
];

/// What exits with 1, as it is to find something.
const FINDS: &str = "context-patch compare ";

/// Commands, and what the last of them prints where the README shows it.
struct Block {
    commands: Vec<String>,
    prints: Option<String>,
}

/// The blocks of a page, in order.
fn blocks(page: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    // Every other part is within a fence, and begins with the fence's language.
    for fenced in page.split("```").skip(1).step_by(2) {
        let (language, text) = fenced.split_once('\n').unwrap();
        match language {
            "sh" => blocks.push(Block {
                commands: commands(text),
                prints: None,
            }),
            "text" => blocks.last_mut().unwrap().prints = Some(text.into()),
            other => panic!("a block of {other:?}: the README has commands and what they print"),
        }
    }
    blocks
}

/// One command a line, without the remarks at their ends; a line that ends with `\` goes on.
fn commands(text: &str) -> Vec<String> {
    let text = text.replace("\\\n", " ");
    let lines = text.lines().map(|line| line.split("  #").next().unwrap());
    lines.map(|line| line.trim().to_owned()).collect()
}

/// Runs the commands of a block; gives what the last one prints.
fn run(block: &Block, dir: &Path) -> String {
    let mut server = None;
    let mut printed = String::new();
    for command in &block.commands {
        if let Some((_, why)) = NOT_RUN.iter().find(|(name, _)| name == command) {
            println!("not run: {command}: {why}");
        } else if let Some(options) = command.strip_prefix("context-patch serve ") {
            let options: Vec<_> = options.split(' ').collect();
            let ["--model", model, more @ ..] = &options[..] else {
                panic!("{command}");
            };
            server = Some(Server::start(model, more));
        } else if command.starts_with("curl ") {
            let server: &Server = server.as_ref().unwrap();
            printed = shell(&command.replace(ADDRESS, server.address()), dir);
        } else {
            printed = shell(&as_built(command), dir);
        }
    }
    printed
}

/// A command with the program of this build.
fn as_built(command: &str) -> String {
    match command.strip_prefix("cargo run --release") {
        Some(rest) => format!("context-patch{}", rest.trim_start_matches(" --")),
        None => command.into(),
    }
}

/// What a command prints.
fn shell(command: &str, dir: &Path) -> String {
    let done = in_path("sh", dir).args(["-c", command]).output().unwrap();
    let complaint = String::from_utf8_lossy(&done.stderr);
    let code = i32::from(command.starts_with(FINDS));
    assert_eq!(done.status.code(), Some(code), "{command}\n{complaint}");
    String::from_utf8(done.stdout).unwrap()
}

/// Whether a block of text shows what was printed. A line `…` stands for any lines.
fn shows(shown: &str, printed: &str) -> bool {
    let shown: Vec<_> = shown.lines().collect();
    let printed: Vec<_> = printed.lines().collect();
    let mut parts = shown.split(|line| *line == "…");
    let first = parts.next().unwrap();
    let Some(mut rest) = printed.strip_prefix(first) else {
        return false;
    };
    let parts: Vec<_> = parts.collect();
    let Some((last, between)) = parts.split_last() else {
        return rest.is_empty();
    };
    for part in between {
        let mut places = 0..rest.len();
        let Some(at) = places.find(|&at| rest[at..].starts_with(part)) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// What is missing here for a block.
fn missing(block: &Block) -> Option<&'static str> {
    let needs = |what: &str| block.commands.iter().any(|command| command.contains(what));
    let there = |program: &str| Command::new(program).arg("--version").output().is_ok();
    if needs("models/gemma-3-270m")
        && !reference("../models/gemma-3-270m/model.safetensors").exists()
    {
        Some("models/gemma-3-270m, which python3 reference/fetch_models.py gemma-3-270m brings")
    } else if needs("curl ") && !there("curl") {
        Some("curl")
    } else {
        None
    }
}

/// A folder in which the README's paths are there, and new files harm nothing.
#[cfg(unix)]
fn folder() -> TempDir {
    let dir = TempDir::new().unwrap();
    for name in ["models", "reference"] {
        let target = reference("..").join(name);
        std::os::unix::fs::symlink(target, dir.path().join(name)).unwrap();
    }
    dir
}

#[cfg(unix)]
fn trials(dir: &Path) -> Vec<Trial> {
    let required = common::real::required();
    let trial = |block: Block| {
        let name = block.commands.last().unwrap().clone();
        let missing = missing(&block).filter(|_| !required);
        if let Some(what) = missing {
            println!("ignored without {what}: {name}");
        }
        let dir = dir.to_owned();
        let test = move || {
            let printed = run(&block, &dir);
            match block.prints {
                Some(shown) if !shows(&shown, &printed) => {
                    Err(format!("the README has\n{shown}\nand it prints\n{printed}").into())
                }
                _ => Ok(()),
            }
        };
        Trial::test(name, test).with_ignored_flag(missing.is_some())
    };
    blocks(README).into_iter().map(trial).collect()
}

/// What of the README is not run is in it.
fn what_is_not_run_is_there() -> Result<(), Failed> {
    let blocks = blocks(README);
    let commands: Vec<_> = blocks.iter().flat_map(|block| &block.commands).collect();
    for (name, _) in NOT_RUN {
        assert!(commands.iter().any(|command| *command == name), "{name}");
    }
    Ok(())
}

/// Each of these is noticed.
fn what_differs_is_noticed() -> Result<(), Failed> {
    let printed = "a\nb\nc\nd\n";
    for shown in [printed, "a\n…\nd\n", "…\nd\n", "a\n…\n", "a\n…\nc\n…\n"] {
        assert!(shows(shown, printed), "{shown}");
    }
    for shown in [
        "a\n",
        "b\n…\n",
        "…\nc\n",
        "a\n…\ne\n",
        "d\n…\na\n",
        "a\nb\nc\nd\ne\n",
    ] {
        assert!(!shows(shown, printed), "{shown}");
    }
    Ok(())
}

fn it_is_short() -> Result<(), Failed> {
    let lines = README.lines().count();
    assert!(lines <= 120, "{lines} lines");
    Ok(())
}

#[cfg(unix)]
fn main() {
    let dir = folder();
    // In the order of the page, as a block may use the files of those before it.
    let arguments = Arguments {
        test_threads: Some(1),
        ..Arguments::from_args()
    };
    let mut trials = trials(dir.path());
    trials.push(Trial::test(
        "what_is_not_run_is_there",
        what_is_not_run_is_there,
    ));
    trials.push(Trial::test(
        "what_differs_is_noticed",
        what_differs_is_noticed,
    ));
    trials.push(Trial::test("it_is_short", it_is_short));
    let outcome = libtest_mimic::run(&arguments, trials);
    drop(dir);
    outcome.exit();
}

/// The commands are for a POSIX shell.
#[cfg(not(unix))]
fn main() {}

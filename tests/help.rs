//! `--help` begins with an example, and the example works as it stands: in an empty folder, with the model that is built in.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{in_path, program};

/// Every command, and the exit code of its example: `compare`'s finds what it is there to find.
const COMMANDS: [(&str, i32); 16] = [
    ("apply", 0),
    ("check", 0),
    ("compare", 1),
    ("compile", 0),
    ("conformance", 0),
    ("convert", 0),
    ("demo", 0),
    ("generate", 0),
    ("inspect", 0),
    ("lemmas", 0),
    ("patch", 0),
    ("report", 0),
    ("serve", 0),
    ("trace", 0),
    ("verify", 0),
    ("", 0),
];

fn help(command: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let command = (!command.is_empty()).then_some(command);
    let said = program(dir.path()).args(command).arg("--help").output();
    String::from_utf8(said.unwrap().stdout).unwrap()
}

/// The lines of the first example.
fn example(help: &str) -> String {
    let mut lines = help.lines();
    assert!(lines.next().unwrap().starts_with("Example"), "{help}");
    let lines = lines.take_while(|line| !line.is_empty());
    lines.fold(String::new(), |all, line| all + line + "\n")
}

#[test]
fn the_first_example_of_every_command_works_as_it_stands() {
    for (command, code) in COMMANDS {
        let example = example(&help(command));
        let name = format!("context-patch {command}");
        assert!(example.contains(name.trim_end()), "{example}");
        let dir = tempfile::tempdir().unwrap();
        let done = in_path("sh", dir.path())
            .args(["-e", "-c", &example])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(code), "{example}{said}");
    }
}

#[test]
fn every_command_is_tried() {
    let help = help("");
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let listed = listed.take_while(|line| !line.is_empty());
    // Lines that go on with what a command does are indented further.
    let names = listed.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let names: Vec<_> = names.filter(|name| !["", "help"].contains(name)).collect();
    let tried: Vec<_> = COMMANDS
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| !name.is_empty())
        .collect();
    assert_eq!(names, tried);
}

//! How the program ends when it is told to, killed, or runs out of room: with its last line, the right code, and nothing half written.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_context-patch");
const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/reference/tiny");

/// A text of 490 tokens of which none ends it.
const LONG: [&str; 9] = [
    "generate",
    "--prompt=Ann likes",
    "--max-tokens=490",
    "--temperature=30",
    "--seed=5",
    "--threads=1",
    "--dtype=f64",
    "--model",
    TINY,
];

fn program(folder: &Path, arguments: &[&str]) -> Command {
    let mut program = Command::new(PROGRAM);
    program.current_dir(folder).args(arguments);
    program.stdout(Stdio::piped()).stderr(Stdio::piped());
    program
}

/// Runs the program from a shell that first does something else.
fn after(setup: &str, folder: &Path, arguments: &[&str]) -> Command {
    let mut shell = Command::new("sh");
    let script = format!("{setup}; exec \"$0\" \"$@\"");
    shell.args(["-c", &script, PROGRAM]).args(arguments);
    shell.current_dir(folder);
    shell.stdout(Stdio::piped()).stderr(Stdio::piped());
    shell
}

fn signal(child: &Child, name: &str) {
    prepared(child, name)();
}

/// Sends a signal when it is called: what that takes is started before, which would come too late on a busy machine.
fn prepared(child: &Child, name: &str) -> impl FnOnce() + use<> {
    let script = format!("read go; kill -s {name} {}", child.id());
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).stdin(Stdio::piped());
    let mut shell = shell.spawn().unwrap();
    move || {
        shell.stdin.take().unwrap().write_all(b"go\n").unwrap();
        assert!(shell.wait().unwrap().success());
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = folder.read_dir().unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

/// Waits until something is being written in a folder.
fn wait_for_part(folder: &Path) {
    let start = Instant::now();
    while !names(folder).iter().any(|name| name.contains(".tmp-")) {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "nothing is written"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn said(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What every refusal has in common; gives its message.
fn refused(done: &Output) -> String {
    let message = said(&done.stderr);
    assert_eq!(done.status.code(), Some(2), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    message
}

/// A folder with the ids of 500 tokens, and the arguments that trace them.
fn to_trace() -> (TempDir, Vec<&'static str>) {
    let folder = TempDir::new().unwrap();
    let ids: Vec<u32> = (0..500).map(|i| 4 + i % 60).collect();
    std::fs::write(folder.path().join("ids.json"), format!("{ids:?}")).unwrap();
    let arguments = "trace --ids ids.json --dtype f64 --threads 1 --output out --model";
    (folder, arguments.split(' ').chain([TINY]).collect())
}

#[test]
fn a_signal_ends_a_text_with_its_last_line() {
    for (name, code) in [("TERM", 143), ("INT", 130), ("HUP", 129)] {
        // On a busy machine the text may be done before the signal is sent.
        let ended = (0..20).any(|_| {
            let mut child = program(Path::new("."), &LONG).spawn().unwrap();
            let send = prepared(&child, name);
            let mut stdout = child.stdout.take().unwrap();
            stdout.read_exact(&mut [0]).unwrap();
            send();
            let mut rest = Vec::new();
            stdout.read_to_end(&mut rest).unwrap();
            let status = child.wait().unwrap();
            assert!(rest.ends_with(b"\n"), "{name}");
            assert!(
                [0, code].map(Some).contains(&status.code()),
                "{name}: {status}"
            );
            status.code() == Some(code)
        });
        assert!(ended, "{name} came too late each time");
    }
}

#[test]
fn a_signal_ends_a_text_as_json_with_what_there_is() {
    let arguments = [&LONG[..], &["--json"]].concat();
    // How long a machine takes to begin and to end differs: ever later, until the signal comes in between.
    for wait in (0..150).map(|i| Duration::from_millis(5 * i)) {
        let child = program(Path::new("."), &arguments).spawn().unwrap();
        std::thread::sleep(wait);
        signal(&child, "TERM");
        let done = child.wait_with_output().unwrap();
        // Before anything is watched for it ends as every program does.
        if done.status.signal().is_some() || done.stdout.is_empty() {
            continue;
        }
        let json: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
        let (stop, code) = (&json["stop"], done.status.code());
        assert!(
            (stop == "cancelled" && code == Some(143)) || (stop == "length" && code == Some(0)),
            "{stop} {code:?}"
        );
        if stop == "cancelled" {
            return;
        }
    }
    panic!("no signal came while the text was being written");
}

#[test]
fn a_signal_that_is_ignored_from_the_start_stays_so() {
    for name in ["HUP", "INT"] {
        let setup = format!("trap '' {name}");
        let shorter = LONG.map(|argument| argument.replace("=490", "=60"));
        let mut arguments: Vec<_> = shorter.iter().map(String::as_str).collect();
        arguments.push("--json");
        let child = after(&setup, Path::new("."), &arguments).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(200));
        signal(&child, name);
        let done = child.wait_with_output().unwrap();
        assert!(done.status.success(), "{name}");
        assert!(said(&done.stdout).contains("\"length\""), "{name}");
    }
}

#[test]
fn a_recording_that_is_interrupted_leaves_nothing() {
    let (folder, arguments) = to_trace();
    let mut interrupted = 0;
    for name in ["TERM", "INT", "HUP"].into_iter().cycle().take(12) {
        let child = program(folder.path(), &arguments).spawn().unwrap();
        let send = prepared(&child, name);
        wait_for_part(folder.path());
        send();
        let done = child.wait_with_output().unwrap();
        if done.status.success() {
            assert_eq!(names(folder.path()), ["ids.json", "out"]);
            std::fs::remove_file(folder.path().join("out")).unwrap();
            continue;
        }
        assert!(matches!(done.status.code(), Some(129 | 130 | 143)));
        assert_eq!(names(folder.path()), ["ids.json"], "{name}");
        interrupted += 1;
    }
    assert!(interrupted > 0);
}

#[test]
fn texts_that_a_model_writes_for_a_compiled_prompt_are_kept() {
    let folder = TempDir::new().unwrap();
    let arguments = [
        "compile",
        "--model",
        TINY,
        "--context=Ann likes plums.",
        "--self=4000",
        "--samples=kept",
    ];
    // The signal may come before the first of them.
    let said = (0..20).find_map(|_| {
        let child = program(folder.path(), &arguments).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        signal(&child, "INT");
        let done = child.wait_with_output().unwrap();
        assert!(matches!(done.status.code(), Some(130) | None), "{done:?}");
        Some(said(&done.stderr)).filter(|said| said.contains("goes on there"))
    });
    assert!(said.is_some(), "it was interrupted too early each time");
    let kept = names(&folder.path().join("kept"));
    assert!(
        kept.len() == 1 && kept[0].starts_with("texts-f32-"),
        "{kept:?}"
    );
    let kept = std::fs::read_to_string(folder.path().join("kept").join(&kept[0])).unwrap();
    assert!(kept.len() > 100, "{kept}");
}

#[test]
fn a_command_that_is_not_told_ends_at_once_and_leaves_nothing() {
    // On a busy machine the kit may be done before the signal is sent.
    let ended = (0..20).any(|_| {
        let folder = TempDir::new().unwrap();
        let arguments = ["conformance", "--output", "kit"];
        let child = program(folder.path(), &arguments).spawn().unwrap();
        let send = prepared(&child, "TERM");
        wait_for_part(folder.path());
        send();
        let done = child.wait_with_output().unwrap();
        if done.status.success() {
            assert_eq!(names(folder.path()), ["kit"]);
            return false;
        }
        assert_eq!(done.status.code(), Some(143));
        let left = names(folder.path());
        assert!(left.is_empty() || left == ["kit"], "{left:?}");
        left.is_empty()
    });
    assert!(ended, "the signal came too late each time");
}

#[test]
fn a_check_leaves_nothing_among_the_temporary_files() {
    let (folder, temporary) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let kit = program(folder.path(), &["conformance", "--output", "kit"]).output();
    assert!(kit.unwrap().status.success());
    let mut check = program(folder.path(), &["conformance", "--check", "kit"]);
    check.env("TMPDIR", temporary.path());
    let mut killed = check.spawn().unwrap();
    wait_for_part(temporary.path());
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_eq!(names(temporary.path()).len(), 1);
    let told = check.spawn().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    signal(&told, "TERM");
    told.wait_with_output().unwrap();
    assert!(check.output().unwrap().status.success());
    assert_eq!(names(temporary.path()), [""; 0]);
}

#[test]
fn what_a_killed_process_leaves_is_removed_by_the_next() {
    let (folder, arguments) = to_trace();
    for arguments in [&arguments[..], &["conformance", "--output", "out"]] {
        // On a busy machine it may be done before it is killed.
        let killed = (0..20).any(|_| {
            let mut child = program(folder.path(), arguments).spawn().unwrap();
            wait_for_part(folder.path());
            child.kill().unwrap();
            child.wait().unwrap();
            let done = folder.path().join("out");
            if done.exists() {
                std::fs::remove_file(&done)
                    .or_else(|_| std::fs::remove_dir_all(&done))
                    .unwrap();
                return false;
            }
            let left = names(folder.path());
            left.iter().any(|name| name.starts_with(".out.tmp-"))
        });
        assert!(killed, "no part was left");
        // Of another kind, too: a file and a folder that are to have one name.
        let mut next = program(folder.path(), &to_trace().1);
        assert!(next.output().unwrap().status.success());
        assert_eq!(names(folder.path()), ["ids.json", "out"]);
        std::fs::remove_file(folder.path().join("out")).unwrap();
    }
}

#[test]
fn a_file_larger_than_may_be_is_an_error_and_leaves_nothing() {
    let folder = TempDir::new().unwrap();
    let patch = [
        "patch",
        "--context=Ann likes plums. Ann likes",
        "--model",
        TINY,
    ];
    let (traced, trace) = to_trace();
    let merged = [&patch[..], &["--export", "merged", "out"]].concat();
    let peft = [&patch[..], &["--export", "peft", "out"]].concat();
    let saved = [&patch[..], &["--output", "out"]].concat();
    for (folder, arguments, before) in [
        (&traced, &trace, &["ids.json"][..]),
        (&folder, &merged, &[]),
        (&folder, &peft, &[]),
        (&folder, &saved, &[]),
    ] {
        let done = after("ulimit -f 1", folder.path(), arguments)
            .output()
            .unwrap();
        let message = refused(&done);
        assert!(message.contains("File too large"), "{message}");
        assert!(message.starts_with("error: cannot write out"), "{message}");
        assert_eq!(names(folder.path()), before);
    }
}

#[test]
fn standard_output_that_is_full_is_an_error_and_one_that_is_closed_is_none() {
    let full = after("exec > /dev/full", Path::new("."), &LONG).output();
    assert!(refused(&full.unwrap()).contains("cannot write standard output: No space left"));
    let mut child = program(Path::new("."), &LONG).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0]).unwrap();
    drop(stdout);
    let done = child.wait_with_output().unwrap();
    assert_eq!(
        (done.status.code(), said(&done.stderr)),
        (Some(0), String::new())
    );
}

#[test]
fn a_pipe_gets_the_file_that_a_name_would() {
    let (folder, arguments) = to_trace();
    let named = program(folder.path(), &arguments).output().unwrap();
    assert!(named.status.success());
    let mut piped = arguments.clone();
    let output = piped
        .iter()
        .position(|argument| *argument == "out")
        .unwrap();
    piped[output] = "/dev/stderr";
    let piped = program(folder.path(), &piped).output().unwrap();
    assert!(piped.stderr == std::fs::read(folder.path().join("out")).unwrap());
}

#[test]
fn a_dash_is_no_name_of_a_file_to_write() {
    let (folder, mut arguments) = to_trace();
    let output = arguments
        .iter()
        .position(|argument| *argument == "out")
        .unwrap();
    arguments[output] = "-";
    let done = program(folder.path(), &arguments).output().unwrap();
    assert!(refused(&done).contains("/dev/stdout"));
    assert_eq!(names(folder.path()), ["ids.json"]);
    arguments[output] = "./-";
    let done = program(folder.path(), &arguments).output().unwrap();
    assert!(done.status.success());
    assert!(folder.path().join("-").is_file());
}

//! Text is text: whatever an argument begins with, whichever editor wrote a file, whatever a file is called.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/reference/tiny");

fn run(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_context-patch"))
        .current_dir(folder)
        .args(arguments)
        .output()
        .unwrap()
}

fn with_input(folder: &Path, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_context-patch"))
        .current_dir(folder)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

fn error(done: &Output) -> String {
    let message = String::from_utf8(done.stderr.clone()).unwrap();
    assert_eq!(done.status.code(), Some(2), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    message
}

fn ok(done: &Output) -> String {
    let message = String::from_utf8_lossy(&done.stderr);
    assert!(matches!(done.status.code(), Some(0 | 1)), "{message}");
    String::from_utf8(done.stdout.clone()).unwrap()
}

#[test]
fn a_text_may_begin_with_a_dash() {
    let folder = TempDir::new().unwrap();
    let run = |arguments: &[&str]| ok(&run(folder.path(), arguments));
    let model = ["--model", TINY];
    for text in [
        "-5 + 3 =",
        "--- Ann likes plums. Ann likes",
        "-",
        "--",
        "-h",
        "--5",
        "--no-such",
    ] {
        let generate = ["generate", "--max-tokens", "2", "--json", "--prompt"];
        let said = run(&[&generate[..], &[text], &model].concat());
        let json: serde_json::Value = serde_json::from_str(&said).unwrap();
        let equals = format!("--prompt={text}");
        let same = run(&[&generate[..4], &[equals.as_str()], &model].concat());
        assert_eq!(said, same, "{text}");
        assert!(json["prompt_ids"].as_array().unwrap().len() > 1, "{text}");
        run(&[&["trace", "--output", "t", "--prompt", text][..], &model].concat());
    }
    let context = ["--context", "--- Ann likes plums. Ann likes"];
    run(&[
        &[
            "patch", "--query", "- Bob", "--answer", "-s", "--output", "p",
        ][..],
        &context,
        &model,
    ]
    .concat());
    run(&[
        &["apply", "--patch", "p", "--prompt", "-5", "--logits", "1"][..],
        &model,
    ]
    .concat());
    run(&[
        "demo",
        "--context",
        "- Bob likes figs.",
        "--question",
        "-Bob likes",
    ]);
}

#[test]
fn an_option_in_the_place_of_a_text_is_a_text_forgotten() {
    let folder = TempDir::new().unwrap();
    for (arguments, option) in [
        (
            &["generate", "--prompt", "--max-tokens", "5"][..],
            "--max-tokens",
        ),
        (&["generate", "--prompt", "--chat"], "--chat"),
        (
            &["--threads", "1", "generate", "--prompt", "--model=x"],
            "--model",
        ),
        (&["patch", "--context", "--query", "x"], "--query"),
        (&["trace", "--prompt", "--help"], "--help"),
        (&["generate", "--prompt", "--threads", "2"], "--threads"),
    ] {
        let message = error(&run(
            folder.path(),
            &[arguments, &["--model", TINY]].concat(),
        ));
        assert!(message.contains(" has no text: "), "{message}");
        assert!(
            message.contains(&format!("the option {option} follows")),
            "{message}"
        );
    }
    let said = run(
        folder.path(),
        &[
            "generate",
            "--prompt=--chat",
            "--max-tokens",
            "1",
            "--model",
            TINY,
        ],
    );
    ok(&said);
}

#[test]
fn files_of_any_editor_and_standard_input_are_read() {
    let folder = TempDir::new().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    let trace = |ids: &str, input: &[u8]| {
        let arguments = ["trace", "--model", TINY, "--ids", ids, "--output", "out"];
        ok(&with_input(folder.path(), &arguments, input));
        std::fs::read(folder.path().join("out")).unwrap()
    };
    write("plain", b"[2, 10, 31]");
    let want = trace("plain", b"");
    write("marked", b"\xef\xbb\xbf \r\n[2,\r\n10,\t31]\r\n\r\n");
    assert!(trace("marked", b"") == want);
    assert!(trace("-", b"[2, 10, 31]") == want);
    write("a name\nof two lines", b"[2, 10, 31]");
    assert!(trace("a name\nof two lines", b"") == want);

    let chat = |messages: &str, input: &[u8]| {
        let arguments = ["generate", "--model", TINY, "--messages", messages];
        with_input(folder.path(), &arguments, input).stdout
    };
    let messages = br#"[{"role": "user", "content": "Ann likes plums. Ann likes"}]"#;
    write("m.json", messages);
    let want_chat = chat("m.json", b"");
    assert!(!want_chat.is_empty());
    write("marked.json", &[&b"\xef\xbb\xbf"[..], messages].concat());
    assert_eq!(chat("marked.json", b""), want_chat);
    assert_eq!(chat("-", messages), want_chat);

    let verify = |prompts: &str, input: &[u8]| {
        let arguments = [
            "verify",
            "--model",
            TINY,
            "--tokens",
            "1",
            "--prompts",
            prompts,
        ];
        ok(&with_input(folder.path(), &arguments, input))
    };
    write(
        "p.jsonl",
        b"\xef\xbb\xbf\"Ann likes\"\r\n\r\n\"Bob\\u2028\"",
    );
    let table = verify("p.jsonl", b"");
    assert!(table.contains("2/2"), "{table}");
    assert_eq!(verify("-", b"\"Ann likes\"\n\"Bob\\u2028\"\n"), table);

    ok(&run(
        folder.path(),
        &["trace", "--model", TINY, "--ids", "plain", "--output", "r"],
    ));
    write(
        "rules.map",
        b"\xef\xbb\xbfmodel.norm\t=\tmodel.norm\t# the end\r\n\r\n# more\r\n",
    );
    let compare = ["compare", "r", "out", "--map", "rules.map"];
    assert!(ok(&run(folder.path(), &compare)).contains("Within rounding"));
}

#[test]
fn what_a_file_is_called_breaks_no_line() {
    let folder = TempDir::new().unwrap();
    let name = "no\nsuch \x1b[31mfile";
    let message = error(&run(
        folder.path(),
        &["trace", "--model", TINY, "--ids", name, "--output", "out"],
    ));
    assert!(message.contains("no\\nsuch \\u{1b}[31mfile"), "{message}");
}

#[cfg(unix)]
#[test]
fn names_need_not_be_utf_8_and_texts_do() {
    use std::os::unix::ffi::OsStrExt;
    let folder = TempDir::new().unwrap();
    let name = std::ffi::OsStr::from_bytes(b"n\xffme");
    let trace = |ids: &std::ffi::OsStr| {
        Command::new(env!("CARGO_BIN_EXE_context-patch"))
            .current_dir(folder.path())
            .args(["trace", "--model", TINY, "--ids"])
            .arg(ids)
            .arg("--output")
            .arg(name)
            .output()
            .unwrap()
    };
    assert!(error(&trace(std::ffi::OsStr::from_bytes(b"\xfe"))).contains('\u{fffd}'));
    std::fs::write(folder.path().join("ids"), "[2, 3]").unwrap();
    ok(&trace(std::ffi::OsStr::new("ids")));
    assert!(folder.path().join(name).is_file());
    let text = Command::new(env!("CARGO_BIN_EXE_context-patch"))
        .args(["generate", "--model", TINY, "--prompt"])
        .arg(name)
        .output()
        .unwrap();
    assert_eq!(text.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&text.stderr).contains("UTF-8"));
}

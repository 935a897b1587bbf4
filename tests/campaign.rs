//! Long verifications: killed and resumed, in parts and joined, the files are those of one uninterrupted run.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod common;

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{numbers, open, reference};
use context_patch::patch::Solver;
use context_patch::verify::{Kind, Machine, Record, Setting, Step, steps_file};
use tempfile::TempDir;

/// Every way to resume: natively token by token, on another backend, across backends, and spans.
const SWEEP: &str = "--tokens 3 --solver closed-form,span --dtype f32 --backend native,gemm";

/// A folder to run the program in.
struct Case {
    dir: TempDir,
    /// The options of `verify`.
    sweep: String,
}

impl Case {
    fn new(sweep: &str) -> Self {
        Self {
            dir: TempDir::new().unwrap(),
            sweep: sweep.into(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).unwrap();
    }

    fn program(&self, arguments: &[&str]) -> Command {
        let mut program = Command::new(env!("CARGO_BIN_EXE_context-patch"));
        program.current_dir(self.dir.path());
        program.args(arguments);
        program
    }

    /// `verify` on the built-in model; of options that are there twice the last one is meant.
    fn verify(&self, steps: &str, more: &[&str]) -> Command {
        let (model, prompts) = (reference("tiny"), reference("../tests/prompts.jsonl"));
        let mut program = self.program(&["verify", "--steps", steps]);
        let replaced = |option: &str| more.contains(&option);
        let mut options = vec![
            ("--model", model.to_str().unwrap()),
            ("--prompts", prompts.to_str().unwrap()),
        ];
        let sweep: Vec<_> = self.sweep.split_whitespace().collect();
        options.extend(sweep.chunks(2).map(|pair| (pair[0], pair[1])));
        for (name, value) in options.into_iter().filter(|(name, _)| !replaced(name)) {
            program.args([name, value]);
        }
        program.args(more);
        program
    }

    /// Runs `verify` to its end, whatever it finds.
    fn finish(&self, steps: &str, more: &[&str]) -> Output {
        let done = self.verify(steps, more).output().unwrap();
        let error = String::from_utf8_lossy(&done.stderr);
        assert!(matches!(done.status.code(), Some(0 | 1)), "{error}");
        done
    }

    fn report(&self, arguments: &[&str]) -> Output {
        self.program(&[&["report"], arguments].concat())
            .output()
            .unwrap()
    }
}

/// What every refusal has in common; gives its message.
fn refused(done: Output) -> String {
    let message = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(2), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(done.stdout.is_empty());
    message
}

fn stdout(done: &Output) -> String {
    String::from_utf8(done.stdout.clone()).unwrap()
}

/// SIGTERM ends it after a step; the same command goes on there.
#[cfg(unix)]
#[test]
fn told_to_end_it_leaves_whole_lines_and_goes_on() {
    let case = Case::new("--tokens 6 --solver theorem-1 --dtype f64");
    case.finish("whole.jsonl", &[]);
    let mut interrupted = 0;
    for attempt in 0..20 {
        let name = format!("{attempt}.jsonl");
        let mut command = case.verify(&name, &[]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped());
        let child = child.spawn().unwrap();
        let begun =
            || fs::read_to_string(case.path(&name)).is_ok_and(|text| text.lines().count() > 2);
        while !begun() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let kill = Command::new("kill").arg(child.id().to_string()).status();
        assert!(kill.unwrap().success());
        let done = child.wait_with_output().unwrap();
        assert!(case.read(&name).ends_with('\n'));
        if done.status.code() == Some(143) {
            let said = String::from_utf8(done.stderr).unwrap();
            assert!(said.contains("the same command goes on there"), "{said}");
            case.finish(&name, &[]);
            interrupted += 1;
        }
        assert_eq!(case.read(&name), case.read("whole.jsonl"));
        if interrupted == 2 {
            return;
        }
    }
    panic!("it always ended before it was told to");
}

#[test]
fn killed_at_twenty_moments_it_leaves_what_an_uninterrupted_run_leaves() {
    let sweep =
        "--tokens 10 --solver theorem-1,closed-form,span --dtype f64,bf16 --backend native,gemm";
    let case = Case::new(sweep);
    let uninterrupted = |name: &str| {
        let start = Instant::now();
        let done = case.finish(name, &["--json", "whole.json"]);
        (start.elapsed(), done)
    };
    let (first, whole) = uninterrupted("whole.jsonl");
    let (second, _) = uninterrupted("again.jsonl");
    let steps = case.read("whole.jsonl");
    assert_eq!(case.read("again.jsonl"), steps);

    let mut random = numbers(1, 1.0, 0);
    let mut moment = || first.min(second).mul_f64((random() + 1.0) / 2.0);
    let mut interrupted = 0;
    for i in 0..20 {
        let name = format!("{i}.jsonl");
        for _ in 0..2 {
            let mut running = case.verify(&name, &[]);
            let running = running.stdout(Stdio::null()).stderr(Stdio::null());
            let mut running = running.spawn().unwrap();
            std::thread::sleep(moment());
            running.kill().unwrap();
            running.wait().unwrap();
            // Whatever is there is a part of the whole, and can be read.
            let Ok(part) = fs::read_to_string(case.path(&name)) else {
                continue;
            };
            assert!(steps.starts_with(&part), "{part}");
            let report = case.report(&[&name]);
            let complete =
                report.status.code() == whole.status.code() && report.stdout == whole.stdout;
            let missing =
                report.status.code() == Some(1) && stdout(&report).contains("\nMISSING: ");
            assert!(complete || missing, "{report:?}");
            interrupted += usize::from(missing && part.lines().count() > 2);
        }
        let resumed = case.finish(&name, &["--json", "resumed.json"]);
        assert_eq!(case.read(&name), steps, "{i}");
        assert_eq!(case.read("resumed.json"), case.read("whole.json"), "{i}");
        assert_eq!(resumed.stdout, whole.stdout);
        assert_eq!(resumed.status, whole.status);
    }
    assert!(interrupted >= 10, "{interrupted} were not idle");
}

/// After each line, and within the next one.
#[test]
fn cut_anywhere_it_goes_on() {
    let case = Case::new(SWEEP);
    case.finish("whole.jsonl", &[]);
    let whole = case.read("whole.jsonl");
    let lines: Vec<_> = whole.split_inclusive('\n').collect();
    for end in 1..lines.len() {
        let rest = &lines[end][..(lines[end].len() - 1) * (end % 5) / 4];
        case.write("cut.jsonl", lines[..end].concat() + rest);
        case.finish("cut.jsonl", &[]);
        assert!(case.read("cut.jsonl") == whole, "after line {end}");
    }
}

#[test]
fn shards_are_the_whole() {
    let case = Case::new(SWEEP);
    let whole = case.finish("whole.jsonl", &["--json", "whole.json"]);
    let joined = |files: &[&str]| {
        let outputs = ["--json", "joined.json", "--steps", "joined.jsonl"];
        let done = case.report(&[files, &outputs].concat());
        assert_eq!(case.read("joined.json"), case.read("whole.json"));
        assert_eq!(case.read("joined.jsonl"), case.read("whole.jsonl"));
        assert_eq!(done.stdout, whole.stdout);
        assert_eq!(done.status, whole.status);
    };
    joined(&["whole.jsonl"]);
    let shards = ["1/3", "2/3", "3/3"].map(|shard| {
        let name = format!("{}.jsonl", &shard[..1]);
        case.finish(&name, &["--shard", shard]);
        name
    });
    let steps = |name: &str| case.read(name).lines().count() - 2;
    let parts = shards.clone().map(|name| steps(&name));
    assert_eq!(parts.iter().sum::<usize>(), steps("whole.jsonl"));
    assert!(parts.iter().all(|&part| part > 0));
    let [a, b, c] = &shards;
    joined(&[c, a, b]);
    // What is there twice is taken once.
    joined(&[a, "whole.jsonl", b, a]);
    // Two of three are not all.
    let part = case.report(&[a, b]);
    assert_eq!(part.status.code(), Some(1));
    let missing = format!("MISSING: {} steps, first ", parts[2]);
    assert!(stdout(&part).contains(&missing), "{}", stdout(&part));
    // And one goes on to the whole.
    case.finish(a, &[]);
    joined(&[a]);
}

/// Lines of a finished file.
fn finished(case: &Case) -> Vec<String> {
    case.finish("steps.jsonl", &[]);
    let text = case.read("steps.jsonl");
    text.split_inclusive('\n').map(str::to_owned).collect()
}

#[test]
fn a_step_that_was_taken_out_is_missing_and_computed_again() {
    let case = Case::new(SWEEP);
    let mut lines = finished(&case);
    let whole = lines.concat();
    // The second token of the first prompt, after the first one of each.
    let prompts = fs::read_to_string(reference("../tests/prompts.jsonl")).unwrap();
    let taken = lines.remove(2 + prompts.lines().count());
    assert!(taken.contains(r#""prompt":0,"step":1,"#), "{taken}");
    case.write("steps.jsonl", lines.concat());
    let report = case.report(&["steps.jsonl"]);
    assert_eq!(report.status.code(), Some(1));
    let said = stdout(&report);
    let missing = "MISSING: 1 step, first closed-form f32 overlay, prompt 1 token 2\n";
    assert!(said.ends_with(missing), "{said}");
    case.finish("steps.jsonl", &[]);
    assert_eq!(case.read("steps.jsonl"), lines.concat() + &taken);
    case.report(&["steps.jsonl", "--steps", "steps.jsonl"]);
    assert_eq!(case.read("steps.jsonl"), whole);
}

/// The line with another first digit of the margin.
fn changed(line: &str) -> String {
    let (before, margin) = line.split_once(r#""margin":"#).unwrap();
    let other = if margin.starts_with('1') { '2' } else { '1' };
    format!(r#"{before}"margin":{other}{}"#, &margin[1..])
}

#[test]
fn a_changed_figure_is_a_contradiction() {
    let case = Case::new(SWEEP);
    let lines = finished(&case);
    let last = lines.len() - 1;
    let mut other = lines.clone();
    other[last] = changed(&lines[last]);
    case.write("changed.jsonl", other.concat());
    let mut said = refused(case.report(&["steps.jsonl", "changed.jsonl"]));
    case.write("twice.jsonl", lines.concat() + &other[last]);
    said += &refused(case.report(&["twice.jsonl"]));
    // A span is solved again where a part of it is missing.
    case.write(
        "changed.jsonl",
        [&other[..last - 2], &other[last..]].concat().concat(),
    );
    said += &refused(case.verify("changed.jsonl", &[]).output().unwrap());
    insta::assert_snapshot!(said);
}

/// The built-in model in a folder, with `change` to each file's bytes.
fn copy_model(case: &Case, name: &str, change: fn(&str, &mut Vec<u8>)) {
    fs::create_dir(case.path(name)).unwrap();
    for entry in fs::read_dir(reference("tiny")).unwrap() {
        let entry = entry.unwrap();
        let file = entry.file_name().into_string().unwrap();
        let mut bytes = fs::read(entry.path()).unwrap();
        change(&file, &mut bytes);
        case.write(&format!("{name}/{file}"), bytes);
    }
}

/// Every option that figures depend on, and other files of the model.
#[test]
fn another_setting_is_refused() {
    let case = Case::new("--tokens 2");
    let mut lines = finished(&case);
    lines.truncate(3);
    case.write("steps.jsonl", lines.concat());
    case.write(
        "prompts.jsonl",
        "\"Ann likes plums. Bob likes pears. Bob likes\"\n",
    );
    copy_model(&case, "same", |_, _| {});
    copy_model(&case, "weights", |name, bytes| {
        if name == "model.safetensors" {
            *bytes.last_mut().unwrap() ^= 1;
        }
    });
    copy_model(&case, "config", |name, bytes| {
        if name == "config.json" {
            bytes.push(b'\n');
        }
    });
    let options = "--tokens 3
        --keep bos
        --positions natural
        --gain 3
        --layers 2
        --passes 5
        --solver theorem-1
        --dtype f64
        --backend gemm
        --apply materialise
        --prompts prompts.jsonl
        --bf16-embedding-scale
        --model weights
        --model config";
    let mut said = String::new();
    for options in options.lines().map(str::trim) {
        let options: Vec<_> = options.split(' ').collect();
        let message = refused(case.verify("steps.jsonl", &options).output().unwrap());
        said += &message;
        assert_eq!(case.read("steps.jsonl"), lines.concat(), "{message}");
        case.finish("other.jsonl", &options);
        let message = refused(case.report(&["steps.jsonl", "other.jsonl"]));
        assert!(message.contains("other.jsonl is of another setting than steps.jsonl: "));
        fs::remove_file(case.path("other.jsonl")).unwrap();
    }
    insta::assert_snapshot!(said);
    // What figures do not depend on, the control.
    case.finish(
        "steps.jsonl",
        &["--model", "same", "--threads", "1", "--level", "scalar"],
    );
    let mut whole = finished(&case);
    let machine = whole.remove(3);
    assert!(machine.starts_with(r#"{"machine":{"level":"scalar","threads":1,"#));
    assert_eq!(whole.len(), 6);
}

/// A file says the command that made it.
#[test]
fn a_setting_is_a_command() {
    let sweep = "--tokens 1 --solver span,theorem-1 --dtype f64,bf16 --backend gemm,native --keep bos \
                 --positions natural --gain 2.5 --layers 3 --passes 7";
    let case = Case::new(sweep);
    case.finish("steps.jsonl", &["--bf16-embedding-scale"]);
    let steps = case.read("steps.jsonl");
    let command = |file: &str| {
        let record = steps_file::read(&[case.path(file)]).unwrap();
        let prompts = reference("../tests/prompts.jsonl");
        let command = record.setting.command();
        let words = command.split(' ').map(|word| match word {
            "FILE" => prompts.to_str().unwrap().to_owned(),
            word => word.to_owned(),
        });
        words.skip(1).collect::<Vec<_>>()
    };
    let words = command("steps.jsonl");
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let again = |words: &[&str]| {
        case.program(&[words, &["--steps", "steps.jsonl"]].concat())
            .output()
            .unwrap()
    };
    assert!(matches!(again(&words).status.code(), Some(0 | 1)));
    assert_eq!(case.read("steps.jsonl"), steps);
    // The control: each of its options counts, but for the first, the model's name.
    for at in (3..words.len()).filter(|&at| words[at].starts_with("--")) {
        let value = words
            .get(at + 1)
            .is_some_and(|word| !word.starts_with("--"));
        let without = [&words[..at], &words[at + 1 + usize::from(value)..]].concat();
        if words[at] != "--apply" {
            refused(again(&without));
        }
    }
}

#[test]
fn files_that_are_none() {
    let case = Case::new(SWEEP);
    let lines = finished(&case);
    fs::create_dir(case.path("folder.jsonl")).unwrap();
    let damaged = |at: usize, line: &str| {
        let mut lines = lines.clone();
        lines[at] = line.into();
        lines.concat()
    };
    let bad = [
        ("empty", String::new()),
        (
            "prompts",
            fs::read_to_string(reference("../tests/prompts.jsonl")).unwrap(),
        ),
        ("no-setting", lines[1..].concat()),
        ("torn", lines[0].trim_end().to_owned()),
        ("no-json", damaged(4, "no\n")),
        ("blank", damaged(4, "\n")),
        ("half", damaged(4, &format!("{}\n", &lines[4][..50]))),
        ("spaced", damaged(4, &lines[4].replacen(':', ": ", 1))),
        (
            "field-more",
            damaged(
                4,
                &lines[4].replacen("\"prompt\"", "\"more\":1,\"prompt\"", 1),
            ),
        ),
        ("two-settings", damaged(4, &lines[0])),
        (
            "other-kind",
            damaged(4, &lines[4].replacen("f32", "f64", 1)),
        ),
        (
            "other-prompt",
            damaged(4, &lines[4].replacen("\"prompt\":0", "\"prompt\":9", 1)),
        ),
    ];
    let mut said = String::new();
    let mut refuse = |file: &str| {
        let message = refused(case.report(&[file]));
        let verify = refused(case.verify(file, &[]).output().unwrap());
        write!(said, "{message}").unwrap();
        if verify != message {
            write!(said, "{verify}").unwrap();
        }
    };
    for (name, text) in bad {
        let file = format!("{name}.jsonl");
        case.write(&file, &text);
        refuse(&file);
        assert_eq!(case.read(&file), text, "{name}");
    }
    refuse("folder.jsonl");
    refuse("none/steps.jsonl");
    said += &refused(case.report(&["none.jsonl"]));
    insta::assert_snapshot!(said);
}

#[test]
fn a_file_has_one_writer() {
    let case = Case::new(SWEEP);
    let lines = finished(&case);
    case.write("steps.jsonl", lines[..5].concat());
    let file = fs::File::open(case.path("steps.jsonl")).unwrap();
    file.lock().unwrap();
    insta::assert_snapshot!(refused(case.verify("steps.jsonl", &[]).output().unwrap()));
    assert_eq!(case.read("steps.jsonl"), lines[..5].concat());
    let replace = case.report(&["steps.jsonl", "--steps", "steps.jsonl"]);
    assert!(refused(replace).contains("is being written by another process"));
    // Who only reads is not in the way, and the control: without the lock it goes on.
    assert_eq!(case.report(&["steps.jsonl"]).status.code(), Some(1));
    drop(file);
    assert!(finished(&case) == lines);
}

#[test]
fn shares_that_are_none() {
    let case = Case::new(SWEEP);
    for shard in ["0/3", "4/3", "3", "a/b"] {
        let done = case
            .verify("steps.jsonl", &["--shard", shard])
            .output()
            .unwrap();
        let message = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(2), "{message}");
        let first = message.lines().next().unwrap();
        let clear = format!("'{shard}' is no share: use I/N, I from 1 to N, such as 2/8");
        assert!(first.ends_with(&clear), "{message}");
        assert!(!case.path("steps.jsonl").exists());
    }
}

/// Without attention's output a token has the same state wherever it stands, and of the first prompt the model writes one
/// token over and over.
#[test]
fn a_prompt_that_cannot_be_solved_does_not_stop_the_others() {
    let case = Case::new("--tokens 2 --solver span,closed-form");
    copy_model(&case, "model", |name, bytes| {
        if name != "model.safetensors" {
            return;
        }
        let start = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        let header: serde_json::Value = serde_json::from_slice(&bytes[8..start]).unwrap();
        for (name, entry) in header.as_object().unwrap() {
            if name.contains("o_proj") {
                let offset = |i: usize| start + entry["data_offsets"][i].as_u64().unwrap() as usize;
                bytes[offset(0)..offset(1)].fill(0);
            }
        }
    });
    case.write("prompts.jsonl", "\"Ida\"\n\"Bob likes\"\n");
    let options = ["--model", "model", "--prompts", "prompts.jsonl"];
    let run = || case.verify("steps.jsonl", &options).output().unwrap();
    let done = run();
    let message = String::from_utf8(done.stderr.clone()).unwrap();
    assert_eq!(done.status.code(), Some(2), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    let place = "error: span f32 overlay, prompt 1 token 1: the span's states at layer 0 are not";
    assert!(message.starts_with(place), "{message}");
    assert!(stdout(&done).contains("\nspan f32 overlay") && stdout(&done).contains(" 3/3 "));
    // Three tokens of the second prompt's span, and two of each under the other solver.
    let steps = case.read("steps.jsonl");
    assert_eq!(steps.lines().count(), 2 + 3 + 4);
    let report = stdout(&case.report(&["steps.jsonl"]));
    let missing = "MISSING: 3 steps, first span f32 overlay, prompt 1 token 1\n";
    assert!(report.ends_with(missing), "{report}");
    assert_eq!(run(), done);
    assert_eq!(case.read("steps.jsonl"), steps);
}

/// A prompt that cannot be verified is refused before there is a file.
#[test]
fn bad_prompts_leave_no_file() {
    let case = Case::new("--tokens 100000");
    refused(case.verify("steps.jsonl", &[]).output().unwrap());
    assert_eq!(fs::read_dir(case.dir.path()).unwrap().count(), 0);
}

/// JSON has no NaN, and a file of steps keeps it.
#[test]
fn numbers_that_are_none_survive() {
    let model = open("tiny");
    let kinds = Kind::all(
        &[Solver::Span],
        &["f32".parse().unwrap()],
        &["overlay".parse().unwrap()],
        &["native".parse().unwrap()],
    );
    let prompts = vec!["Ann likes plums.".to_owned()];
    let setting = Setting::new(&model, prompts, kinds).unwrap();
    let mut record = Record::new(setting, vec![Machine::here(&model)]);
    let steps = |record: &Record| {
        let mut bytes = Vec::new();
        steps_file::write(record, &mut bytes).unwrap();
        bytes
    };
    let json = r#"{"prompt":0,"step":0,"token":5,"position":1,"next":7,"logits":"","margin":null,"bound":1e-5,
        "patched":{"linf":null,"tvd":null,"top":7,"same_top":true},"controls":[]}"#;
    let step: Step = serde_json::from_str(json).unwrap();
    assert!(step.margin.is_nan() && step.patched.linf.is_nan() && !step.holds());
    record.runs[0].steps.push(step);
    let (again, whole) = steps_file::parse("nan".as_ref(), &steps(&record)[..]).unwrap();
    assert_eq!(whole as usize, steps(&record).len());
    assert_eq!(steps(&again), steps(&record));
    assert!(again.runs[0].steps[0].patched.tvd.is_nan());
}

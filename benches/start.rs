//! How long the 270M takes from the start of a process to its first token, and how much memory it takes at most.
//!
//! From a text this is the command line, `context-patch generate`. From ids it is this program, which starts itself.
//!
//! ```text
//! python3 reference/fetch_models.py gemma-3-270m && cargo bench --bench start
//! ```
#![allow(
    clippy::unwrap_used,
    reason = "a benchmark stops where something is wrong"
)]

mod common;

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use common::{median, timed};
use context_patch::model::generate::{Sampler, generate};
use context_patch::tensor::Element;
use context_patch::{Model, Session};
use half::bf16;

const PROMPT: &str = "The capital of France is";
/// The first one is what the time is for; all of them are what the memory is for.
const TOKENS: usize = 16;
const ROUNDS: usize = 9;
/// Names the child that is this program.
const FROM_IDS: &str = "from-ids";

fn main() {
    let Some(path) = common::gemma_270m() else {
        return;
    };
    if let [name, dtype, ids @ ..] = &common::arguments()[..]
        && name == FROM_IDS
    {
        let ids: Vec<u32> = ids.iter().map(|id| id.parse().unwrap()).collect();
        // As the command line does: as many threads as there are cores.
        return common::pool(0).install(|| match &dtype[..] {
            "f32" => write::<f32>(path, &ids),
            _ => write::<bf16>(path, &ids),
        });
    }
    println!("medians of {ROUNDS} starts, one thread a core, files in the page cache");
    let ids = parts(path);
    for dtype in ["f32", "bf16"] {
        measure(path, dtype, &ids);
    }
}

/// The child: writes tokens as they come.
fn write<E: Element>(path: &str, ids: &[u32]) {
    let model = Model::open(path).unwrap();
    let mut session = Session::<E>::new(&model);
    generate(&mut session, ids, TOKENS, &mut Sampler::default(), |id| {
        println!("{id}");
        Ok::<_, context_patch::Error>(())
    })
    .unwrap();
}

/// Where the time goes, in this process: the ids of the prompt.
fn parts(path: &str) -> Vec<u32> {
    let mut times: [Vec<f64>; 5] = Default::default();
    let mut ids = Vec::new();
    for _ in 0..ROUNDS {
        let (opening, model) = timed(|| Model::open(path).unwrap());
        let (json, _) = timed(|| fs::read(format!("{path}/tokenizer.json")).unwrap());
        let (tokenizer, read) = timed(|| model.checkpoint().tokenizer().unwrap());
        let (encoding, encoded) = timed(|| read.encode(PROMPT).unwrap());
        let mut session = Session::<f32>::new(&model);
        let (forward, _) = timed(|| session.forward(&encoded, 1).unwrap());
        let now = [opening, json, tokenizer, encoding, forward];
        times
            .iter_mut()
            .zip(now)
            .for_each(|(all, now)| all.push(now));
        ids = encoded;
    }
    let [opening, json, tokenizer, encoding, forward] = times.map(|times| 1e3 * median(times));
    println!(
        "parts: opening {opening:.1} ms, tokenizer {tokenizer:.1} ms (reading the bytes of its file {json:.1} ms), \
         encoding {encoding:.1} ms, prefill f32 {forward:.1} ms"
    );
    ids
}

fn measure(path: &str, dtype: &str, ids: &[u32]) {
    let from_ids = || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([FROM_IDS, dtype]);
        command.args(ids.iter().map(u32::to_string));
        command
    };
    let from_text = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_context-patch"));
        command.args(["generate", "--model", path, "--dtype", dtype]);
        command.args(["--prompt", PROMPT, "--max-tokens", &TOKENS.to_string()]);
        command
    };
    let mut starts = [const { (Vec::new(), None) }; 2];
    // Not counted: it brings what the files have into the page cache.
    for round in 0..=ROUNDS {
        for ((times, most), command) in starts.iter_mut().zip([from_ids(), from_text()]) {
            let (seconds, peak) = start(command);
            if round > 0 {
                times.push(seconds);
                *most = peak.max(*most);
            }
        }
    }
    let files = fs::metadata(Path::new(path).join("model.safetensors"));
    let file = files.unwrap().len() as f64;
    for ((times, peak), (from, goal)) in starts.into_iter().zip([("ids", 0.3), ("text", 1.0)]) {
        verdict(
            &format!("first token from {from}, {dtype}, seconds"),
            median(times),
            goal,
        );
        // Where the system does not say, there is nothing to say here.
        if let Some(peak) = peak {
            let over = (peak as f64 - file) / 1e6;
            verdict(
                &format!("memory from {from}, {dtype}, MB over the file"),
                over,
                150.0,
            );
        }
    }
}

fn verdict(what: &str, figure: f64, most: f64) {
    let verdict = if figure <= most { "reached" } else { "missed" };
    println!("{verdict}: {what} <= {most}: {figure:.2}");
}

/// The seconds from the start of a process to the first thing it writes, and its largest memory up to the last.
fn start(mut command: Command) -> (f64, Option<usize>) {
    let start = Instant::now();
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut piece = [0; 256];
    assert!(stdout.read(&mut piece).unwrap() > 0, "no token");
    let seconds = start.elapsed().as_secs_f64();
    let mut peak = peak_memory(child.id());
    while stdout.read(&mut piece).unwrap() > 0 {
        // Not from a process that has just ended.
        peak = peak_memory(child.id()).or(peak);
    }
    assert!(child.wait().unwrap().success());
    (seconds, peak)
}

/// The most memory a process has had, mapped files included; `None` where the system does not say.
fn peak_memory(id: u32) -> Option<usize> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<usize>().ok()? << 10)
}

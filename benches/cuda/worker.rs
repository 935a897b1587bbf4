//! What `benches/cuda.sh` runs on a machine with a GPU: a program that is built elsewhere, with the repository beside it.
//!
//! ```text
//! cuda hashes                  the pinned hashes of the committed models
//! cuda shapes                  random models of the 1B's and the 4B's shape, against the native backend
//! cuda pass                    a short pass, for a sanitizer
//! cuda speed BANDWIDTH PEAK    decode and prefill of the 4B's shape; bytes and f32 operations that the device does in a second
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark stops where something is wrong"
)]

mod shapes;
#[path = "../../tests/common/ways.rs"]
#[allow(dead_code, unreachable_pub, reason = "the tests use all of it")]
mod ways;

use std::process::ExitCode;
use std::time::Instant;

use context_patch::cuda::Device;
use context_patch::kernels::Backend;
use context_patch::model::generate::greedy;
use context_patch::tensor::Element;
use context_patch::{Model, Session};
use half::bf16;
use shapes::{FOUR_B, ONE_B, Shape};
use ways::{AT_ONCE, Way, hashes};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let start = Instant::now();
    let device = match Device::open(0) {
        Ok(device) => device,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let [free, total] = device.memory().unwrap().map(|bytes| bytes >> 20);
    println!(
        "{}: {free} of {total} MiB free; opened in {:.1} s",
        device.name(),
        start.elapsed().as_secs_f64()
    );
    let good = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["hashes"] => pinned_hashes(),
        ["shapes"] => ONE_B.has_the_native_bits(true) & FOUR_B.has_the_native_bits(false),
        ["pass"] => short_pass(),
        ["speed", bandwidth, peak] => {
            speed(&FOUR_B, bandwidth.parse().unwrap(), peak.parse().unwrap());
            true
        }
        _ => {
            eprintln!("usage: cuda hashes | shapes | pass | speed BANDWIDTH PEAK");
            false
        }
    };
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Every committed model, at once and token by token, against `tests/snapshots/bits__hashes.snap`.
fn pinned_hashes() -> bool {
    let pinned = std::fs::read_to_string("tests/snapshots/bits__hashes.snap").unwrap();
    let mut lines = pinned.lines().skip_while(|line| line.len() < 64).peekable();
    let (mut equal, mut all) = (0, 0);
    while let Some(line) = lines.next() {
        // Three lines a model: f64, f32, bf16.
        let name = line.split(' ').next().unwrap();
        let want = [line, lines.next().unwrap(), lines.next().unwrap()];
        let dir = match name {
            "tiny" => "reference/tiny".to_owned(),
            name => format!("reference/checkpoints/{name}"),
        };
        let model = Model::open(&dir).unwrap().on(Backend::Cuda(0)).unwrap();
        let config = model.config();
        let id = |i| ((i * i * 7 + 3) % config.vocab_size) as u32;
        let ids: Vec<u32> = (0..config.max_position_embeddings.min(512))
            .map(id)
            .collect();
        for decoded in [0, usize::MAX] {
            let got = hashes(name, &model, &ids, usize::MAX, Way { decoded, ..AT_ONCE });
            for (got, want) in got.lines().zip(want) {
                all += 1;
                equal += usize::from(got == want);
                if got != want {
                    println!("WRONG, {decoded} decoded: {got}\n    pinned: {want}");
                }
            }
        }
    }
    println!("{equal} of {all} pinned hashes, at once and token by token");
    equal == all && all > 0
}

/// Some tokens at once and one more, of a Gemma 3 and of a mixture of experts.
fn short_pass() -> bool {
    for dir in ["reference/tiny", "reference/checkpoints/mixtral"] {
        let model = Model::open(dir).unwrap().on(Backend::Cuda(0)).unwrap();
        let ids = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5];
        let mut session = Session::<bf16>::new(&model);
        session.forward(&ids, 2).unwrap();
        session.forward(&[8], 1).unwrap();
    }
    println!("passed");
    true
}

/// Decoding and prefill, the medians of a few rounds.
fn speed(shape: &Shape, bandwidth: f64, peak: f64) {
    let native = shape.model();
    let bytes = shape.bytes() as f64;
    let model = native.on(Backend::Cuda(0)).unwrap();
    println!("{}: {:.2} GB of weights", shape.name, bytes / 1e9);
    measure::<f32>(&model, shape, bytes / bandwidth, peak);
    measure::<bf16>(&model, shape, bytes / bandwidth, peak);
}

fn measure<E: Element>(model: &Model, shape: &Shape, reading: f64, peak: f64) {
    const DECODED: usize = 32;
    let prompt: Vec<u32> = (0..512).map(|i| 2 + (i * 7919) % 200_000).collect();
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let mut session = Session::<E>::new(model);
        let start = Instant::now();
        let mut logits = session.forward(&prompt, 1).unwrap();
        prefill.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        for _ in 0..DECODED {
            logits = session.forward(&[greedy(logits.row(0))], 1).unwrap();
        }
        decode.push(start.elapsed().as_secs_f64() / DECODED as f64);
    }
    let median = |all: &mut Vec<f64>| {
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let (prefill, decode) = (median(&mut prefill), median(&mut decode));
    let operations = 2.0 * shape.layer_numbers() as f64 * prompt.len() as f64;
    println!(
        "  {:4}: decode {:.2} ms a token, {:.0} tokens/s, {:.0} % of what reading the weights takes; prefill of 512 {:.1} ms, \
         {:.1} TFLOP/s, {:.0} % of the f32 peak",
        E::DTYPE,
        1e3 * decode,
        1.0 / decode,
        100.0 * reading / decode,
        1e3 * prefill,
        operations / prefill / 1e12,
        100.0 * operations / prefill / peak,
    );
}

//! What `benches/cuda.sh` runs on a machine with a GPU: a program that is built elsewhere, with the repository beside it.
//!
//! ```text
//! cuda hashes                  the pinned hashes of the committed models
//! cuda shapes                  random models of the 1B's and the 4B's shape, against the native backend
//! cuda pass                    a short pass, for a sanitizer
//! cuda speed BANDWIDTH PEAK    decode and prefill of the 4B's shape, what a layer's time goes to, and memory against what is stated;
//!                              BANDWIDTH and PEAK are the bytes and f32 operations that the device does in a second
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

use context_patch::cuda::{Device, Launched};
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
        ["speed", bandwidth, peak] => speed(
            &device,
            &FOUR_B,
            bandwidth.parse().unwrap(),
            peak.parse().unwrap(),
        ),
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

/// Tokens of a prompt, and those that are decoded behind it.
const PROMPT: usize = 512;
const DECODED: usize = 32;

/// Decoding and prefill, the medians of a few rounds; false where memory is not what is stated.
fn speed(device: &Device, shape: &Shape, bandwidth: f64, peak: f64) -> bool {
    let native = shape.model();
    let bytes = shape.bytes() as f64;
    let model = native.on(Backend::Cuda(0)).unwrap();
    println!("{}: {:.2} GB of weights", shape.name, bytes / 1e9);
    // So that every vector is there.
    Session::<f32>::new(&model).forward(&[5], 1).unwrap();
    let before = device.taken().used;
    measure::<f32>(device, &model, shape, bytes / bandwidth, peak);
    measure::<bf16>(device, &model, shape, bytes / bandwidth, peak);
    let taken = device.taken();
    let tokens = PROMPT + DECODED + 1;
    let stated = model.activation_bytes::<f32>(PROMPT, tokens);
    let cache = model.cache_bytes::<f32>(tokens);
    let activations = taken.most_used.saturating_sub(before + cache);
    println!(
        "  memory in MiB: weights {}, cache {}, activations {} at most of {} stated; {} held at most, with what is kept to be used again",
        before >> 20,
        cache >> 20,
        activations >> 20,
        stated >> 20,
        taken.most_held >> 20,
    );
    activations <= stated
}

fn measure<E: Element>(device: &Device, model: &Model, shape: &Shape, reading: f64, peak: f64) {
    let prompt: Vec<u32> = (0..PROMPT as u32)
        .map(|i| 2 + (i * 7919) % 200_000)
        .collect();
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
    let mut session = Session::<E>::new(model);
    session.forward(&prompt, 0).unwrap();
    session.forward(&[5], 1).unwrap();
    let (logits, launched) = device.watched(|| session.forward(&[6], 1)).unwrap();
    logits.unwrap();
    what_a_layer_takes(&launched, shape.layers);
}

/// The kernels of a decoded token's layers, each measured by itself: where they overlap a token takes less than their sum.
fn what_a_layer_takes(launched: &[Launched], layers: usize) {
    // The last two are the final norm and the head.
    let of_layers = &launched[..launched.len().saturating_sub(2)];
    let mut by_name: Vec<(&str, f64)> = Vec::new();
    for launch in of_layers {
        let name = launch.kernel.rsplit_once('_').map_or("", |(name, _)| name);
        let name = if name.starts_with("multiply_one") {
            "products"
        } else {
            name
        };
        let time = 1e6 * launch.seconds / layers as f64;
        match by_name.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum += time,
            None => by_name.push((name, time)),
        }
    }
    let all: f64 = by_name.iter().map(|(_, time)| time).sum();
    let each: Vec<_> = by_name
        .iter()
        .map(|(name, time)| format!("{name} {time:.1}"))
        .collect();
    println!(
        "        {:.1} launches a layer, {all:.1} us one by one: {}",
        of_layers.len() as f64 / layers as f64,
        each.join(", ")
    );
}

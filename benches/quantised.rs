//! The products of quantised weights, for the shapes and types of a Gemma 3 270M in Q4_K_M, beside the product of bf16 weights and
//! what memory delivers, all in the same run.
//!
//! ```text
//! cargo bench --bench quantised
//! cargo bench --bench quantised -- 1 2      # one thread, two tokens
//! ```
#![allow(
    clippy::unwrap_used,
    reason = "a benchmark stops where something is wrong"
)]

mod common;

use std::hint::black_box;

use common::{candidate, machine, medians, numbers};
use context_patch::kernels::{Level, matmul};
use context_patch::tensor::{Matrix, Storage, Tensor};

/// gate, down and the head, `(out, in)`.
const SHAPES: [(usize, usize); 3] = [(2048, 640), (640, 2048), (262_144, 640)];
const TYPES: [Storage; 5] = [
    Storage::Q8_0,
    Storage::Q5_0,
    Storage::Q4_0,
    Storage::Q4K,
    Storage::Q6K,
];
const TOKENS: [usize; 4] = [1, 2, 4, 128];
const ROUNDS: usize = 11;

/// Multiplications at once, where one product has fewer: some milliseconds.
const AT_ONCE: usize = 200_000_000;

fn main() {
    let arguments = common::arguments().into_iter();
    let mut arguments = arguments.map(|argument| argument.parse::<usize>().unwrap());
    let [threads, tokens] = std::array::from_fn(|_| arguments.next());
    let asked = |filter: Option<usize>, n| filter.is_none_or(|only| only == n);
    for threads in [1, 2].into_iter().filter(|n| asked(threads, *n)) {
        let tokens: Vec<_> = TOKENS.into_iter().filter(|n| asked(tokens, *n)).collect();
        common::pool(threads).install(|| run(threads, &tokens));
    }
}

fn run(threads: usize, tokens: &[usize]) {
    let bytes = machine::beyond_caches();
    let [time] = medians(ROUNDS, [candidate(1, || machine::read(&bytes))]);
    println!(
        "\n{threads} threads, {}; reading {:.1} GB/s; f32 activations, medians of {ROUNDS}",
        Level::best(),
        bytes.len() as f64 / time / 1e9
    );
    println!(
        "{:>6} {:>6} {:>6} {:>6} {:>11} {:>7} {:>7}",
        "out", "in", "tokens", "type", "weights/ns", "GB/s", "/ bf16"
    );
    for (rows, cols) in SHAPES {
        let bf16 = tensor(Storage::Bf16, rows, cols);
        for storage in TYPES {
            if !cols.is_multiple_of(storage.block().numbers) {
                continue;
            }
            let quantised = tensor(storage, rows, cols);
            // The head is for the last token alone.
            let tokens = tokens.iter().filter(|&&n| rows * n < 1 << 21);
            tokens.for_each(|&tokens| row(&bf16, &quantised, tokens));
        }
    }
}

fn row(bf16: &Tensor, quantised: &Tensor, tokens: usize) {
    let (rows, cols) = (bf16.rows(), bf16.cols());
    let x = Matrix::from_vec(cols, numbers::<f32>(tokens * cols, 1));
    let repeats = (AT_ONCE / (rows * cols * tokens)).max(1);
    let product = |w| black_box(matmul(Level::best(), &x, w));
    let times = medians(
        ROUNDS,
        [
            candidate(repeats, || drop(product(bf16))),
            candidate(repeats, || drop(product(quantised))),
        ],
    );
    let per_ns = |n: usize| n as f64 / times[1] / 1e9;
    println!(
        "{rows:6} {cols:6} {tokens:6} {:>6} {:11.2} {:7.1} {:7.2}",
        quantised.storage().to_string(),
        per_ns(rows * cols),
        per_ns(quantised.bytes().len()),
        times[0] / times[1]
    );
}

/// Random weights: every type has its exponents in odd bytes, and these ones are of small finite numbers.
fn tensor(storage: Storage, rows: usize, cols: usize) -> Tensor {
    let random = numbers::<f32>(4096 * storage.block().bytes, 2);
    let small = random.iter().map(|x| (x.abs() * 40.0) as u8);
    let bytes = storage.bytes_of(rows * cols).unwrap();
    let bytes: Vec<u8> = small.cycle().take(bytes).collect();
    Tensor::new(storage, vec![rows, cols], bytes.into()).unwrap()
}

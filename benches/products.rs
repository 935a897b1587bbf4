//! The matrix products of Gemma 3 against the `gemm` crate and the machine's peak, all in the same run.
//!
//! ```text
//! cargo bench --bench products
//! ```
#![allow(
    clippy::unwrap_used,
    reason = "a benchmark stops where something is wrong"
)]

use std::hint::black_box;
use std::time::Instant;

use bytes::Bytes;
use context_patch::kernels::{Level, matmul};
use context_patch::tensor::{Element, Matrix, Storage, Tensor};
use gemm::Parallelism;
use half::bf16;

/// q, gate, down of the 270M, the 1B and the 4B: `(out, in)`.
const SHAPES: [(usize, usize); 6] = [
    (1024, 640),
    (2048, 640),
    (640, 2048),
    (6912, 1152),
    (1152, 6912),
    (10240, 2560),
];
const TOKENS: [usize; 7] = [1, 2, 4, 32, 128, 256, 512];
const ROUNDS: usize = 7;

fn main() {
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| run(threads));
    }
}

fn run(threads: usize) {
    println!(
        "\n{threads} threads, {}; GFLOP/s, medians of {ROUNDS}",
        Level::best()
    );
    println!(
        "{:>6} {:>6} {:>6} {:>10} {:>10} {:>10} {:>10} {:>7}",
        "out", "in", "tokens", "f32·f32", "f32·bf16", "gemm f32", "bf16·bf16", "ratio"
    );
    for (rows, cols) in SHAPES {
        let w: Vec<bf16> = numbers(rows * cols, 2);
        let wide = Matrix::from_vec(cols, w.iter().map(|w| w.to_f32()).collect());
        let bytes: Vec<u8> = w.iter().flat_map(|w| w.to_le_bytes()).collect();
        let stored = Tensor::new(Storage::Bf16, vec![rows, cols], Bytes::from(bytes)).unwrap();
        for tokens in TOKENS {
            let x = Matrix::from_vec(cols, numbers::<f32>(tokens * cols, 1));
            let x16 = x.map(bf16::from_f32);
            let mut y = Matrix::zeros(tokens, rows);
            let level = Level::best();
            let mut times = [const { Vec::new() }; 4];
            let repeats = (200_000_000 / (rows * cols * tokens)).max(1);
            for _ in 0..ROUNDS {
                times[0].push(timed(repeats, || {
                    black_box(matmul(level, &x, &wide));
                }));
                times[1].push(timed(repeats, || {
                    black_box(matmul(level, &x, &stored));
                }));
                times[2].push(timed(repeats, || theirs(&x, &wide, &mut y, threads)));
                times[3].push(timed(repeats, || {
                    black_box(matmul(level, &x16, &stored));
                }));
            }
            agree(&matmul(level, &x, &wide), &y);
            let flops = (2 * rows * cols * tokens) as f64;
            let [a, b, c, d] = times.map(|mut times| {
                times.sort_by(f64::total_cmp);
                flops / times[ROUNDS / 2] / 1e9
            });
            println!(
                "{rows:6} {cols:6} {tokens:6} {a:10.1} {b:10.1} {c:10.1} {d:10.1} {:7.2}",
                b / c
            );
        }
    }
}

fn timed(repeats: usize, mut work: impl FnMut()) -> f64 {
    let start = Instant::now();
    for _ in 0..repeats {
        work();
    }
    start.elapsed().as_secs_f64() / repeats as f64
}

fn theirs(x: &Matrix<f32>, w: &Matrix<f32>, y: &mut Matrix<f32>, threads: usize) {
    let (m, n, k) = (x.rows(), w.rows(), x.cols());
    let parallelism = if threads == 1 {
        Parallelism::None
    } else {
        Parallelism::Rayon(threads)
    };
    // SAFETY: the strides are those of the three matrices.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            y.as_mut_slice().as_mut_ptr(),
            1,
            n as isize,
            false,
            x.as_slice().as_ptr(),
            1,
            k as isize,
            w.as_slice().as_ptr(),
            k as isize,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

fn agree(ours: &Matrix<f32>, theirs: &Matrix<f32>) {
    let largest = ours
        .as_slice()
        .iter()
        .fold(0.0f32, |max, x| max.max(x.abs()));
    for (a, b) in ours.as_slice().iter().zip(theirs.as_slice()) {
        assert!((a - b).abs() <= 1e-4 * largest, "{a} {b}");
    }
}

fn numbers<E: Element>(n: usize, seed: u64) -> Vec<E> {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        E::from_f64((state >> 33) as f64 / f64::from(1u32 << 30) - 1.0)
    };
    (0..n).map(|_| next()).collect()
}

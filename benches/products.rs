//! The matrix products of Gemma 3 against the `gemm` crate and what the machine can do at best, all in the same run.
//!
//! ```text
//! cargo bench --bench products
//! cargo bench --bench products -- 1 640 4     # one thread, shapes with a 640, four tokens
//! ```
#![allow(
    clippy::unwrap_used,
    reason = "a benchmark stops where something is wrong"
)]

mod common;

use std::cell::RefCell;
use std::fmt;
use std::hint::black_box;
use std::ops::RangeInclusive;

use bytes::Bytes;
use common::machine::{self, Peak};
use common::{candidate, medians, numbers};
use context_patch::kernels::{Level, matmul};
use context_patch::tensor::{Matrix, Storage, Tensor};
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
const TOKENS: [usize; 8] = [1, 2, 4, 16, 32, 128, 256, 512];
const ROUNDS: usize = 11;

/// Multiplications at once, where one product has fewer: some milliseconds. In less time a thread that has slept may not
/// have got a processor of its own.
const AT_ONCE: usize = 2_000_000_000;

/// A product of fewer tokens takes about as long as one of so many, because it reads as many weights.
const AS_LONG: usize = 16;

/// Reading counts where a weight is used this often at most.
const FEW: usize = 4;

fn main() {
    let arguments = common::arguments().into_iter();
    let mut arguments = arguments.map(|argument| argument.parse::<usize>().unwrap());
    let [threads, size, tokens] = std::array::from_fn(|_| arguments.next());
    let asked = |filter: Option<usize>, n| filter.is_none_or(|only| only == n);
    let mut goals = goals();
    for threads in [1, 2].into_iter().filter(|n| asked(threads, *n)) {
        let shapes = SHAPES.into_iter();
        let shapes = shapes.filter(|(rows, cols)| asked(size, *rows) || asked(size, *cols));
        let tokens: Vec<_> = TOKENS.into_iter().filter(|n| asked(tokens, *n)).collect();
        common::pool(threads).install(|| run(threads, shapes, &tokens, &mut goals));
    }
    println!();
    for goal in goals {
        println!("{}", goal.verdict());
    }
}

/// What there is to be compared with, whatever the shape.
struct Machine {
    threads: usize,
    f32: Option<Peak>,
    bf16: Option<Peak>,
    /// Bytes a second from memory.
    reading: f64,
}

impl Machine {
    fn measure(threads: usize) -> Self {
        let [f32, bf16] = [machine::f32_peak(), machine::bf16_peak()];
        let bytes = machine::beyond_caches();
        let times = medians(
            ROUNDS,
            [
                candidate(1, || machine::read(&bytes)),
                candidate(10, || run_peak(f32)),
                candidate(10, || run_peak(bf16)),
            ],
        );
        let machine = Self {
            threads,
            f32,
            bf16,
            reading: bytes.len() as f64 / times[0],
        };
        let gflops = |peak: Option<Peak>, time: f64| {
            let gflops = peak.map(|peak| machine.gflops(peak, time));
            gflops.map_or("not known".into(), |gflops| format!("{gflops:.0} GFLOP/s"))
        };
        println!(
            "\n{threads} threads, {}; peak of f32 {}, of VDPBF16PS {}; reading {:.1} GB/s",
            Level::best(),
            gflops(f32, times[1]),
            gflops(bf16, times[2]),
            machine.reading / 1e9
        );
        machine
    }

    /// What a peak is when its loop takes so long.
    fn gflops(&self, peak: Peak, time: f64) -> f64 {
        self.threads as f64 * peak.flops / time / 1e9
    }
}

fn run_peak(peak: Option<Peak>) {
    peak.into_iter().for_each(Peak::run);
}

fn run(
    threads: usize,
    shapes: impl Iterator<Item = (usize, usize)>,
    tokens: &[usize],
    goals: &mut [Goal],
) {
    let machine = Machine::measure(threads);
    println!(
        "GFLOP/s, medians of {ROUNDS}; gemm: f32·bf16 over it; then shares of the peaks, and of reading from memory\n\
         and of reading these weights again and again, which are in a cache where that is less"
    );
    println!(
        "{:>6} {:>6} {:>6} {:>9} {:>9} {:>9} {:>9} {:>6} {:>6} {:>6} {:>7} {:>7}",
        "out",
        "in",
        "tokens",
        "f32·f32",
        "f32·bf16",
        "gemm f32",
        "bf16·bf16",
        "gemm",
        "f32",
        "bf16",
        "memory",
        "weights"
    );
    for (rows, cols) in shapes {
        let weights = Weights::new(rows, cols);
        for &tokens in tokens {
            let row = Row::measure(&machine, &weights, tokens);
            println!("{row}");
            for goal in &mut *goals {
                goal.see(&machine, &row);
            }
        }
    }
}

/// W as a checkpoint stores it, and widened for those who cannot read that.
struct Weights {
    wide: Matrix<f32>,
    bytes: Bytes,
    stored: Tensor,
}

impl Weights {
    fn new(rows: usize, cols: usize) -> Self {
        let w: Vec<bf16> = numbers(rows * cols, 2);
        let wide = Matrix::from_vec(cols, w.iter().map(|w| w.to_f32()).collect());
        let bytes: Vec<u8> = w.iter().flat_map(|w| w.to_le_bytes()).collect();
        let bytes = Bytes::from(bytes);
        let stored = Tensor::new(Storage::Bf16, vec![rows, cols], bytes.clone()).unwrap();
        Self {
            wide,
            bytes,
            stored,
        }
    }
}

/// One product: GFLOP/s, and shares.
struct Row {
    out: usize,
    cols: usize,
    tokens: usize,
    /// f32·f32, f32·bf16, gemm's f32·f32, bf16·bf16.
    gflops: [f64; 4],
    of_f32_peak: Option<f64>,
    of_bf16_peak: Option<f64>,
    /// Of the bandwidth of memory, and of what reading the same weights reaches.
    of_reading: Option<[f64; 2]>,
}

impl Row {
    fn measure(machine: &Machine, weights: &Weights, tokens: usize) -> Self {
        let (out, cols) = (weights.wide.rows(), weights.wide.cols());
        let (wide, stored) = (&weights.wide, &weights.stored);
        let x = Matrix::from_vec(cols, numbers::<f32>(tokens * cols, 1));
        let x16 = x.map(bf16::from_f32);
        let y = RefCell::new(Matrix::zeros(tokens, out));
        let (level, threads) = (Level::best(), machine.threads);
        let repeats = (AT_ONCE / (out * cols * tokens.max(AS_LONG))).max(1);
        let gemm = || theirs(&x, wide, &mut y.borrow_mut(), threads);
        gemm();
        agree(&matmul(level, &x, wide), &y.borrow());
        let reads = if tokens <= FEW { repeats } else { 0 };
        let flops = (2 * out * cols * tokens) as f64;
        // As many multiply-adds as the products have.
        let loops = |peak: Option<Peak>| {
            let loops = peak.map(|peak| repeats as f64 * flops / (threads as f64 * peak.flops));
            loops.map_or(0, |loops| loops.ceil() as usize)
        };
        let [a, b, d, c, f32, bf16, reading] = medians(
            ROUNDS,
            [
                candidate(repeats, || drop(black_box(matmul(level, &x, wide)))),
                candidate(repeats, || drop(black_box(matmul(level, &x, stored)))),
                candidate(repeats, || drop(black_box(matmul(level, &x16, stored)))),
                // It leaves one thread asleep for some shapes, so what keeps all of them busy comes next.
                candidate(repeats, gemm),
                candidate(loops(machine.f32), || run_peak(machine.f32)),
                candidate(loops(machine.bf16), || run_peak(machine.bf16)),
                candidate(reads, || machine::read(&weights.bytes)),
            ],
        );
        let gflops = |time| flops / time / 1e9;
        let of = |peak: Option<Peak>, time, ours| {
            peak.map(|peak| gflops(ours) / machine.gflops(peak, time))
        };
        let memory = weights.bytes.len() as f64 / machine.reading;
        Self {
            out,
            cols,
            tokens,
            gflops: [a, b, c, d].map(gflops),
            of_f32_peak: of(machine.f32, f32, a),
            of_bf16_peak: of(machine.bf16, bf16, d),
            of_reading: (tokens <= FEW).then_some([memory / b, reading / b]),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d] = self.gflops;
        let percent =
            |share: Option<f64>| share.map_or("-".into(), |s| format!("{:.0} %", 1e2 * s));
        write!(
            f,
            "{:6} {:6} {:6} {a:9.1} {b:9.1} {c:9.1} {d:9.1} {:6.2} {:>6} {:>6} {:>7} {:>7}",
            self.out,
            self.cols,
            self.tokens,
            b / c,
            percent(self.of_f32_peak),
            percent(self.of_bf16_peak),
            percent(self.of_reading.map(|[memory, _]| memory)),
            percent(self.of_reading.map(|[_, weights]| weights)),
        )
    }
}

/// What a product should reach, and the worst that was seen.
struct Goal {
    what: &'static str,
    tokens: RangeInclusive<usize>,
    figure: fn(&Row) -> Option<f64>,
    least: f64,
    worst: Option<(f64, String)>,
}

fn goals() -> [Goal; 4] {
    let over_gemm = |row: &Row| Some(row.gflops[1] / row.gflops[2]);
    let goal = |what, tokens, figure, least| Goal {
        what,
        tokens,
        figure,
        least,
        worst: None,
    };
    [
        goal("f32·bf16 over gemm, 1 token", 1..=1, over_gemm, 1.0),
        goal("f32·bf16 over gemm, 2 and 4 tokens", 2..=4, over_gemm, 2.0),
        // The slower one of the two: the weights may be stored either way.
        goal(
            "f32 over gemm, 32 to 512 tokens",
            32..=512,
            |row| Some(row.gflops[0].min(row.gflops[1]) / row.gflops[2]),
            0.8,
        ),
        goal(
            "bf16·bf16 over the peak of VDPBF16PS, 32 to 512 tokens",
            32..=512,
            |row| row.of_bf16_peak,
            0.6,
        ),
    ]
}

impl Goal {
    fn see(&mut self, machine: &Machine, row: &Row) {
        let Some(figure) = (self.figure)(row).filter(|_| self.tokens.contains(&row.tokens)) else {
            return;
        };
        if self.worst.as_ref().is_none_or(|(worst, _)| figure < *worst) {
            let Row {
                out, cols, tokens, ..
            } = row;
            let at = format!(
                "{out} x {cols}, {tokens} tokens, {} threads",
                machine.threads
            );
            self.worst = Some((figure, at));
        }
    }

    fn verdict(&self) -> String {
        let Self { what, least, .. } = self;
        let Some((figure, at)) = &self.worst else {
            return format!("not measured: {what} >= {least}");
        };
        let verdict = if figure >= least { "reached" } else { "missed" };
        format!("{verdict}: {what} >= {least}; worst {figure:.2} at {at}")
    }
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

//! What a pass does with every number by itself or along a row, against copying as many bytes and against plain Rust,
//! all in the same run. One row on one thread, at the sizes of the 270M.
//!
//! ```text
//! cargo bench --bench elementwise
//! cargo bench --bench elementwise -- softmax     # those whose name has this
//! ```
#![allow(
    clippy::unwrap_used,
    reason = "a benchmark stops where something is wrong"
)]

mod common;

use std::cell::RefCell;
use std::hint::black_box;

use common::{candidate, medians, numbers};
use context_patch::kernels::activation::gelu_tanh;
use context_patch::kernels::{Level, Rotation, elementwise, rms_norm, rotate, softmax};
use context_patch::tensor::{Dtype, Element, Matrix};
use half::bf16;

const HIDDEN: usize = 640;
const INTERMEDIATE: usize = 2048;
const HEAD: usize = 256;
/// The keys that a sliding layer sees.
const WINDOW: usize = 512;
const VOCABULARY: usize = 262_144;

const ROUNDS: usize = 21;
/// Numbers at once: a time that other work on the machine seldom interrupts.
const AT_ONCE: usize = 1 << 18;

fn main() {
    let only = common::arguments().pop().unwrap_or_default();
    println!(
        "{}, medians of {ROUNDS}; GB/s of what is read and written, each byte once, and that over a copy of as many;\n\
         softmax and RoPE work in place, so the copy of their input before is in their time",
        Level::best()
    );
    println!(
        "{:8} {:5} {:>7} {:>9} {:>7} {:>7} {:>11}",
        "", "", "numbers", "ns each", "GB/s", "copy", "over scalar"
    );
    common::pool(1).install(|| {
        of_type::<f32>(&only);
        of_type::<bf16>(&only);
        of_type::<f64>(&only);
    });
}

fn of_type<E: Element>(only: &str) {
    let operations = [
        norm::<E>(HEAD),
        norm(HIDDEN),
        gelu(),
        residual(),
        rotation(),
    ];
    for operation in operations {
        operation.measure(E::DTYPE, only);
    }
    for keys in [WINDOW, VOCABULARY] {
        probabilities::<E>(keys).measure(E::DTYPE, only);
    }
}

/// Fills a row, with the instructions of a level.
type Fill<O> = Box<dyn Fn(Level, &mut Matrix<O>)>;

/// Something that fills a row, and what it takes.
struct Operation<O> {
    name: &'static str,
    numbers: usize,
    /// What it reads and writes.
    bytes: usize,
    run: Fill<O>,
}

fn norm<E: Element>(n: usize) -> Operation<E> {
    let (u, scale) = (numbers::<E>(n, 1), numbers::<E::Acc>(n, 2));
    Operation {
        name: "RMSNorm",
        numbers: n,
        bytes: 2 * size_of_val(&u[..]) + size_of_val(&scale[..]),
        run: Box::new(move |level, out| rms_norm(level, &u, &scale, 1e-6, out.as_mut_slice())),
    }
}

fn gelu<E: Element>() -> Operation<E> {
    let x = numbers::<E>(INTERMEDIATE, 1);
    Operation {
        name: "GeLU",
        numbers: INTERMEDIATE,
        bytes: 3 * size_of_val(&x[..]),
        run: Box::new(move |level, out| {
            out.as_mut_slice().copy_from_slice(&x);
            gelu_tanh(level, out.as_mut_slice());
        }),
    }
}

fn residual<E: Element>() -> Operation<E> {
    let (x, o) = (numbers::<E>(HIDDEN, 1), numbers::<E>(HIDDEN, 2));
    let add = |x: E, o: E| E::round(x.acc() + o.acc());
    Operation {
        name: "residual",
        numbers: HIDDEN,
        bytes: 3 * size_of_val(&x[..]),
        run: Box::new(move |level, out| {
            elementwise::zip_map(level, &x, &o, out.as_mut_slice(), add)
        }),
    }
}

fn rotation<E: Element>() -> Operation<E> {
    let head = numbers::<E>(HEAD, 1);
    let (cos, sin) = Rotation::new(HEAD, 10_000.0, 1.0).at(1000);
    let rounded = |numbers: Vec<f64>| numbers.into_iter().map(E::from_f64).collect();
    let turn = (rounded(cos), rounded(sin));
    Operation {
        name: "RoPE",
        numbers: HEAD,
        bytes: 3 * size_of_val(&head[..]),
        run: Box::new(move |level, out| {
            out.as_mut_slice().copy_from_slice(&head);
            rotate(level, out.as_mut_slice(), &turn);
        }),
    }
}

/// As the attention does it: in the type of sums, and then rounded.
fn probabilities<E: Element>(keys: usize) -> Operation<E::Acc> {
    let scores = numbers::<E::Acc>(keys, 1);
    Operation {
        name: "softmax",
        numbers: keys,
        bytes: 2 * size_of_val(&scores[..]),
        run: Box::new(move |level, out| {
            let out = out.as_mut_slice();
            out.copy_from_slice(&scores);
            softmax(level, out);
            elementwise::update(level, out, |p| E::round(p).acc());
        }),
    }
}

impl<O: Element> Operation<O> {
    fn measure(&self, dtype: Dtype, only: &str) {
        if !self.name.contains(only) {
            return;
        }
        self.check();
        let out = RefCell::new(Matrix::zeros(1, self.numbers));
        let run = |level| (self.run)(level, black_box(&mut *out.borrow_mut()));
        let from = vec![1u8; self.bytes / 2];
        let mut to = from.clone();
        let repeats = (AT_ONCE / self.numbers).max(1);
        let [best, scalar, copy] = medians(
            ROUNDS,
            [
                candidate(repeats, || run(Level::best())),
                candidate(repeats, || run(Level::Scalar)),
                candidate(repeats, || {
                    black_box(&mut to).copy_from_slice(black_box(&from))
                }),
            ],
        );
        let over_scalar = scalar / best;
        println!(
            "{:8} {dtype:5} {:7} {:9.3} {:7.1} {:>7} {over_scalar:11.1}",
            self.name,
            self.numbers,
            1e9 * best / self.numbers as f64,
            self.bytes as f64 / best / 1e9,
            format!("{:.0} %", 100.0 * copy / best),
        );
    }

    /// Every level must give the same bits.
    fn check(&self) {
        let bits = |level| {
            let mut out = Matrix::zeros(1, self.numbers);
            (self.run)(level, &mut out);
            let bits = out.as_slice().iter().map(|x| x.to_f64().to_bits());
            bits.collect::<Vec<_>>()
        };
        let scalar = bits(Level::Scalar);
        for level in Level::available() {
            assert!(bits(level) == scalar, "{} at {level}", self.name);
        }
    }
}

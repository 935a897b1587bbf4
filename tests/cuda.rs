//! The CUDA kernels' source, run on the CPU, against the native kernels: bit for bit, on numbers of every kind.
//!
//! `tests/cuda/run.sh` holds the same source to plain loops, with more shapes and with controls.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use context_patch::kernels::activation::{Activation, gelu_tanh};
use context_patch::kernels::{Level, matmul, rms_norm, rotate, softmax, weighted_sum};
use context_patch::tensor::{Element, Float, Matrix};
use half::bf16;

/// What `tests/cuda/native.cpp` calls them.
#[derive(Clone, Copy)]
enum Operation {
    Product,
    RmsNorm,
    Softmax,
    GeluTanh,
    Gelu,
    Silu,
    Rope,
    WeightedSum,
}

/// The kinds of numbers.
#[derive(Clone, Copy)]
enum Kind {
    /// About the size of activations.
    Ordinary,
    /// Of any exponent, denormal ones too.
    Wide,
    /// Such that products are about the smallest normal number.
    Tiny,
    /// Ordinary ones, and here and there one that is not finite, or a zero.
    Special,
}

const KINDS: [Kind; 4] = [Kind::Ordinary, Kind::Wide, Kind::Tiny, Kind::Special];

/// The cases, as they are written.
struct Cases {
    bytes: Vec<u8>,
    state: u64,
}

impl Cases {
    fn random(&mut self) -> u64 {
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.state >> 20
    }

    fn number<E: Element>(&mut self, kind: Kind) -> E {
        let lowest = if size_of::<E>() == 8 { -1022 } else { -126 };
        let unit = (self.random() % (1 << 40)) as f64 / (1u64 << 39) as f64 - 1.0;
        let pick = self.random();
        let between = |low: i32, high: i32| low + (pick % (high - low + 1) as u64) as i32;
        E::from_f64(match kind {
            Kind::Ordinary => 3.0 * unit,
            Kind::Wide => libm::scalbn(unit, between(lowest - 10, -lowest - 3)),
            Kind::Tiny => libm::scalbn(unit, between(lowest / 2 - 4, lowest / 2 + 4)),
            Kind::Special => match pick % 600 {
                0 => f64::NAN,
                1 => f64::INFINITY,
                2 => f64::NEG_INFINITY,
                3 => -0.0,
                _ => 3.0 * unit,
            },
        })
    }

    fn numbers<E: Element>(&mut self, kind: Kind, n: usize) -> Vec<E> {
        (0..n).map(|_| self.number(kind)).collect()
    }

    /// The header of a case of a compute type.
    fn begin<E: Element>(&mut self, operation: Operation, [tokens, rows, cols]: [usize; 3]) {
        for number in [operation as usize, size_of::<E>(), tokens, rows, cols] {
            self.bytes.extend((number as u32).to_le_bytes());
        }
    }

    fn write<E: Element>(&mut self, numbers: &[E]) {
        self.bytes.extend(bytemuck::cast_slice::<E, u8>(numbers));
    }

    fn product<E: Element>(&mut self, kind: Kind, shape: [usize; 3]) {
        let [tokens, rows, cols] = shape;
        let x = Matrix::from_vec(cols, self.numbers::<E>(kind, tokens * cols));
        let w = Matrix::from_vec(cols, self.numbers::<E>(kind, rows * cols));
        self.begin::<E>(Operation::Product, shape);
        self.write(x.as_slice());
        self.write(w.as_slice());
        self.write(matmul(Level::best(), &x, &w).as_slice());
    }

    fn norm<E: Element>(&mut self, kind: Kind, cols: usize) {
        let rows = 2;
        let u = self.numbers::<E>(kind, rows * cols);
        let scale = self.numbers::<E::Acc>(kind, cols);
        let mut out = vec![E::default(); u.len()];
        rms_norm(Level::best(), &u, &scale, 1e-6, &mut out);
        self.begin::<E>(Operation::RmsNorm, [0, rows, cols]);
        self.write(&u);
        self.write(&scale);
        self.write(&out);
    }

    fn softmax<A: Float>(&mut self, kind: Kind, cols: usize) {
        let mut scores = self.numbers::<A>(kind, cols);
        self.begin::<A>(Operation::Softmax, [0, 1, cols]);
        self.write(&scores);
        softmax(Level::best(), &mut scores);
        self.write(&scores);
    }

    fn activations<E: Element>(&mut self, kind: Kind) {
        let cols = 20_000;
        let x = Matrix::from_vec(cols, self.numbers::<E>(kind, cols));
        self.begin::<E>(Operation::GeluTanh, [0, 0, cols]);
        self.write(x.as_slice());
        let mut y = x.clone();
        gelu_tanh(Level::best(), y.as_mut_slice());
        self.write(y.as_slice());
        for (operation, function) in [
            (Operation::Gelu, Activation::Gelu),
            (Operation::Silu, Activation::Silu),
        ] {
            self.begin::<E>(operation, [0, 0, cols]);
            self.write(x.as_slice());
            let y = x.map(|x| E::round(function.apply(x.acc())));
            self.write(y.as_slice());
        }
    }

    fn rope<E: Element>(&mut self, kind: Kind) {
        let (heads, half) = (5, 9);
        let mut x = self.numbers::<E>(kind, heads * 2 * half);
        let cos_sin = (self.numbers::<E>(kind, half), self.numbers(kind, half));
        self.begin::<E>(Operation::Rope, [0, heads, 2 * half]);
        self.write(&x);
        for of_angles in [&cos_sin.0, &cos_sin.1] {
            let wide: Vec<E::Acc> = of_angles.iter().map(|x| x.acc()).collect();
            self.write(&wide);
        }
        rotate(Level::best(), &mut x, &cos_sin);
        self.write(&x);
    }

    fn weighted_sum<E: Element>(&mut self, kind: Kind, keys: usize, width: usize) {
        let p = self.numbers::<E::Acc>(kind, keys);
        let values = self.numbers::<E>(kind, keys * width);
        let mut sums = vec![E::Acc::ZERO; width];
        weighted_sum(Level::best(), &p, &values, &mut sums);
        self.begin::<E>(Operation::WeightedSum, [0, keys, width]);
        self.write(&p);
        self.write(&values);
        self.write(&sums.into_iter().map(E::round).collect::<Vec<_>>());
    }

    /// Every operation in one compute type.
    fn all<E: Element>(&mut self) {
        for kind in KINDS {
            for shape in [
                [1, 1, 1],
                [2, 5, 17],
                [1, 9, 256],
                [3, 4, 2085],
                [35, 70, 100],
                [33, 65, 128],
            ] {
                self.product::<E>(kind, shape);
            }
            for length in [1, 50, 256, 2085] {
                self.norm::<E>(kind, length);
                self.softmax::<E::Acc>(kind, length);
            }
            self.activations::<E>(kind);
            self.rope::<E>(kind);
            for (keys, width) in [(1, 1), (70, 40), (300, 64)] {
                self.weighted_sum::<E>(kind, keys, width);
            }
        }
    }
}

#[test]
#[ignore = "needs a C++20 compiler, and FMA"]
fn kernels_on_the_cpu_have_the_native_bits() {
    let mut cases = Cases {
        bytes: Vec::new(),
        state: 18,
    };
    cases.all::<f64>();
    cases.all::<f32>();
    cases.all::<bf16>();
    let folder = tempfile::tempdir().unwrap();
    let (file, program) = (folder.path().join("cases"), folder.path().join("native"));
    std::fs::File::create(&file)
        .unwrap()
        .write_all(&cases.bytes)
        .unwrap();

    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let compiled = Command::new(&compiler)
        .args(["-std=c++20", "-O1", "-march=native", "-ffp-contract=off"])
        .args(["native.cpp", "naive.cpp"].map(|name| sources.join(name)))
        .arg("-o")
        .arg(&program)
        .status();
    assert!(
        compiled.as_ref().is_ok_and(|status| status.success()),
        "{compiler}, which compiles {}: {compiled:?}",
        sources.display()
    );
    let output = Command::new(&program).arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

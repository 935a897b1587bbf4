//! Operations on numbers of every kind at every level, and that the checks of their errors can fail.

use crate::common::numbers;
use crate::exact::{Roundings, Sum};
use crate::kernel::{Case, Op, Weights};
use crate::operands::{Operands, Special};
use context_patch::kernels::{Level, dot};
use context_patch::tensor::{Dtype, Storage};

/// Few tokens and many, sums of one stretch and several, pieces for two threads.
const OPS: [Op; 15] = [
    product(3, 5, 65, Weights::Stored(Storage::F32, 1)),
    product(11, 9, 33, Weights::Typed),
    product(17, 7, 1403, Weights::Stored(Storage::Bf16, 2)),
    product(260, 19, 35, Weights::Typed),
    product(2, 3, 100, Weights::Stored(Storage::F16, 0)),
    product(1, 9, 160, Weights::Stored(Storage::Q5_0, 1)),
    product(3, 6, 512, Weights::Stored(Storage::Q4K, 1)),
    product(13, 5, 256, Weights::Stored(Storage::Q6K, 2)),
    Op::Dot { length: 45 },
    Op::RmsNorm {
        vectors: 2,
        length: 47,
    },
    Op::Softmax { length: 35 },
    Op::GeluTanh { length: 35 },
    Op::WeightedSums {
        rows: 5,
        keys: 21,
        unused: 2,
        width: 131,
    },
    Op::Scores {
        rows: 5,
        keys: 70,
        first: 1,
        head_dim: 37,
    },
    Op::Rotate {
        half: 9,
        position: 777,
    },
];

const fn product(tokens: usize, rows: usize, cols: usize, weights: Weights) -> Op {
    Op::Matmul {
        tokens,
        rows,
        cols,
        weights,
    }
}

#[test]
fn every_level_gives_the_scalar_bits() {
    use Special::{Denormal, Infinity, Largest, Nan, SmallestNormal, Zero};
    for (seed, op) in OPS.into_iter().enumerate() {
        for dtype in [Dtype::F64, Dtype::F32, Dtype::Bf16] {
            for exponents in [(-4, 4), (-66, -60), (-133, 128)] {
                for special in [Zero, Infinity, Nan, Largest, SmallestNormal, Denormal] {
                    let operands = Operands {
                        seed: seed as u64,
                        exponents,
                        special: vec![(5, special, false), (6 * seed, special, true)],
                        start: 3,
                    };
                    Case {
                        op,
                        dtype,
                        threads: 2,
                        operands,
                    }
                    .check();
                }
            }
        }
    }
}

fn roundings(each: u32) -> Roundings {
    Roundings {
        each,
        unit_roundoff: f64::EPSILON / 2.0,
        underflows: 0,
        grid: 0.0,
    }
}

#[test]
fn a_sum_is_exact() {
    let mut sum = Sum::new();
    // 2^1000 and 2^−1000 and the smallest product there is.
    let (large, tiny) = (2f64.powi(500), f64::from_bits(1));
    for (a, b) in [
        (large, large),
        (1.0 / large, 1.0 / large),
        (tiny, -tiny),
        (-large, large),
    ] {
        sum.add(a, b);
    }
    sum.add(-tiny, -tiny);
    assert!(sum.allows(2f64.powi(-1000), roundings(0)));
    for wrong in [0.0, -2f64.powi(-1000), 2f64.powi(-1000).next_up()] {
        assert!(!sum.allows(wrong, roundings(0)));
    }
}

#[test]
fn a_sum_may_be_off_by_its_roundings_and_no_more() {
    let mut sum = Sum::new();
    sum.add(3.0, 1.0);
    sum.add(-2.0, 1.0);
    // Σ|w x| is 5: each rounding is half an ulp of 1 of that.
    let off = |units: f64| 1.0 + units * f64::EPSILON;
    assert!(sum.allows(off(5.0), roundings(2)));
    assert!(!sum.allows(off(6.0), roundings(2)));
    assert!(!sum.allows(off(5.0), roundings(1)));
    let lost = Roundings {
        underflows: 2,
        grid: 6.0 * f64::EPSILON,
        ..roundings(0)
    };
    assert!(sum.allows(off(-6.0), lost));
    assert!(!sum.allows(off(7.0), lost));
}

#[test]
fn a_term_that_is_left_out_is_noticed() {
    let mut next = numbers(3, 2.0, 4);
    let mut vector = || (0..1403).map(|_| next()).collect::<Vec<_>>();
    let (w, x) = (vector(), vector());
    let got = dot(Level::best(), &w, &x);
    let bound = roundings(1403u32.div_ceil(16) + 4);
    for left_out in [None, Some(0), Some(700), Some(1402)] {
        let mut sum = Sum::new();
        for (i, (&w, &x)) in w.iter().zip(&x).enumerate() {
            if Some(i) != left_out {
                sum.add(w, x);
            }
        }
        assert_eq!(sum.allows(got, bound), left_out.is_none(), "{left_out:?}");
    }
}

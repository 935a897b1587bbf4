//! Every operation on numbers of every kind: the bits of the scalar level at every level, and sums within the bound
//! that their roundings give.
#![no_main]

mod exact;
mod kernel;
mod operands;
mod pools;
mod random;

use arbitrary::{Result, Unstructured};
use context_patch::tensor::{Dtype, Storage};
use kernel::{Case, Op, Weights};
use libfuzzer_sys::fuzz_target;
use operands::{Operands, Special};
use pools::MOST;
use random::lengthened;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(case) = case(&mut Unstructured::new(&lengthened(bytes))) {
        case.check();
    }
});

fn case(u: &mut Unstructured<'_>) -> Result<Case> {
    let dtype = *u.choose(&[Dtype::F64, Dtype::F32, Dtype::Bf16])?;
    let op = op(u)?;
    let operands = Operands {
        seed: u.arbitrary()?,
        exponents: exponents(u, dtype)?,
        special: (0..u.int_in_range(0..=8)?)
            .map(|_| Ok((u.arbitrary::<u16>()?.into(), special(u)?, u.arbitrary()?)))
            .collect::<Result<_>>()?,
        start: u.int_in_range(0..=9)?,
    };
    Ok(Case {
        op,
        dtype,
        threads: u.int_in_range(1..=MOST)?,
        operands,
    })
}

fn op(u: &mut Unstructured<'_>) -> Result<Op> {
    let length = u.int_in_range(1..=100)?;
    Ok(match u.int_in_range(0..=11)? {
        0 => Op::Dot { length: 7 * length },
        1 => Op::RmsNorm {
            vectors: u.int_in_range(1..=5)?,
            length,
        },
        2 => Op::Softmax { length },
        3 => Op::GeluTanh {
            // At times enough for several threads.
            length: if u.ratio(1, 16)? {
                400 * length
            } else {
                length
            },
        },
        4 | 5 => Op::WeightedSums {
            rows: u.int_in_range(1..=9)?,
            keys: length,
            unused: u.int_in_range(0..=9)?,
            width: u.int_in_range(1..=300)?,
        },
        6 | 7 => Op::Scores {
            rows: u.int_in_range(1..=9)?,
            keys: length,
            first: u.int_in_range(0..=3)?,
            head_dim: u.int_in_range(1..=100)?,
        },
        8 => Op::Rotate {
            half: length,
            position: u.arbitrary::<u16>()?.into(),
        },
        _ => matmul(u, length)?,
    })
}

fn matmul(u: &mut Unstructured<'_>, length: usize) -> Result<Op> {
    let mut up_to = |most| u.int_in_range(1..=most);
    let (tokens, rows, cols) = match up_to(64)? {
        1..=36 => (up_to(40)?, up_to(40)?, length),
        // Sums of several stretches.
        37..=60 => (up_to(40)?, up_to(20)?, 15 * length),
        // More tokens than a piece of work takes.
        61..=63 => (200 + up_to(120)?, up_to(40)?, length),
        // More activations than a cache holds.
        _ => (130 + up_to(170)?, up_to(5)?, 4000 + 15 * length),
    };
    let (bf16, f32) = (Storage::Bf16, Storage::F32);
    let storages = [bf16, bf16, f32, Storage::F16, Storage::F64];
    let weights = match u.int_in_range(0..=3)? {
        0 | 1 => Weights::Typed,
        2 => Weights::Stored(*u.choose(&storages)?, u.int_in_range(0..=9)?),
        _ => Weights::Stored(*u.choose(&Storage::QUANTISED)?, u.int_in_range(0..=9)?),
    };
    // Rows are whole blocks.
    let cols = match weights {
        Weights::Stored(storage, _) => cols.next_multiple_of(storage.block().numbers),
        Weights::Typed => cols,
    };
    Ok(Op::Matmul {
        tokens,
        rows,
        cols,
        weights,
    })
}

/// Exponents whose products are ordinary, too small, too large, or everything.
fn exponents(u: &mut Unstructured<'_>, dtype: Dtype) -> Result<(i32, i32)> {
    let (lowest, highest) = match dtype {
        Dtype::F64 => (-1074, 1024),
        Dtype::F32 => (-149, 128),
        Dtype::Bf16 => (-133, 128),
    };
    let middle = u.int_in_range(-8..=8)?;
    Ok(match u.int_in_range(0..=5)? {
        0 | 1 => (middle - 4, middle + 4),
        2 => (lowest / 2 + middle - 4, lowest / 2 + middle + 4),
        3 => (highest / 2 + middle - 4, highest / 2 + middle + 4),
        4 => (lowest, lowest + 20 + middle),
        _ => (lowest, highest),
    })
}

fn special(u: &mut Unstructured<'_>) -> Result<Special> {
    use Special::{Denormal, Infinity, Largest, Nan, SmallestNormal, Zero};
    // What goes on as a number more often than what makes everything after it NaN.
    let numbers = [Zero, SmallestNormal, Denormal];
    let all = [Zero, Largest, SmallestNormal, Denormal, Infinity, Nan];
    match u.arbitrary()? {
        true => u.choose(&numbers).copied(),
        false => u.choose(&all).copied(),
    }
}
